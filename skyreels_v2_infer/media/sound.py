"""The sound of a video that is continued: into a file of its own, without encoding it again where mp4 can hold it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from skyreels_v2_infer.media.ffmpeg import VIDEO_FORMATS, Ffmpeg
from skyreels_v2_infer.media.probe import Probe

COPIED = frozenset(("aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"))  # what mp4 can hold and players play
BITRATE = "192k"


class Sound(NamedTuple):
    """The first sound stream of a video.

    Attributes:
        index: among all streams of the file. codec: ffmpeg's name.
        copied: whether it is kept as it is; else it is encoded as AAC.
        start: when the first frame is shown, in seconds of the file's clock. seconds: how long the frames last.
    """

    index: int
    codec: str
    copied: bool
    start: Fraction
    seconds: Fraction


def sound_of(probe: Probe, start: Fraction, seconds: Fraction) -> Sound | None:
    """The sound that belongs to the frames from `start` on; None: there is none."""
    if not probe.audio:
        return None
    first = probe.audio[0]
    return Sound(first.index, first.codec, first.codec in COPIED, start, seconds)


def extract_sound(path: Path | str, sound: Sound, out: Path) -> Sound | None:
    """Writes the sound to `out`, an mp4 whose clock begins with the first frame.

    Returns:
        what was written: encoded as AAC as well where copying fails; None: it cannot be read.

    Raises:
        OSError: ffmpeg is missing, or makes no progress for too long.
    """
    for copied in (True, False) if sound.copied else (False,):
        with Ffmpeg(sound_arguments(path, sound._replace(copied=copied), out), out=out) as ffmpeg:
            if ffmpeg.succeeded() and out.exists() and out.stat().st_size:
                return sound._replace(copied=copied)
            if ffmpeg.stalled:
                raise OSError(f"cannot read the sound of {path}: {ffmpeg.reason()}")
        out.unlink(missing_ok=True)
    return None


def sound_arguments(path: Path | str, sound: Sound, out: Path) -> list[str]:
    """The sound of the video at `path` to `out`."""
    arguments = ["-nostdin", "-y", "-protocol_whitelist", "file", "-format_whitelist", VIDEO_FORMATS]
    # The file's own clock, less what precedes the first frame: sound from before it is skipped by players, as mp4 says.
    arguments += ["-copyts", "-itsoffset", f"{-float(sound.start):.6f}", "-i", f"file:{path}"]
    arguments += ["-map", f"0:{sound.index}", "-map_metadata", "-1"]
    end = f"{float(sound.seconds):.6f}"
    if sound.copied:
        arguments += ["-c:a", "copy", "-t", end]
    else:
        from_zero = f"atrim=start=0:end={end},aresample=async=1:first_pts=0"  # silence before a late beginning
        arguments += ["-af", from_zero, "-c:a", "aac", "-b:a", BITRATE]
    return [*arguments, "-f", "mp4", f"file:{out}"]
