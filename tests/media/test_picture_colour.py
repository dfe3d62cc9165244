"""Pictures from cameras and editors: profiles, deep pixels, transparency, HEIC, very large ones."""

import struct

import numpy as np
import pytest
from PIL import Image, ImageCms
from sources import apart, patches

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.media import images
from skyreels_v2_infer.media.colour import WIDE, _to_xyz
from skyreels_v2_infer.media.images import image_size, read_image
from skyreels_v2_infer.media.input_options import InputOptions, fitting

ADOBE = ((0.640, 0.330), (0.210, 0.710), (0.150, 0.060))
PROPHOTO = ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001))
SIZE = 48, 72


def profile(space: str, gamma: float, primaries=None) -> bytes:
    """An ICC profile (version 2) of RGB or grey with a gamma curve; colours relative to D50, by Bradford's matrix."""
    fixed = lambda value: struct.pack(">i", round(value * 65536))  # noqa: E731
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    tags = {b"wtpt": b"XYZ " + bytes(4) + b"".join(map(fixed, (0.9642, 1.0, 0.8249)))}
    tags[b"desc"] = b"desc" + bytes(4) + struct.pack(">I", 5) + b"mine\0" + bytes(78 + 4 + 5)
    if space == "GRAY":
        tags[b"kTRC"] = curve
    else:
        bradford = np.array([[1.0479, 0.0229, -0.0502], [0.0296, 0.9904, -0.0171], [-0.0092, 0.0151, 0.7519]])
        for name, column in zip("rgb", (bradford @ _to_xyz(primaries)).T, strict=True):
            tags[name.encode() + b"XYZ"] = b"XYZ " + bytes(4) + b"".join(map(fixed, column))
            tags[name.encode() + b"TRC"] = curve
    body, entries, at = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        entries += name + struct.pack(">II", at + len(body), len(content))
        body += content
    head = bytes(8) + struct.pack(">I", 0x02400000) + b"mntr" + space.encode() + b"XYZ " + bytes(12) + b"acsp"
    head += bytes(28) + b"".join(map(fixed, (0.9642, 1.0, 0.8249)))
    head = struct.pack(">I", 128 + 4 + len(entries) + len(body)) + head[4:] + bytes(128 - len(head))
    return head + struct.pack(">I", len(tags)) + entries + body


def in_space(primaries, gamma: float) -> np.ndarray:
    light = np.where((s := patches(frames=1)[0] / 255) <= 0.04045, s / 12.92, ((s + 0.055) / 1.055) ** 2.4)
    bt709 = _to_xyz(((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)))
    light = np.clip(light @ (np.linalg.inv(_to_xyz(primaries)) @ bt709).T, 0, 1)
    return np.rint(255 * light ** (1 / gamma)).astype(np.uint8)


@pytest.mark.parametrize(
    ("primaries", "gamma"), [(WIDE["smpte432"], 2.2), (ADOBE, 2.19921875), (PROPHOTO, 1.8)], ids=["p3", "adobe", "pro"]
)
@pytest.mark.parametrize("kind", ["png", "jpg", "tiff"])
def test_profiles_of_rgb(tmp_path, primaries, gamma, kind):
    path = tmp_path / f"a.{kind}"
    how = {"quality": 100, "subsampling": 0} if kind == "jpg" else {}
    Image.fromarray(in_space(primaries, gamma)).save(path, icc_profile=profile("RGB ", gamma, primaries), **how)
    notes = []
    assert apart(read_image(path, *SIZE, notes=notes), patches()[0]) <= 4
    assert notes == ["colours converted from mine to sRGB"]


def test_profiles_of_grey_and_of_srgb(tmp_path):
    level = np.full(SIZE, 186, np.uint8)
    Image.fromarray(level).save(tmp_path / "grey.png", icc_profile=profile("GRAY", 1.0))
    assert np.abs(read_image(tmp_path / "grey.png", *SIZE).astype(int) - 221).max() <= 2  # of linear light 186/255
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(patches()[0]).save(tmp_path / "own.png", icc_profile=own)
    notes = []
    assert np.array_equal(read_image(tmp_path / "own.png", *SIZE, notes=notes), patches()[0]) and notes == []


def test_profiles_of_palettes_and_of_another_kind(tmp_path):
    stored = Image.fromarray(in_space(ADOBE, 2.2)).quantize(16)
    stored.save(tmp_path / "a.png", icc_profile=profile("RGB ", 2.2, ADOBE))
    assert apart(read_image(tmp_path / "a.png", *SIZE), patches()[0]) <= 4
    Image.fromarray(patches()[0]).save(tmp_path / "grey.png", icc_profile=profile("GRAY", 1.0))
    notes = []
    assert np.array_equal(read_image(tmp_path / "grey.png", *SIZE, notes=notes), patches()[0])
    assert notes == ["its colour profile is damaged or of another kind and was ignored"]


def test_transparent_pictures_with_profiles(tmp_path):
    stored = np.dstack([in_space(ADOBE, 2.2), np.full(SIZE, 255, np.uint8)])
    stored[:24, 24:48, 3] = 0
    Image.fromarray(stored).save(tmp_path / "a.png", icc_profile=profile("RGB ", 2.2, ADOBE))
    wanted = patches()[0]
    wanted[:24, 24:48] = 255, 0, 0
    notes = []
    assert apart(read_image(tmp_path / "a.png", *SIZE, options=InputOptions((255, 0, 0)), notes=notes), wanted) <= 4
    assert notes == ["colours converted from mine to sRGB", "transparency shown on #ff0000"]


@pytest.mark.parametrize("damage", [b"", b"nothing", bytes(200)])
def test_a_damaged_profile_is_ignored(tmp_path, damage):
    content = damage or profile("RGB ", 1.8, PROPHOTO)[:150]
    for picture in (Image.fromarray(patches()[0]), Image.fromarray(patches()[0]).convert("CMYK")):
        picture.save(tmp_path / "a.tiff", icc_profile=content)
        notes = []
        assert apart(read_image(tmp_path / "a.tiff", *SIZE, notes=notes), patches()[0]) <= 2
        assert notes == ["its colour profile is damaged or of another kind and was ignored"]


def test_deep_pixels(tmp_path):
    ramp = np.linspace(0, 1, 72)[None].repeat(48, 0)
    wanted = np.rint(255 * ramp)
    Image.fromarray((ramp * 65535).round().astype(np.uint16)).save(tmp_path / "16.png")
    Image.fromarray((ramp * 65535).round().astype(np.uint16)).save(tmp_path / "16.tiff")
    Image.fromarray((ramp * (2**31 - 1)).round().astype(np.int32)).save(tmp_path / "signed.tiff")
    (tmp_path / "16.pgm").write_bytes(b"P5 72 48 65535\n" + (ramp * 65535).round().astype(">u2").tobytes())
    (tmp_path / "12.pgm").write_bytes(b"P5 72 48 4095\n" + (ramp * 4095).round().astype(">u2").tobytes())
    for name in ("16.png", "16.tiff", "signed.tiff", "16.pgm", "12.pgm"):
        found = read_image(tmp_path / name, *SIZE).astype(int)
        assert np.abs(found - wanted[..., None]).max() <= 1, name
    Image.fromarray((ramp * 255).astype(np.int32)).save(tmp_path / "unknown.tiff")
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "float.tiff")
    for name in ("unknown.tiff", "float.tiff"):
        with pytest.raises(InputError, match="range"):
            read_image(tmp_path / name, *SIZE)


def test_heic(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    heif = pillow_heif.from_pillow(Image.fromarray(patches()[0]))
    heif.save(tmp_path / "a.heic", quality=100, chroma=444)
    (tmp_path / "a.heic").rename(tmp_path / "a.jpg")  # as some programs send them
    assert image_size(tmp_path / "a.jpg") == SIZE
    assert apart(read_image(tmp_path / "a.jpg", *SIZE), patches()[0]) <= 4
    (tmp_path / "cut.heic").write_bytes((tmp_path / "a.jpg").read_bytes()[:400])
    with pytest.raises(InputError, match=r"cut\.heic"):
        read_image(tmp_path / "cut.heic", *SIZE)


def test_a_format_without_its_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    monkeypatch.setitem(__import__("sys").modules, "pillow_jxl", None)
    monkeypatch.setattr(Image, "OPEN", {k: v for k, v in Image.OPEN.items() if k not in ("HEIF", "JXL")})
    for content, package in ((b"\0\0\0\x18ftypheic" + bytes(40), "pillow-heif"), (b"\xff\x0a", "pillow-jxl-plugin")):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(InputError, match=f"pip install {package}"):
            image_size(tmp_path / "a")


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_very_large_pictures_are_reduced_first(tmp_path, monkeypatch, kind):
    frame = patches(480, 720, frames=1)[0]
    exif = Image.Exif()
    exif[0x0112] = 3
    icc = profile("RGB ", 2.2, WIDE["smpte432"])
    stored = Image.fromarray(np.ascontiguousarray(frame[::-1, ::-1]))
    stored.save(tmp_path / f"a.{kind}", exif=exif, icc_profile=icc, **({} if kind == "png" else {"quality": 100}))
    small = read_image(tmp_path / f"a.{kind}", *SIZE)
    monkeypatch.setattr(images, "REDUCED_ABOVE", 1000)
    assert apart(read_image(tmp_path / f"a.{kind}", *SIZE), small) <= 2
    monkeypatch.setattr(images, "MOST_PIXELS", 480 * 720 - 1)
    with pytest.raises(InputError, match="million pixels"):
        read_image(tmp_path / f"a.{kind}", *SIZE)


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.fromarray(frame) for frame in patches(frames=3)]
    for kind in ("gif", "webp", "png", "avif"):
        frames[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=frames[1:], quality=100)
        notes = []
        assert apart(read_image(tmp_path / f"a.{kind}", *SIZE, notes=notes), patches()[0]) <= 8
        assert notes == ["the first of its 3 frames"]


def test_fitting(tmp_path):
    Image.fromarray(patches()[0]).save(tmp_path / "a.png")
    padded = read_image(tmp_path / "a.png", 48, 96, options=InputOptions((1, 2, 3), "pad"))
    assert padded.shape == (48, 96, 3) and np.array_equal(padded[:, 12:84], patches()[0])
    assert (padded[:, :12] == (1, 2, 3)).all() and (padded[:, 84:] == (1, 2, 3)).all()
    notes = []
    read_image(tmp_path / "a.png", 48, 48, notes=notes)
    assert notes == ["cropped left and right, 33% of its width"]
    assert fitting(1080, 1920, 544, 960, "crop") == "cropped left and right, 1% of its width"
    assert fitting(100, 100, 100, 100, "crop") == fitting(720, 1280, 540, 960, "pad") == ""
    assert fitting(100, 100, 100, 200, "pad") == "padded left and right, 50% of the frame"
    assert fitting(100, 100, 100, 200, "crop") == "cropped above and below, 50% of its height"


def test_a_profile_of_cmyk(tmp_path):
    """Inks that are not the complements of red, green and blue."""
    inks = {(255, 0, 0, 0): (30, 150, 220), (0, 255, 0, 0): (215, 40, 120), (0, 0, 0, 255): (40, 40, 40)}
    colours = [[inks.get(tuple(255 * (i >> b & 1) for b in (3, 2, 1, 0)), (250, 250, 250)) for i in range(16)]]
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = np.asarray(ImageCms.applyTransform(Image.fromarray(np.array(colours, np.uint8)), to_lab)).copy()
    lab[..., 1:] ^= 128  # Pillow's are signed
    ramp = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes((4, 3, 2, 0))
    table += b"".join(struct.pack(">i", 65536 * (i % 4 == 0)) for i in range(9))
    table += ramp * 4 + lab.tobytes() + ramp * 3
    tags = {b"A2B0": table, b"wtpt": b"XYZ " + bytes(4) + struct.pack(">iii", 63190, 65536, 54061)}
    for step in range(2):
        body, entries, at = b"", b"", 128 + 4 + 12 * len(tags)
        for name, content in tags.items():
            entries += name + struct.pack(">II", at + len(body), len(content))
            body += content + bytes(-len(content) % 4)
        if not step:
            tags[b"desc"] = b"desc" + bytes(4) + struct.pack(">I", 5) + b"inks\0" + bytes(78 + 4 + 5)
    head = struct.pack(">I", at + len(body)) + bytes(4) + struct.pack(">I", 0x02400000) + b"prtrCMYKLab " + bytes(12)
    head += b"acsp" + bytes(28) + struct.pack(">iii", 63190, 65536, 54061)
    content = head + bytes(128 - len(head)) + struct.pack(">I", len(tags)) + entries + body
    picture = Image.new("CMYK", (72, 48))
    for place, ink in enumerate(inks):
        picture.paste(ink, (24 * place, 0, 24 * place + 24, 48))
    picture.save(tmp_path / "a.tiff", icc_profile=content)
    picture.save(tmp_path / "a.jpg", icc_profile=content, quality=100, subsampling=0)
    for name in ("a.tiff", "a.jpg"):
        notes = []
        found = read_image(tmp_path / name, *SIZE, notes=notes)[24, 12::24].astype(int)
        assert np.abs(found - list(inks.values())).max() <= 6 and notes == ["colours converted from inks to sRGB"]
