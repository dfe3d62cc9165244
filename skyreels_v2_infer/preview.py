"""A contact sheet of a video: its first frame, both sides of every seam between windows, its last frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

WIDTH = 320  # of a picture in the sheet, in pixels; smaller videos as they are
ROW = 1600  # pixels that a row of the sheet may have
GAP, LABEL = 4, 14


def thumbnail(frame: np.ndarray) -> Image.Image:
    """uint8 ``[H, W, 3]`` -> a picture at most WIDTH wide."""
    from PIL import Image

    image = Image.fromarray(frame)
    image.thumbnail((WIDTH, 10 * WIDTH), Image.Resampling.LANCZOS)
    return image


def pair(first: np.ndarray, last: np.ndarray) -> Image.Image:
    """The ends of a stretch, side by side."""
    from PIL import Image

    ends = [thumbnail(first), thumbnail(last)]
    both = Image.new("RGB", (2 * ends[0].width, ends[0].height))
    both.paste(ends[0], (0, 0))
    both.paste(ends[1], (ends[0].width, 0))
    return both


def parted(both: Image.Image) -> tuple[Image.Image, Image.Image]:
    width = both.width // 2
    return both.crop((0, 0, width, both.height)), both.crop((width, 0, 2 * width, both.height))


def difference(last: Image.Image, first: Image.Image) -> float:
    """Mean absolute difference of two pictures, 0 to 1."""
    import numpy as np

    one, other = (np.asarray(image, dtype=np.float32) for image in (last, first))
    return float(np.abs(one - other).mean() / 255)


def sheet(pairs: list[Image.Image], first_frames: list[int], frames: int) -> Image.Image:
    """The contact sheet.

    Args:
        pairs: from `pair`, one for each stretch in order.
        first_frames: the number of each stretch's first frame. frames: how many there are in all.
    """
    from PIL import Image, ImageDraw

    ends = [first_frames[i] - 1 for i in range(1, len(pairs))] + [frames - 1]
    pictures = []
    for both, begin, end in zip(pairs, first_frames, ends, strict=True):
        first, last = parted(both)
        pictures.append((begin, first))
        if end > begin:
            pictures.append((end, last))
    width, height = pictures[0][1].size
    across = max(1, min(len(pictures), ROW // (width + GAP)))
    down = -(-len(pictures) // across)
    page = Image.new("RGB", (across * (width + GAP) + GAP, down * (height + LABEL + GAP) + GAP), "white")
    draw = ImageDraw.Draw(page)
    for i, (number, picture) in enumerate(pictures):
        x, y = GAP + i % across * (width + GAP), GAP + i // across * (height + LABEL + GAP)
        draw.text((x, y), str(number), fill="black")
        page.paste(picture, (x, y + LABEL))
    return page
