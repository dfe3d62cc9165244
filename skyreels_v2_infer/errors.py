"""The one exception for input that a user can mend, and how to quote those of others."""


class InputError(ValueError):
    """A setting or a file that cannot be used: what it is called, what was given, what would be legal.

    The scripts print it as one line and exit with code 2; from Python it is an ordinary ``ValueError``.

    Args:
        name: the argument as Python knows it; the command line writes it with two dashes in front.
        value: what was given; None if the value is not what is wrong.
        legal: what is wrong, or what would have been accepted.
    """

    def __init__(self, name: str, value: object, legal: str):
        super().__init__(printable(f"--{name}: {legal}" if value is None else f"--{name} {value}: {legal}"))
        self.name, self.value, self.legal = name, value, legal


def printable(text: str) -> str:
    """In one line, whatever a user may have typed: line breaks and undecodable bytes are written out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def first_line(error: BaseException, limit: int = 200) -> str:
    """A message of a library, cut to what fits into our one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:limit]


def in_one_line(message: object) -> str:
    """All of a message, without its line breaks."""
    return " ".join(str(message).split())
