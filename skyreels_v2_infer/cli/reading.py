"""Parsing values: functions that convert the text of one value, for argparse's ``type``.

argparse puts the flag in front of their messages.
"""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable
from pathlib import Path

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.media.rates import read_rate
from skyreels_v2_infer.media.video_filters import check_color
from skyreels_v2_infer.plan.cache_settings import read_cache
from skyreels_v2_infer.plan.gpu_rates import GpuRate, read_gpu_rate
from skyreels_v2_infer.plan.naming import check_pattern
from skyreels_v2_infer.plan.plan import LoraPlan
from skyreels_v2_infer.plan.sizes import RESOLUTIONS
from skyreels_v2_infer.scheduler.sigmas import check_sigmas


def whole(low: int | None = None, high: int | None = None) -> Callable[[str], int]:
    """Converts a whole number from `low` to `high`, both included; None: no limit."""
    legal = "must be a whole number"
    if high is not None:
        legal += f", at most {high}" if low is None else f" from {low} to {high}"
    elif low is not None:
        legal += f", at least {low}"

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text}: {legal}") from None
        if (low is not None and value < low) or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"{text}: {legal}")
        return value

    return read


def number(
    low: float | None = None, above: float | None = None, below: float | None = None, most: float | None = None
) -> Callable[[str], float]:
    """Converts a finite number, at least `low`, greater than `above`, less than `below`, up to `most`; None: no
    limit."""
    limits = [f"at least {low}"] if low is not None else []
    limits += [f"above {above}"] if above is not None else []
    limits += [f"below {below}"] if below is not None else []
    limits += [f"at most {most}"] if most is not None else []
    legal = ", ".join(["must be a finite number", " and ".join(limits)] if limits else ["must be a finite number"])

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if (
            not math.isfinite(value)
            or (low is not None and value < low)
            or (above is not None and value <= above)
            or (below is not None and value >= below)
            or (most is not None and value > most)
        ):
            raise argparse.ArgumentTypeError(f"{text}: {legal}")
        return value

    return read


def rate(text: str) -> float:
    """Converts a frame rate, see `media.rates`."""
    try:
        return read_rate(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None


def numbers(count: int) -> Callable[[str], tuple[float, ...]]:
    """Converts `count` finite numbers separated by commas."""

    def read(text: str) -> tuple[float, ...]:
        try:
            values = tuple(number()(word) for word in text.split(","))
        except argparse.ArgumentTypeError:
            values = ()
        if len(values) != count:
            raise argparse.ArgumentTypeError(f"{text}: must be {count} finite numbers separated by commas")
        return values

    return read


def levels(text: str) -> tuple[float, ...]:
    """Converts noise levels separated by commas."""
    try:
        check_sigmas(values := tuple(number()(word) for word in text.split(",")))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text}: must be finite numbers separated by commas") from None
    except InputError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error.legal}") from None
    return values


def cache(text: str) -> str:
    """Settings of a cache, written out with all keys."""
    try:
        return str(read_cache(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None


def ratios(text: str) -> tuple[float, ...]:
    """Converts MagCache's ratios: numbers above 0, as many for the unconditional pass as for the conditional one."""
    try:
        values = tuple(number(above=0)(word) for word in text.split(","))
    except argparse.ArgumentTypeError:
        values = ()
    if not values or len(values) % 2:
        raise argparse.ArgumentTypeError(f"{text}: must be an even number of finite numbers above 0, with commas")
    return values


def lora_file(text: str) -> LoraPlan:
    """Converts FILE or FILE:STRENGTH."""
    name, colon, strength = text.rpartition(":")
    if not colon:
        return LoraPlan(some_path(text))
    try:
        return LoraPlan(some_path(name), number()(strength))
    except argparse.ArgumentTypeError:
        if re.fullmatch(r"[-+\d.eE]*", strength):
            raise argparse.ArgumentTypeError(
                f"{text}: must be a file, or a file, a colon and a finite number"
            ) from None
        return LoraPlan(some_path(text))  # a name with a colon in it


def one_of(*choices: str) -> Callable[[str], str]:
    """Accepts one of `choices`; as argparse's ``choices``, with our one-line message."""

    def read(text: str) -> str:
        if text not in choices:
            legal = f"{', '.join(choices[:-1])} or {choices[-1]}" if choices[1:] else choices[0]
            raise argparse.ArgumentTypeError(f"{text}: must be {legal}")
        return text

    return read


def resolution(text: str) -> str:
    """The name of a size, in capitals or not."""
    if text.upper() in RESOLUTIONS:
        return text.upper()
    sides = re.fullmatch(r"(\d{1,5})[x*:](\d{1,5})", text, re.IGNORECASE)
    other = f"--width {sides[1]} --height {sides[2]}" if sides else "--height and --width give other sizes"
    raise argparse.ArgumentTypeError(f"{text}: must be {' or '.join(RESOLUTIONS)}; {other}")


def any_text(text: str) -> str:
    """A text that can be encoded; it may be empty."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{text}: must be valid UTF-8") from None
    return text


def some_text(text: str) -> str:
    """A text with something in it."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r}: must not be empty")
    return any_text(text)


def name_pattern(text: str) -> str:
    """A pattern of file names, see `plan.naming`."""
    try:
        check_pattern(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None
    return text


def some_path(text: str) -> Path:
    """A path, with ``~`` expanded; URLs are rejected."""
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a path")
    if re.match("[a-z][a-z0-9+.-]*://", text, re.IGNORECASE):  # of which Path would drop a slash
        raise argparse.ArgumentTypeError(
            f"{text}: must be a path; only images and videos may be addresses (http or https)"
        )
    path = os.path.expanduser(text)  # which no shell does for --outdir=~/videos
    if path.startswith("~") and not os.path.lexists(path):
        raise argparse.ArgumentTypeError(f"{text}: no home folder of such a user is known (a name with ~: ./{text})")
    return Path(path)


def gpu_rate(text: str) -> GpuRate:
    """Converts TFLOP/s, or the name of a GPU."""
    try:
        return read_gpu_rate(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None


def some_picture(text: str) -> Path | str:
    """A path, or the URL of an image or a video as text."""
    return text if re.match("https?://", text, re.IGNORECASE) else some_path(text)


def color(text: str) -> str:
    """Converts a colour by name or number into ``#rrggbb``."""
    if re.fullmatch("#[0-9a-f]{6}", text):  # above all the default, for which PIL is not imported
        return text
    from PIL import ImageColor

    try:
        found = ImageColor.getrgb(text)
        if (len(found) > 3 and found[3] != 255) or not all(0 <= value <= 255 for value in found):
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: must be an opaque colour: white, #ffcc00, ...") from None
    return "#{:02x}{:02x}{:02x}".format(*found)


def input_color(text: str) -> str:
    """Colours of a video, see `check_color`."""
    try:
        return check_color(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None


def device_name(text: str) -> str:
    """A device by torch's name; whether it exists is not known without torch."""
    if not re.fullmatch(r"cpu|mps|(cuda|xpu)(:[0-9]{1,4})?", text):
        raise argparse.ArgumentTypeError(f"{text}: must be cpu, cuda, cuda:N, mps, xpu or xpu:N")
    return text
