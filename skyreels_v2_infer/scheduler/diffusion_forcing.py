"""The adaptive-difference (AD) schedule: in which iteration which frame is denoised by which step.

SkyReels-V2 (Chen et al. 2025), section 3.4, after Diffusion Forcing (Chen et al. 2024): blocks of frames are denoised
together, each `ar_step` steps behind the block before it.
"""

from dataclasses import dataclass

import numpy as np

NOISE_TIMESTEP = 999  # what a frame that has not started shows
MOST_CELLS = 2_000_000  # rows times frames of a schedule


@dataclass(frozen=True)
class Schedule:
    """R rows (model iterations) over F latent frames.

    Attributes:
        timesteps: int64 ``[R, F]``, the timestep that the model gets for each frame.
        steps: int64 ``[R, F]``, the solver step at which a frame stands (where `update` holds).
        update: bool ``[R, F]``, whether the frame takes this step in this row.
    """

    timesteps: np.ndarray
    steps: np.ndarray
    update: np.ndarray

    def __len__(self) -> int:
        return len(self.timesteps)

    def reach(self, block_frames: int | None) -> np.ndarray:
        """int ``[R]``: how many leading frames a row has to compute.

        All of them; with block-causal attention only those up to the last block that the row updates, since nothing
        sees the blocks behind it.

        Args:
            block_frames: latent frames of such a block; None: every frame sees every other.
        """
        rows, frames = self.update.shape
        if block_frames is None:
            return np.full(rows, frames)
        last = frames - 1 - self.update[:, ::-1].argmax(axis=1)  # every row updates some frame
        return np.minimum((last // block_frames + 1) * block_frames, frames)

    @property
    def num_steps(self) -> int:
        """Steps that every frame takes, N."""
        return int(self.steps.max()) + 1

    def at_ends(self, first: float, last: int) -> np.ndarray:
        """bool ``[R]``: rows in which a frame takes one of its first or last steps.

        Args:
            first: share of the N steps, rounded down, but at least one.
            last: number of steps.
        """
        begun = max(1, int(first * self.num_steps))
        ends = (self.steps < begun) | (self.steps >= self.num_steps - last)
        return (self.update & ends).any(axis=1)


def held_frames(num_frames: int, held: int | np.ndarray) -> np.ndarray:
    """`held` as a bool per frame; an int counts leading frames."""
    mask = np.arange(num_frames) < held if np.ndim(held) == 0 else np.asarray(held, dtype=bool)
    if mask.shape != (num_frames,) or (np.ndim(held) == 0 and not 0 <= held <= num_frames):
        raise ValueError(f"held {held}: must be 0..{num_frames} leading frames or a bool for each of {num_frames}")
    return mask


def schedule_rows(num_steps: int, blocks: int, ar_step: int) -> int:
    """Rows of a schedule in which so many blocks are denoised."""
    return num_steps + min(ar_step, num_steps) * (blocks - 1) if blocks else 0


def ad_schedule(
    num_frames: int,
    timesteps: np.ndarray,
    ar_step: int = 0,
    held: int | np.ndarray = 0,
    causal_block_size: int = 1,
) -> Schedule:
    """Rows in which every frame that is not held takes each of the N steps once, in order.

    Blocks start at frame 0. A block that has frames to denoise follows the one before it at a distance of
    ``min(ar_step, N)`` rows; the last block may be short; frames that are given inside a block are held while the
    rest of that block is denoised.

    Args:
        num_frames: latent frames F, at least 1.
        timesteps: int64 ``[N]``, falling.
        ar_step: rows between a block and the next; 0 denoises all frames together.
        held: frames that are given and never updated: a count of leading frames, or a bool ``[F]``.
        causal_block_size: frames in a block.

    Returns:
        a `Schedule` of ``N + min(ar_step, N) * (blocks to denoise - 1)`` rows, or of none if every frame is held.
    """
    for name, value, least in (
        ("num_frames", num_frames, 1),
        ("ar_step", ar_step, 0),
        ("causal_block_size", causal_block_size, 1),
    ):
        if value < least:
            raise ValueError(f"{name} {value}: must be at least {least}")
    timesteps = np.asarray(timesteps, dtype=np.int64)
    num_steps = len(timesteps)
    held = held_frames(num_frames, held)

    block_of = np.arange(num_frames) // causal_block_size
    to_denoise = np.array(sorted(set(block_of[~held].tolist())), dtype=int)  # np.unique imports numpy.ma: slow
    lag = min(ar_step, num_steps)
    num_rows = schedule_rows(num_steps, len(to_denoise), ar_step)

    rank = np.searchsorted(to_denoise, block_of)  # a held frame's is not used
    steps = np.arange(num_rows)[:, None] - lag * rank[None, :]  # below 0: not started; from num_steps on: done
    update = (steps >= 0) & (steps < num_steps) & ~held
    shown = np.concatenate([[NOISE_TIMESTEP], timesteps, [0]])[np.clip(steps, -1, num_steps) + 1]
    return Schedule(
        timesteps=np.where(held, 0, shown),
        steps=np.clip(steps, 0, num_steps - 1),
        update=update,
    )
