"""Reads images: from files and addresses, upright, in RGB, in the requested size. Pillow is imported when it is used.

An image is uint8 RGB ``[H, W, 3]``.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from skyreels_v2_infer.errors import InputError, in_one_line
from skyreels_v2_infer.media.download import download
from skyreels_v2_infer.media.files import check_file
from skyreels_v2_infer.media.input_options import DEFAULT, InputOptions, fitting
from skyreels_v2_infer.media.picture_colour import in_rgb, note_integers
from skyreels_v2_infer.media.picture_tags import note_colours

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

DOWNLOAD_BYTES = 100 * 2**20  # of one image
# Formats that Pillow itself decodes, from nothing but the file. EPS, for one, is left out: it starts Ghostscript.
# HEIF is pillow-heif's and JXL pillow-jxl-plugin's, where these are installed.
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "TGA", "HEIF", "JXL")
# A picture of up to so many pixels is read, which takes 4 bytes each, 8 with transparency. From `REDUCED_ABOVE` on it
# is reduced by a whole factor as it is decoded or right after that, so that nothing else takes that much.
MOST_PIXELS, REDUCED_ABOVE = 256 * 10**6, 50 * 10**6
ENOUGH = 1.5  # how much larger than needed it stays then, for the resampling that follows
LARGEST_FILE = 2**29  # bytes of a picture; some decoders read all of it at once
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
ANIMATED = ("GIF", "PNG", "WEBP", "AVIF", "JXL")  # of which a picture may be an animation
SIDEWAYS = range(5, 9)  # EXIF orientations that swap height and width
# Pillow logs what is wrong with some pictures, and without any handler logging prints that.
logging.getLogger("PIL").addHandler(logging.NullHandler())


def image_size(path: Path | str, name: str = "image") -> tuple[int, int]:
    """(height, width) in pixels of the image at `path`, after its EXIF orientation. Reads the header only.

    A truncated image passes here and is refused by `read_image`.

    Raises:
        InputError: for the flag `name`: the file is missing or is no image that Pillow can read.
    """
    with opened_image(path, name) as image:
        width, height = image.size
        if image.format == "TIFF":  # Pillow may have swapped `size` already
            width, height = image.tag_v2[256], image.tag_v2[257]
        return (width, height) if _orientation(image) in SIDEWAYS else (height, width)


def download_image(url: str, name: str = "image") -> Path:
    """Downloads an image into the user's cache and returns its file, named by a hash of its content.

    Raises:
        InputError: for the flag `name`: nothing is there, or it is no image (only its header is read).
        OSError: the network or the disk failed; trying again may help.
    """
    return download(url, name, DOWNLOAD_BYTES, "a picture", lambda path: image_size(path, name))


def read_image(
    path: Path | str,
    height: int,
    width: int,
    name: str = "image",
    options: InputOptions = DEFAULT,
    notes: list[str] | None = None,
) -> np.ndarray:
    """The image at `path` as uint8 RGB ``[height, width, 3]``: upright, in sRGB, fitted as `options` say.

    Of an animated one the first frame.

    Args:
        notes: receives a line for what was changed.

    Raises:
        InputError: for the flag `name`: the file is missing, truncated, or no image that Pillow can read.
    """
    from PIL import ImageOps

    notes = [] if notes is None else notes
    with opened_image(path, name) as image:
        if image.format in ANIMATED and (frames := getattr(image, "n_frames", 1)) > 1:
            notes.append(f"the first of its {frames} frames")
        size = (width, height) if _orientation(image) in SIDEWAYS else (height, width)
        image = in_rgb(ImageOps.exif_transpose(_reduced(image, *size)), options.background, notes)
    if said := fitting(image.height, image.width, height, width, options.fit):
        notes.append(said)
    return fit(image, height, width, options)


def _reduced(image: Image.Image, height: int, width: int) -> Image.Image:
    """A very large image smaller, but still larger than the size; decodes it to the end."""
    if image.width * image.height > REDUCED_ABOVE:
        factor = min(image.height / height, image.width / width) / ENOUGH
        if image.format == "JPEG" and factor > 1:
            image.draft(image.mode, (int(image.width / factor), int(image.height / factor)))
        image.load()
        factor = int(min(image.height / height, image.width / width) / ENOUGH)
        if factor > 1 and image.mode not in ("P", "1", "I", "F"):
            info, exif = image.info, image.getexif()
            image = image.reduce(factor)
            image.info.update(info)
            if 0x0112 in exif:
                image.getexif()[0x0112] = exif[0x0112]
    return image


@contextmanager
def opened_image(path: Path | str, name: str) -> Iterator[Image.Image]:
    """Context manager: the opened image, its pixels not decoded yet. Errors within the block become InputError."""
    from PIL import Image

    check_file(path, name)
    missing = _register(path)
    try:
        # Pillow warns about harmless things (large images, damaged EXIF data), which would print more than one line.
        with warnings.catch_warnings(), _large_pictures():
            warnings.simplefilter("ignore")
            Image.init()  # before that only some of the formats are known
            if os.path.getsize(path) > LARGEST_FILE:
                raise ValueError(f"it has more than {LARGEST_FILE >> 20} MB")
            with Image.open(path, formats=[kind for kind in FORMATS if kind in Image.OPEN]) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise ValueError(f"it has more than {MOST_PIXELS // 10**6} million pixels")
                if image.mode == "F":
                    raise ValueError("its pixels are floating-point numbers, whose range the file does not state")
                note_integers(image)
                note_colours(image, path)
                yield image
    except Exception as error:  # Pillow's decoders raise whatever the parser of their format raises
        legal = "must be a complete picture that Pillow can read (PNG, JPEG, WebP, ...)"
        if not isinstance(error, Image.UnidentifiedImageError):
            legal += f", but: {in_one_line(error)}"
        elif missing is not None:
            legal = f"is a picture for which a package is missing: pip install {missing}"
        raise InputError(name, path, legal) from None


@contextmanager
def _large_pictures() -> Iterator[None]:
    """Context manager: our limit in place of Pillow's, which is below what cameras make."""
    from PIL import Image

    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _register(path: Path | str) -> str | None:
    """Makes Pillow know the format of a HEIC or JPEG XL picture -> the package that is missing for that, or None."""
    with suppress(OSError), open(path, "rb") as file:
        head = file.read(32)
        if head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS:
            try:
                import pillow_heif

                pillow_heif.register_heif_opener()
            except ImportError:
                return "pillow-heif"
        elif head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
            try:
                import pillow_jxl  # noqa: F401  registers itself
            except ImportError:
                return "pillow-jxl-plugin"
    return None


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of an opened image, 1 to 8, without decoding it."""
    from PIL import Image

    if image.format == "PNG" and "exif" not in image.info:
        image.fp.seek(8)  # the chunk may stand behind the pixels, where Pillow finds it only by decoding them
        while len(start := image.fp.read(8)) == 8:
            length, kind = int.from_bytes(start[:4], "big"), start[4:]
            if kind == b"eXIf":
                image.info["exif"] = b"Exif\0\0" + image.fp.read(length)
                break
            image.fp.seek(length + 4, os.SEEK_CUR)  # 4: its checksum
    # The base class's: that of PNG decodes.
    return Image.Image.getexif(image).get(0x0112, 1)


def as_shown(image: Image.Image) -> Image.Image:
    """An image as viewers show it: after its EXIF orientation, in sRGB, white where it is transparent."""
    from PIL import ImageOps

    return in_rgb(ImageOps.exif_transpose(image))


def fit(image: Image.Image, height: int, width: int, options: InputOptions = DEFAULT) -> np.ndarray:
    """An RGB image in another size, as uint8 ``[height, width, 3]``; the centre stays the centre.

    With ``options.fit`` "crop" it is scaled to cover the size and what is beyond it is cut off; with "pad" it is scaled
    into it and the rest is ``options.background``.
    """
    import numpy as np
    from PIL import Image, ImageOps

    if options.fit == "pad":
        return np.array(ImageOps.pad(image, (width, height), Image.Resampling.LANCZOS, options.background))
    return np.array(ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS))
