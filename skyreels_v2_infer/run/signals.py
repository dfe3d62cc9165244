"""SIGINT and SIGTERM, and the exit codes that belong to them."""

import os
import signal
import socket
import threading
from types import MappingProxyType

INTERRUPTED, TERMINATED = 130, 143


class Interrupts:
    """SIGINT and SIGTERM raise KeyboardInterrupt where they arrive, so that files are tidied up on the way out.

    Python drops an exception that is raised in a finalizer, so long work calls `check` now and then, which raises again
    what was dropped. A second signal ends the process at once, also in the middle of a native operation, where no
    handler runs.

    Attributes:
        code: the exit code for the signal that has arrived; None: none has.
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
                    os._exit(codes[0])

    def _arrived(self, number: int, frame) -> None:
        if self.code is None:  # else `_listen` ends it
            self.code = self.CODES[number]
            raise KeyboardInterrupt

    def check(self) -> None:
        if self.code is not None:
            raise KeyboardInterrupt
