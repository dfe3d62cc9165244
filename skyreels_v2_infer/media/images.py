"""Reads images: from files and addresses, upright, in RGB, in the requested size. Pillow is imported when it is used.

An image is uint8 RGB ``[H, W, 3]``.
"""

from __future__ import annotations

import logging
import os
import secrets
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from skyreels_v2_infer.errors import InputError, first_line, in_one_line
from skyreels_v2_infer.media.files import check_file
from skyreels_v2_infer.media.input_options import DEFAULT, InputOptions

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

DOWNLOAD_SECONDS, DOWNLOAD_BYTES = 30, 100 * 2**20  # without any data; of one image
# Formats that Pillow itself decodes, from nothing but the file. EPS, for one, is left out: it starts Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "TGA")
LARGEST_FILE = 2**29  # bytes of a picture; some decoders read all of it at once
SIDEWAYS = range(5, 9)  # EXIF orientations that swap height and width
# Pillow logs what is wrong with some pictures, and without any handler logging prints that.
logging.getLogger("PIL").addHandler(logging.NullHandler())


def image_size(path: Path | str, name: str = "image") -> tuple[int, int]:
    """(height, width) in pixels of the image at `path`, after its EXIF orientation. Reads the header only.

    A truncated image passes here and is refused by `read_image`.

    Raises:
        InputError: for the flag `name`: the file is missing or is no image that Pillow can read.
    """
    with _opened(path, name) as image:
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
    import hashlib
    from http.client import HTTPException, InvalidURL
    from urllib.request import Request, urlopen

    home = os.path.expanduser("~/.cache")
    if home.startswith("~"):  # neither HOME nor an entry for the user
        home = tempfile.gettempdir()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or home) / "skyreels_v2_infer"
    try:
        with urlopen(Request(url, headers={"User-Agent": "skyreels_v2_infer"}), timeout=DOWNLOAD_SECONDS) as answer:
            content = answer.read(DOWNLOAD_BYTES + 1)
    except (OSError, ValueError, HTTPException) as error:
        reason = f"cannot be downloaded ({first_line(error)})"
        if isinstance(error, ValueError | InvalidURL) or "no host" in reason or 400 <= getattr(error, "code", 0) < 500:
            raise InputError(name, url, reason) from None
        raise OSError(f"--{name} {url}: {reason}") from None
    if len(content) > DOWNLOAD_BYTES:
        raise InputError(name, url, f"must be a picture of at most {DOWNLOAD_BYTES >> 20} MB")
    path = folder / hashlib.sha256(content).hexdigest()[:32]
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")  # other processes may download the same
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        image_size(part, name)
        os.replace(part, path)
    except InputError as error:
        raise InputError(name, url, error.legal) from None
    except OSError as error:
        raise OSError(f"--{name} {url}: cannot be saved in {folder} ({first_line(error)})") from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return path


def read_image(path: Path | str, height: int, width: int, name: str = "image") -> np.ndarray:
    """The image at `path` as uint8 RGB ``[height, width, 3]``: upright, scaled to cover the size, centre-cropped.

    Transparent parts become white, as most viewers show them.

    Raises:
        InputError: for the flag `name`: the file is missing, truncated, or no image that Pillow can read.
    """
    from PIL import ImageOps

    with _opened(path, name) as image:
        image = ImageOps.exif_transpose(image)  # decodes it to the end
    return fit(in_rgb(image), height, width)


@contextmanager
def _opened(path: Path | str, name: str) -> Iterator[Image.Image]:
    """Context manager: the opened image, its pixels not decoded yet. Errors within the block become InputError."""
    from PIL import Image

    check_file(path, name)
    try:
        # Pillow warns about harmless things (large images, damaged EXIF data), which would print more than one line.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.init()  # before that only some of the formats are known
            if os.path.getsize(path) > LARGEST_FILE:
                raise ValueError(f"it has more than {LARGEST_FILE >> 20} MB")
            with Image.open(path, formats=[kind for kind in FORMATS if kind in Image.OPEN]) as image:
                if image.mode == "F":
                    raise ValueError("its pixels are floating-point numbers, whose range the file does not state")
                yield image
    except Exception as error:  # Pillow's decoders raise whatever the parser of their format raises
        legal = "must be a complete picture that Pillow can read (PNG, JPEG, WebP, ...)"
        if not isinstance(error, Image.UnidentifiedImageError):
            legal += f", but: {in_one_line(error)}"
        raise InputError(name, path, legal) from None


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
    """An image as viewers show it: after its EXIF orientation, in RGB, white where it is transparent."""
    from PIL import ImageOps

    return in_rgb(ImageOps.exif_transpose(image))


def in_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode in RGB, on white where it is transparent."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        # `convert` alone would clip at 255.
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


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
