"""Rows of measurements: printed as they are measured, kept as markdown and JSON."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        name: what was measured.
        value: a number, a word or a truth value; None: there is none, and `more` says why.
        unit: of the value.
        more: further columns, by name; those that are None are left out.
    """

    name: str
    value: float | str | bool | None
    unit: str = ""
    more: Mapping[str, object] = field(default_factory=dict)


def row(name: str, value: float | str | bool | None, unit: str = "", **more: object) -> Row:
    """A `Row`; a `_` in the name of a column stands for a space."""
    columns = {column.replace("_", " "): cell for column, cell in more.items() if cell is not None}
    return Row(name, value, unit, columns)


def shown(cell: object) -> str:
    """A cell of a table: three or four digits of a number."""
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if not isinstance(cell, float):
        return str(cell)
    if cell and abs(cell) < 0.01:
        return f"{cell:.1e}"
    return f"{cell:.{0 if abs(cell) >= 1000 else 1 if abs(cell) >= 100 else 2 if abs(cell) >= 1 else 3}f}"


def markdown(rows: list[Row]) -> str:
    """A table with a column for each name that a row has in `more`."""
    columns = list(dict.fromkeys(column for found in rows for column in found.more))
    lines = ["| | " + " | ".join(["", *columns]) + " |", "|---" * (len(columns) + 2) + "|"]
    for found in rows:
        value = f"{shown(found.value)} {found.unit}".strip()
        lines.append("| " + " | ".join([found.name, value, *(shown(found.more.get(c, "")) for c in columns)]) + " |")
    return "\n".join(lines)


class Report:
    """Collects the rows of all parts, and saves them after each one.

    Args:
        about: machine and settings.
        folder: for results.json and results.md; None: nothing is saved.
    """

    def __init__(self, about: Mapping[str, object], folder: Path | None = None):
        self.about, self.folder = dict(about), folder
        self.rows: dict[str, list[Row]] = {}
        self.not_run: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def add(self, part: str, found: Row) -> None:
        self.rows.setdefault(part, []).append(found)
        more = "  ".join(f"{column} {shown(cell)}" for column, cell in found.more.items())
        print(
            f"{part:12} {found.name:52} {shown(found.value)} {found.unit}  {more}".rstrip(), file=sys.stderr, flush=True
        )
        self.save()

    def leave_out(self, part: str, reason: str) -> None:
        self.not_run[part] = reason
        print(f"{part:12} not run: {reason}", file=sys.stderr, flush=True)
        self.save()

    @property
    def failed(self) -> list[str]:
        """Names of the rows that have no value."""
        return [f"{part}: {found.name}" for part, rows in self.rows.items() for found in rows if found.value is None]

    def text(self) -> str:
        """All tables, and what was not run."""
        pieces = [", ".join(f"{name} {value}" for name, value in self.about.items())]
        for part, rows in self.rows.items():
            took = f" ({self.seconds[part]:.0f} s)" if part in self.seconds else ""
            pieces.append(f"## {part}{took}\n\n{markdown(rows)}")
        if self.not_run:
            reasons: dict[str, list[str]] = {}
            for part, why in self.not_run.items():
                reasons.setdefault(why, []).append(part)
            pieces.append("\n".join(f"Not run: {', '.join(parts)} ({why})." for why, parts in reasons.items()))
        return "\n\n".join(pieces) + "\n"

    def save(self) -> None:
        if self.folder is None:
            return
        rows = {
            part: [{"name": r.name, "value": r.value, "unit": r.unit, **r.more} for r in rows]
            for part, rows in self.rows.items()
        }
        about = {"about": self.about, "rows": rows, "not_run": self.not_run, "seconds": self.seconds}
        (self.folder / "results.json").write_text(json.dumps(about, indent=1, default=str) + "\n")
        (self.folder / "results.md").write_text(self.text())
