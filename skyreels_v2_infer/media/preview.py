"""A contact sheet of a video: the first and the last frame of every piece (what one window made), each numbered."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

WIDTH = 320  # largest width of a thumbnail, in pixels
ROW = 1600  # largest width of a sheet, in pixels
GAP, LABEL = 4, 14  # pixels between thumbnails, and above each for its frame number
MOST = 16_000_000  # pixels of all thumbnails in a sheet


def thumbnail(frame: np.ndarray) -> Image.Image:
    """uint8 ``[H, W, 3]`` -> an image at most `WIDTH` wide."""
    from PIL import Image

    image = Image.fromarray(frame)
    image.thumbnail((WIDTH, 10 * WIDTH), Image.Resampling.LANCZOS)
    return image


def pair(first: np.ndarray, last: np.ndarray) -> Image.Image:
    """Thumbnails of the first and the last frame of a piece, side by side in one image."""
    from PIL import Image

    ends = [thumbnail(first), thumbnail(last)]
    both = Image.new("RGB", (2 * ends[0].width, ends[0].height))
    both.paste(ends[0], (0, 0))
    both.paste(ends[1], (ends[0].width, 0))
    return both


def parted(both: Image.Image) -> tuple[Image.Image, Image.Image]:
    """The two thumbnails of a `pair`."""
    width = both.width // 2
    return both.crop((0, 0, width, both.height)), both.crop((width, 0, 2 * width, both.height))


def difference(last: Image.Image, first: Image.Image) -> float:
    """Mean absolute difference of two images of the same size, 0 to 1."""
    import numpy as np

    one, other = (np.asarray(image, dtype=np.float32) for image in (last, first))
    return float(np.abs(one - other).mean() / 255)


def layout(width: int, height: int, count: int) -> tuple[tuple[int, int], int, tuple[int, int]]:
    """The form of a sheet of `count` thumbnails -> (size of each on the sheet, how many side by side, size of all).

    Args:
        width, height: of a thumbnail before they shrink.
    """
    shrink = min(1.0, (MOST / (count * width * height)) ** 0.5)
    width, height = max(8, round(width * shrink)), max(8, round(height * shrink))
    across = max(1, min(count, ROW // (width + GAP)))
    down = -(-count // across)
    return (width, height), across, (across * (width + GAP) + GAP, down * (height + LABEL + GAP) + GAP)


def first_frame(height: int, width: int, count: int) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """Where a sheet shows a video's first frame -> (size of the sheet, (x, y, width, height) of the frame).

    Exact to a pixel, which is how Pillow may round the height of a thumbnail.

    Args:
        height, width: of the video's frames.
        count: thumbnails in the sheet.
    """
    scale = min(1.0, WIDTH / width, 10 * WIDTH / height)
    (width, height), _, size = layout(round(width * scale), round(height * scale), count)
    return size, (GAP, GAP + LABEL, width, height)


def sheet(ends: Callable[[int], Image.Image], first_frames: list[int], frames: int) -> Image.Image:
    """The contact sheet; thumbnails of very long videos shrink so that all together have at most `MOST` pixels.

    Args:
        ends: index of a piece -> its `pair`.
        first_frames: frame number at which each piece begins.
        frames: number of frames in the video.
    """
    from PIL import Image, ImageDraw

    numbers = [(i, end) for i, begin in enumerate(first_frames) for end in (begin, (*first_frames, frames)[i + 1] - 1)]
    numbers = list(dict.fromkeys(numbers))  # a piece of one frame is shown once
    (width, height), across, size = layout(*parted(ends(0))[0].size, len(numbers))
    page = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(page)
    for place, (piece, number) in enumerate(numbers):
        picture = parted(ends(piece))[number != first_frames[piece]]
        x, y = GAP + place % across * (width + GAP), GAP + place // across * (height + LABEL + GAP)
        draw.text((x, y), str(number), fill="black")
        page.paste(picture if picture.size == (width, height) else picture.resize((width, height)), (x, y + LABEL))
    return page
