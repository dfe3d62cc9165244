"""Flags of a command line by name, and the values of a row as words of a command line."""

from __future__ import annotations

import json
from collections.abc import Sequence

from skyreels_v2_infer.cli.parser import Parser, joined

JOINED = ("sigmas", "teacache_coefficients", "magcache_ratios")  # values with commas between them


def flags_of(argv: Sequence[str]) -> dict[str, list[str]]:
    """The words of a command line by the flag's name; what is in front of all flags has the name "".

    A flag and its only value are one word, ``--name=value``.
    """
    given: list[list[str]] = [[]]  # each flag with its values, after what is in front of all flags
    for word in joined(argv):
        if word.startswith("--"):
            given.append([])
        given[-1].append(word)
    flags: dict[str, list[str]] = {}
    for words in filter(None, given):
        name = words[0][2:].partition("=")[0].removeprefix("no-") if words[0].startswith("--") else ""
        one = len(words) == 2 and name and "=" not in words[0]
        flags.setdefault(name, []).extend(["=".join(words)] if one else words)
    return flags


def words_of(parser: Parser, name: str, value: object) -> list[str]:
    """A flag and its value in a row -> words of a command line; null is the flag's default.

    Raises:
        ValueError: the value is of the wrong type.
    """
    kind = parser.takes(f"--{name}")
    if value is None:
        return []
    if kind in ("switch", "negatable"):
        on = {"true": True, "false": False}.get(value.strip().lower()) if isinstance(value, str) else value
        if not isinstance(on, bool):
            raise ValueError("must be true or false")
        return [f"--{name}"] if on else [f"--no-{name}"] if kind == "negatable" else []
    if isinstance(value, list) and name == "story":
        return [f"--story={json.dumps(value)}"]
    if isinstance(value, bool | dict) or (isinstance(value, list) and any(map(is_no_text, value))):
        raise ValueError("must be a text or a number" + ", or a list of them" * (kind in ("several", "repeated")))
    if not isinstance(value, list):
        return [f"--{name}={as_text(value)}"]
    texts = [as_text(item) for item in value]
    if name in JOINED:
        return [f"--{name}={','.join(texts)}"]
    if kind == "several" and len(texts) > 1:
        if any(
            text.startswith("-") for text in texts
        ):  # it would be read as a flag, and a row may not have all of them
            raise ValueError("in a list no text may begin with -")
        return [f"--{name}", *texts]
    if kind == "one":
        raise ValueError("takes one value, not a list")
    return [f"--{name}={text}" for text in texts]


def is_no_text(value: object) -> bool:
    return isinstance(value, bool | list | dict) or value is None


def as_text(value: object) -> str:
    """A number as a person would type it: programs that write tables make 97 a 97.0."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return str(value)


def shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
