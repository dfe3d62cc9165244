"""Multistep consistency sampling (Song et al. 2023, algorithm 1; Luo et al. 2023, "Latent Consistency Models").

Each step estimates the data, ``x - sigma * velocity``, and brings the estimate to the next noise level with fresh
noise. For models that were distilled to it: their estimate is already a sample at every level. With any other model the
estimate is a mean over samples, and more steps do not lead to the solution of the flow.
"""

import numpy as np
import torch

from skyreels_v2_infer.scheduler.frames import coefficients, stretches


class LCM:
    """See `SOLVERS`. Keeps no state; every step but a frame's last draws on `noise`.

    Args:
        sigmas: float32 ``[N + 1]``, falling to 0.
    """

    stochastic = True

    def __init__(self, sigmas: np.ndarray):
        sigma, following = sigmas[:-1].astype(np.float64), sigmas[1:].astype(np.float64)
        self._table = np.stack([sigma, 1 - following, following], axis=1).astype(np.float32)

    def step_frames(
        self,
        velocity: torch.Tensor,
        steps: np.ndarray,
        sample: torch.Tensor,
        update: np.ndarray,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if noise is None:
            raise ValueError(
                f"noise: must be standard normal {list(sample.shape)}, since this solver adds it every step"
            )
        for start, end in stretches(update):
            sigma, keep, add = coefficients(self._table, steps[start:end], sample)
            latents = sample[:, :, start:end]
            latents.addcmul_(velocity[:, :, start:end].float(), sigma, value=-1).mul_(keep)
            latents.addcmul_(noise[:, :, start:end].to(latents), add)
        return sample
