"""Pictures and videos of a run: each is decoded and fitted once, before anything heavy is loaded."""

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
        frames: how many it has. fps: its mean rate; 0: not known.
        look: its statistics and ends.
        segment: the video at the size and rate of the result; None where only its frames were counted.
    """

    frames: int
    fps: float
    look: Look
    segment: Path | None = None


def read_inputs(
    settings: GenerateSettings, spool: Path | None, check: Callable[[], object]
) -> tuple[Inputs, Source | None]:
    """What the settings name, fitted to the video's size.

    Args:
        spool: folder for the frames of a video that is continued, encoded for the result; None: they are only counted.
        check: called now and then; raises when the process is to end.

    Raises:
        InputError: a file cannot be used; exit code 2.
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
