"""Pictures in: upright, whole, RGB, in the asked size."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps, PngImagePlugin, WebPImagePlugin
from scenes import psnr, scene

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.media import images
from skyreels_v2_infer.pipelines.conditioning import as_picture


def test_picture_of_the_asked_size_is_unchanged(tmp_path):
    picture = scene(48, 64)
    Image.fromarray(picture).save(tmp_path / "a.png")
    assert images.image_size(tmp_path / "a.png") == (48, 64)
    np.testing.assert_array_equal(images.read_image(tmp_path / "a.png", 48, 64), picture)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 96), (96, 32)])
def test_picture_covers_the_size_and_is_cropped_around_its_centre(tmp_path, height, width):
    Image.fromarray(scene(200, 300)).save(tmp_path / "a.png")
    got = images.read_image(tmp_path / "a.png", height, width)
    assert got.shape == (height, width, 3) and got.dtype == np.uint8
    scale = max(height / 200, width / 300)
    y = (100 + (np.arange(height) + 0.5 - height / 2) / scale).astype(int)
    x = (150 + (np.arange(width) + 0.5 - width / 2) / scale).astype(int)
    assert psnr(got, scene(200, 300)[y][:, x]) > 35  # stretching, or cropping at a corner, is below 28


def test_shrinking_averages(tmp_path):
    y, x = np.mgrid[0:64, 0:64]
    board = np.repeat(((x + y) % 2 * 255).astype(np.uint8)[..., None], 3, -1)
    Image.fromarray(board).save(tmp_path / "board.png")
    grey = images.read_image(tmp_path / "board.png", 16, 16)
    assert np.abs(grey.astype(int) - 127).max() < 40


def test_large_pictures_are_no_noise_on_stderr(tmp_path, monkeypatch):
    Image.fromarray(scene(64, 96)).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 96 - 1)
        assert images.image_size(tmp_path / "a.png") == (64, 96)
    monkeypatch.setattr(images, "MOST_PIXELS", 1000)
    with pytest.raises(InputError, match="pixels"):
        images.image_size(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (3, lambda p: p[::-1, ::-1]),
        (6, lambda p: np.rot90(p)),
        (8, lambda p: np.rot90(p, -1)),
        (2, lambda p: p[:, ::-1]),
    ],
)
def test_exif_orientation_is_applied(tmp_path, orientation, stored):
    upright = scene(96, 64)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored(upright))).save(tmp_path / "a.png", exif=exif)
    assert images.image_size(tmp_path / "a.png") == (96, 64)
    np.testing.assert_array_equal(images.read_image(tmp_path / "a.png", 96, 64), upright)
    with Image.open(tmp_path / "a.png") as opened:
        np.testing.assert_array_equal(as_picture(opened), upright)  # which a pipeline is given from Python


def test_transparent_grey_palette_and_16_bit_pictures_become_rgb(tmp_path):
    Image.new("RGBA", (32, 32), (200, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("L", (32, 32), 90).save(tmp_path / "grey.png")
    Image.new("RGB", (32, 32), (10, 120, 240)).quantize().save(tmp_path / "palette.png")
    Image.fromarray(np.full((32, 32), 0x8000, np.uint16)).save(tmp_path / "deep.png")
    want = {"clear": (255, 255, 255), "grey": (90, 90, 90), "palette": (10, 120, 240), "deep": (128, 128, 128)}
    for name, color in want.items():
        got = images.read_image(tmp_path / f"{name}.png", 16, 16)
        assert np.abs(got.astype(int) - color).max() <= 1, name
        with Image.open(tmp_path / f"{name}.png") as opened:
            assert np.array_equal(np.asarray(as_picture(opened))[:16, :16], got), name


def test_only_formats_that_pillow_itself_decodes_are_opened(tmp_path):
    """Of others it would start a program: Ghostscript for EPS, whatever the file is called."""
    Image.new("RGB", (32, 32)).save(tmp_path / "drawn.eps")
    (tmp_path / "drawn.eps").rename(tmp_path / "drawn.png")
    refused(lambda path: images.image_size(path, "end_image"), tmp_path / "drawn.png")
    refused(lambda path: images.read_image(path, 16, 16, "end_image"), tmp_path / "drawn.png")
    for kind in ("png", "jpg", "webp", "avif", "gif", "bmp", "tiff", "ppm", "jp2", "tga"):
        Image.new("RGB", (32, 48)).save(tmp_path / f"a.{kind}")
        assert images.read_image(tmp_path / f"a.{kind}", 48, 32).shape == (48, 32, 3)


def test_a_file_without_end_is_no_picture(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.webp")  # which Pillow reads as a whole
    with (tmp_path / "a.webp").open("rb+") as file:
        file.truncate(2**33)
    refused(lambda path: images.image_size(path, "end_image"), tmp_path / "a.webp")


def broken_pictures(folder: Path) -> list[Path]:
    Image.fromarray(scene(64, 96)).save(folder / "whole.jpg")
    Image.fromarray(scene(64, 96)).save(folder / "whole.png")
    broken = []
    for whole in (folder / "whole.jpg", folder / "whole.png"):
        data = whole.read_bytes()
        whole.unlink()
        broken.append(folder / f"cut{whole.suffix}")
        broken[-1].write_bytes(data[: len(data) // 2])
    for name, data in (("text.png", b"not a picture"), ("empty.png", b"")):
        broken.append(folder / name)
        broken[-1].write_bytes(data)
    (folder / "folder.png").mkdir()
    return [*broken, folder / "folder.png", folder / "missing.png"]


def refused(read, path: Path) -> None:
    with pytest.raises(InputError) as error:
        read(path)
    message = str(error.value)
    assert message.startswith(f"--end_image {path}: ") and "\n" not in message


def test_broken_pictures_are_named_in_one_line(tmp_path):
    for path in broken_pictures(tmp_path):
        refused(lambda path: images.read_image(path, 32, 32, "end_image"), path)
        if not path.name.startswith("cut"):  # the pixels are missing, the size is there
            refused(lambda path: images.image_size(path, "end_image"), path)


def test_what_pillow_logs_is_not_printed(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.tiff")
    content = bytearray((tmp_path / "a.tiff").read_bytes())
    at = content.index(b"\x15\x01\x03\0\x01\0\0\0")  # the entry of SamplesPerPixel
    content[at + 8 : at + 10] = (2048).to_bytes(2, "little")
    (tmp_path / "a.tiff").write_bytes(content)
    code = "import sys; from skyreels_v2_infer.media.images import read_image; read_image(sys.argv[1], 8, 8)"
    command = [sys.executable, "-c", code, str(tmp_path / "a.tiff")]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert ended.returncode and "must be a complete picture" in ended.stderr
    assert "samples per pixel" not in ended.stderr.lower()


def test_the_size_is_read_without_decoding(tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    names = [f"{exif_is}.{kind}" for exif_is in ("plain", "turned") for kind in ("png", "jpg", "webp", "tiff", "gif")]
    names.remove("turned.gif")
    for name in names:
        Image.fromarray(scene(64, 96)).save(tmp_path / name, **({"exif": exif} if name.startswith("turned") else {}))
    late = (tmp_path / "turned.png").read_bytes()
    begin = late.index(b"eXIf") - 4
    end = begin + 12 + int.from_bytes(late[begin : begin + 4], "big")
    chunk, rest = late[begin:end], late[:begin] + late[end:]
    (tmp_path / "turned_late.png").write_bytes(rest[:-12] + chunk + rest[-12:])  # in front of IEND only
    names.append("turned_late.png")
    with monkeypatch.context() as patch:
        for kind in (ImageFile.ImageFile, PngImagePlugin.PngImageFile, WebPImagePlugin.WebPImageFile):
            patch.setattr(kind, "load", lambda self: pytest.fail("decoded"))
        sizes = {name: images.image_size(tmp_path / name) for name in names}
    for name in names:
        with Image.open(tmp_path / name) as opened:
            width, height = ImageOps.exif_transpose(opened).size
        assert sizes[name] == (height, width) == ((96, 64) if name.startswith("turned") else (64, 96)), name
