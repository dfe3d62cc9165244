"""The exception for invalid user input, and messages of libraries shortened to one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class InputError(ValueError):
    """Invalid user input: a setting or a file that cannot be used.

    The scripts print it as one line and exit with code 2; from Python it is an ordinary ``ValueError``.

    Args:
        name: name of the argument, without dashes.
        value: the invalid value; None if the value itself is not the problem.
        legal: what is wrong, or what would be accepted.
    """

    def __init__(self, name: str, value: object, legal: str):
        super().__init__(printable(f"--{name}: {legal}" if value is None else f"--{name} {value}: {legal}"))
        self.name, self.value, self.legal = name, value, legal
        self.each: tuple[InputError, ...] = (self,)


class Faults:
    """Independent checks, of which all errors are reported together.

    Attributes:
        errors: the first one for each argument.
    """

    def __init__(self):
        self.errors: list[InputError] = []

    def check(self, function: Callable[..., T], *values: object) -> T | None:
        """What the function returns; None if it raises an `InputError`."""
        try:
            return function(*values)
        except InputError as error:
            known = {before.name for before in self.errors}
            self.errors += [each for each in error.each if each.name not in known]
            return None

    def raise_all(self) -> None:
        """Raises one `InputError` for all that were found, if any."""
        if not self.errors:
            return
        first, *others = self.errors
        error = InputError(first.name, first.value, "; ".join([first.legal, *map(str, others)]))
        error.each = tuple(self.errors)
        raise error


def printable(text: str) -> str:
    """The text in one line: line breaks, control characters and undecodable bytes are escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def first_line(error: BaseException, limit: int = 200) -> str:
    """The first line of an exception's message, at most `limit` characters; its type if it has no message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:limit]


def in_one_line(message: object) -> str:
    """The whole message, with spaces for line breaks."""
    return " ".join(str(message).split())
