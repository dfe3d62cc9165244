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


def color_name(color: tuple[int, int, int]) -> str:
    """How a message calls a colour."""
    return {(255, 255, 255): "white", (0, 0, 0): "black"}.get(color, "#{:02x}{:02x}{:02x}".format(*color))


def fitting(height: int, width: int, to_height: int, to_width: int, fit: str) -> str:
    """What fitting a picture to another shape does to it, in words; "" if that is less than half a percent."""
    ratio = (width / height) / (to_width / to_height)
    share = 1 - min(ratio, 1 / ratio)
    if share < 0.005:
        return ""
    if fit == "pad":
        return f"padded {'above and below' if ratio > 1 else 'left and right'}, {share:.0%} of the frame"
    side, where = ("width", "left and right") if ratio > 1 else ("height", "above and below")
    return f"cropped {where}, {share:.0%} of its {side}"
