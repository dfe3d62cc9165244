"""Rotary positions in three dimensions (RoFormer, Su et al. 2021; split over time, height and width as in Wan 2.1)."""

import numpy as np
import torch


def _axis_angles(length: int, size: int, theta: float) -> np.ndarray:
    """Angles ``[length, size / 2]`` of one axis that owns ``size`` of a head's channels; float64."""
    frequencies = theta ** (-np.arange(0, size, 2, dtype=np.float64) / size)
    return np.arange(length, dtype=np.float64)[:, None] * frequencies


def rotary_table(frames: int, height: int, width: int, head_size: int, theta: float = 10000.0) -> torch.Tensor:
    """Rotations of every token of a grid, row by row, frame by frame: cosine and sine of each channel pair in turn.

    Height and width own ``2 * (head_size // 6)`` channels each, time the rest. Angles are formed in float64 and
    rounded once.

    Returns:
        float32 ``[frames * height * width, 1, head_size]`` on the CPU.
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
    table = np.exp(1j * angles).astype(np.complex64, order="C")
    return torch.from_numpy(table.view(np.float32).reshape(frames * height * width, 1, head_size))


def rotate(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Turns neighbouring channel pairs of x ``[B, L, H, E]`` by table ``[L, 1, E]``; float32 inside, dtype kept."""
    if torch.compiler.is_compiling():  # which generates no code for complex numbers
        return rotate_real(x, table)
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    turned = pairs * torch.view_as_complex(table.unflatten(-1, (-1, 2)))
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


def rotate_real(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """`rotate` without complex numbers, bit for bit on the CPU: several passes over x, one where they are fused."""
    pairs = x.float().unflatten(-1, (-1, 2))
    cosine, sine = table.unflatten(-1, (-1, 2)).split(1, dim=-1)
    turned = pairs * cosine + pairs.flip(-1) * torch.cat([-sine, sine], dim=-1)
    return turned.flatten(-2).to(x.dtype)
