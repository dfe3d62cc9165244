"""Pictures that tests can tell apart, and how near two are."""

import numpy as np


def scene(height: int, width: int, time: float = 0.0) -> np.ndarray:
    """A smooth picture without symmetries, uint8 [H, W, 3]: sky, a sun that moves with time, darker ground."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    sun = np.exp(-((x - 0.3 - 0.02 * time) ** 2 + (y - 0.2) ** 2) / 0.02)
    channels = [0.3 + 0.5 * sun + 0.2 * x, 0.4 + 0.3 * sun - 0.2 * y, 0.8 - 0.6 * y + 0.1 * np.sin(6 * x)]
    return np.round(np.clip(np.stack(channels, -1), 0, 1) * 255).astype(np.uint8)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((a.astype(float) - b) ** 2), 1e-9)))
