"""What a video file says of itself: streams, size, rates, colours, side data. Decodes one frame.

ffprobe is not among the programs of imageio-ffmpeg, so the description that ffmpeg prints is parsed, and that of the
``showinfo`` filter for the first frame.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.media.ffmpeg import REFUSED_FORMAT, VIDEO_EXAMPLES, Ffmpeg, probe_arguments, unusable
from skyreels_v2_infer.media.files import check_file

CUT_FORMATS = ("mpegts", "mpeg")  # broadcast formats, made to be joined in the middle
_NTSC = (24000, 30000, 48000, 60000, 120000, 240000)  # over 1001


@dataclass(frozen=True)
class Audio:
    """A sound stream.

    Attributes:
        index: among all streams of the file. codec: ffmpeg's name, as ``aac``.
        rate: samples per second; 0: not stated.
    """

    index: int
    codec: str
    rate: int


@dataclass(frozen=True)
class Probe:
    """The first video stream of a file that is no cover picture, and what belongs to it.

    Attributes:
        container: ffmpeg's names of the format, as ``mov,mp4,m4a,3gp,3g2,mj2``.
        duration, start: of the file in seconds, as it states them; duration None: not stated.
        index: of the stream among all streams of the file. codec, pixel_format: ffmpeg's names.
        stored: (height, width) of the stored picture. height, width: as shown, upright and with square pixels.
        aspect: width of a pixel over its height. rotation: in degrees, counter-clockwise, to make it upright.
        interlaced: whether the stream or its first frame says so.
        range: "tv", "pc" or "". matrix, primaries, transfer: ffmpeg's names; "": not stated.
        peak: luminance in nits that the content reaches (MaxCLL, else the mastering display's); None: not stated.
        fps: mean rate that the file states, rounded to two digits; 0: not stated.
        rate: rate of the stream as ffmpeg finds it out, exact, for an uneven one the base rate; None: not known.
        audio: all sound streams.
        alpha: whether the picture has transparency. coded_alpha: whether that needs libvpx to be decoded.
    """

    container: str
    duration: float | None
    start: float
    index: int
    codec: str
    pixel_format: str
    stored: tuple[int, int]
    height: int
    width: int
    aspect: Fraction
    rotation: float
    interlaced: bool
    range: str
    matrix: str
    primaries: str
    transfer: str
    peak: float | None
    fps: float
    rate: Fraction | None
    audio: tuple[Audio, ...]
    alpha: bool
    coded_alpha: bool

    @property
    def may_be_cut(self) -> bool:
        """Whether the format is one that is recorded from the middle of a transmission, with losses."""
        return self.container in CUT_FORMATS


def probe_file(path: Path | str, name: str = "video_path") -> Probe:
    """Describes the video at `path`; decodes its first frame.

    Raises:
        InputError: for the flag `name`: the file is missing, is no video, or no frame of it can be decoded.
        OSError: ffmpeg is missing, lacks what is needed, or makes no progress for too long.
    """
    check_file(path, name)
    with Ffmpeg(probe_arguments(path), stdout=subprocess.PIPE, verbose=True) as ffmpeg:
        shown = None
        for line in ffmpeg.output:
            if match := re.match(rb"#dimensions 0: (\d+)x(\d+)", line):
                shown = int(match[2]), int(match[1])
        if not ffmpeg.succeeded():
            raise refused(ffmpeg, path, name)
        messages = ffmpeg.messages()
        try:
            found = None if shown is None else parse(messages, shown)
        except (TypeError, ValueError, OverflowError):  # names of languages may put lines of their own among ffmpeg's
            found = None
        if found is None:
            raise no_frame(path, name)
        if only_dolby_vision(messages):
            legal = "is Dolby Vision of profile 5, whose colours ffmpeg does not decode; export it as HDR10, HLG or SDR"
            raise InputError(name, path, legal)
        return found


def parse(messages: Sequence[str], shown: tuple[int, int]) -> Probe | None:
    """ffmpeg's messages for `probe_arguments` -> the description; None: no frame was decoded.

    Args:
        shown: (height, width) of the picture after rotation, with square pixels.
    """
    lines = [line.removeprefix("[info] ") for line in messages]
    used = next((match[1] for line in lines if (match := re.match(r" +Stream #0:(\d+) -> #0:0 ", line))), None)
    frame, colours = _first_frame(lines)
    header = _stream(lines, used)
    if used is None or frame is None or not header:
        return None
    about = header[0].partition(": Video: ")[2]
    whole, block = "\n".join(lines), "\n".join(header[1:] + _side_data(lines))
    size = re.search(r", (\d{1,6})x(\d{1,6})\b", about)
    container = re.search(r"^Input #0, (\S+), from ", whole, re.M)
    duration = re.search(r"^  Duration: (\d+):(\d+):([\d.]+)", whole, re.M)
    start = re.search(r"^  Duration: .*, start: (-?[\d.]+)", whole, re.M)
    codec = re.match(r"\w*", about)[0]
    rotation = re.search(r"display ?matrix: rotation of (-?[\d.]+) degrees", block, re.I)
    coded_alpha = codec in ("vp8", "vp9") and bool(re.search(r"^ +alpha_mode +: 1$", block, re.M | re.I))
    pixels = re.search(r" fmt:(\w+)", frame)[1]
    return Probe(
        container=container[1] if container else "",
        duration=None if duration is None else int(duration[1]) * 3600 + int(duration[2]) * 60 + float(duration[3]),
        start=float(start[1]) if start else 0.0,
        index=int(used),
        codec=codec,
        pixel_format=pixels,
        stored=(int(size[2]), int(size[1])) if size else shown,
        height=shown[0],
        width=shown[1],
        aspect=_fraction(re.search(r" sar:(\d+/\d+)", frame)) or Fraction(1),
        rotation=float(rotation[1]) if rotation else 0.0,
        interlaced=" i:P " not in frame or bool(re.search(r"\((?:[^()]*, )?(top|bottom)( \w+)? first", about)),
        **{field: _known(colours, key) for field, key in _COLOURS},
        peak=_peak(block),
        fps=_stated_fps(about),
        rate=_fraction(re.search(r"\] config in time_base: \S+ frame_rate: (\d+/\d+)", whole)),
        audio=_audio(lines),
        alpha=coded_alpha or has_alpha(pixels),
        coded_alpha=coded_alpha,
    )


def only_dolby_vision(messages: Sequence[str]) -> bool:
    """Whether a video's only layer is in the colour space of Dolby Vision (ICtCp with a dynamic curve)."""
    return any(re.match(r"\[info\] +DOVI configuration record: .*\bprofile: 5\b", line) for line in messages)


_COLOURS = (("range", "range"), ("matrix", "space"), ("primaries", "primaries"), ("transfer", "trc"))


def has_alpha(pixel_format: str) -> bool:
    """Whether pixels of ffmpeg's format have transparency; in those of a palette a colour may."""
    return bool(re.match(r"yuva|ya\d|gbrap|rgba|bgra|argb|abgr|ayuv|vuya|uyva|pal8", pixel_format))


def exact_rate(fps: float) -> Fraction | None:
    """A rate that is stated with two digits -> what is meant: 29.97 is 30000/1001; None: 0."""
    for top in _NTSC:
        if abs(fps - top / 1001) < 0.006:
            return Fraction(top, 1001)
    return Fraction(str(fps)) if fps > 0 else None


def _stream(lines: Sequence[str], index: str | None) -> list[str]:
    """The lines about a stream of the input."""
    begin = next((i for i, line in enumerate(lines) if re.match(rf"  Stream #0:{index}\b.*: Video: ", line)), None)
    if begin is None:
        return []
    found = [lines[begin]]
    for line in lines[begin + 1 :]:
        if not line.startswith("    "):
            break
        found.append(line)
    return found


def _first_frame(lines: Sequence[str]) -> tuple[str | None, str]:
    """showinfo's lines about the first frame and its colours."""
    frame = None
    for line in lines:
        if not line.startswith("[Parsed_showinfo_"):
            continue
        if frame is None and re.search(r"\] n: +0 pts:", line.replace("[info] ", "")):
            frame = line
        elif frame is not None and "color_range:" in line:
            return frame, line
    return frame, ""


def _side_data(lines: Sequence[str]) -> list[str]:
    return [line for line in lines if line.startswith("[Parsed_showinfo_") and "side data - " in line]


def _known(colours: str, key: str) -> str:
    found = re.search(rf"color_{key}:([\w-]+)", colours)
    return "" if found is None or found[1] in ("unknown", "unspecified", "reserved") else found[1]


def _peak(block: str) -> float | None:
    for pattern in (r"MaxCLL=(\d+)", r"max_luminance=([\d.]+)"):
        found = re.search(pattern, block)
        if found and float(found[1]) > 0:
            return float(found[1])
    return None


def _stated_fps(about: str) -> float:
    """The mean rate in ffmpeg's description of a stream; 0.0 if it has none."""
    rate = re.search(r", ([\d.]+)(k?) fps\b", about)
    return float(rate[1]) * (1000 if rate[2] else 1) if rate else 0.0


def _fraction(match: re.Match | None) -> Fraction | None:
    if match is None:
        return None
    top, bottom = map(int, match[1].split("/"))
    return Fraction(top, bottom) if top and bottom else None


def _audio(lines: Sequence[str]) -> tuple[Audio, ...]:
    found = []
    for line in lines:
        if line.startswith("Output #0"):
            break
        if match := re.match(r"  Stream #0:(\d+)\b[^:]*: Audio: (\w+)", line):
            rate = re.search(r", (\d+) Hz", line)
            found.append(Audio(int(match[1]), match[2], int(rate[1]) if rate else 0))
    return tuple(found)


def refused(ffmpeg: Ffmpeg, path: Path | str, name: str) -> Exception:
    """The error for a video that ffmpeg failed to decode: InputError, or OSError if ffmpeg itself is what is wrong."""
    if ffmpeg.stalled:  # by the machine as likely as by the file: not the command's fault
        return OSError(f"cannot read {path}: {ffmpeg.reason()}")
    if (lacking := ffmpeg.lacks()) is not None:
        return unusable("read videos", lacking)
    reason = ffmpeg.reason()
    if "matches no streams" in reason:
        return InputError(name, path, "must be a video, but there is no video stream in this file")
    if any(REFUSED_FORMAT.search(line) for line in ffmpeg.errors()):
        return InputError(name, path, f"must be a video ({VIDEO_EXAMPLES})")
    return InputError(name, path, f"must be a complete video that ffmpeg can decode to its end, but: {reason}")


def no_frame(path: Path | str, name: str) -> InputError:
    return InputError(name, path, "has no frame that can be decoded")
