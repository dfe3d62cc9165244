"""Checks of input files before they are opened."""

import os
from pathlib import Path

from skyreels_v2_infer.errors import InputError


def check_file(path: Path | str, name: str) -> None:
    """Raises InputError for the flag `name` unless `path` is an existing regular file."""
    if not os.path.exists(path):
        raise InputError(name, path, "must be an existing file")
    if not os.path.isfile(path):
        raise InputError(name, path, "must be a file, not a folder or a device")
