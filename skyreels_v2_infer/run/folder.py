"""Reading a run's folder: whether its files are intact, and how far the run is.

Only `remove_beginning` needs the folder's lock. Imports no torch.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from skyreels_v2_infer.cli.replay import read_manifest
from skyreels_v2_infer.errors import InputError, first_line
from skyreels_v2_infer.run.files import checksum, is_locked, is_regular, open_regular, read_array
from skyreels_v2_infer.run.record import JOINED, LOCK, NAME, DamagedError, Record, ends_name, latents_name, segment_name

if TYPE_CHECKING:
    import numpy as np

PATIENCE = 0.3  # seconds to wait for a lock: a process that only inspects a run holds it for less


def published(folder: Path, record: Record) -> Path | None:
    """The finished video of a run that was interrupted after publishing it; None: not published."""
    if record.output is None:
        return None
    path, joined = folder.parent / record.output, folder / JOINED
    if not is_regular(path):
        return None
    if joined.exists():
        return path if path.samefile(joined) else None
    with suppress(InputError):  # without a manifest nothing contradicts that the video is this run's
        return path if read_manifest(path.with_suffix(".json")).get("plan") == record.info.keys[-1] else None
    return path


def has_progress(folder: Path, record: Record) -> bool:
    """Whether the folder holds a finished piece or a denoised window."""
    return folder.is_dir() and (bool(record.pieces) or (folder / latents_name(0)).exists())


def damaged_files(folder: Path, number: int, record: Record) -> list[Path]:
    """The files of a finished piece that are not as `Journal.done` wrote them."""
    piece = record.pieces[number]
    segment, ends = folder / segment_name(number), folder / ends_name(number)
    damaged = [path for path, key in ((segment, "checksum"), (ends, "ends_checksum")) if not has_sum(path, piece[key])]
    # ffmpeg would follow a playlist to other files, whatever its name.
    return damaged if segment in damaged or is_mp4(segment) else [segment, *damaged]


def has_sum(path: Path, expected: int) -> bool:
    """Whether a regular file has this checksum."""
    with suppress(OSError):
        return checksum(path) == expected
    return False


def is_mp4(path: Path) -> bool:
    with suppress(OSError), open_regular(path) as file:
        return file.read(8)[4:] == b"ftyp"
    return False


def refuse_links(folder: Path) -> None:
    """Raises DamagedError if a run's folder contains a symbolic link: a run makes none, and it may lead anywhere."""
    for path in folder.iterdir():
        if path.is_symlink():
            raise DamagedError(path, "a symbolic link")


def read_state(path: Path) -> np.ndarray | None:
    """A floating-point array of a run; None if there is none.

    Raises:
        DamagedError: it is not as it was written.
    """
    try:
        array = read_array(path)
        if array.dtype.kind != "f":
            raise ValueError(f"{array.dtype}, not floating point")
        return array
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DamagedError(path, first_line(error)) from None


def frames_in(path: Path) -> int:
    """Frames in a history ``[1, C, t, H, W]``; 0 if it cannot be used."""
    try:
        return read_array(path).shape[2]
    except (OSError, ValueError, IndexError):
        return 0


def stays_locked(folder: Path) -> bool:
    """Whether a process works in a run's folder, rather than holding its lock briefly to inspect or remove it."""
    deadline = time.monotonic() + PATIENCE
    while is_locked(folder / LOCK):
        if time.monotonic() > deadline:
            return True
        time.sleep(PATIENCE / 20)
    return False


def remove_beginning(folder: Path) -> None:
    """Removes a run's folder if nothing but the lock and an unfinished run.json is in it."""
    with suppress(OSError):
        paths = list(folder.iterdir())
        if all(path.name in (LOCK, f".{NAME}.part") for path in paths):
            for path in paths:
                path.unlink()
            folder.rmdir()
