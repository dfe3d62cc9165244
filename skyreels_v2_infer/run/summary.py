"""summary.jsonl: what became of each video of a batch, one line each, in the output folder.

Lines are appended, by several processes and machines too. A rerun appends lines for what it makes; the last line of a
name counts. Imports no torch.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from skyreels_v2_infer.media.files import read_small
from skyreels_v2_infer.run.files import NOT_FOLLOWED, flock, naming_folder

NAME = "summary.jsonl"
DONE, FAILED, INVALID = "done", "failed", "invalid"
MOST_BYTES = 2**28
PATIENCE = 5.0  # seconds to wait for another process's line


@dataclass(frozen=True)
class Result:
    """What became of one video.

    Attributes:
        row: number among all videos of the batch, from 1. source: job file and row. sweep: values of --sweep.
        name: of the file, without extension.
        status: "done", "failed", or "invalid" for a row that cannot be used.
        path: of the finished video. error: one line.
        seconds: taken by this command. peak_memory: GiB, see `manifest.peak_memory`.
        command: makes the video by itself.
    """

    row: int
    source: str
    name: str | None
    status: str
    path: str | None = None
    seconds: float = 0.0
    peak_memory: dict = field(default_factory=dict)
    error: str | None = None
    command: str | None = None
    sweep: dict = field(default_factory=dict)


def read_summary(folder: Path) -> dict[str, dict]:
    """The last line of each name; lines that cannot be read are skipped."""
    found: dict[str, dict] = {}
    with suppress(OSError, ValueError):
        for line in read_small(folder / NAME, MOST_BYTES).splitlines():
            with suppress(ValueError, RecursionError):
                value = json.loads(line)
                if isinstance(value, dict) and isinstance(value.get("name"), str):
                    found[value["name"]] = value
    return found


def append(folder: Path, result: Result) -> None:
    """Appends a line, whole, also where other processes do so at the same time, or the last line was cut off.

    Raises:
        OSError: it cannot be written; the message names the folder.
    """
    line = json.dumps(asdict(result)).encode() + b"\n"
    with naming_folder(folder):
        handle = os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_APPEND | NOT_FOLLOWED, 0o666)
        try:
            deadline = time.monotonic() + PATIENCE
            while not flock(handle, "LOCK_EX") and time.monotonic() < deadline:
                time.sleep(0.01)
            end = os.lseek(handle, 0, os.SEEK_END)
            if end:
                os.lseek(handle, end - 1, os.SEEK_SET)
                if os.read(handle, 1) != b"\n":
                    line = b"\n" + line
            while line:
                line = line[os.write(handle, line) :]
        finally:
            os.close(handle)
