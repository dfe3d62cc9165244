"""What the command says about how images and videos are read."""

from __future__ import annotations

from typing import NamedTuple

WHITE = (255, 255, 255)


class InputOptions(NamedTuple):
    """How inputs are read; the defaults are the command's.

    Attributes:
        background: RGB, 0..255, behind what is transparent.
        fit: "crop": scaled to cover the video's size and cropped; "pad": scaled into it, on the background.
        color: what a video's colours are, whatever its tags say, as ``hlg`` or ``bt709:full``, see
            `video_filters.check_color`; None: as tagged.
    """

    background: tuple[int, int, int] = WHITE
    fit: str = "crop"
    color: str | None = None


DEFAULT = InputOptions()
