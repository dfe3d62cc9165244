"""TeaCache: steps whose timestep differs little from the last ones reuse what the transformer's blocks then added.

Liu et al. 2024, "Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model". The relative change of the
timestep embedding, rescaled by a polynomial that is fitted to a model, foretells how much the blocks' output changes;
once the foretold changes add up to a threshold, the blocks run again.

`plan.caching` has the polynomials, and ``python -m skyreels_v2_infer.run.calibrate`` fits one to a checkpoint.

B batch, F latent frames, S tokens of a frame, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from skyreels_v2_infer.plan.caching import DEGREE

if TYPE_CHECKING:  # the coefficients are looked up before torch is needed
    import torch

RETAINED = 5  # first steps that are always computed with `use_ret_steps`


@dataclass(frozen=True)
class TeaCache:
    """Settings; `branch` makes what carries state.

    Attributes:
        threshold: sum of foretold relative changes at which the blocks run again; 0: in every step.
        coefficients: of the polynomial, highest degree first.
        use_ret_steps: measures the change on the projected embedding, and always computes the first 5 steps instead of
            the first and the last.
    """

    threshold: float
    coefficients: tuple[float, ...]
    use_ret_steps: bool = False

    def branch(self, steps: int) -> FeatureCache:
        """For one window and one branch of guidance: `steps` calls of the model."""
        return FeatureCache(self, steps)


class FeatureCache:
    """Decides step by step whether the blocks run, and remembers what they added; to be called around the blocks.

    Attributes:
        computed: for each step so far, whether the blocks ran.
    """

    def __init__(self, settings: TeaCache, steps: int):
        self.settings, self.steps = settings, steps
        self.computed: list[bool] = []
        self._sum = 0.0
        self._signal: torch.Tensor | None = None
        self._added: torch.Tensor | None = None

    def __call__(self, tokens: torch.Tensor, time: torch.Tensor, modulation: torch.Tensor, run) -> torch.Tensor:
        """tokens ``[B, F, S, D]``; time ``[B, F or 1, D]`` and modulation ``[B, F or 1, 6, D]``, of whole frames."""
        signal = modulation if self.settings.use_ret_steps else time
        if self._must_run(signal, tokens.shape):
            self._sum = 0.0
            self._added = None  # its memory is needed while the blocks run
            done = run(tokens)
            self._added = done - tokens
            self.computed.append(True)
        else:
            done = tokens + self._added
            self.computed.append(False)
        self._signal = signal
        return done

    def _must_run(self, signal: torch.Tensor, shape: torch.Size) -> bool:
        step = len(self.computed)
        if self._added is None or self._added.shape != shape:  # another block of frames has begun
            return True
        if step < (RETAINED if self.settings.use_ret_steps else 1):
            return True
        if not self.settings.use_ret_steps and step == self.steps - 1:
            return True
        self._sum += foretold(change_of_moving(signal, self._signal), self.settings.coefficients)
        return not self._sum < self.settings.threshold


def relative_change(new: torch.Tensor, old: torch.Tensor) -> float:
    """Mean absolute difference, relative to the old values."""
    return float((new - old).abs().mean() / old.abs().mean())


def change_of_moving(new: torch.Tensor, old: torch.Tensor) -> float:
    """`relative_change` of the frames that change at all; ``[B, F or 1, ...]``.

    Frames that are held, done or not begun would thin it out to less than the polynomial was fitted on, and the blocks
    of a window that goes on from many frames would hardly ever run.
    """
    difference = (new - old).abs().flatten(2)
    moving = difference.sum(dim=2, keepdim=True) > 0
    return float(difference.sum() / (old.abs().flatten(2) * moving).sum().clamp_min(1e-12))


def foretold(change: float, coefficients: Sequence[float]) -> float:
    """The polynomial, by Horner; below 0, where it only swings between the points of its fit, 0."""
    value = 0.0
    for coefficient in coefficients:
        value = value * change + coefficient
    return max(0.0, value)


# Fitting the polynomial


class Recorder:
    """Runs the blocks in every step and notes how much changes; to be called around the blocks, as a `FeatureCache`.

    Attributes:
        changes: for every step but the first: of the time embedding, of its projection, and of what the blocks add.
    """

    def __init__(self):
        self.changes: list[tuple[float, float, float]] = []
        self._before: tuple[torch.Tensor, ...] | None = None

    def __call__(self, tokens: torch.Tensor, time: torch.Tensor, modulation: torch.Tensor, run) -> torch.Tensor:
        done = run(tokens)
        now = time, modulation, (done - tokens).float()
        if self._before is not None:
            pairs = zip(now, self._before, strict=True)
            self.changes.append(tuple(relative_change(new, old) for new, old in pairs))
        self._before = now
        return done


def fit(changes: Sequence[tuple[float, float, float]]) -> dict[str, list[float]]:
    """What a `FILE` holds: polynomials from a change of the embedding to the change of what the blocks add."""
    import numpy as np

    time, modulation, added = np.array(changes).T
    return {
        "coefficients": np.polyfit(time, added, DEGREE).tolist(),
        "ret_steps_coefficients": np.polyfit(modulation, added, DEGREE).tolist(),
    }
