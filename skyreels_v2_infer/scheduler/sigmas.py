"""The noise levels that a denoising run passes through."""

import numpy as np

FIRST_SIGMA = 0.999  # training timesteps end at 999 of 1000
TRAIN_TIMESTEPS = 1000
MAX_SHIFT = 1000  # far beyond use; from a million on the first level rounds to 1, where no step is defined


def flow_sigmas(num_steps: int, shift: float) -> np.ndarray:
    """Noise levels of a flow-matching run, the last of them 0.

    An even grid from 0.999 down, without its last point, is bent towards noise by ``shift * s / (1 + (shift - 1) * s)``
    (Esser et al. 2024, "Scaling Rectified Flow Transformers", equation 23).

    Args:
        num_steps: denoising steps, at least 1.
        shift: above 0, below 1000; 1 leaves the grid even.

    Returns:
        float32 ``[num_steps + 1]``, falling from at most 1 to 0.
    """
    if num_steps < 1:
        raise ValueError(f"num_inference_steps {num_steps}: must be at least 1")
    if not 0 < shift < MAX_SHIFT:
        raise ValueError(f"shift {shift}: must be above 0 and below {MAX_SHIFT}")
    even = np.linspace(FIRST_SIGMA, 0.0, num_steps + 1)
    return (shift * even / (1 + (shift - 1) * even)).astype(np.float32)


def flow_timesteps(sigmas: np.ndarray) -> np.ndarray:
    """What the model is told at each level but the last: 1000 sigma, cut to integers; int64 ``[num_steps]``.

    Neighbours can be equal when there are very many steps, so a step is known by its index, never by its timestep.
    """
    return (sigmas[:-1] * np.float32(TRAIN_TIMESTEPS)).astype(np.int64)
