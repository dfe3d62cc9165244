"""The noise levels that a denoising run passes through."""

from collections.abc import Sequence

import numpy as np

from skyreels_v2_infer.errors import InputError

FIRST_SIGMA = 0.999  # training timesteps end at 999 of 1000
TRAIN_TIMESTEPS = 1000
MAX_SHIFT = 1000  # far beyond use; from a million on, the first levels round to 1 and no longer fall


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


def check_sigmas(sigmas: Sequence[float]) -> np.ndarray:
    """Noise levels that a user gives, as distilled models publish them (``1 0.9375 0.8333 0.625``).

    Args:
        sigmas: falling, each above 0 and at most 1; a final 0 is appended where there is none.

    Returns:
        float32 ``[N + 1]``, falling to 0, like `flow_sigmas`.

    Raises:
        InputError: names the flag, the list and what is legal.
    """
    legal = "must be noise levels that fall, each above 0 and at most 1, such as 1 0.9375 0.8333 0.625"
    shown = " ".join(map(str, sigmas))
    try:
        levels = np.array([float(sigma) for sigma in sigmas], dtype=np.float32)
    except (TypeError, ValueError):
        raise InputError("sigmas", shown, legal) from None
    if len(levels) > 1 and levels[-1] == 0:
        levels = levels[:-1]
    if len(levels) == 0 or not (np.all(levels > 0) and np.all(levels <= 1) and np.all(np.diff(levels) < 0)):
        if len(levels) and np.all(levels > 0) and levels[0] > 1:
            legal += f"; timesteps, as these look like, are levels times {TRAIN_TIMESTEPS}"
        raise InputError("sigmas", shown, legal)
    return np.append(levels, np.float32(0))


def flow_timesteps(sigmas: np.ndarray) -> np.ndarray:
    """The timestep that the model gets at each level but the last: 1000 sigma, cut to integers; int64 ``[num_steps]``.

    Neighbours can be equal when there are very many steps, so a step is identified by its index, never by its timestep.
    """
    return (sigmas[:-1] * np.float32(TRAIN_TIMESTEPS)).astype(np.int64)
