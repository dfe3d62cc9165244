"""Checks of input files before they are opened, and the reading of small ones as a whole."""

import os
import stat
from pathlib import Path

from skyreels_v2_infer.errors import InputError

MOST_TEXT = 16 * 2**20  # bytes of a file of text that is read as a whole: a story, a manifest


def check_file(path: Path | str, name: str) -> None:
    """Raises InputError for the flag `name` unless `path` is an existing regular file."""
    if not os.path.exists(path):
        raise InputError(name, path, "must be an existing file")
    if not os.path.isfile(path):
        raise InputError(name, path, "must be a file, not a folder or a device")


def read_small(path: Path | str, most: int = MOST_TEXT) -> bytes:
    """The content of a regular file, which may have up to `most` bytes.

    Opening a pipe does not wait for its other end, and a device that never ends is not read.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, or longer.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ValueError("it is not a regular file")
    except BaseException:
        os.close(handle)
        raise
    with os.fdopen(handle, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it has more than {most >> 10} KB")
    return content
