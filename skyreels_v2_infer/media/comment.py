"""The comment in a video's metadata, where a manifest is kept."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from skyreels_v2_infer.media.ffmpeg import OWN_FORMATS, Ffmpeg
from skyreels_v2_infer.media.pipes import StalledError


def comment_of(video: Path) -> str:
    """The comment in a video's metadata.

    Raises:
        ValueError: it has none.
        StalledError: ffmpeg makes no progress.
        OSError: ffmpeg cannot be started.
    """
    if not video.is_file():
        raise ValueError("no such file")
    arguments = ["-protocol_whitelist", "file,pipe,fd", "-format_whitelist", OWN_FORMATS, "-i", f"file:{video}"]
    with Ffmpeg([*arguments, "-f", "ffmetadata", "-"], stdout=subprocess.PIPE) as ffmpeg:
        written = ffmpeg.output.read()
        if not ffmpeg.succeeded() and ffmpeg.stalled:
            raise StalledError(f"cannot read {video}: {ffmpeg.reason()}")
    # A line break in a value has a backslash in front, as every other special character.
    found = re.search(rb"^comment=((?:\\.|[^\\\n])*)$", written, re.DOTALL | re.MULTILINE)
    if found is None:
        raise ValueError("it has no comment")
    return re.sub(rb"\\(.)", rb"\1", found[1], flags=re.DOTALL).decode()


def as_ffmetadata(comment: str) -> str:
    """A metadata file as ffmpeg reads it."""
    return ";FFMETADATA1\ncomment=" + re.sub(r"([=;#\\\n])", r"\\\1", comment) + "\n"
