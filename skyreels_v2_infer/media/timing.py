"""When the frames of a video are shown: from its packets, which are read without decoding; and the filter that reads it
at another rate."""

from __future__ import annotations

import itertools
import re
import subprocess
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.media.ffmpeg import VIDEO_FORMATS, Ffmpeg
from skyreels_v2_infer.media.probe import Probe
from skyreels_v2_infer.media.rates import exact, rate_text

# Containers that hold no timestamps; what ffmpeg makes up for them is no reason to leave out frames.
WITHOUT_TIMES = ("h264", "hevc", "m4v", "mpegvideo", "mjpeg", "vc1", "obu", "av1")
LONGEST = 300  # seconds that one frame may be shown; a damaged timestamp would fill hours with one
# A file of few frames may become so many at the rate of the result, others so many times their own.
MOST_MADE, MOST_REPEATED = 10**6, 10
KEY, DISCARDED = 1, 4  # flags of a packet
UNSET = -(2**63)  # a timestamp


class Packets(NamedTuple):
    """The packets of a stream that are shown.

    Attributes:
        tick: seconds per unit of `starts`.
        starts: when each is shown, rising; absolute, as the file has it.
        begins_with_key: whether the first one needs no other.
        headers: size and checksum of the codec's headers; "": there are none.
    """

    tick: Fraction
    starts: tuple[int, ...]
    begins_with_key: bool
    headers: str

    @property
    def start(self) -> Fraction:
        """When the first one is shown, in seconds."""
        return self.starts[0] * self.tick

    def steps(self) -> set[Fraction]:
        """Seconds between one and the next."""
        return {(after - before) * self.tick for before, after in itertools.pairwise(self.starts)}

    def is_even(self, rate: float | None = None) -> bool:
        """Whether each follows the one before after the same time: that of `rate`, or any, up to rounding to ticks."""
        steps = self.steps()
        if rate is not None:
            return steps <= {1 / exact(rate)}
        return not steps or max(steps) - min(steps) <= max(2 * self.tick, Fraction(1, 500))


def read_packets(path: Path | str, probe: Probe) -> Packets | None:
    """The packets of the video stream of `probe`; None where there are no timestamps to go by.

    Raises:
        OSError: ffmpeg is missing, or makes no progress for too long.
    """
    if probe.container in WITHOUT_TIMES:
        return None
    arguments = ["-nostdin", "-protocol_whitelist", "file", "-format_whitelist", VIDEO_FORMATS, "-copyts"]
    arguments += ["-i", f"file:{path}", "-map", f"0:{probe.index}", "-c", "copy", "-f", "framecrc", "-"]
    with Ffmpeg(arguments, stdout=subprocess.PIPE) as ffmpeg:
        found = parse_packets(ffmpeg.output)
        if not ffmpeg.succeeded() and ffmpeg.stalled:
            raise OSError(f"cannot read {path}: {ffmpeg.reason()}")
    return found  # damage is reported by whoever decodes the frames


def parse_packets(lines: Iterable[bytes]) -> Packets | None:
    """ffmpeg's framecrc output of one stream -> its packets; None: there are none."""
    tick, headers, begins_with_key = None, "", False
    starts: list[tuple[int, int]] = []
    for line in lines:
        if match := re.match(rb"#tb 0: (\d+)/(\d+)", line):
            tick = Fraction(int(match[1]), int(match[2]))
        elif match := re.match(rb"#extradata 0: +(\d+), (0x\w+)", line):
            headers = f"{match[1].decode()} {match[2].decode()}"
        elif not line.startswith(b"#"):
            decoded, start = map(int, line.split(b",")[1:3])
            flags = re.search(rb"F=0x([0-9A-Fa-f]+)", line)
            flags = int(flags[1], 16) if flags else KEY
            if flags & DISCARDED:
                continue
            if not starts:
                begins_with_key = bool(flags & KEY)
            starts.append((start, decoded))
    shown, decoded = ([pair[place] for pair in starts if pair[place] != UNSET] for place in (0, 1))
    # AVI says only when each is decoded, MPEG program streams of some: the same times, possibly some frames earlier.
    times = shown if len(shown) == len(starts) else decoded
    if not times or not tick:
        return None
    return Packets(tick, tuple(sorted(times)), begins_with_key, headers)


def check_gaps(packets: Packets, path: Path | str, name: str, rate: float) -> None:
    """Raises an `InputError` for the flag `name` if one frame is shown for implausibly long, or all frames become too
    many at a rate."""
    made = int((packets.starts[-1] - packets.starts[0]) * packets.tick * exact(rate))
    if made > max(MOST_MADE, MOST_REPEATED * len(packets.starts)):
        legal = f"has {len(packets.starts)} frames, which become {made} by its timestamps"
        raise InputError(name, path, f"{legal}, at most {MOST_MADE} are read; --keep_rate ignores them")
    longest = max(packets.steps(), default=Fraction(0))
    if longest > LONGEST:
        legal = f"shows one frame for {float(longest):.0f} s by its timestamps, at most {LONGEST} are read"
        raise InputError(name, path, f"{legal}; --keep_rate ignores them")


def time_filter(rate: float | None) -> str:
    """The filter that reads a video at a rate, by timestamps: frames are left out or repeated. "": all, once each."""
    return "" if rate is None else f"fps={rate_text(rate)}"
