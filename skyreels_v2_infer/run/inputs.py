"""Images and videos of a run: each is decoded and fitted once, before the model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from skyreels_v2_infer.cli.settings import GenerateSettings
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.media.ffmpeg import QUALITY
from skyreels_v2_infer.media.images import read_image
from skyreels_v2_infer.media.read import decode_prefix, probe_video, read_video
from skyreels_v2_infer.media.statistics import Look
from skyreels_v2_infer.media.write import VideoWriter
from skyreels_v2_infer.plan.inputs import Inputs
from skyreels_v2_infer.run.files import fingerprint

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Source:
    """The video that is continued.

    Attributes:
        frames: number of its frames.
        fps: its mean rate; 0: not known.
        look: its statistics, first and last frame. segment: the video encoded at the size and rate of the result. Both
            are None if its frames were only counted.
    """

    frames: int
    fps: float
    look: Look | None = None
    segment: Path | None = None


def read_images(settings: GenerateSettings) -> Inputs:
    """The pictures that the settings name, decoded and fitted to the video's size.

    Raises:
        InputError: a file is missing or damaged.
    """
    size = settings.height, settings.width
    images = {
        name: read_image(path, *size, name)
        for name in ("image", "end_image")
        if (path := getattr(settings, name, None)) is not None
    }
    return Inputs(**images)


def count_video(settings: GenerateSettings) -> Source | None:
    """The video that is continued, of which only the length and rate are found; None: there is none.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = getattr(settings, "video_path", None)
    if path is None:
        return None
    found = probe_video(path)
    return Source(found.frames, found.fps)


def decode_video(
    settings: GenerateSettings, spool: Path, check: Callable[[], object]
) -> tuple[Source, np.ndarray] | None:
    """Decodes the video that is continued once, for everything -> it and its newest frames; None: there is none.

    Args:
        spool: folder for the `Source.segment`.
        check: called regularly; raises once the process has to stop.

    Returns:
        the frames: uint8 ``[t, H, W, 3]``, as many as a window can have as history.

    Raises:
        InputError: the file is missing, damaged, or changes while it is read.
    """
    path = getattr(settings, "video_path", None)
    if path is None:
        return None
    size = settings.height, settings.width
    before, look = fingerprint(path), Look()
    with VideoWriter(spool, "prefix", *size, settings.fps, max(settings.quality, QUALITY)) as writer:
        found = decode_prefix(path, *size, settings.base_num_frames, writer, look, check)
    if fingerprint(path) != before:
        raise InputError("video_path", path, "has changed while it was read")
    return Source(found.frames, found.fps, look, writer.path), found.newest


def source_frames(settings: GenerateSettings) -> Iterator[np.ndarray]:
    """The frames of the video that is continued, as `decode_video` reads them, uint8 ``[H, W, 3]``."""
    return read_video(settings.video_path, settings.height, settings.width)
