"""Brightness and saturation of frames, and a line about a video whose look drifts or jumps."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

LUMA = (0.2126, 0.7152, 0.0722)  # BT.709: weights of red, green, blue
SAMPLES = 2**14  # pixels of a frame that are measured, on a grid; all if it has fewer
DRIFT, SEAM = 0.1, 0.1  # differences (of 1) above which a line is printed


class Look:
    """Mean brightness and saturation of the frames of a piece, and its first and last frame.

    Attributes:
        frames: how many were added.
        first, last: uint8 ``[H, W, 3]``; None before `add`.
    """

    def __init__(self):
        self.frames = 0
        self._luma = self._chroma = 0.0  # sums over frames of means over pixels, 0..255
        self.first: np.ndarray | None = None
        self.last: np.ndarray | None = None

    def add(self, frames: np.ndarray) -> None:
        """Measures uint8 frames ``[t, H, W, 3]``."""
        import numpy as np

        pixels = sampled(frames)
        count = pixels.shape[1] * pixels.shape[2]
        red, green, blue = (pixels[..., channel] for channel in range(3))
        self._luma += (
            sum(
                weight * int(channel.sum(dtype=np.int64))
                for weight, channel in zip(LUMA, (red, green, blue), strict=True)
            )
            / count
        )
        largest = np.maximum(np.maximum(red, green), blue)
        smallest = np.minimum(np.minimum(red, green), blue)
        self._chroma += int((largest - smallest).sum(dtype=np.int64)) / count
        self.first = frames[0].copy() if self.first is None else self.first
        self.last = frames[-1].copy()
        self.frames += len(frames)

    def figures(self) -> dict[str, float]:
        """brightness: mean luma (BT.709). saturation: mean of largest minus smallest channel. Both 0 to 1."""
        return {
            "brightness": round(self._luma / 255 / self.frames, 4),
            "saturation": round(self._chroma / 255 / self.frames, 4),
        }


def sampled(frames: np.ndarray) -> np.ndarray:
    """Every k-th pixel of ``[t, H, W, 3]`` in both directions: a view with at most about `SAMPLES` pixels per frame."""
    _, height, width, _ = frames.shape
    step = 1
    while (height // step) * (width // step) > SAMPLES:
        step += 1
    return frames[:, step // 2 :: step, step // 2 :: step]


def drift(pieces: list[dict], prefix: int = 0) -> str | None:
    """One line if the look of a video moves away from its first window's, or jumps between two windows.

    Args:
        pieces: as in a manifest.
        prefix: how many of them come before the first window: 1 if a video is continued.
    """
    windows = pieces[prefix:]
    for name in ("brightness", "saturation"):
        begun, ended = windows[0][name], windows[-1][name]
        if abs(ended - begun) > DRIFT:
            return f"{name} moved from {begun:.2f} to {ended:.2f} (of 1) between the first and the last window"
    first = 1 if prefix else 2  # number of the first window that follows on something
    for number, piece in enumerate(windows[first - 1 :], start=first):
        if piece["seam"] > SEAM:
            return f"the picture jumps where window {number} begins (mean difference {piece['seam']:.2f} of 1)"
    return None
