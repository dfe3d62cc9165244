"""Which frames of a clip the captioner sees, and in which size. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from skyreels_v2_infer.media.read import VideoInfo, pick_frames, probe_video

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np

COUNT = 16  # frames of a clip
HEIGHT, WIDTH = 420, 360  # to which the published script squashes every frame
MULTIPLE = 28  # two patches of 14 pixels: a token
SAMPLINGS = ("faithful", "better")


@dataclass(frozen=True)
class Sampling:
    """Frames of a clip, in the size in which they are decoded.

    Attributes:
        indices: `COUNT` frame numbers, rising, from 0; a short clip repeats some.
        height, width: pixels.
    """

    indices: tuple[int, ...]
    height: int
    width: int


def faithful_indices(frames: int, count: int = COUNT) -> tuple[int, ...]:
    """The published rule: round((n-1)/16 i), halves to even. The last frame is never among those of 10 or more."""
    return tuple(min(round((frames - 1) / count * i), frames - 1) for i in range(count))


def even_indices(frames: int, count: int = COUNT) -> tuple[int, ...]:
    """Evenly from the first frame to the last."""
    return tuple(round((frames - 1) * i / (count - 1)) for i in range(count))


def size_with_aspect(height: int, width: int) -> tuple[int, int]:
    """(height, width): multiples of `MULTIPLE` with the aspect kept and at most the published number of pixels."""
    scale = math.sqrt(HEIGHT * WIDTH / (height * width))
    tall, wide = (max(MULTIPLE, math.floor(side * scale / MULTIPLE) * MULTIPLE) for side in (height, width))
    most = HEIGHT * WIDTH // MULTIPLE  # of a strip: the other side is at its least
    return min(tall, most // MULTIPLE * MULTIPLE), min(wide, most // MULTIPLE * MULTIPLE)


def sampling_of(info: VideoInfo, mode: str = "faithful", start: int = 0, end: int | None = None) -> Sampling:
    """The frames of a shot from frame `start` to before `end` (None: to the end of the video).

    Args:
        mode: one of `SAMPLINGS`. faithful: as published and as the model was trained. better: the aspect is kept and
            the last frame is among them.
    """
    length = (info.frames if end is None else end) - start
    if mode == "faithful":
        return Sampling(tuple(start + i for i in faithful_indices(length)), HEIGHT, WIDTH)
    return Sampling(tuple(start + i for i in even_indices(length)), *size_with_aspect(info.height, info.width))


def read_frames(path: Path, sampling: Sampling, name: str = "input", check: Callable | None = None) -> np.ndarray:
    """The sampled frames of a video, uint8 RGB ``[16, height, width, 3]``; repeated ones are decoded once.

    Raises:
        InputError: for the flag `name`: the video is damaged, or has changed since its frames were counted.
        OSError: ffmpeg is missing or makes no progress.
    """
    import numpy as np

    wanted = sorted(set(sampling.indices))
    found = dict(zip(wanted, pick_frames(path, wanted, sampling.height, sampling.width, name), strict=True))
    if check is not None:
        check()
    return np.stack([found[index] for index in sampling.indices])


def clip_frames(path: Path, mode: str = "faithful", name: str = "input") -> np.ndarray:
    """The frames that the captioner sees of a video that is one shot, uint8 RGB ``[16, height, width, 3]``."""
    return read_frames(path, sampling_of(probe_video(path, name), mode), name)
