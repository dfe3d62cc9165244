"""The filters between a decoded video and the RGB frames that we read: one chain, made from the probe of the file.

Order: colours as they are to be taken, deinterlacing, time, reduction of very large frames, square pixels and RGB,
HDR or wide gamut to SDR, transparency. ffmpeg has made the picture upright before that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from skyreels_v2_infer.media.colour import HDR, WIDE_NAMES, is_foreign, write_tables
from skyreels_v2_infer.media.ffmpeg import ACCURATE, AS_SHOWN
from skyreels_v2_infer.media.input_options import DEFAULT, InputOptions, color_name, fitting
from skyreels_v2_infer.media.probe import Probe

# Frames of more pixels are reduced by a whole factor before they become RGB.
REDUCED_ABOVE = 1920 * 1200
_RGB_ENOUGH = 1.3  # how much larger than needed they stay at least, for the resampling that follows

# --input_color: a name -> matrix, primaries, transfer.
COLORS = {
    "bt709": ("bt709", "bt709", "bt709"),
    "bt601": ("smpte170m", "smpte170m", "smpte170m"),
    "bt2020": ("bt2020nc", "bt2020", "bt2020-10"),
    "p3": ("bt709", "smpte432", "bt709"),
    "hlg": ("bt2020nc", "bt2020", "arib-std-b67"),
    "pq": ("bt2020nc", "bt2020", "smpte2084"),
}
RANGES = {"full": "pc", "limited": "tv"}


@dataclass(frozen=True)
class Colours:
    """What the numbers of a picture mean, in ffmpeg's names; range "": as its pixel format says."""

    range: str
    matrix: str
    primaries: str
    transfer: str


@dataclass(frozen=True)
class Chain:
    """How a video is decoded.

    Attributes:
        filters: for ``-vf``. decoder: options in front of ``-i``.
    """

    filters: str
    decoder: tuple[str, ...] = ()


def check_color(text: str) -> str:
    """A value of --input_color: one of `COLORS`, of `RANGES`, or both with a colon between; ValueError otherwise."""
    name, _, span = text.partition(":")
    if text in RANGES or (name in COLORS and (span in RANGES or text == name)):
        return text
    raise ValueError(f"must be {', '.join(COLORS)}, with :full or :limited or without, or full or limited alone")


def colours_of(probe: Probe, color: str | None = None) -> Colours:
    """What the colours of a video are taken for: what it says, and where it says nothing what is usual.

    Untagged HD (1280 pixels wide or more than 576 high) is BT.709, smaller ones BT.601; HLG and PQ are BT.2020.

    Args:
        color: of `InputOptions`.
    """
    found = Colours(probe.range, probe.matrix, probe.primaries, probe.transfer)
    name, _, span = (color or "").partition(":")
    if name in RANGES:
        name, span = "", name
    if name:
        matrix, primaries, transfer = COLORS[name]
        found = replace(found, matrix="gbr" if probe.matrix == "gbr" else matrix)
        found = replace(found, primaries=primaries, transfer=transfer)
    if span:
        found = replace(found, range=RANGES[span])
    height, width = probe.stored
    wide = found.transfer in HDR or found.primaries == "bt2020"
    usual = "bt2020nc" if wide else "bt709" if width >= 1280 or height > 576 else "smpte170m"
    primaries = found.primaries or ("bt2020" if wide or found.matrix.startswith("bt2020") else "bt709")
    return replace(found, matrix=found.matrix or usual, primaries=primaries, transfer=found.transfer or "bt709")


@contextmanager
def prepared(
    probe: Probe, height: int, width: int, options: InputOptions = DEFAULT, time: str = "", then: str = ""
) -> Iterator[Chain]:
    """Context manager: the chain for frames that are to become ``height`` x ``width``; it owns the colour tables.

    Args:
        time: filters that choose frames by timestamp or number, before they cost much.
        then: filters for the RGB frames.
    """
    taken = colours_of(probe, options.color)
    decoder = ("-c:v", "libvpx" if probe.codec == "vp8" else "libvpx-vp9") if probe.coded_alpha else ()
    with TemporaryDirectory() as folder:
        steps = [_tags(probe, taken)]
        if probe.interlaced:
            steps.append("bwdif=mode=send_frame:deint=interlaced")
        steps += [time, _reduction(probe, height, width), AS_SHOWN]
        foreign = is_foreign(taken.primaries, taken.transfer)
        if foreign:
            even, mix, encode = write_tables(Path(folder), taken.primaries, taken.transfer, probe.peak)
            steps += ["format=gbrap16le" if probe.alpha else "format=gbrp16le", f"lut1d=file={_quoted(even)}"]
            steps += [f"lut3d=file={_quoted(mix)}:interp=tetrahedral", f"lut1d=file={_quoted(encode)}"]
        if probe.alpha:
            steps += ["format=gbrap", _over(options.background)]
        elif foreign:
            steps.append(f"scale={ACCURATE},format=rgb24")
        yield Chain(",".join(step for step in [*steps, then] if step), decoder)


def changes(probe: Probe, options: InputOptions = DEFAULT, size: tuple[int, int] | None = None) -> list[str]:
    """What is changed about a video's frames, in words; with fitting them to a `size` (height, width)."""
    taken = colours_of(probe, options.color)
    lines = []
    if options.color is not None:
        lines.append(f"colours read as {options.color}")
    if taken.transfer in HDR:
        lines.append(f"HDR ({HDR[taken.transfer]}) converted to SDR")
    elif is_foreign(taken.primaries, taken.transfer):
        lines.append(f"wide gamut ({WIDE_NAMES.get(taken.primaries, taken.transfer)}) converted to BT.709")
    if probe.interlaced:
        lines.append("deinterlaced")
    if probe.rotation:
        lines.append(f"turned upright by {probe.rotation:g} degrees")
    if probe.aspect != 1:
        lines.append(f"pixels of {probe.aspect.numerator}:{probe.aspect.denominator} made square")
    if probe.alpha and probe.codec != "gif":
        lines.append(f"what is transparent is shown on {color_name(options.background)}")
    if size is not None and (said := fitting(probe.height, probe.width, *size, options.fit)):
        lines.append(said)
    return lines


def _tags(probe: Probe, taken: Colours) -> str:
    """The filter that tells the following ones what is not, or wrongly, stated in the file."""
    wanted = []
    if taken.range != probe.range and taken.range:
        wanted.append(f"range={taken.range}")
    # ffmpeg takes what is not tagged for BT.601.
    if taken.matrix not in (probe.matrix or "smpte170m", "gbr"):
        wanted.append(f"colorspace={taken.matrix}")
    return f"setparams={':'.join(wanted)}" if wanted else ""


def _reduction(probe: Probe, height: int, width: int) -> str:
    if probe.height * probe.width <= REDUCED_ABOVE:
        return ""
    factor = int(min(probe.height / height, probe.width / width) / _RGB_ENOUGH)
    return f"scale=w=trunc(iw/{factor}):h=trunc(ih/{factor}):flags=area+accurate_rnd" if factor > 1 else ""


def _over(background: tuple[int, int, int]) -> str:
    """Filters that put frames with transparency on a colour."""
    # Not drawbox, whose replace=1 crashes for planar RGB in ffmpeg 5.1.
    fill = "lutrgb=r={}:g={}:b={}:a=255".format(*background)
    return f"split[over][under];[under]{fill}[below];[below][over]overlay=format=gbrp"


def _quoted(path: Path) -> str:
    """A path in the value of a filter's option: escaped for the option and again for the chain of filters."""
    for special in ("\\':", "\\'[],;"):
        path = "".join(f"\\{letter}" if letter in special else letter for letter in str(path))
    return path
