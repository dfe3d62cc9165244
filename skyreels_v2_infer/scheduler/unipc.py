"""UniPC (Zhao et al. 2023, arXiv 2302.04867) for flow matching: order 2, B(h) = e^h - 1, predicting the data.

With ``alpha = 1 - sigma`` and ``lambda = log(alpha / sigma)``, corrector and predictor of a step are sums of six known
tensors. Their coefficients depend on the step alone, so they stand in a table, and frames that stand at different steps
take them together.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from skyreels_v2_infer.scheduler.sigmas import flow_sigmas, flow_timesteps


@dataclass(frozen=True)
class StepOutput:
    prev_sample: torch.Tensor


def _predictor(lam: np.ndarray, sigma: np.ndarray, k: int, order: int) -> tuple[float, float, float]:
    """Weights of the sample, of this data estimate and of the one before; from level k to k + 1 (UniP, algorithm 2)."""
    if sigma[k + 1] == 0:  # the end is the data, which an order above 1 would extrapolate
        return 0.0, 1.0, 0.0
    h = lam[k + 1] - lam[k]
    scale = -(1 - sigma[k + 1]) * np.expm1(-h)
    if order == 1:
        return sigma[k + 1] / sigma[k], scale, 0.0
    slope = 0.5 * scale * h / (lam[k - 1] - lam[k])
    return sigma[k + 1] / sigma[k], scale - slope, slope


def _corrector(lam: np.ndarray, sigma: np.ndarray, k: int, order: int) -> tuple[float, float, float, float]:
    """Weights of the last sample, its data estimate, the estimate before it and the new one, at level k (UniC)."""
    h = lam[k] - lam[k - 1]
    base = np.expm1(-h)
    scale = -(1 - sigma[k]) * base
    if order == 1:
        return sigma[k] / sigma[k - 1], 0.5 * scale, 0.0, 0.5 * scale
    ratio = (lam[k - 2] - lam[k - 1]) / h
    phi_2 = base / -h - 1
    phi_3 = phi_2 / -h - 0.5
    older, newer = np.linalg.solve([[1.0, 1.0], [ratio, 1.0]], [phi_2 / base, 2 * phi_3 / base])
    return sigma[k] / sigma[k - 1], scale * (1 - older / ratio - newer), scale * older / ratio, scale * newer


def unipc_coefficients(sigmas: np.ndarray) -> np.ndarray:
    """Float64 ``[N, 8]``; of each step: sigma, four weights of the corrector, three of the predictor.

    The first step has no corrector; the first and the last step are of order 1.
    """
    sigma = sigmas.astype(np.float64)
    with np.errstate(divide="ignore"):
        lam = np.log1p(-sigma) - np.log(sigma)
    num_steps = len(sigma) - 1
    orders = [min(2, k + 1) for k in range(num_steps)]  # of the last one nothing is left
    rows = []
    for k, order in enumerate(orders):
        corrector = _corrector(lam, sigma, k, orders[k - 1]) if k else (0.0, 0.0, 0.0, 0.0)
        rows.append((sigma[k], *corrector, *_predictor(lam, sigma, k, order)))
    return np.array(rows)


class FlowUniPCMultistepScheduler:
    """The solver, with the published interface for one step shared by all, and one that has a step per frame.

    Everything is float32. A step is an index and never looked up by its timestep, of which very long runs have
    duplicates.

    Attributes:
        timesteps: int64 ``[n]``, what the model is told.
        sigmas: float32 ``[n + 1]``, the noise levels; the last is 0.
    """

    def __init__(self, num_train_timesteps: int = 1000, shift: float = 1.0, **_published):
        if num_train_timesteps != 1000:
            raise ValueError(f"num_train_timesteps {num_train_timesteps}: the models were trained on 1000")
        self.shift = shift
        self.timesteps = self.sigmas = None

    def set_timesteps(self, num_inference_steps: int, device=None, shift: float | None = None) -> None:
        """Lays out a run of `num_inference_steps` steps; also forgets the state of an earlier run.

        Args:
            num_inference_steps: at least 1.
            device: where `timesteps` go.
            shift: above 0, see `flow_sigmas`; None: the one given at construction.
        """
        sigmas = flow_sigmas(num_inference_steps, self.shift if shift is None else shift)
        self.num_inference_steps = num_inference_steps
        self.sigmas = torch.from_numpy(sigmas)
        self._host_timesteps = flow_timesteps(sigmas)
        self.timesteps = torch.from_numpy(self._host_timesteps).to(device)
        self._table = unipc_coefficients(sigmas).astype(np.float32)
        self._state = None
        self._calls = 0

    def step(self, model_output: torch.Tensor, timestep, sample: torch.Tensor, return_dict: bool = True, **_published):
        """The next step of the whole sample, as published; nothing is random here, so a `generator` has no part in it.

        Args:
            model_output: velocity at `sample`, of the same shape (any).
            timestep: ``timesteps[k]`` at the k-th call; anything else is refused, since the solver would be misused.
            sample: the current latents.

        Returns:
            a tuple of the next sample, or with `return_dict` an object that has it as `prev_sample`.
        """
        self._require_timesteps()
        k = self._calls
        if k >= self.num_inference_steps or int(timestep) != self._host_timesteps[k]:
            due = f"timestep {self._host_timesteps[k]}" if k < self.num_inference_steps else "no further step"
            raise ValueError(f"timestep {int(timestep)}: after {k} calls {due} is due; set_timesteps starts anew")
        self._calls += 1
        out = sample.float().clone()
        weights = torch.from_numpy(self._table[k]).to(sample.device)
        self._advance(model_output, out, self._state_like(out), weights, first=k == 0)
        out = out.to(sample.dtype)
        return StepOutput(out) if return_dict else (out,)

    def step_frames(
        self, model_output: torch.Tensor, steps: np.ndarray, sample: torch.Tensor, update: np.ndarray
    ) -> torch.Tensor:
        """One step of the frames to `update`, each at its own step.

        The plan is host data, so choosing frames and weights never waits for the device.

        Args:
            model_output: velocity ``[B, C, F, H, W]``; what lies behind the last frame to update may be left out.
            steps: int ``[F]``; each frame has to take its steps in order, from 0 on.
            sample: float32 ``[B, C, F, H, W]``, changed in place.
            update: bool ``[F]``.

        Returns:
            `sample`.
        """
        self._require_timesteps()
        state = self._state_like(sample)
        for start, end in _runs(update, steps == 0):
            weights = torch.from_numpy(self._table[steps[start:end]].T.copy()).to(
                sample.device, non_blocking=sample.is_cuda
            )
            velocity, latents, *history = (t[:, :, start:end] for t in (model_output, sample, *state))
            self._advance(velocity, latents, history, weights[:, :, None, None], first=steps[start] == 0)
        return sample

    def _require_timesteps(self) -> None:
        if self.sigmas is None:
            raise ValueError("set_timesteps: has to be called before the first step")

    def _state_like(self, sample: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The last corrected sample and the last two data estimates, the newer first."""
        if self._state is None:
            self._state = tuple(torch.zeros_like(sample) for _ in range(3))
        return self._state

    @staticmethod
    def _advance(velocity, sample, state, weights, first: bool) -> None:
        """Corrects and advances `sample` and moves `state` on, all in place; weights ``[8, ...]`` broadcast."""
        corrected, newer, older = state
        sigma, c_last, c_newer, c_older, c_now, p_sample, p_now, p_newer = weights
        data = torch.addcmul(sample, velocity.float(), sigma, value=-1)
        if first:
            corrected.copy_(sample)
        else:
            corrected.mul_(c_last).addcmul_(newer, c_newer).addcmul_(older, c_older).addcmul_(data, c_now)
        torch.mul(corrected, p_sample, out=sample)
        sample.addcmul_(data, p_now).addcmul_(newer, p_newer)
        older.copy_(newer)
        newer.copy_(data)


def _runs(update: np.ndarray, first: np.ndarray) -> list[tuple[int, int]]:
    """Stretches of neighbouring frames to update which all, or none of which, stand at their first step."""
    kind = np.where(update, 1 + first, 0)
    edges = [0, *(np.flatnonzero(np.diff(kind)) + 1), len(kind)]
    return [(int(a), int(b)) for a, b in pairwise(edges) if kind[a]]
