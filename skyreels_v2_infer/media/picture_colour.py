"""Pictures of any mode and colour space -> RGB as sRGB shows it: profiles, deep pixels, transparency."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from skyreels_v2_infer.errors import printable
from skyreels_v2_infer.media.colour import HDR
from skyreels_v2_infer.media.input_options import WHITE, color_name
from skyreels_v2_infer.media.picture_tags import STATED, tagged_to_srgb

if TYPE_CHECKING:
    from PIL import Image

INTEGERS = "integers"  # in the info of a TIFF in 32 bits: (bits in the file, whether they are signed)
_SPACES = {"RGB": "RGB", "CMYK": "CMYK", "GRAY": "L"}  # of profiles -> modes of pictures


def in_rgb(image: Image.Image, background: tuple[int, int, int] = WHITE, notes: list[str] | None = None) -> Image.Image:
    """An image of any mode in RGB of sRGB, on `background` where it is transparent.

    An embedded profile (ICC) is applied with the relative colorimetric intent and black point compensation.

    Args:
        notes: receives a line for what is changed.

    Raises:
        ValueError: the range of its numbers is not known.
    """
    from PIL import Image

    notes = [] if notes is None else notes
    image = eight_bits(image)
    alpha = None
    if image.has_transparency_data:
        if image.mode == "P" or (image.mode in ("L", "RGB") and "transparency" in image.info):
            image = _with(image.convert("RGBA"), image)
        elif image.mode in ("La", "PA", "RGBa"):
            image = _with(image.convert("LA" if image.mode == "La" else "RGBA"), image)
        alpha = image.getchannel("A")
        image = _with(image.convert("L" if image.mode == "LA" else "RGB"), image)
        if alpha.getextrema()[0] == 255:
            alpha = None
    image = _in_srgb(image, notes)
    if alpha is not None:
        notes.append(f"transparency shown on {color_name(background)}")
        image.putalpha(alpha)
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image).convert("RGB")
    return image


def eight_bits(image: Image.Image) -> Image.Image:
    """An image whose channels have more than 8 bits, scaled to them; others as they are.

    Raises:
        ValueError: the range of its numbers is not known.
    """
    if image.mode.startswith("I;16"):  # `convert` alone would clip at 255
        return _with(image.convert("I").point(lambda value: value * (1 / 257)).convert("L"), image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose range the file does not state")
    if image.mode == "I":
        return _with(_from_32_bits(image), image)
    return image


def _from_32_bits(image: Image.Image) -> Image.Image:
    """Integers in 32 bits: of a file with 16 bits, or of a TIFF with 32 that uses them."""
    import numpy as np
    from PIL import Image

    bits, signed = image.info.get(INTEGERS, (16, False))
    if bits <= 16:
        top = 2**16 - 1
        values = np.asarray(image)
    else:
        values = np.asarray(image).view(np.int32 if signed else np.uint32)
        top = 2**31 - 1 if signed else 2**32 - 1
        if values.max() < 2**16:
            raise ValueError(f"its 32-bit numbers reach only {values.max()}, so their range is not known")
    return Image.fromarray(np.clip(np.rint(values * (255 / top)), 0, 255).astype(np.uint8))


def note_integers(image: Image.Image) -> None:
    """Keeps what only the file of a TIFF says of its integers, for `in_rgb` of a copy."""
    tags = getattr(image, "tag_v2", {})
    if image.mode == "I" and tags:
        bits, kind = (
            value[0] if isinstance(value, tuple) else value for value in (tags.get(258, 16), tags.get(339, 1))
        )
        image.info[INTEGERS] = bits, kind == 2


def _with(image: Image.Image, before: Image.Image) -> Image.Image:
    """`image`, with the profile and stated colours of the one that it was made from."""
    for name in ("icc_profile", STATED):
        if name in before.info:
            image.info[name] = before.info[name]
    return image


def _in_srgb(image: Image.Image, notes: list[str]) -> Image.Image:
    """An opaque image in RGB of sRGB."""
    content, stated = image.info.get("icc_profile"), image.info.get(STATED)
    if stated is not None and (stated.before_profile or not content):
        how = "HDR ({}) converted to SDR" if stated.transfer in HDR else "colours converted from {} to sRGB"
        notes.append(how.format(stated.name))
        return tagged_to_srgb(image, stated)
    if not content:
        return image.convert("RGB")
    from PIL import ImageCms

    if image.mode not in ("RGB", "CMYK", "L"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
        space = profile.profile.xcolor_space.strip()
        mode = _SPACES.get(space)
        if mode is None or (mode != image.mode and (mode, image.mode) != ("RGB", "L")):
            raise ValueError(f"for {space}")  # for pictures of another kind
        image = image.convert(mode)
        convert = ImageCms.buildTransform(
            profile,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if mode == "RGB" and _changes_nothing(convert):
            return image
        name = printable(" ".join(ImageCms.getProfileDescription(profile).split())[:40]) or space
        converted = ImageCms.applyTransform(image, convert)
    except (ImageCms.PyCMSError, OSError, ValueError):
        notes.append("its colour profile is damaged or of another kind and was ignored")
        return image.convert("RGB")
    notes.append(f"colours converted from {name} to sRGB")
    return converted


def _changes_nothing(convert) -> bool:
    """Whether a transform of RGB is that of sRGB to itself: such pictures keep their pixels bit for bit."""
    import numpy as np
    from PIL import Image, ImageCms

    axis = np.arange(0, 256, 17, dtype=np.uint8)
    colours = np.stack(np.meshgrid(axis, axis, axis), -1).reshape(64, 64, 3)
    after = np.asarray(ImageCms.applyTransform(Image.fromarray(colours), convert))
    return np.abs(after.astype(int) - colours).max() <= 1
