"""Which noise levels training draws: one for a whole clip, or levels that never fall from latent frame to latent frame.

Levels are shares of noise, sigma in 0..1; the model is told 1000 sigma.
"""

from functools import lru_cache

import numpy as np

from skyreels_v2_infer.scheduler.sigmas import FIRST_SIGMA

LEVELS = 64  # rungs of FoPP's ladder; a level is drawn evenly within its rung


def shifted(u, shift: float):
    """Bends levels towards noise (Esser et al. 2024, equation 23), as inference does with its grid."""
    return shift * u / (1 + (shift - 1) * u)


def logit_normal(rng: np.random.Generator, size: int, shift: float) -> np.ndarray:
    """Levels ``[size]``: the logistic function of normal draws (Esser et al. 2024, section 3.1), shifted."""
    return shifted(1 / (1 + np.exp(-rng.normal(size=size))), shift)


@lru_cache
def sequences_from(frames: int, levels: int) -> np.ndarray:
    """``[frames, levels]``: at [n, j], how many sequences of n + 1 levels begin with level j and never fall.

    The dynamic programme of FoPP (SkyReels-V2, section 3.4.2): a sequence that begins with j goes on with one that
    begins with j or more. By symmetry, [n, levels - 1 - j] counts those that end with j. Floats: there are very many.
    """
    counts = np.ones((frames, levels))
    for n in range(1, frames):
        counts[n] = np.cumsum(counts[n - 1][::-1])[::-1]
    return counts


def fopp(rng: np.random.Generator, frames: int, levels: int = LEVELS) -> np.ndarray:
    """Frame-oriented probability propagation: rungs ``[frames]`` from 0 to levels - 1 that never fall.

    A frame and its rung are drawn evenly, then a sequence evenly among all that pass there: so no frame is short of
    any level, as it would be if sequences were drawn evenly or sorted from independent draws.
    """
    rungs = np.empty(frames, dtype=np.int64)
    chosen = rng.integers(frames)
    rungs[chosen] = rng.integers(levels)
    counts = sequences_from(frames, levels)
    for i in range(chosen + 1, frames):
        weights = counts[frames - 1 - i, rungs[i - 1] :]
        rungs[i] = rungs[i - 1] + rng.choice(len(weights), p=weights / weights.sum())
    for i in range(chosen - 1, -1, -1):
        weights = counts[i, ::-1][: rungs[i + 1] + 1]
        rungs[i] = rng.choice(len(weights), p=weights / weights.sum())
    return rungs


def fopp_levels(rng: np.random.Generator, frames: int, shift: float) -> np.ndarray:
    """Levels ``[frames]``, 0..1, that never fall."""
    rungs = fopp(rng, frames)
    within = rng.random(frames)
    same = np.flatnonzero(np.diff(rungs) == 0) + 1  # frames on the rung of the one before stand where that stands
    for i in same:
        within[i] = within[i - 1]
    return shifted((rungs + within) / LEVELS, shift)


def even(rng: np.random.Generator, shift: float) -> np.ndarray:
    """One level ``[1]``, as likely at one place of inference's grid as at another."""
    return shifted(rng.uniform(0, FIRST_SIGMA, 1), shift)


def staircase(rng: np.random.Generator, frames: int, shift: float, block: int, given: int = 0) -> np.ndarray:
    """Levels ``[frames]`` as a row of the AD schedule has them: 0 where a block is done, pure noise where it waits.

    `given`: frames before these; blocks are counted from the first of all.

    FoPP hardly ever draws such rows, in which one block of `block` frames is on its way and all later ones are noise.
    """
    lag = rng.uniform(0.04, 0.6)
    rung = np.arange(given, given + frames) // block - given // block
    first = rng.uniform(-lag * rung[-1], 1)
    u = np.clip(first + lag * rung, 0, FIRST_SIGMA)
    return shifted(u, shift)
