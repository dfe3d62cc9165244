"""Names of the files that a run writes."""

import re
import unicodedata
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from skyreels_v2_infer.errors import InputError

LONGEST = 120  # bytes of a file name without extension; a run's folder adds up to 30, and file systems allow 255
SLUG = 40  # characters of a prompt, unless the pattern says more or less
TAIL = 16  # of these for its last words, if it is longer
FIELD = re.compile(r"\{([a-z_]+)(?::(\.[0-9]{1,3}|0[0-9]{1,2}))?\}")
LITERAL = re.compile(r"[\w .,=+()-]*")
RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)  # names of devices on Windows
TEXTS = ("prompt", "negative_prompt")


def output_stem(prompt: str, seed: int | str) -> str:
    """A file name without extension, from prompt and seed: at most 60 characters of ``a-z 0-9 - _``.

    Of a long prompt there are the first and the last words, with ``--`` between them. A prompt without such letters is
    represented by its checksum. The name ends in ``_seed``, so it is neither reserved on Windows nor does it end in a
    dot.
    """
    whole = slug(prompt, len(prompt) + SLUG)
    last = whole.rpartition("-")[2]
    if len(whole) <= SLUG or last == whole:
        return f"{slug(prompt)}_{seed}"
    end = last[-TAIL:]
    for word in reversed(whole.split("-")[1:-1]):
        if len(word) + 1 + len(end) > TAIL:
            break
        end = f"{word}-{end}"
    return f"{slug(prompt, SLUG - 2 - len(end))}--{end}_{seed}"


def slug(text: str, limit: int = SLUG) -> str:
    """The words of a text, ``a-z 0-9 -``, up to `limit` characters; ``video-`` and a checksum if it has no letters."""
    # Compatibility decomposition keeps the letters of "naïve" and of full-width Latin.
    letters = "".join(c for c in unicodedata.normalize("NFKD", text.lower()) if not unicodedata.combining(c))
    words = re.findall("[a-z0-9]+", re.sub("['’]", "", letters))
    if not re.search("[a-z]", "".join(words)):
        return f"video-{zlib.crc32(text.encode()):08x}"
    made = words[0][:limit]
    for word in words[1:]:
        if len(made) + 1 + len(word) > limit:
            break
        made += f"-{word}"
    return made


def fields_in(pattern: str) -> Iterator[str]:
    """The fields of a name pattern."""
    return (match[1] for match in FIELD.finditer(pattern))


def check_pattern(pattern: str) -> None:
    """Raises ValueError unless a text is a name pattern: literal text and fields such as ``{prompt:.20}``.

    A field is a name in braces, optionally with ``:.N`` (at most N characters of a text, N digits of a number) or
    ``:0N`` (a whole number with leading zeros). Nothing else that Python's formats can do is possible.
    """
    literal = FIELD.sub("", pattern)
    if not LITERAL.fullmatch(literal):
        wrong = next(c for c in literal if not LITERAL.fullmatch(c))
        raise ValueError(f"must be letters, digits, any of ' .,=+()-_' and fields such as {{prompt:.20}}, not {wrong}")
    if not pattern.strip():
        raise ValueError("must not be empty")


def named(pattern: str, values: Mapping[str, object]) -> str:
    """The file name, without extension, that a pattern makes of the values of its fields.

    Raises:
        InputError: there is no such field, its format does not suit its value, or the name cannot be a file's.
    """

    def text(match: re.Match) -> str:
        name, form = match.groups()
        if name not in values:
            raise InputError("name", pattern, f"there is no field {{{name}}}; fields are {', '.join(sorted(values))}")
        try:
            return formatted(name, values[name], form)
        except ValueError:
            raise InputError("name", pattern, f"{{{name}:{form}}} does not suit {values[name]}") from None

    stem = FIELD.sub(text, pattern).strip()
    if not stem or stem[0] in ".-" or stem[-1] == "." or RESERVED.fullmatch(stem):
        raise InputError("name", pattern, f"makes {stem!r}, which cannot be the name of a file")
    if len(stem.encode()) > LONGEST:
        raise InputError("name", pattern, f"makes a name of {len(stem.encode())} bytes; at most {LONGEST}")
    return stem


def beginning(pattern: str, values: Mapping[str, object]) -> str:
    """How every name begins that a pattern makes before the seed is known."""
    known = pattern.partition("{seed")[0]
    return named(pattern, values) if known == pattern else named(f"a{known}a", values)[1:-1]


def formatted(name: str, value: object, form: str | None) -> str:
    """A value as part of a file name; ValueError if the format is none for such a value."""
    if isinstance(value, bool) or value is None:
        return {True: "on", False: "off", None: "none"}[value]
    if isinstance(value, int):
        return format(value, f"{form or ''}d")  # a ValueError for .N
    if isinstance(value, float):
        return format(value, f"{form or ''}g") if form is None or form.startswith(".") else format(value, form + "d")
    limit = SLUG if form is None else int(form[1:]) if form.startswith(".") else None
    if not limit:
        raise ValueError(form)
    if isinstance(value, str) and name in TEXTS:
        return slug(value, limit) if value.strip() else "none"
    if isinstance(value, Path):
        value = value.stem
    if isinstance(value, tuple):
        value = "-".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value)
    return re.sub(r"[^\w.=+-]+", "-", str(value))[:limit].strip("-.") or "none"
