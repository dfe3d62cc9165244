"""Files, folders, patterns and tables -> rows, each about one video. Imports no torch."""

from __future__ import annotations

import csv
import glob
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from skyreels_v2_infer.captioner.answer import Answer, parse
from skyreels_v2_infer.captioner.schema import Caption
from skyreels_v2_infer.errors import InputError, first_line
from skyreels_v2_infer.media.files import check_file

PATH, STRUCTURAL = "path", "structural_caption"
TABLES = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
# Of the files in a folder, those that are taken.
VIDEOS = tuple(
    f".{name}" for name in ("mp4", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "ts", "m4v", "flv", "wmv", "gif")
)
MOST_ROWS = 1_000_000
MOST_TABLE = 2**32  # bytes
MOST_LINE = 2**20  # characters


def rows_of(inputs: tuple[str, ...], name: str = "input", needs_path: bool = True) -> list[dict]:
    """The rows of all inputs: each has a `PATH`, and what a table says besides.

    Args:
        inputs: videos, folders (their videos, at any depth), patterns with ``*``, CSV and JSONL tables.
        name: flag for messages.
        needs_path: False: a row may have a structural caption in place of a path.

    Raises:
        InputError: an input leads nowhere, or is a table that cannot be used (which line, and why).
    """
    rows: list[dict] = []
    for given in inputs:
        rows += found_in(os.path.expanduser(given), name, needs_path)
        if len(rows) > MOST_ROWS:
            raise InputError(name, given, f"leads to more than {MOST_ROWS} rows")
    if inputs and not rows:
        raise InputError(name, inputs[0], "has no rows")
    return rows


def read_reference(path: Path, name: str = "score") -> list[tuple[dict, Caption]]:
    """(row, caption) of a table whose rows all have a path and a structural caption, as text or as an object.

    Raises:
        InputError: for the flag `name`: it is no such table (which line, and why).
    """
    if (kind := TABLES.get(path.suffix.lower())) is None:
        raise InputError(name, path, f"must end in {' or '.join(TABLES)}")
    check_file(path, name)
    found = []
    for number, row in enumerate(table_rows(path, kind, name, needs_path=True)):
        answer = caption_in(row)
        if answer.caption is None:
            raise InputError(name, path, f"row {number + 1}: its {STRUCTURAL} is none: {answer.reason}")
        found.append((row, answer.caption))
    if not found:
        raise InputError(name, path, "has no rows")
    return found


def caption_in(row: dict) -> Answer:
    """What becomes of a row's structural caption, which is text, or of a JSONL an object."""
    given = row.get(STRUCTURAL) or ""
    return parse(given if isinstance(given, str) else json.dumps(given))


def found_in(given: str, name: str, needs_path: bool) -> list[dict]:
    """The rows of an input: of a file or folder of this name, else of all that it matches as a pattern."""
    if os.path.exists(given):
        return rows_at(given, name, needs_path)
    matches = sorted(glob.glob(given, recursive=True)) if glob.has_magic(given) else []
    if not matches:
        raise InputError(name, given, "must be a video, a folder, a pattern that matches some, a .csv or a .jsonl")
    return [row for match in matches for row in rows_at(match, name, needs_path)]


def rows_at(path: str, name: str, needs_path: bool) -> list[dict]:
    if os.path.isdir(path):
        files = sorted(file for file in Path(path).rglob("*") if file.suffix.lower() in VIDEOS and file.is_file())
        if not files:
            raise InputError(name, path, f"has no videos in it ({', '.join(VIDEOS)})")
        return [{PATH: str(file)} for file in files]
    check_file(path, name)
    if (kind := TABLES.get(Path(path).suffix.lower())) is None:
        return [{PATH: path}]
    return list(table_rows(Path(path), kind, name, needs_path))


def table_rows(path: Path, kind: str, name: str, needs_path: bool) -> Iterator[dict]:
    """The rows of a table; a path that does not lead to a file from here is looked for beside the table."""
    if path.stat().st_size > MOST_TABLE:
        raise InputError(name, path, f"must have at most {MOST_TABLE >> 30} GB")
    with path.open(encoding="utf-8-sig", newline="" if kind == "csv" else "\n") as file, long_cells():
        lines = Csv(file) if kind == "csv" else JsonLines(file)
        try:
            for row in lines:
                given = row.get(PATH) or ""
                if not isinstance(given, str) or (needs_path and not given):
                    raise ValueError(f"it has no text in {PATH}")
                if not given and not row.get(STRUCTURAL):
                    raise ValueError(f"it has neither {PATH} nor {STRUCTURAL}")
                yield row | {PATH: beside(given, path)}
        except (ValueError, csv.Error, RecursionError) as error:
            raise InputError(name, path, f"line {lines.number}: {first_line(error, 120)}") from None


@contextmanager
def long_cells() -> Iterator[None]:
    """Context manager: cells of a CSV may be as long as its lines, in place of 131,072 characters."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def bounded_lines(file: TextIO) -> Iterator[str]:
    """The lines of a file; ValueError for one that is longer than a caption can be."""
    while line := file.readline(MOST_LINE + 1):
        if len(line) > MOST_LINE:
            raise ValueError(f"it has more than {MOST_LINE:,} characters")
        yield line


class Csv:
    """Rows of a CSV with names in its first line; `number`: the last line that was read, from 1."""

    def __init__(self, file: TextIO):
        self.reader = csv.DictReader(bounded_lines(file), strict=True)

    @property
    def number(self) -> int:
        return self.reader.line_num

    def __iter__(self) -> Iterator[dict]:
        names = self.reader.fieldnames or []
        if PATH not in names and STRUCTURAL not in names:
            raise ValueError(f"no column {PATH} among {', '.join(names)[:80] or 'no columns'}")
        if twice := [column for column, count in Counter(names).items() if count > 1]:
            raise ValueError(f"the column {twice[0][:40]} is there twice")
        for row in self.reader:
            if None in row:
                raise ValueError("it has more cells than the first line")
            yield {key: value or "" for key, value in row.items()}


class JsonLines:
    """JSON objects, one a line; `number`: the last line that was read, from 1."""

    def __init__(self, file: TextIO):
        self.file, self.number = file, 0

    def __iter__(self) -> Iterator[dict]:
        for line in bounded_lines(self.file):
            self.number += 1
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("it is not an object")
                yield row


def beside(given: str, table: Path) -> str:
    if given and not os.path.isabs(given) and not os.path.exists(given) and os.path.exists(table.parent / given):
        return str(table.parent / given)
    return given
