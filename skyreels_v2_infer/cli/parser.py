"""The parser of all scripts: argparse, but every error is one line that names the flag and the legal values."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Sequence
from typing import NoReturn

from skyreels_v2_infer.errors import printable
from skyreels_v2_infer.launch import Launch

GENERATE = "generate_video.py"
DIFFUSION_FORCING = "generate_video_df.py"


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
