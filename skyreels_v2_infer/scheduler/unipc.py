"""UniPC (Zhao et al. 2023, arXiv 2302.04867) for flow matching: order 2, B(h) = e^h - 1, predicting the data.

With ``alpha = 1 - sigma`` and ``lambda = log(alpha / sigma)``, corrector and predictor of a step are sums of six known
tensors. Their coefficients depend on the step alone and are tabulated, so that frames at different steps advance in one
call.
"""

from dataclasses import dataclass

import numpy as np
import torch

from skyreels_v2_infer.scheduler.frames import coefficients, stretches
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
    orders = [min(2, k + 1) for k in range(num_steps)]  # `_predictor` takes order 1 for the last
    rows = []
    for k, order in enumerate(orders):
        corrector = _corrector(lam, sigma, k, orders[k - 1]) if k else (0.0, 0.0, 0.0, 0.0)
        rows.append((sigma[k], *corrector, *_predictor(lam, sigma, k, order)))
    return np.array(rows)


class UniPC:
    """See `SOLVERS`. Keeps, in float32, the last corrected sample and the last two data estimates of every frame.

    Args:
        sigmas: float32 ``[N + 1]``, falling to 0.
    """

    stochastic = False

    def __init__(self, sigmas: np.ndarray):
        self._table = unipc_coefficients(sigmas).astype(np.float32)
        self._state = None

    def step_frames(
        self,
        velocity: torch.Tensor,
        steps: np.ndarray,
        sample: torch.Tensor,
        update: np.ndarray,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        state = self._state_like(sample)
        for start, end in stretches(update, steps == 0):
            weights = coefficients(self._table, steps[start:end], sample)
            now, latents, *history = (t[:, :, start:end] for t in (velocity, sample, *state))
            self._advance(now, latents, history, weights, first=steps[start] == 0)
        return sample

    def step_whole(self, velocity: torch.Tensor, k: int, sample: torch.Tensor) -> torch.Tensor:
        """Step `k` of a whole float32 sample of any shape, in place."""
        weights = torch.from_numpy(self._table[k]).to(sample.device)
        self._advance(velocity, sample, self._state_like(sample), weights, first=k == 0)
        return sample

    def _state_like(self, sample: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The last corrected sample and the last two data estimates, the newer first."""
        if self._state is None:
            self._state = tuple(torch.zeros_like(sample) for _ in range(3))
        return self._state

    @staticmethod
    def _advance(velocity, sample, state, weights, first: bool) -> None:
        """Corrects and advances `sample` and updates `state`, all in place; weights ``[8, ...]`` broadcast."""
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


class FlowUniPCMultistepScheduler:
    """`UniPC` with the published interface: `set_timesteps`, then `step` for samples of which all is at one step.

    Everything is float32. A step is an index and never looked up by its timestep, since very long runs have duplicates.

    Attributes:
        timesteps: int64 ``[N]``, what the model gets.
        sigmas: float32 tensor ``[N + 1]``, the noise levels; the last is 0.
    """

    def __init__(self, num_train_timesteps: int = 1000, shift: float = 1.0, **_published):
        if num_train_timesteps != 1000:
            raise ValueError(f"num_train_timesteps {num_train_timesteps}: the models were trained on 1000")
        self.shift = shift
        self.timesteps = self.sigmas = self._solver = None

    def set_timesteps(self, num_inference_steps: int, device=None, shift: float | None = None) -> None:
        """Prepares a run of `num_inference_steps` steps and discards the state of an earlier run.

        Args:
            num_inference_steps: at least 1.
            device: of `timesteps`.
            shift: above 0, see `flow_sigmas`; None: the one given at construction.
        """
        sigmas = flow_sigmas(num_inference_steps, self.shift if shift is None else shift)
        self.num_inference_steps = num_inference_steps
        self.sigmas = torch.from_numpy(sigmas)
        self._host_timesteps = flow_timesteps(sigmas)
        self.timesteps = torch.from_numpy(self._host_timesteps).to(device)
        self._solver = UniPC(sigmas)
        self._calls = 0

    def step(self, model_output: torch.Tensor, timestep, sample: torch.Tensor, return_dict: bool = True, **_published):
        """The next step of the whole sample; UniPC is deterministic, so a `generator` is accepted and not used.

        Args:
            model_output: velocity at `sample`, of the same shape (any).
            timestep: ``timesteps[k]`` at the k-th call.
            sample: the current latents.

        Returns:
            a tuple of the next sample, or with `return_dict` an object that has it as `prev_sample`.

        Raises:
            ValueError: any other timestep, or a step after the last.
        """
        self._require_timesteps()
        k = self._calls
        if k >= self.num_inference_steps or int(timestep) != self._host_timesteps[k]:
            due = f"timestep {self._host_timesteps[k]}" if k < self.num_inference_steps else "no further step"
            raise ValueError(f"timestep {int(timestep)}: after {k} calls {due} is due; set_timesteps starts anew")
        self._calls += 1
        out = self._solver.step_whole(model_output, k, sample.float().clone()).to(sample.dtype)
        return StepOutput(out) if return_dict else (out,)

    def step_frames(
        self, model_output: torch.Tensor, steps: np.ndarray, sample: torch.Tensor, update: np.ndarray
    ) -> torch.Tensor:
        """One step of the frames to update, each at its own step, in place; see `SOLVERS`."""
        self._require_timesteps()
        return self._solver.step_frames(model_output, steps, sample, update)

    def _require_timesteps(self) -> None:
        if self._solver is None:
            raise ValueError("set_timesteps: has to be called before the first step")
