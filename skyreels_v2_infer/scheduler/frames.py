"""What every solver needs to advance latent frames that are at different steps."""

from itertools import pairwise

import numpy as np
import torch


def stretches(update: np.ndarray, kind: np.ndarray | None = None) -> list[tuple[int, int]]:
    """Ranges ``(start, end)`` of neighbouring frames to update.

    Args:
        update: bool ``[F]``.
        kind: bool ``[F]``; frames that differ in it come in different ranges.
    """
    label = np.where(update, 1 if kind is None else 1 + kind, 0)
    edges = [0, *(np.flatnonzero(np.diff(label)) + 1), len(label)]
    return [(int(a), int(b)) for a, b in pairwise(edges) if label[a]]


def coefficients(table: np.ndarray, steps: np.ndarray, sample: torch.Tensor) -> torch.Tensor:
    """The rows of a float32 table ``[N, K]`` for the steps of some frames, on the sample's device.

    The table is host data and the copy does not wait for the device.

    Returns:
        float32 ``[K, frames, 1, 1]``; each of the K broadcasts over ``[B, C, frames, H, W]``.
    """
    rows = torch.from_numpy(table[steps].T.copy())
    return rows.to(sample.device, non_blocking=sample.is_cuda)[:, :, None, None]
