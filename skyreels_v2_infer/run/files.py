"""Files that survive a kill and tell damage: whole or not there, with checksums and locks. Nothing here knows torch."""

from __future__ import annotations

import os
import shutil
import zlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

SAMPLES, SAMPLE = 256, 2**14  # of a file, in bytes, of which a fingerprint is taken


def fingerprint(path: Path) -> str:
    """Size and checksum of samples of a file: fast, and different for files that differ in any likely way."""
    size = path.stat().st_size
    value = 0
    with path.open("rb") as file:
        for start in range(0, size, max(SAMPLE, size // SAMPLES)):
            file.seek(start)
            value = zlib.crc32(file.read(SAMPLE), value)
    return f"{size}-{value:08x}"


def checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            value = zlib.crc32(block, value)
    return value


def write_whole(path: Path, write) -> None:
    """`write(file)` into a file that has its name only once it is on the disk."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


class Summing:
    """A file that is written, and the checksum of what was."""

    def __init__(self, file):
        self.file, self.value = file, 0

    def write(self, block) -> int:
        self.value = zlib.crc32(block, self.value)
        return self.file.write(block)


def write_array(path: Path, array: np.ndarray) -> None:
    """As `write_whole`, with a checksum behind."""
    import numpy as np

    def write(file) -> None:
        summing = Summing(file)
        np.save(summing, array)
        file.write(summing.value.to_bytes(4, "big"))

    write_whole(path, write)


def read_array(path: Path) -> np.ndarray:
    """What `write_array` wrote; ValueError if it is not."""
    import numpy as np

    size = path.stat().st_size - 4
    with path.open("rb") as file:
        value = 0
        while block := file.read(min(2**20, size - file.tell())):
            value = zlib.crc32(block, value)
        if size < 0 or file.read(5) != value.to_bytes(4, "big"):
            raise ValueError("not what was written")
        file.seek(0)
        return np.load(file)


def link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def take_lock(path: Path) -> int | None:
    """The open file, locked until it is closed, at the latest by the process's end; None: another has locked it."""
    handle = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(handle)
        return None
    except (ImportError, OSError):
        pass  # Windows, or a file system without locks: nobody keeps others away there
    return handle
