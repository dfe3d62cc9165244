"""Files at addresses: downloaded once into the user's cache, with limits, and checked before they are kept."""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from skyreels_v2_infer.errors import InputError, first_line
from skyreels_v2_infer.media.shared_download import once_a_launch

SECONDS = 30  # without any data
SLOWEST, STARTING = 1000, 60  # bytes a second on the average, after so many seconds
VIDEO_BYTES = 4 * 2**30
_PIECE = 2**20


def download_video(url: str, name: str = "video_path") -> Path:
    """Downloads a video and returns its file. As `download`."""
    from skyreels_v2_infer.media.probe import probe_file

    return download(url, name, VIDEO_BYTES, "a video", lambda path: probe_file(path, name))


def download(url: str, name: str, most: int, what: str, check: Callable[[Path], object]) -> Path:
    """Downloads a file into the user's cache and returns its path, named by a hash of its content. Of the processes
    that torchrun has started on a machine one does it.

    Args:
        most: bytes that it may have. what: it is, for messages.
        check: raises an InputError if it is something else.

    Raises:
        InputError: for the flag `name`: nothing is there, it is too long, or `check` says so.
        OSError: the network or the disk failed; trying again may help.
    """
    home = os.path.expanduser("~/.cache")
    if home.startswith("~"):  # neither HOME nor an entry for the user
        home = tempfile.gettempdir()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or home) / "skyreels_v2_infer"
    return once_a_launch(folder, url, name, what, lambda: _download(folder, url, name, most, what, check))


def _download(folder: Path, url: str, name: str, most: int, what: str, check: Callable[[Path], object]) -> Path:
    import hashlib
    from http.client import HTTPException, InvalidURL
    from urllib.request import Request

    from skyreels_v2_infer.media.web import opener

    part = folder / f"{secrets.token_hex(8)}.part"  # other processes may download the same
    digest, length = hashlib.sha256(), 0
    try:
        with opener(url).open(Request(url, headers={"User-Agent": "skyreels_v2_infer"}), timeout=SECONDS) as answer:
            with _saving(folder, url, name):
                folder.mkdir(parents=True, exist_ok=True)
                file = part.open("wb")
            promised, began = answer.length, time.monotonic()
            with file:
                while piece := answer.read1(_PIECE):
                    length += len(piece)
                    if (seconds := time.monotonic() - began) > STARTING and length < SLOWEST * seconds:
                        raise OSError(f"less than {SLOWEST} bytes a second")
                    if length > most:
                        raise InputError(name, url, f"must be {what} of at most {most >> 20} MB")
                    digest.update(piece)
                    with _saving(folder, url, name):
                        file.write(piece)
        if length < (promised or 0):
            raise OSError(f"ended after {length} of {promised} bytes")
        path = folder / digest.hexdigest()[:32]
        check(part)
        with _saving(folder, url, name):
            os.replace(part, path)
        return path
    except InputError as error:
        raise InputError(name, url, error.legal) from None
    except _DiskError as error:
        raise OSError(str(error)) from None
    except (OSError, ValueError, HTTPException) as error:
        reason = f"cannot be downloaded ({first_line(error)})"
        if isinstance(error, ValueError | InvalidURL) or "no host" in reason or 400 <= getattr(error, "code", 0) < 500:
            raise InputError(name, url, reason) from None
        raise OSError(f"--{name} {url}: {reason}") from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


class _DiskError(Exception):
    pass


@contextmanager
def _saving(folder: Path, url: str, name: str) -> Iterator[None]:
    """Context manager: tells errors of the disk from those of the network."""
    try:
        yield
    except OSError as error:
        raise _DiskError(f"--{name} {url}: cannot be saved in {folder} ({first_line(error)})") from None
