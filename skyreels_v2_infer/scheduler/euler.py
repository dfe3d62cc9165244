"""Euler's method for flow matching, order 1: ``x + (next sigma - sigma) * velocity``. Few-step models expect it."""

import numpy as np
import torch

from skyreels_v2_infer.scheduler.frames import coefficients, stretches


class Euler:
    """See `SOLVERS`. Keeps no state.

    Args:
        sigmas: float32 ``[N + 1]``, falling to 0.
    """

    stochastic = False

    def __init__(self, sigmas: np.ndarray):
        self._table = np.diff(sigmas.astype(np.float64)).astype(np.float32)[:, None]

    def step_frames(
        self,
        velocity: torch.Tensor,
        steps: np.ndarray,
        sample: torch.Tensor,
        update: np.ndarray,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        for start, end in stretches(update):
            (delta,) = coefficients(self._table, steps[start:end], sample)
            sample[:, :, start:end].addcmul_(velocity[:, :, start:end].float(), delta)
        return sample
