"""A contact sheet of a video: frames spread over every piece (what one window made), numbered, with seams marked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

WIDTH = 320  # largest width of a thumbnail, in pixels
ROW = 1600  # largest width of a sheet, in pixels
EACH, SHOWN = 8, 24  # thumbnails of a piece at most, and of all pieces unless there are many
GAP, LABEL = 4, 14  # pixels between thumbnails, and above each for its frame number
MOST = 16_000_000  # pixels of all thumbnails in a sheet


def thumbnail(frame: np.ndarray) -> Image.Image:
    """uint8 ``[H, W, 3]`` -> an image at most `WIDTH` wide."""
    from PIL import Image

    image = Image.fromarray(frame)
    image.thumbnail((WIDTH, 10 * WIDTH), Image.Resampling.LANCZOS)
    return image


def spots(frames: int, pieces: int) -> list[int]:
    """Which frames of a piece are shown: the first, the last and some between, fewer if the video has many pieces."""
    count = max(2, min(EACH, SHOWN // pieces))
    return sorted({round(i * (frames - 1) / (count - 1)) for i in range(count)})


def counts(frames: Sequence[int]) -> list[int]:
    """How many thumbnails the sheet of a video may have, whose pieces have so many frames.

    Of a video that is continued only two frames are shown; so were of every piece in earlier versions.
    """
    ends = [min(2, count) for count in frames]
    spread = [len(spots(count, len(frames))) for count in frames]
    return list(dict.fromkeys([sum(spread), ends[0] + sum(spread[1:]), sum(ends)]))


def strip(thumbnails: Sequence[Image.Image]) -> Image.Image:
    """Thumbnails of the same size side by side in one image."""
    from PIL import Image

    width, height = thumbnails[0].size
    page = Image.new("RGB", (len(thumbnails) * width, height))
    for place, picture in enumerate(thumbnails):
        page.paste(picture, (place * width, 0))
    return page


def pair(first: np.ndarray, last: np.ndarray) -> Image.Image:
    """A `strip` of the first and the last frame of a piece."""
    return strip([thumbnail(first), thumbnail(last)])


def parted(page: Image.Image, width: int | None = None) -> list[Image.Image]:
    """The thumbnails of a `strip`.

    Args:
        width: of each; None: there are two.
    """
    count = 2 if width is None else max(1, round(page.width / width))
    width = page.width // count
    return [page.crop((i * width, 0, (i + 1) * width, page.height)) for i in range(count)]


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


def sheet(
    strips: Callable[[int], Image.Image], first_frames: list[int], frames: int, width: int | None = None
) -> Image.Image:
    """The contact sheet; thumbnails of very long videos shrink so that all together have at most `MOST` pixels.

    A frame with which a piece begins, but for the first, has a red number and a red line on its left.

    Args:
        strips: index of a piece -> its `strip`, of the frames that `spots` names, or of its first and last frame.
        first_frames: frame number at which each piece begins.
        frames: number of frames in the video.
        width: of a thumbnail; None: half of the strip.
    """
    from PIL import Image, ImageDraw

    numbers = []
    for piece, begin in enumerate(first_frames):
        length = (*first_frames, frames)[piece + 1] - begin
        count = len(parted(strips(piece), width))
        places = [0, length - 1] if count == 2 else spots(length, len(first_frames))
        places = places if len(places) == count else [round(i * (length - 1) / max(1, count - 1)) for i in range(count)]
        numbers += [(piece, i, begin + place) for i, place in enumerate(places[: 1 if length == 1 else None])]
    (small, high), across, size = layout(*parted(strips(0), width)[0].size, len(numbers))
    page = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(page)
    for place, (piece, i, number) in enumerate(numbers):
        picture = parted(strips(piece), width)[i]
        x, y = GAP + place % across * (small + GAP), GAP + place // across * (high + LABEL + GAP)
        is_seam = piece > 0 and i == 0
        draw.text((x, y), str(number), fill="red" if is_seam else "black")
        if is_seam:
            draw.rectangle((x - GAP + 1, y, x - 2, y + LABEL + high - 1), fill="red")
        page.paste(picture if picture.size == (small, high) else picture.resize((small, high)), (x, y + LABEL))
    return page
