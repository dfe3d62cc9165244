"""Rotary positions in three dimensions (RoFormer, Su et al. 2021; split over time, height and width as in Wan 2.1)."""

import numpy as np
import torch


def _axis_angles(length: int, size: int, theta: float) -> np.ndarray:
    """Angles ``[length, size / 2]`` of one axis that owns ``size`` of a head's channels; float64."""
    frequencies = theta ** (-np.arange(0, size, 2, dtype=np.float64) / size)
    return np.arange(length, dtype=np.float64)[:, None] * frequencies


def rotary_table(frames: int, height: int, width: int, head_size: int, theta: float = 10000.0) -> torch.Tensor:
    """Unit rotations of every token of a grid, row by row, frame by frame.

    Height and width own ``2 * (head_size // 6)`` channels each, time the rest. Angles are formed in float64 and
    rounded once.

    Returns:
        complex64 ``[frames * height * width, 1, head_size / 2]`` on the CPU.
    """
    side = 2 * (head_size // 6)
    sizes = (head_size - 2 * side, side, side)
    axes = [_axis_angles(n, size, theta) for n, size in zip((frames, height, width), sizes, strict=True)]
    grid = (frames, height, width)
    angles = np.concatenate(
        [
            np.broadcast_to(axes[0][:, None, None], (*grid, sizes[0] // 2)),
            np.broadcast_to(axes[1][None, :, None], (*grid, sizes[1] // 2)),
            np.broadcast_to(axes[2][None, None, :], (*grid, sizes[2] // 2)),
        ],
        axis=-1,
    )
    table = np.exp(1j * angles).astype(np.complex64)
    return torch.from_numpy(table.reshape(frames * height * width, 1, head_size // 2))


def rotate(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Turns neighbouring channel pairs of x ``[B, L, H, E]`` by table ``[L, 1, E/2]``; float32 inside, dtype kept."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table).flatten(-2).to(x.dtype)
