"""What a picture's file says of its colours other than by a profile, and the conversion to sRGB.

PNG: the chunks cICP, sRGB, gAMA and cHRM (W3C, PNG third edition; in this order of precedence, with a profile after
cICP). AVIF and HEIC: the property ``colr`` of the primary item (ISO/IEC 23008-12). Cameras: the mark of DCF for Adobe
RGB, where they embed no profile.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from skyreels_v2_infer.media.colour import (
    HDR,
    HLG,
    PQ,
    WIDE,
    WIDE_NAMES,
    encoded,
    evened,
    is_foreign,
    mixed,
    points_to_bt709,
    srgb_light,
    to_bt709,
)

if TYPE_CHECKING:
    from typing import BinaryIO

    from PIL import Image

STATED = "stated colours"  # in the info of a picture: its `Stated`
# ITU-T H.273: numbers -> ffmpeg's names. What is not here counts as sRGB's.
_PRIMARIES = {9: "bt2020", 11: "smpte431", 12: "smpte432"}
_TRANSFERS = {1: "bt709", 6: "bt709", 14: "bt709", 15: "bt709", 8: "linear", 16: PQ, 18: HLG}
_SRGB = "iec61966-2-1"
_SRGB_GAMMA = 0.45455
_SRGB_POINTS = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060))
_D65 = (0.3127, 0.3290)
_ADOBE = ((0.640, 0.330), (0.210, 0.710), (0.150, 0.060))
_ADOBE_GAMMA = 563 / 256
_LEVELS = 2**16  # of light
_ROWS = 64  # that are converted at once
_MOST = 2**20  # bytes of the boxes in front of the pixels


class Stated(NamedTuple):
    """Colours that are not sRGB's.

    Attributes:
        name: for messages.
        primaries: ffmpeg's name, or xy of red, green, blue and white.
        transfer: ffmpeg's name, or the exponent that makes light of the signal.
        peak: nits that HDR reaches; None: not stated.
        before_profile: whether this holds where there is a profile as well.
    """

    name: str
    primaries: str | tuple[tuple[float, float], ...]
    transfer: str | float
    peak: float | None = None
    before_profile: bool = False


def note_colours(image: Image.Image, path: Path | str) -> None:
    """Keeps what the file of an opened picture says of its colours, for `in_rgb` of a copy."""
    found = None
    with suppress(OSError, struct.error, ValueError), open(path, "rb") as file:
        if image.format == "PNG":
            found = _of_png(file)
        elif image.format in ("AVIF", "HEIF"):
            found = _of_boxes(file.read(_MOST))
    if found is None and image.format in ("JPEG", "HEIF", "TIFF"):
        found = _of_dcf(image)
    if found is not None:
        image.info[STATED] = found


def tagged_to_srgb(image: Image.Image, stated: Stated) -> Image.Image:
    """An opaque image of any mode, its colours being `stated`, in RGB of sRGB."""
    import numpy as np
    from PIL import Image

    pixels = np.array(image.convert("RGB"))
    primaries, transfer, peak = stated.primaries, stated.transfer, stated.peak
    named = isinstance(primaries, str) and isinstance(transfer, str)
    signal, levels = np.arange(256) / 255, np.linspace(0, 1, _LEVELS)
    if named:
        from_signal, to_signal = evened(signal, transfer, peak), encoded(levels, transfer)
    else:
        from_signal = srgb_light(signal) if isinstance(transfer, str) else signal**transfer
        to_signal = encoded(levels, _SRGB)
        matrix = to_bt709(primaries) if isinstance(primaries, str) else points_to_bt709(*primaries)
        matrix = matrix.T.astype(np.float32)
    from_signal, to_signal = from_signal.astype(np.float32), np.rint(255 * to_signal).astype(np.uint8)
    for rows in range(0, len(pixels), _ROWS):
        strip = from_signal[pixels[rows : rows + _ROWS]]
        light = mixed(strip, primaries, transfer, peak) if named else strip @ matrix
        pixels[rows : rows + _ROWS] = to_signal[np.rint(np.clip(light, 0, 1) * (_LEVELS - 1)).astype(np.int32)]
    return Image.fromarray(pixels)


# ---- PNG -------------------------------------------------------------------------------------------------------------


def _of_png(file: BinaryIO) -> Stated | None:
    chunks = dict(_chunks(file))
    peak = None
    if len(content := chunks.get(b"cLLI", b"")) == 8:
        peak = struct.unpack(">I", content[:4])[0] / 10000 or None
    elif len(content := chunks.get(b"mDCV", b"")) == 24:
        peak = struct.unpack(">I", content[16:20])[0] / 10000 or None
    if len(content := chunks.get(b"cICP", b"")) == 4:
        found = _of_numbers(content[0], content[1], peak)
        return found and found._replace(before_profile=True)
    if b"iCCP" in chunks or b"sRGB" in chunks:
        return None
    gamma = struct.unpack(">I", chunks.get(b"gAMA", b"\0\0\0\0"))[0] / 100000
    points = _points(chunks.get(b"cHRM", b""))
    usual = not 0.2 <= gamma <= 5 or abs(gamma / _SRGB_GAMMA - 1) < 0.03
    if points is None:
        return None if usual else Stated(f"gamma {gamma:.3g}", "bt709", 1 / gamma)
    # Beside sRGB's primaries its usual gamma stands for its curve, beside others for itself.
    return Stated("the primaries in the file", points, 1 / gamma if 0.2 <= gamma <= 5 else _SRGB)


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """The chunks in front of the pixels; of long ones the beginning."""
    file.seek(8)
    while len(start := file.read(8)) == 8 and start[4:] not in (b"IDAT", b"IEND"):
        length = int.from_bytes(start[:4], "big")
        yield start[4:], file.read(min(length, 32))
        file.seek(max(length - 32, 0) + 4, os.SEEK_CUR)  # 4: its checksum


def _points(content: bytes) -> tuple[tuple[float, float], ...] | None:
    """A chunk cHRM -> xy of red, green, blue and white; None where these are sRGB's, or no primaries."""
    if len(content) != 32:
        return None
    numbers = [value / 100000 for value in struct.unpack(">8I", content)]
    white, *points = zip(numbers[::2], numbers[1::2], strict=True)
    pairs = zip((*points, white), (*_SRGB_POINTS, _D65), strict=True)
    if max(abs(a - b) for found, own in pairs for a, b in zip(found, own, strict=True)) < 0.005:
        return None
    (ax, ay), (bx, by), (cx, cy) = points
    area = abs((bx - ax) * (cy - ay) - (cx - ax) * (by - ay)) / 2
    plausible = all(0 <= x <= 1 and -0.1 <= y <= 1 for x, y in points) and 0.2 < white[1] < 0.6 and 0.2 < white[0] < 0.6
    return (*points, white) if plausible and area > 0.03 and min(y for _, y in points) > 1e-5 else None


# ---- AVIF and HEIC ---------------------------------------------------------------------------------------------------


def _of_boxes(content: bytes) -> Stated | None:
    meta = _box(content, b"meta")[4:]  # after version and flags
    properties = list(_boxes(_box(_box(meta, b"iprp"), b"ipco")))
    version, item = (pitm := _box(meta, b"pitm"))[:1], pitm[4:]
    primary = int.from_bytes(item[:2] if version == b"\0" else item[:4], "big")
    for index in _associated(_box(_box(meta, b"iprp"), b"ipma"), primary):
        if 0 < index <= len(properties):
            kind, value = properties[index - 1]
            if kind == b"colr" and value[:4] == b"nclx" and len(value) >= 8:
                return _of_numbers(*struct.unpack(">HH", value[4:8]))
    return None


def _boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at + 8 <= len(content):
        size, head = int.from_bytes(content[at : at + 4], "big"), 8
        if size == 1:
            size, head = int.from_bytes(content[at + 8 : at + 16], "big"), 16
        size = size or len(content) - at
        if size < head:
            return
        yield content[at + 4 : at + 8], content[at + head : at + size]
        at += size


def _box(content: bytes, kind: bytes) -> bytes:
    return next((inner for found, inner in _boxes(content) if found == kind), b"")


def _associated(content: bytes, item: int) -> list[int]:
    """The numbers of an item's properties, from the box ipma."""
    version, wide = content[:1] or b"\0", content[3:4] and content[3] & 1
    count, at = int.from_bytes(content[4:8], "big"), 8
    names = 2 if version == b"\0" else 4
    for _ in range(count):
        if at >= len(content):
            break
        found, many = int.from_bytes(content[at : at + names], "big"), content[at + names]
        at += names + 1
        step = 2 if wide else 1
        if found == item:
            places = range(at, min(at + many * step, len(content)), step)
            return [int.from_bytes(content[p : p + step], "big") & (0x7FFF if wide else 0x7F) for p in places]
        at += many * step
    return []


def _of_numbers(primaries: int, transfer: int, peak: float | None = None) -> Stated | None:
    """Code points of ITU-T H.273; None where the picture is sRGB, or counts as that."""
    found = _PRIMARIES.get(primaries, "bt709"), _TRANSFERS.get(transfer, _SRGB)
    if not is_foreign(*found):
        return None
    name = HDR.get(found[1]) or ("linear light" if found[0] not in WIDE else WIDE_NAMES[found[0]])
    return Stated(name, *found, peak)


# ---- cameras ---------------------------------------------------------------------------------------------------------


def _of_dcf(image: Image.Image) -> Stated | None:
    """Adobe RGB, if the EXIF data says so: "R03" (DCF 2.0), or 2 as the colour space."""
    from PIL import Image

    with suppress(Exception):  # as many kinds as there are damages
        exif = Image.Image.getexif(image)
        mark = exif.get_ifd(0xA005).get(1, "")
        mark = mark.decode("ascii", "replace") if isinstance(mark, bytes) else str(mark)
        if mark.rstrip("\0 ") == "R03" or exif.get_ifd(0x8769).get(0xA001) == 2:
            return Stated("Adobe RGB", (*_ADOBE, _D65), _ADOBE_GAMMA)
    return None
