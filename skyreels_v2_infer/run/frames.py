"""The folder of --frames_dir: every frame of a video as a PNG file, written while the video is made.

Files are ``000000.png``, ``000001.png``, ... in the order of the video, each complete as soon as it has its name. While
the run is unfinished, a hidden file names it, so that it is continued there and no other run writes there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.run.files import is_regular, naming_folder, sync_folder, take_lock, write_whole

if TYPE_CHECKING:
    import numpy as np

MARK = ".unfinished"
MOST_MARK = 200  # bytes
LEVEL = 3  # of zlib: a third of the time of the usual 6, for files of about the same size


def frame_name(number: int) -> str:
    return f"{number:06d}.png"


def check_new(folder: Path) -> None:
    """Raises an `InputError` if no new run can write its frames there; whose an unfinished run is, is not checked."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise no_folder(folder, error) from None
    if names and MARK not in names:
        raise not_empty(folder, names[0])


def no_folder(folder: Path, error: OSError) -> InputError:
    return InputError("frames_dir", folder, f"must be a folder for files ({error.strerror})")


def not_empty(folder: Path, first: str) -> InputError:
    return InputError("frames_dir", folder, f"must be a new or empty folder, but there is {first}")


class FrameFolder:
    """Frames of one run; locked until `finish` or `close`.

    Args:
        lock: handle of the mark.
        made: folders that were created for it, the innermost first.
    """

    def __init__(self, folder: Path, lock: int, made: list[Path]):
        self.folder, self._lock, self._made = folder, lock, made
        self._first = self._next = 0

    @classmethod
    def open(cls, folder: Path, owner: str, done: int, complete: bool = False) -> FrameFolder:
        """Opens the folder for a run; creates it if it is missing.

        Args:
            owner: digest of the run's identity.
            done: number of frames that an interrupted run has finished.
            complete: whether these are all, so that the folder may be finished as well.

        Raises:
            InputError: it has other files, belongs to another run, is in use, or a finished frame is missing.
            OSError: it cannot be written; the message names it.
        """
        made = [one for one in (folder, *folder.parents) if not one.exists()]
        try:
            for one in reversed(made):
                one.mkdir(exist_ok=True)
            with naming_folder(folder):
                names = sorted(path.name for path in folder.iterdir())
        except OSError as error:
            raise no_folder(folder, error) from None
        others = [name for name in names if name != MARK]
        if others and MARK not in names and not complete:
            raise not_empty(folder, others[0])
        lock = take_lock(folder / MARK)
        if lock is None:
            raise InputError("frames_dir", folder, "another process writes its frames there")
        found = cls(folder, lock, made)
        try:
            before = os.read(lock, MOST_MARK).decode(errors="replace")
            if others and before not in ("", owner):
                legal = "holds frames of another unfinished run; resume that, delete the folder, or name another one"
                raise InputError("frames_dir", folder, legal)
            missing = next((name for name in map(frame_name, range(done)) if not is_regular(folder / name)), None)
            if missing is not None:
                legal = f"{missing}, a frame of a finished window, is missing"
                raise InputError("frames_dir", folder, f"{legal}; delete the run's .parts folder to start over")
            if before != owner:
                os.ftruncate(lock, 0)
                os.pwrite(lock, owner.encode(), 0)
                os.fsync(lock)
        except BaseException:
            found._unlock()
            raise
        return found

    def begin(self, first: int) -> None:
        """The next frame that is written is that of this number, the first of a piece."""
        self._first = self._next = first

    def write(self, frames: np.ndarray) -> None:
        """Writes the next frames, uint8 ``[t, H, W, 3]``.

        Raises:
            OSError: whose message names the folder.
        """
        from PIL import Image

        for frame in frames:
            picture = Image.fromarray(frame)
            save = partial(picture.save, format="PNG", compress_level=LEVEL)
            write_whole(self.folder / frame_name(self._next), save, sync_name=False)
            self._next += 1

    def end(self) -> None:
        """The piece is finished; its frames have their names also after a power cut."""
        sync_folder(self.folder)
        self._first = self._next

    def give_up(self) -> None:
        """Removes the frames of a piece that is not finished."""
        for number in range(self._first, self._next):
            (self.folder / frame_name(number)).unlink(missing_ok=True)
        self._next = self._first

    def finish(self) -> None:
        """All frames are written: the folder is an ordinary one from now on."""
        (self.folder / MARK).unlink(missing_ok=True)
        for path in self._parts():
            path.unlink(missing_ok=True)
        self._unlock()

    def close(self, keep: bool) -> None:
        """Unlocks the folder. A second call does nothing.

        Args:
            keep: whether the run can be resumed; else all frames are removed, and folders that were created for them.
        """
        if self._lock is None:
            return
        if not keep:
            self._first = 0
            self.give_up()
            (self.folder / MARK).unlink(missing_ok=True)
        self._unlock()
        for folder in () if keep else self._made:
            with suppress(OSError):
                folder.rmdir()

    def _parts(self) -> Iterator[Path]:
        return self.folder.glob(".[0-9]*.png.part")

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
