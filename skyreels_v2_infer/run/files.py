"""Files that are complete or absent, even after a crash or a power cut; checksums and locks. Imports no torch."""

from __future__ import annotations

import errno
import math
import os
import shutil
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from skyreels_v2_infer.media.picture_video import is_pictures, list_pictures

if TYPE_CHECKING:
    from typing import BinaryIO

    import numpy as np

SAMPLES, SAMPLE = 256, 2**14  # a fingerprint covers this many samples of a file, of this many bytes each
BLOCK = 2**20  # bytes read at a time
# Flags that not every system has. A file of a run is never reached through a symbolic link, and opening a pipe must
# not wait for its other end.
NOT_FOLLOWED = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def fingerprint(path: Path) -> str:
    """Size and checksum of samples of a file: fast, and different for files that are likely to be confused.

    Of a folder or a pattern of pictures those of all of them.
    """
    if not path.is_file() and is_pictures(path):
        files = list_pictures(path)
        return f"{len(files)}x{zlib.crc32(''.join(map(fingerprint, files)).encode()):08x}"
    size = path.stat().st_size
    value = 0
    with path.open("rb") as file:
        for start in range(0, size, max(SAMPLE, size // SAMPLES)):
            file.seek(start)
            value = zlib.crc32(file.read(SAMPLE), value)
    return f"{size}-{value:08x}"


# Reading


def open_regular(path: Path) -> BinaryIO:
    """Opens a file for reading.

    Raises:
        OSError: it does not exist, or is a symbolic link, a folder, a pipe or a device.
    """
    handle = os.open(path, os.O_RDONLY | NOT_FOLLOWED)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def is_regular(path: Path) -> bool:
    """Whether a path is an existing file, not a symbolic link, a folder, a pipe or a device."""
    with suppress(OSError):
        return stat.S_ISREG(path.lstat().st_mode)
    return False


def checksum(path: Path) -> int:
    """CRC-32 of a regular file."""
    value = 0
    with naming_folder(path.parent), open_regular(path) as file:
        while block := file.read(BLOCK):
            value = zlib.crc32(block, value)
    return value


# Writing


@contextmanager
def naming_folder(folder: Path) -> Iterator[None]:
    """Adds the folder to an OSError that names no file, as when the disk is full."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or str(folder) in str(error):
            raise
        if error.errno is None:  # a library's own message
            raise OSError(f"{error} (in {folder})") from error
        error.filename = str(folder)
        raise


def sync_folder(folder: Path) -> None:
    """Returns once renamed, linked and created names in a folder are on the disk.

    Syncing a file does not sync its name: after a power cut the file may be missing, or an older one in its place. Does
    nothing where folders cannot be synced (Windows, some network file systems).
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows, or a folder that may be written but not read
        return
    try:
        with naming_folder(folder):
            os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF):
            raise
    finally:
        os.close(handle)


def write_whole(path: Path, write: Callable[[BinaryIO], object], sync_name: bool = True) -> None:
    """Creates or replaces a file with what `write(file)` writes; it gets its name once its content is on the disk.

    Args:
        sync_name: whether the name is on the disk as well when this returns; False for one of many, see `sync_folder`.

    Raises:
        OSError: whose message names the folder.
    """
    part = path.with_name(f".{path.name}.part")
    with naming_folder(path.parent):
        try:
            part.unlink(missing_ok=True)  # never write through a link that another user created
            with part.open("xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        if sync_name:
            sync_folder(path.parent)


def copy_whole(source: Path, target: Path) -> None:
    """Copies a regular file as `write_whole` writes one."""
    with open_regular(source) as file:
        write_whole(target, lambda copy: shutil.copyfileobj(file, copy, BLOCK))


def move_whole(source: Path, target: Path) -> None:
    """Moves a file, replacing `target`, also to another file system; content and name are on the disk afterwards."""
    with naming_folder(target.parent):
        with source.open("rb+") as file:
            os.fsync(file.fileno())
        try:
            os.replace(source, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            copy_whole(source, target)
            source.unlink()
        else:
            sync_folder(target.parent)


def link_or_copy(source: Path, target: Path) -> None:
    """Gives a regular file a second name, or copies it where that is impossible. The name is not synced yet."""
    if not is_regular(source):
        raise FileNotFoundError(errno.ENOENT, "not a regular file", str(source))
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        copy_whole(source, target)


# Arrays


class Summing:
    """Writes to a file and keeps the checksum of what was written in `value`."""

    def __init__(self, file: BinaryIO):
        self.file, self.value = file, 0

    def write(self, block) -> int:
        self.value = zlib.crc32(block, self.value)
        return self.file.write(block)


def write_array(path: Path, array: np.ndarray) -> None:
    """Writes a .npy file followed by its checksum, as `write_whole`."""
    import numpy as np

    def write(file) -> None:
        summing = Summing(file)
        np.save(summing, array)
        file.write(summing.value.to_bytes(4, "big"))

    write_whole(path, write)


def read_array(path: Path) -> np.ndarray:
    """Reads what `write_array` wrote.

    Raises:
        OSError: there is no such regular file, or it cannot be read.
        ValueError: it is not what `write_array` wrote.
    """
    import numpy as np

    with naming_folder(path.parent), open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size - 4
        value = 0
        while block := file.read(min(BLOCK, size - file.tell())):
            value = zlib.crc32(block, value)
        if size < 0 or file.read(5) != value.to_bytes(4, "big"):
            raise ValueError("not what was written")
        file.seek(0)
        try:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("not the version of .npy that is written here")
            shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
        except OSError:
            raise
        except Exception as error:  # numpy lets through whatever Python's parser raises
            raise ValueError(f"not a header of .npy: {type(error).__name__}") from None
        count = math.prod(shape)
        # Checked first: a header may claim any size, which numpy would allocate.
        if dtype.hasobject or min(shape, default=0) < 0 or count * dtype.itemsize != size - file.tell():
            raise ValueError("the header does not fit the file")
        return np.fromfile(file, dtype, count).reshape(shape, order="F" if by_columns else "C")


# Locks


def take_lock(path: Path) -> int | None:
    """Locks a file, which is created if it is missing -> its handle; None if another process holds the lock.

    The lock lasts until the handle is closed, at the latest until the process ends. Where there are no such locks
    (Windows, some network file systems) every process gets one.

    Raises:
        FileNotFoundError: the folder does not exist, or the file was removed meanwhile.
        OSError: the file cannot be created or is a symbolic link.
    """
    handle = os.open(path, os.O_CREAT | os.O_RDWR | NOT_FOLLOWED, 0o666)
    try:
        if not flock(handle, "LOCK_EX"):
            os.close(handle)
            return None
        if not os.path.samestat(os.fstat(handle), os.lstat(path)):  # another file has the name by now
            raise FileNotFoundError(errno.ENOENT, "removed by another process", str(path))
    except OSError:
        os.close(handle)
        raise
    return handle


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock; False also where that cannot be found out.

    Takes a shared lock for a moment: processes that only look do not see each other.
    """
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY | NOT_FOLLOWED)
        try:
            return not flock(handle, "LOCK_SH")
        finally:
            os.close(handle)
    return False


def flock(handle: int, kind: str) -> bool:
    """False if another process's lock is in the way; True if the lock is taken, or there are no locks here."""
    try:
        import fcntl

        fcntl.flock(handle, getattr(fcntl, kind) | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except (ImportError, OSError):
        pass
    return True
