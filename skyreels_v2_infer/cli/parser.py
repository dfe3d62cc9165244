"""The parser of all scripts: argparse, but every error is one line that names the flag and the legal values.

All faults of a command line are found before it is refused, and stand in that one line.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import NoReturn

from skyreels_v2_infer.cli.help import ABOUT, printed, short_help, version_line
from skyreels_v2_infer.cli.near_names import nearest_flag
from skyreels_v2_infer.console import called
from skyreels_v2_infer.errors import printable
from skyreels_v2_infer.launch import Launch


class CommandError(ValueError):
    """A command line that cannot be parsed; the message is one line that names the flags and the legal values.

    Attributes:
        parsed: what could be parsed; flags with faults have their defaults. None: nothing could.
        flags: those with faults, and those that unknown ones were probably meant to be.
    """

    def __init__(self, message: str, parsed: argparse.Namespace | None = None, flags: Collection[str] = ()):
        super().__init__(message)
        self.parsed, self.flags = parsed, flags


class Parser(argparse.ArgumentParser):
    """argparse, but every error is one line that names the flag, the value and the legal values.

    Args:
        script: its file name.
        elsewhere: flags that only the other script has -> its name.
    """

    def __init__(self, script: str, description: str, epilog: str, elsewhere: dict[str, str]):
        super().__init__(
            prog=called(script),
            usage="%(prog)s [flags]",
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            add_help=False,
        )
        self.script, self.elsewhere = script, elsewhere
        self._faults: list[tuple[str, str]] = []  # flag, message

    def add_help_flags(self, list_models: Callable[[], str] | None = None) -> None:
        """--help, --version and, if there is such a list, --list_models, as the last group."""
        group = self.add_argument_group("help")
        group.add_argument(
            *("-h", "--help"),
            action=_Answer,
            nargs="?",
            const="",
            choice="all",
            answer=self._help,
            metavar="all",
            help="the flags that most people need; --help all: all of them" if self.is_long else "this text",
        )
        group.add_argument(
            "--version",
            action=_Answer,
            nargs=0,
            answer=lambda _: version_line(),
            help="versions of this program and of what it needs",
        )
        if list_models is not None:
            group.add_argument(
                "--list_models",
                action=_Answer,
                nargs=0,
                answer=lambda _: list_models(),
                help="the published models: task, size, length, download in both layouts, memory",
            )

    def read(self, argv: Sequence[str], overridden: bool = False) -> argparse.Namespace:
        """Parses `argv`; raises CommandError on errors, all of them in one message.

        Args:
            overridden: whether flags that come later override earlier ones also where they take several values.
        """
        words = joined(argv)
        self._faults = [] if overridden else [*self._repeated(words)]
        for word in words:
            if re.fullmatch("--[a-z_]+=--", word):  # of which argparse would make a list
                self.error(f"argument {word[:-3]}: expected one argument")
        args, left_over = self.parse_known_args(words)
        faults = [*self._faults, *self._unknown(left_over, words)]
        if faults:
            for flag, _ in self._faults:
                action = self._option_string_actions[flag]
                setattr(args, action.dest, action.default)  # of several values not only the faulty one
            flags = {flag for flag, _ in faults} | {self.nearest(flag) for flag, _ in faults}
            raise CommandError("; ".join(printable(message) for _, message in faults), args, flags - {None})
        return args

    def _get_value(self, action: argparse.Action, arg_string: str):
        """A converted value; a fault is noted, and the default stands in for it until all are found."""
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            flag = max(action.option_strings, key=len)
            self._faults.append((flag, in_our_words(str(error))))
            return action.default

    def error(self, message: str) -> NoReturn:
        """For what argparse itself finds wrong, after which it does not go on."""
        found = [*(text for _, text in self._faults), in_our_words(message)]
        raise CommandError("; ".join(map(printable, found)))

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

    def nearest(self, flag: str) -> str | None:
        """The flag that an unknown one was probably meant to be."""
        known = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
        return None if flag in known else nearest_flag(flag, known)

    def unknown(self, flag: str) -> str:
        """What to say of a flag that this script does not have."""
        if flag in self.elsewhere:
            return f"only {called(self.elsewhere[flag])} has this flag"
        near = self.nearest(flag) or nearest_flag(flag, self.elsewhere)
        if near in self.elsewhere:
            return f"unknown flag, did you mean {near}? Only {called(self.elsewhere[near])} has it"
        return "unknown flag, " + (f"did you mean {near}?" if near else f"--help{' all' * self.is_long} lists all")

    def _repeated(self, words: Sequence[str]) -> Iterator[tuple[str, str]]:
        """(flag, message) for every flag that is given again, by which values would be lost that were meant to stay."""
        given = [word.partition("=")[0] for word in words]
        for flag, action in self._option_string_actions.items():
            if given.count(flag) < 2:
                continue
            if action.nargs == "+" and isinstance(action, argparse._StoreAction):
                yield flag, f"{flag}: is given {given.count(flag)} times; several values follow one {flag}"
            elif flag == "--config":
                yield flag, f"{flag}: is given {given.count(flag)} times; one file has all flags"

    def _unknown(self, left_over: Sequence[str], words: Sequence[str]) -> Iterator[tuple[str, str]]:
        """(flag, message) for every unknown flag and every value behind a switch; of other words for the first one.

        Args:
            left_over: those of `words` that belong to no flag.
        """
        switches = {word: flag for flag, word in pairwise(words) if self.takes(flag) in ("switch", "negatable")}
        stray = False
        for i, word in enumerate(left_over):
            if re.match("--|-[A-Za-z]", word):
                following = left_over[i + 1 : i + 2]
                value = "".join(f" {text}" for text in following if not text.startswith("-") and "=" not in word)
                flag = word.partition("=")[0]
                yield flag, f"{word}{value}: {self.unknown(flag)}"
            elif word in switches:
                yield switches[word], f"{switches[word]} {word}: takes no value"
            elif not stray and not (i and left_over[i - 1].startswith("-") and "=" not in left_over[i - 1]):
                stray = True
                yield word, f"{word}: no flag in front of it (a prompt with spaces needs quotes)"

    @property
    def is_long(self) -> bool:
        """Whether there are so many flags that --help shows some of them."""
        return self.script in ABOUT

    def _help(self, which: str) -> str:
        return short_help(self.script) if self.is_long and not which else self.format_help()

    def complete(self) -> None:
        """Answers the shell's question for completions, if it has asked one; needs argcomplete."""
        if "_ARGCOMPLETE" in os.environ:
            with suppress(ImportError):
                import argcomplete

                argcomplete.autocomplete(self)


class _Answer(argparse.Action):
    """A flag that prints a text and ends the program, as --help does.

    Args:
        answer: the flag's value -> text.
        choice: the only value that it may have.
    """

    def __init__(self, option_strings, dest, answer: Callable[[str], str], choice: str = "", **more):
        super().__init__(option_strings, argparse.SUPPRESS, default=argparse.SUPPRESS, **more)
        self.answer, self.choice = answer, choice

    def __call__(self, parser, namespace, values, option_string=None):
        if values and values != self.choice:
            parser.error(f"argument {option_string}: {values}: must be {self.choice}, or nothing")
        parser.exit(printed(parser.script, self.answer(values or "")))


def in_our_words(message: str) -> str:
    """A message of argparse's, beginning with the flag."""
    match = re.match("argument (?:-h/)?(--?[a-z_]+)(?:/--[a-z_-]+)?: ", message)
    if not match:
        return message
    flag, rest = match[1], message[match.end() :]
    if rest in ("expected one argument", "expected at least one argument"):
        return f"{flag}: needs a value"
    return f"{flag}: takes no value" if rest.startswith("ignored explicit argument") else f"{flag} {rest}"


def joined(argv: Sequence[str]) -> list[str]:
    """Turns `--shift -inf` into `--shift=-inf`: argparse would take the value for a flag and not name it."""
    words: list[str] = []
    for word in argv:
        is_value = re.match("-[^-]", word) and not re.fullmatch("-[A-Za-z]", word)  # not -h, nor another program's -p
        if words and re.fullmatch("--[a-z_]+", words[-1]) and is_value:
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words
