"""SIGINT and SIGTERM, and their exit codes."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import MappingProxyType

from skyreels_v2_infer.console import wipe

INTERRUPTED, TERMINATED = 130, 143


@contextmanager
def before_anything(prog: str, left: str = "no video was written") -> Iterator[None]:
    """Context manager for a script's imports: SIGINT and SIGTERM end the process at once, with one line.

    Args:
        left: what that line says survives.
    """

    def arrived(number: int, frame) -> None:
        with suppress(OSError):
            os.write(2, f"{prog}: interrupted; {left}\n".encode())
        os._exit(Interrupts.CODES[number])

    before = {number: signal.signal(number, arrived) for number in Interrupts.CODES}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Interrupts:
    """Context manager in which SIGINT and SIGTERM raise KeyboardInterrupt, so that files are cleaned up.

    Python drops an exception that is raised in a finalizer, so long work calls `check` regularly, which raises again.
    A second signal ends the process at once, even inside a native operation, where no Python handler runs.

    Attributes:
        code: exit code for the signal that has arrived; None: no signal.
    """

    CODES = MappingProxyType({signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED})

    def __init__(self):
        self.code: int | None = None

    def __enter__(self) -> "Interrupts":
        self.before = {number: signal.signal(number, self._arrived) for number in self.CODES}
        heard, self.told = socket.socketpair()
        self.told.setblocking(False)
        self.told_before = signal.set_wakeup_fd(self.told.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(heard,), daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self.told_before)
        self.told.close()

    def _listen(self, heard: socket.socket) -> None:
        """Receives each signal as a byte, as soon as it arrives."""
        codes = []
        with heard:
            while number := heard.recv(1):
                codes += [code for known, code in self.CODES.items() if known == number[0]]
                if len(codes) > 1:
                    wipe()
                    os._exit(codes[0])

    def _arrived(self, number: int, frame) -> None:
        if self.code is None:  # else `_listen` ends it
            self.code = self.CODES[number]
            raise KeyboardInterrupt

    def check(self) -> None:
        """Raises KeyboardInterrupt if a signal has arrived."""
        if self.code is not None:
            raise KeyboardInterrupt
