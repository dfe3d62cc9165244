"""The table of captions: a CSV or JSONL file that grows row by row, and to which a second run adds what is missing."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from contextlib import suppress
from pathlib import Path

from skyreels_v2_infer.captioner.inputs import PATH, TABLES, long_cells
from skyreels_v2_infer.captioner.rows import SHOT, SHOTS
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.run.files import naming_folder, take_lock

BY = "made_by"  # column: models and settings, the same for all rows of a table


class CaptionTable:
    """An open table, locked against other processes.

    A row is complete or absent: whatever a killed process left of one is removed when the table is opened. Rows of the
    shots of one video stand together, and are all there or none.

    Args:
        path: ends in one of `TABLES`; created if missing.
        columns: of every row, in order.
        made_by: see `BY`.
        scenes: rows of the shots of one video are added together: a last video without all of its shots was cut off.
        named: `key_of` rows that are added one by one nevertheless, since the input names their shot.

    Attributes:
        rows: those that were there when it was opened.

    Raises:
        InputError: for --output: another process has it open, or its columns or models are others.
        OSError: the file cannot be read or written.
    """

    def __init__(
        self,
        path: Path,
        columns: Sequence[str],
        made_by: str,
        scenes: bool = False,
        named: Set[tuple[str, str]] = frozenset(),
    ):
        self.path, self.columns, self.made_by = path, list(columns), made_by
        self.scenes, self.named = scenes, named
        self.kind = TABLES[path.suffix.lower()]
        with naming_folder(path.parent):
            self.created = not os.path.lexists(path)
            handle = take_lock(path)
        if handle is None:
            raise InputError("output", path, "another process is writing it")
        self.file = os.fdopen(handle, "r+b")
        try:
            self.rows = self._recover()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> CaptionTable:
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; removes it if it was created here and nothing was written."""
        if self.created and not os.fstat(self.file.fileno()).st_size:
            with suppress(OSError):
                self.path.unlink()
        self.file.close()

    def missing(self, rows: Iterable[dict]) -> list[dict]:
        """Those of `rows` that are not in the table; of several with the same path as many as are missing."""
        there = Counter(key_of(row) for row in self.rows)
        left = []
        for row in rows:
            if there[key_of(row)]:
                there[key_of(row)] -= 1
            else:
                left.append(row)
        return left

    def found(self, rows: Sequence[dict]) -> list[dict]:
        """The table's rows for `rows`, all of which are in it: for a video all of its shots, for a row that names a
        shot that one; of several for the same the last ones."""
        single: dict[tuple, list[dict]] = {}
        whole: dict[str, list[list[dict]]] = {}
        for full in self.rows:
            row = {name: value for name, value in full.items() if name != BY}
            path, shot = key_of(row)
            single.setdefault((path, shot), []).append(row)
            videos = whole.setdefault(path, [])
            if shot == "1" or not videos:
                videos.append([])
            videos[-1].append(row)
        taken: list[list[dict]] = []
        for row in reversed(rows):
            key = key_of(row)
            taken.append([single[key].pop()] if row.get(SHOT) else whole[key[0]].pop())
        return [row for video in reversed(taken) for row in video]

    def add(self, rows: Sequence[dict]) -> None:
        """Appends rows; they are on the disk when it returns."""
        values = [{name: row.get(name, "") for name in self.columns} | {BY: self.made_by} for row in rows]
        with naming_folder(self.path.parent):
            self.file.seek(0, os.SEEK_END)
            text = "" if self.file.tell() or self.kind == "jsonl" else self._csv([self.columns])
            if self.kind == "jsonl":
                text += "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in values)
            else:
                text += self._csv([cell(row[name]) for name in self.columns] for row in values)
            self.file.write(text.encode("utf-8", "backslashreplace"))
            self.file.flush()
            os.fsync(self.file.fileno())
        self.rows += values

    @staticmethod
    def _csv(rows: Iterable[Sequence]) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        return text.getvalue()

    def _recover(self) -> list[dict]:
        """The complete rows; what stands behind them is cut off."""
        content = self.file.read()
        ends = record_ends(content, quotes=self.kind == "csv")
        try:
            with long_cells():
                rows = self._parsed(content, ends)
            if content and not rows and not self._begins(content):
                raise ValueError("foreign content")
        except (ValueError, csv.Error, RecursionError):
            raise InputError("output", self.path, "is no table that this program wrote; name another file") from None
        for row in rows:
            if row[BY] != self.made_by:
                legal = f"has rows by {row[BY]}, and this command's would be by {self.made_by}; name another file"
                raise InputError("output", self.path, legal)
        while rows and self._lacks_shots(rows[-1]):
            rows.pop()
            ends.pop()
        self.file.truncate(ends[-1] if ends else 0)
        return rows

    def _begins(self, content: bytes) -> bool:
        """Whether content without a complete row can be the beginning of a table with these columns."""
        if self.kind == "csv":
            begin = self._csv([self.columns]).encode("utf-8", "backslashreplace")
        else:
            begin = f"{{{json.dumps(self.columns[0], ensure_ascii=False)}: ".encode("utf-8", "backslashreplace")
            with suppress(ValueError, RecursionError):  # a whole object, without its line break
                return list(json.loads(content)) == self.columns
        return content.startswith(begin) or begin.startswith(content)

    def _lacks_shots(self, last: dict) -> bool:
        """Whether shots of the last row's video are missing, which were to be added together with it."""
        if not self.scenes or key_of(last) in self.named:
            return False
        return str(last.get(SHOT) or "") != str(last.get(SHOTS) or "")

    def _parsed(self, content: bytes, ends: list[int]) -> list[dict]:
        text = content[: ends[-1] if ends else 0].decode()
        if self.kind == "jsonl":
            rows = [json.loads(line) for line in text.split("\n") if line]
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("not objects")
            columns = [list(row) for row in rows]
        else:
            reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
            rows = list(reader)
            columns = [list(reader.fieldnames or self.columns)]
            if any(None in row or None in row.values() for row in rows):
                raise ValueError("rows of another length")
        for found in columns:
            if found != self.columns:
                legal = f"has other columns ({', '.join(found)}) than this command's ({', '.join(self.columns)})"
                raise InputError("output", self.path, f"{legal}; name another file")
        return rows


def record_ends(content: bytes, quotes: bool) -> list[int]:
    """Where complete records end: behind a line break, for CSV (`quotes`) outside quotation marks."""
    ends, start, inside = [], 0, False
    while (end := content.find(b"\n", start) + 1) > 0:
        inside ^= quotes and content.count(b'"', start, end) % 2 == 1
        if not inside:
            ends.append(end)
        start = end
    return ends


def cell(value: object) -> str:
    """A value in a CSV: text as it is, anything else as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def key_of(row: dict) -> tuple[str, str]:
    """A row's path, as a table can hold it (bytes that are no UTF-8 are escaped there), and its shot."""
    return str(row[PATH]).encode("utf-8", "backslashreplace").decode(), str(row.get(SHOT) or "1")
