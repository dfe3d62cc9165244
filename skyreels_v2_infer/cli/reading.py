"""Parsing flags and reporting errors: argparse, but every error is one line.

Functions convert the text of one value, for argparse's ``type``; argparse puts the flag in front of their messages.
"""

from __future__ import annotations

import argparse
import difflib
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from skyreels_v2_infer.errors import InputError, printable
from skyreels_v2_infer.launch import Launch
from skyreels_v2_infer.plan.cache_settings import read_cache
from skyreels_v2_infer.plan.naming import check_pattern
from skyreels_v2_infer.plan.plan import LoraPlan
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


def number(low: float | None = None, above: float | None = None, below: float | None = None) -> Callable[[str], float]:
    """Converts a finite number, at least `low`, greater than `above`, less than `below`; None: no limit."""
    limits = [f"at least {low}"] if low is not None else []
    limits += [f"above {above}"] if above is not None else []
    limits += [f"below {below}"] if below is not None else []
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
        ):
            raise argparse.ArgumentTypeError(f"{text}: {legal}")
        return value

    return read


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
        raise argparse.ArgumentTypeError(f"{text}: must be a path; only images may be addresses (http or https)")
    path = os.path.expanduser(text)  # which no shell does for --outdir=~/videos
    if path.startswith("~") and not os.path.lexists(path):
        raise argparse.ArgumentTypeError(f"{text}: no home folder of such a user is known (a name with ~: ./{text})")
    return Path(path)


def some_picture(text: str) -> Path | str:
    """A path, or the URL of an image as text."""
    return text if re.match("https?://", text, re.IGNORECASE) else some_path(text)


def device_name(text: str) -> str:
    """A device by torch's name; whether it exists is not known without torch."""
    if not re.fullmatch(r"cpu|mps|(cuda|xpu)(:[0-9]{1,4})?", text):
        raise argparse.ArgumentTypeError(f"{text}: must be cpu, cuda, cuda:N, mps, xpu or xpu:N")
    return text


class CommandError(ValueError):
    """A command line that cannot be parsed; the message is one line that names the flag and the legal values."""


class Parser(argparse.ArgumentParser):
    """argparse, but every error is one line that names the flag, the value and the legal values.

    Args:
        elsewhere: flags that only the other script has -> its name.
    """

    def __init__(self, prog: str, description: str, epilog: str, elsewhere: dict[str, str]):
        super().__init__(prog=prog, description=description, epilog=epilog, allow_abbrev=False)
        self.elsewhere = elsewhere

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parses `argv`; raises CommandError on an error."""
        words = joined(argv)
        for word in words:
            if re.fullmatch("--[a-z_]+=--", word):  # of which argparse would make a list
                self.error(f"argument {word[:-3]}: expected one argument")
        args, left_over = self.parse_known_args(words)
        if left_over:
            self.error(self._unknown(left_over))
        return args

    def error(self, message: str) -> NoReturn:
        if match := re.match("argument (--[a-z_]+)(?:/--[a-z_-]+)?: ", message):
            flag, rest = match[1], message[match.end() :]
            if rest in ("expected one argument", "expected at least one argument"):
                message = f"{flag}: needs a value"
            elif rest.startswith("ignored explicit argument"):
                message = f"{flag}: takes no value"
            else:
                message = f"{flag} {rest}"
        raise CommandError(printable(message))

    def refuse(self, error: ValueError) -> NoReturn:
        """Exits with 2 after one line."""
        speaks = Launch.for_messages().local_rank == 0  # all processes of torchrun get the same command line
        self.exit(2, f"{self.prog}: {printable(str(error))}\n" if speaks else None)

    def takes(self, flag: str) -> str | None:
        """What a flag takes: "switch", "negatable" (a switch with --no-...), "one" value, "several" at once, or
        "repeated"; None: there is no such flag."""
        action = self._option_string_actions.get(flag)
        if action is None:
            return None
        if isinstance(action, argparse.BooleanOptionalAction):
            return "negatable"
        if isinstance(action, argparse._AppendAction):
            return "repeated"
        return {0: "switch", "+": "several"}.get(action.nargs, "one")

    def unknown(self, flag: str) -> str:
        """What to say of a flag that this script does not have."""
        if flag in self.elsewhere:
            return f"only {self.elsewhere[flag]} has this flag"
        known = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
        close = difflib.get_close_matches(flag, known, 1)
        return "unknown flag, " + (f"did you mean {close[0]}?" if close else "--help lists all")

    def _unknown(self, left_over: list[str]) -> str:
        word = left_over[0]
        if not word.startswith("--"):
            return f"{word}: no flag in front of it (a prompt with spaces needs quotes)"
        value = f" {left_over[1]}" if left_over[1:] and not left_over[1].startswith("--") else ""
        return f"{word}{value}: {self.unknown(word.partition('=')[0])}"


def joined(argv: Sequence[str]) -> list[str]:
    """Turns `--shift -inf` into `--shift=-inf`: argparse would take the value for a flag and not name it."""
    words: list[str] = []
    for word in argv:
        if words and re.fullmatch("--[a-z_]+", words[-1]) and re.match("-[^-]", word) and word != "-h":
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words
