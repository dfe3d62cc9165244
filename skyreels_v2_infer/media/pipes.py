"""The pipes of a process, with a limit on how long one waits for it.

A process that is stopped, or that waits for something itself, neither reads nor writes, and a blocking read or write
would wait for ever. Time is counted while nothing happens, in slices: a program that was suspended together with the
process (Ctrl-Z, a sleeping laptop) does not blame it afterwards.
"""

from __future__ import annotations

import fcntl
import io
import os
import select
from collections.abc import Callable
from contextlib import suppress

SLICE = 0.2  # seconds of one wait
CAPACITY = 2**20  # bytes of a pipe, where the system lets us choose: fewer switches between the processes
_SET_CAPACITY = getattr(fcntl, "F_SETPIPE_SZ", 1031)


class StalledError(OSError):
    """Raised when a process has made no progress for too long."""


class Patience:
    """Limits how long one waits.

    Args:
        seconds: without any progress.
        given_up: whether the wait is to end at once.
    """

    def __init__(self, seconds: float, given_up: Callable[[], bool]):
        self.seconds, self.given_up = seconds, given_up

    def until(self, happens: Callable[[float], bool], progress: Callable[[], object] = lambda: None) -> None:
        """Waits until `happens` is true.

        Args:
            happens: waits for up to as many seconds as it gets.
            progress: while its value changes, the wait goes on.

        Raises:
            StalledError: neither for `seconds`, or given up.
        """
        slice_, waited, before = min(SLICE, self.seconds), 0.0, progress()
        while not happens(slice_):
            now = progress()
            waited = waited + slice_ if now == before else 0.0
            before = now
            if waited >= self.seconds or self.given_up():
                raise StalledError


def _ready(descriptor: int, event: int) -> Callable[[float], bool]:
    poll = select.poll()
    poll.register(descriptor, event)
    return lambda seconds: bool(poll.poll(1000 * seconds))


def write_all(pipe: io.RawIOBase, data: memoryview, patience: Patience) -> None:
    """Writes `data` to a pipe's end.

    Raises:
        OSError: the other end is closed.
        StalledError: it is open, but nobody reads from it.
    """
    if not data.nbytes:
        return
    descriptor = pipe.fileno()
    os.set_blocking(descriptor, False)
    with suppress(OSError):
        fcntl.fcntl(descriptor, _SET_CAPACITY, CAPACITY)
    ready, rest = _ready(descriptor, select.POLLOUT), data.cast("B")
    while rest:
        with suppress(BlockingIOError):
            rest = rest[os.write(descriptor, rest) :]
            continue
        patience.until(ready)


class PatientReader(io.RawIOBase):
    """A pipe's end to read from; where nothing is written to it for too long, it reads as the end.

    Args:
        stalled: called then.
    """

    def __init__(self, pipe: io.RawIOBase, patience: Patience, stalled: Callable[[], object]):
        self._descriptor, self._patience, self._stalled = pipe.fileno(), patience, stalled
        self._ready = _ready(self._descriptor, select.POLLIN)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        try:
            self._patience.until(self._ready)
        except StalledError:
            self._stalled()
            return 0
        return os.readv(self._descriptor, [buffer])
