"""Job files as they are written: JSON Lines, CSV, or a list of prompts -> rows of flags and values."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePath

from skyreels_v2_infer.errors import InputError, first_line
from skyreels_v2_infer.media.files import read_small

MOST_BYTES = 64 * 2**20
MOST_ROWS = 100_000
STDIN = "-"


@dataclass(frozen=True)
class RawRow:
    """A row as it is written.

    Attributes:
        line: of the file, from 1; in CSV the row as a spreadsheet counts, the header being row 1.
        values: by flag, without dashes.
        error: why the row cannot be read; None: it can.
    """

    line: int
    values: dict[str, object]
    error: str | None = None


def read_job_file(path: str, check_name: Callable[[str], object] = str) -> list[RawRow]:
    """The rows of a job file, or of stdin for ``-``.

    ``.csv`` is CSV with a header, ``.jsonl``, ``.ndjson`` and ``.json`` are JSON objects, one a line. In any other file
    the first character decides: ``{`` for JSON objects, else it is a list of prompts, one a line.

    Args:
        check_name: raises ValueError if a name in the header of a CSV is no flag of a row.

    Raises:
        InputError: the file cannot be read, is not of its kind as a whole, or has no rows or too many.
    """
    try:
        content = content_of(path)
        text = content.decode("utf-8-sig")  # after a byte order mark
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError("jobs", path, f"must be text in UTF-8; line {line} is not") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error, 100)
        hint = "; - reads stdin" if "regular" in reason else ""
        raise InputError("jobs", path, f"cannot be read ({reason}{hint})") from None
    suffix = PurePath(path).suffix.lower()
    if suffix == ".csv":
        rows = csv_rows(text, path, check_name)
    elif suffix in (".jsonl", ".ndjson", ".json") or text.lstrip()[:1] == "{":
        rows = json_rows(text, path)
    else:
        rows = (RawRow(number, {"prompt": line}) for number, line in lines_of(text))
    found = []
    for row in rows:
        found.append(row)
        if len(found) > MOST_ROWS:
            raise InputError("jobs", path, f"has more than {MOST_ROWS} rows")
    if not found:
        raise InputError("jobs", path, "has no rows")
    return found


def content_of(path: str) -> bytes:
    if path != STDIN:
        return read_small(path, MOST_BYTES)
    if sys.stdin is None:
        raise ValueError("stdin is closed")
    content = sys.stdin.buffer.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES >> 10} KB")
    return content


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, with their numbers. No other characters end a line: JSON may contain them."""
    for number, line in enumerate(re.split("\r\n|\r|\n", text), start=1):
        if line.strip():
            yield number, line.strip()


def json_rows(text: str, path: str) -> Iterator[RawRow]:
    """Rows of JSON Lines.

    Raises:
        InputError: the file is one JSON array, or an object over several lines.
    """
    for i, (number, line) in enumerate(lines_of(text)):
        try:
            values = json.loads(line, object_pairs_hook=without_repetition, parse_constant=no_number)
            error = None if isinstance(values, dict) else "must be a JSON object of flags and values"
        except json.JSONDecodeError as problem:
            error = f"is no JSON object ({problem.msg}, column {problem.colno})"
        except RecursionError:
            error = "is nested too deeply"
        except ValueError as problem:
            error = first_line(problem, 100)
        if error and not i:
            check_one_a_line(text, path)
        yield RawRow(number, {}, error) if error else RawRow(number, values)


def check_one_a_line(text: str, path: str) -> None:
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return
    what, how = ("array", "jq -c '.[]'") if isinstance(whole, list) else ("value over several lines", "jq -c")
    if isinstance(whole, list | dict):
        raise InputError("jobs", path, f"is one JSON {what}; must have an object a line, as {how} writes them")


def without_repetition(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} is given twice")
    return found


def no_number(name: str) -> float:
    raise ValueError(f"{name} is no number that JSON has")


def csv_rows(text: str, path: str, check_name: Callable[[str], object]) -> Iterator[RawRow]:
    """Rows of a table whose first row names flags; an empty cell gives nothing.

    Raises:
        InputError: the header cannot be used; or a row is no CSV, so that it is not known where the next one begins.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    names: list[str] | None = None
    number = 0
    try:
        for number, cells in enumerate(reader, start=1):
            if not any(cell.strip() for cell in cells):
                continue
            if names is None:
                names = [cell.strip() for cell in cells]
                while not names[-1]:  # columns that a spreadsheet writes as well
                    names.pop()
                if wrong := "; ".join(faults_of(names, check_name)):
                    raise InputError("jobs", path, f"row {number}: {wrong}")
            elif any(cell.strip() for cell in cells[len(names) :]):
                yield RawRow(number, {}, f"has {len(cells)} cells, the header {len(names)}")
            else:
                yield RawRow(number, {name: cell for name, cell in zip(names, cells, strict=False) if cell.strip()})
    except csv.Error as error:
        raise InputError("jobs", path, f"row {number + 1} is no CSV ({error})") from None


def faults_of(names: list[str], check_name: Callable[[str], object]) -> Iterator[str]:
    """What is wrong with the names of a header."""
    if len(names) == 1 and (other := re.search(r"[;\t|]", names[0])):
        yield f"must be separated by commas, not by {'tabs' if other[0] == chr(9) else other[0]}"
        return
    for i, name in enumerate(names):
        try:
            if not name:
                raise ValueError(f"column {i + 1} has no name")
            if name in names[:i]:
                raise ValueError("is there twice")
            check_name(name)
        except ValueError as error:
            yield f"{name}: {error}" if name else str(error)
