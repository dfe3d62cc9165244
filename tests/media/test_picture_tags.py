"""Pictures that state their colours without a profile: chunks of PNG, nclx of AVIF and HEIC, the mark of DCF."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sources import apart, as_hdr, as_wide, encode, patches
from test_picture_colour import ADOBE, PROPHOTO, in_space, profile

from skyreels_v2_infer.media.colour import to_bt709
from skyreels_v2_infer.media.images import read_image
from skyreels_v2_infer.media.picture_tags import _of_boxes
from skyreels_v2_infer.media.picture_video import as_video
from skyreels_v2_infer.media.read import read_video

SIZE = 48, 72
WANTED = patches()[0]
D65 = (0.3127, 0.3290)


def bits(frame: np.ndarray) -> np.ndarray:
    return np.rint(frame / 257).astype(np.uint8)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def cicp(primaries: int, transfer: int) -> bytes:
    return chunk(b"cICP", bytes((primaries, transfer, 0, 1)))


def chrm(points, white=D65) -> bytes:
    return chunk(b"cHRM", struct.pack(">8I", *(round(v * 100000) for pair in (white, *points) for v in pair)))


def gama(value: float) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", round(value * 100000)))


def png(path: Path, pixels: np.ndarray, *chunks: bytes, **more) -> Path:
    Image.fromarray(pixels).save(path, **more)
    content = path.read_bytes()
    path.write_bytes(content[:33] + b"".join(chunks) + content[33:])  # after IHDR
    return path


def linear(frame: np.ndarray) -> np.ndarray:
    value = frame / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def as_p3(frame: np.ndarray) -> np.ndarray:
    """Display P3 with sRGB's curve."""
    light = np.clip(linear(frame) @ np.linalg.inv(to_bt709("smpte432")).T, 0, 1)
    return np.rint(255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)).astype(
        np.uint8
    )


GAMMA_18 = np.rint(255 * linear(WANTED) ** (1 / 1.8)).astype(np.uint8)
PNGS = {
    "pq": (bits(as_hdr(WANTED, "smpte2084")), [cicp(9, 16)], "HDR (PQ) converted to SDR"),
    "hlg": (bits(as_hdr(WANTED, "arib-std-b67")), [cicp(9, 18)], "HDR (HLG) converted to SDR"),
    "p3": (as_p3(WANTED), [cicp(12, 13)], "from Display P3 to sRGB"),
    "before sRGB": (bits(as_hdr(WANTED, "smpte2084")), [chunk(b"sRGB", b"\0"), cicp(9, 16)], "HDR (PQ)"),
    "gamma": (GAMMA_18, [gama(1 / 1.8)], "from gamma 0.556 to sRGB"),
    "chrm": (in_space(ADOBE, 2.2), [gama(1 / 2.2), chrm(ADOBE)], "from the primaries in the file to sRGB"),
    "both": (in_space(PROPHOTO, 1.8), [gama(1 / 1.8), chrm(PROPHOTO)], "from the primaries in the file to sRGB"),
}
SRGB = ((0.64, 0.33), (0.3, 0.6), (0.15, 0.06))
PLAIN = {
    "srgb": [chunk(b"sRGB", b"\0"), gama(1.0)],
    "usual": [gama(0.45455), chrm(SRGB)],
    "cicp": [cicp(1, 13)],
    "none": [gama(0), chrm([(0, 0)] * 3), chunk(b"cICP", b"\x09")],
    "line": [chrm([(0.1, 0.1), (0.2, 0.2), (0.3, 0.3)])],
}


@pytest.mark.parametrize("name", PNGS)
def test_chunks_of_png(tmp_path, name):
    pixels, chunks, said = PNGS[name]
    notes = []
    found = read_image(png(tmp_path / "a.png", pixels, *chunks), *SIZE, notes=notes)
    assert apart(found, WANTED) <= (8 if "HDR" in said else 4) and len(notes) == 1 and said in notes[0]


def test_a_linear_png(tmp_path):
    light = np.rint(255 * linear(WANTED)).astype(np.uint8)
    found = read_image(png(tmp_path / "a.png", light, gama(1.0)), *SIZE)
    assert apart(found, WANTED) <= 7  # 20 is 1.8 of 255 in linear light
    assert np.abs(found.astype(int) - WANTED)[WANTED > 100].max() <= 2


@pytest.mark.parametrize("name", PLAIN)
def test_chunks_that_say_srgb_or_nothing_change_nothing(tmp_path, name):
    notes = []
    assert np.array_equal(read_image(png(tmp_path / "a.png", WANTED, *PLAIN[name]), *SIZE, notes=notes), WANTED)
    assert notes == []


def test_precedence_beside_a_profile(tmp_path):
    """A profile comes after cICP and before gAMA and cHRM."""
    icc = profile("RGB ", 2.2, ADOBE)
    adobe = png(tmp_path / "a.png", in_space(ADOBE, 2.2), gama(1.0), chrm(PROPHOTO), icc_profile=icc)
    assert apart(read_image(adobe, *SIZE), WANTED) <= 4
    hdr = png(tmp_path / "b.png", bits(as_hdr(WANTED, "smpte2084")), cicp(9, 16), icc_profile=icc)
    assert apart(read_image(hdr, *SIZE), WANTED) <= 8


def test_the_peak_of_hdr_is_read(tmp_path):
    """Content of up to 400 nits loses less of its highlights than of up to 1000."""
    pixels = bits(as_hdr(np.full((48, 72, 3), 255, np.uint8), "smpte2084"))
    levels = [
        read_image(png(tmp_path / "a.png", pixels, cicp(9, 16), *light), *SIZE).mean()
        for light in ([], [chunk(b"cLLI", struct.pack(">II", 203 * 10000, 0))])
    ]
    assert 244 <= levels[0] <= 252 and levels[1] >= 254


def test_grey_transparent_and_animated_pngs(tmp_path):
    grey = np.rint(255 * linear(WANTED[:, :, 0]) ** (1 / 1.8)).astype(np.uint8)
    found = read_image(png(tmp_path / "grey.png", grey, gama(1 / 1.8)), *SIZE)
    assert np.abs(found - WANTED[:, :, :1].astype(int)).max() <= 2
    clear = np.dstack([GAMMA_18, np.full(SIZE, 255, np.uint8)])
    clear[:24, :24, 3] = 0
    found = read_image(png(tmp_path / "clear.png", clear, gama(1 / 1.8)), *SIZE)
    assert (found[:24, :24] == 255).all() and apart(found[:, 24:], WANTED[:, 24:]) <= 4
    frames = [Image.fromarray(np.roll(GAMMA_18, 24 * i, 1)) for i in range(3)]
    more = {"save_all": True, "append_images": frames[1:], "duration": 100}
    as_video(png(tmp_path / "a.png", GAMMA_18, gama(1 / 1.8), **more), *SIZE, 10, tmp_path / "a.mkv")
    for i, frame in enumerate(read_video(tmp_path / "a.mkv", *SIZE)):
        assert apart(frame, np.roll(WANTED, 24 * i, 1)) <= 4


def avif(path: Path, pixels: np.ndarray, primaries: int, transfer: int) -> Path:
    """An AVIF of 10 bits."""
    codec = [
        "-vf",
        "scale=out_color_matrix=bt2020:out_range=pc,format=yuv444p10le,setparams=colorspace=bt2020nc:range=pc",
    ]
    codec += ["-c:v", "libaom-av1", "-still-picture", "1", "-cpu-used", "8", "-crf", "0"]
    content = encode(path, pixels[None], *codec).read_bytes()
    at = content.index(b"colrnclx") + 8
    path.write_bytes(content[:at] + struct.pack(">HH", primaries, transfer) + content[at + 4 :])
    return path


def heic(path: Path, pixels: np.ndarray, primaries: int, transfer: int) -> Path:
    """A HEIC of 10 bits."""
    pillow_heif = pytest.importorskip("pillow_heif")
    picture = pillow_heif.from_bytes("RGB;16", pixels.shape[1::-1], pixels.tobytes())
    words = {"matrix_coefficients": 9, "full_range_flag": 1, "color_primaries": primaries}
    picture.save(path, quality=100, chroma=444, transfer_characteristics=transfer, **words)
    return path


@pytest.mark.parametrize(
    ("primaries", "transfer", "pixels"),
    [
        (9, 16, as_hdr(WANTED, "smpte2084")),
        (9, 18, as_hdr(WANTED, "arib-std-b67")),
        (12, 13, as_p3(WANTED).astype(np.uint16) * 257),
        (9, 1, as_wide(WANTED, "bt2020")),
    ],
    ids=["pq", "hlg", "p3", "bt2020"],
)
@pytest.mark.parametrize("write", [avif, heic])
def test_avif_and_heic_without_a_profile(tmp_path, write, primaries, transfer, pixels):
    notes = []
    found = read_image(write(tmp_path / f"a.{write.__name__}", pixels, primaries, transfer), *SIZE, notes=notes)
    wanted = WANTED.copy()
    if write is avif:  # Pillow makes 8 bits of them, too coarse for the small part of red in a pure green of BT.2020
        found[:24, 24:48, 0] = wanted[:24, 24:48, 0]
    assert apart(found, wanted) <= (16 if write is avif else 8)
    assert len(notes) == 1 and ("HDR" in notes[0]) == (transfer in (16, 18))


def test_adobe_rgb_of_cameras(tmp_path):
    """They state it in the EXIF data and embed no profile."""
    exif = Image.Exif()
    exif.get_ifd(0x8769).update({0xA001: 65535, 0xA005: {1: "R03", 2: b"0100"}})
    notes = []
    Image.fromarray(in_space(ADOBE, 2.2)).save(tmp_path / "a.jpg", quality=100, subsampling=0, exif=exif)
    assert apart(read_image(tmp_path / "a.jpg", *SIZE, notes=notes), WANTED) <= 4
    assert notes == ["colours converted from Adobe RGB to sRGB"]
    exif.get_ifd(0x8769)[0xA005] = {1: "R98", 2: b"0100"}
    Image.fromarray(WANTED).save(tmp_path / "b.jpg", quality=100, subsampling=0, exif=exif)
    assert apart(read_image(tmp_path / "b.jpg", *SIZE, notes=notes), WANTED) <= 3 and len(notes) == 1


def test_damaged_boxes_and_exif_are_no_error(tmp_path):
    path = tmp_path / "a.avif"
    Image.fromarray(WANTED).save(path, quality=100, subsampling="4:4:4")
    content = path.read_bytes()[:600]
    draw = np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(content)
        for at in draw.integers(0, len(changed), 8):
            changed[at] = draw.integers(256)
        _of_boxes(bytes(changed[: draw.integers(1, 600)]))
