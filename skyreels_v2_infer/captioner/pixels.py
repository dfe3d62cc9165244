"""Frames -> the input of Qwen2.5-VL's vision part, as transformers' processor makes it, but without torchvision.

Sizes: patch 14, two frames a patch, 2x2 patches a token. 16 frames of 420x360 are resized to 420x364 and make a grid of
8x30x26 = 6240 patches and 1560 tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

PATCH, TEMPORAL, MERGE = 14, 2, 2
FACTOR = PATCH * MERGE
# Mean and standard deviation of CLIP's training images, by channel, for pixels in 0..1.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def grid_of(frames: int, height: int, width: int) -> tuple[int, int, int]:
    """(time, height, width) in patches of a video: each side rounded to a whole number of tokens."""
    rows, columns = (max(1, round(side / FACTOR)) * MERGE for side in (height, width))
    return (frames + 1) // TEMPORAL, rows, columns


def tokens_of(grid: tuple[int, int, int]) -> int:
    """How many tokens the language model reads for a grid."""
    time, rows, columns = grid
    return time * rows * columns // MERGE**2


def patches_of(frames: np.ndarray) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Frames, uint8 RGB ``[T, H, W, 3]`` -> patches, float32 ``[t*h*w, 3*2*14*14]``, and their grid (t, h, w).

    The four patches of a token stand together. An odd number of frames is filled up with the last one.
    """
    import numpy as np
    from PIL import Image

    grid = grid_of(len(frames), *frames.shape[1:3])
    time, rows, columns = grid
    size = columns * PATCH, rows * PATCH
    pixels = np.empty((time * TEMPORAL, size[1], size[0], 3), np.float32)
    for index in range(len(pixels)):
        picture = Image.fromarray(frames[min(index, len(frames) - 1)])
        pixels[index] = picture if picture.size == size else picture.resize(size, Image.Resampling.BICUBIC)
    pixels = (pixels / 255 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    pixels = pixels.reshape(time, TEMPORAL, rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH, 3)
    #                       t     T         h              p      y      w                 q      x      c
    pixels = pixels.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)  # t h w p q c T y x
    return np.ascontiguousarray(pixels.reshape(time * rows * columns, -1), np.float32), grid
