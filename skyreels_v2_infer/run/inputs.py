"""Images and videos of a run: each is decoded and fitted once, before the model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from skyreels_v2_infer.cli.settings import GenerateSettings
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.media.images import read_image
from skyreels_v2_infer.media.read import decode_prefix
from skyreels_v2_infer.media.statistics import Look
from skyreels_v2_infer.media.write import VideoWriter
from skyreels_v2_infer.plan.inputs import Inputs
from skyreels_v2_infer.run.files import fingerprint


@dataclass(frozen=True)
class Source:
    """The video that is continued.

    Attributes:
        frames: number of its frames.
        fps: its mean rate; 0: not known.
        look: its statistics, first and last frame.
        segment: the video encoded at the size and rate of the result; None if its frames were only counted.
    """

    frames: int
    fps: float
    look: Look
    segment: Path | None = None


def read_inputs(
    settings: GenerateSettings, spool: Path | None, check: Callable[[], object]
) -> tuple[Inputs, Source | None]:
    """Decodes the files that the settings name and fits them to the video's size.

    Args:
        spool: folder for the `Source.segment` of a video that is continued; None: its frames are only counted.
        check: called regularly; raises once the process has to stop.

    Raises:
        InputError: a file is missing, damaged, or changes while it is read.
    """
    size = settings.height, settings.width
    images = {
        name: read_image(path, *size, name)
        for name in ("image", "end_image")
        if (path := getattr(settings, name, None)) is not None
    }
    inputs = Inputs(**images)
    path = getattr(settings, "video_path", None)
    if path is None:
        return inputs, None
    before, look = fingerprint(path), Look()
    keep = 1 if spool is None else settings.base_num_frames
    with nullcontext() if spool is None else VideoWriter(spool, "prefix", *size, settings.fps) as writer:
        found = decode_prefix(path, *size, keep, writer, look, check)
    if fingerprint(path) != before:
        raise InputError("video_path", path, "has changed while it was read")
    return replace(inputs, prefix=found.newest), Source(found.frames, found.fps, look, writer and writer.path)
