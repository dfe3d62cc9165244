"""Pictures in. Nothing here knows torch; Pillow is imported when it is used.

A picture is uint8 RGB ``[H, W, 3]``.
"""

from __future__ import annotations

import os
import secrets
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from skyreels_v2_infer.errors import InputError, first_line, in_one_line
from skyreels_v2_infer.media.files import check_file

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

DOWNLOAD_SECONDS, DOWNLOAD_BYTES = 30, 100 * 2**20  # of silence; of one picture


def image_size(path: Path | str, name: str = "image") -> tuple[int, int]:
    """(height, width) in pixels of the picture at `path`, upright as its EXIF tag says.

    The whole picture is decoded, so that a truncated file is found here. Raises InputError under the flag `name`.
    """
    width, height = _open_image(path, name).size
    return height, width


def download_image(url: str, name: str = "image") -> Path:
    """The file with the picture at an address, in the user's cache, named by its content.

    Raises InputError under the flag `name` if there is none or it is no picture; OSError if another try may help.
    """
    import hashlib
    from http.client import HTTPException, InvalidURL
    from urllib.request import Request, urlopen

    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "skyreels_v2_infer"
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
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")  # other processes may fetch the same
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        image_size(part, name)
        os.replace(part, path)
    except InputError as error:
        raise InputError(name, url, error.legal) from None
    except OSError as error:
        raise OSError(f"--{name} {url}: cannot be kept in {folder} ({first_line(error)})") from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return path


def read_image(path: Path | str, height: int, width: int, name: str = "image") -> np.ndarray:
    """The picture at `path` as uint8 RGB ``[height, width, 3]``: upright, scaled to cover the size, centre-cropped.

    Transparent parts become white, as most viewers show them. Raises InputError under the flag `name`.
    """
    return fit(_open_image(path, name), height, width)


def _open_image(path: Path | str, name: str) -> Image.Image:
    """The decoded picture, upright, RGB."""
    from PIL import Image, ImageOps

    check_file(path, name)
    try:
        # PIL warns about harmless oddities (large pictures, EXIF damage), which would break the rule of one line.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                image = ImageOps.exif_transpose(image)  # also decodes it, to the end
                if image.mode == "F":
                    raise ValueError("its brightness is in fractions, of which nobody knows how bright 1 is")
    except Exception as error:  # PIL's decoders raise whatever their format's parser happens to raise
        legal = "must be a complete picture that Pillow can read (PNG, JPEG, WebP, ...)"
        if not isinstance(error, Image.UnidentifiedImageError):
            legal += f", but: {in_one_line(error)}"
        raise InputError(name, path, legal) from None
    return in_rgb(image)


def as_shown(image: Image.Image) -> Image.Image:
    """A picture as viewers show it: upright as its EXIF tag says, in RGB, white where it is transparent."""
    from PIL import ImageOps

    return in_rgb(ImageOps.exif_transpose(image))


def in_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode in RGB, on white where it is transparent."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        # convert alone would clip
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def fit(image: Image.Image, height: int, width: int) -> np.ndarray:
    import numpy as np
    from PIL import Image, ImageOps

    return np.array(ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS))
