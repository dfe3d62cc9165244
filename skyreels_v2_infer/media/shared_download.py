"""Under torchrun all processes of a machine read the same command line: one of them downloads, the others wait."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.launch import Launch

OLD = 24 * 3600  # seconds after which a record is removed: no launch that is still at its inputs has begun before


def once_a_launch(folder: Path, url: str, name: str, what: str, download: Callable[[], Path]) -> Path:
    """What `download` returns or raises, called by one of the processes that torchrun has started on this machine.

    Args:
        folder: for a record of what became of it, which is locked meanwhile; a failure is a result as well.
        name: of the flag, for an error of another process. what: is expected there.
    """
    if Launch.for_messages().size == 1:
        return download()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_old(folder)
        key = hashlib.sha256("\0".join((launcher(), what, url)).encode(errors="replace")).hexdigest()[:32]
        record = (folder / f"{key}.launch").open("a+", encoding="utf-8")
    except OSError:  # of which the download says more
        return download()
    with record:
        with suppress(ImportError, OSError):  # no locks here: each process downloads
            import fcntl

            fcntl.flock(record, fcntl.LOCK_EX)
        record.seek(0)
        return recalled(record.read(), url, name) or recorded(record, download)


def recorded(record, download: Callable[[], Path]) -> Path:
    """Downloads, and leaves in the record what became of it."""
    found: dict[str, str] = {}
    try:
        path = download()
        found = {"path": str(path)}
        return path
    except InputError as error:
        found = {"refused": error.legal}
        raise
    except OSError as error:
        found = {"failed": str(error)}
        raise
    finally:
        with suppress(OSError, ValueError):  # the others download it themselves then
            record.truncate(0)
            record.write(json.dumps(found) if found else "")
            record.flush()


def recalled(text: str, url: str, name: str) -> Path | None:
    """The file that another process has downloaded, or its error; None: there is no result yet."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    if "refused" in found:
        raise InputError(name, url, found["refused"])
    if "failed" in found:
        raise OSError(found["failed"])
    path = Path(found["path"])
    return path if path.is_file() else None


def launcher() -> str:
    """The process that has started this one and the others of this machine; its number can be taken again later."""
    parent, began = os.getppid(), ""
    with suppress(OSError, IndexError):
        began = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{parent} {began}"


def remove_old(folder: Path) -> None:
    for path in folder.glob("*.launch"):
        with suppress(OSError):
            if path.stat().st_mtime < time.time() - OLD:
                path.unlink()
