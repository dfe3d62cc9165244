"""A thread that runs tasks in order while the main thread computes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

GRACE = 1.5  # seconds for the current task to end by itself


class Worker:
    """Runs tasks one after the other in its own thread. An error in one drops the rest and is raised by the next call.

    Args:
        ahead: largest number of waiting tasks.
    """

    def __init__(self, ahead: int = 8):
        self.ahead = ahead
        self.error: BaseException | None = None
        self._tasks: deque[Callable[[], object]] = deque()
        self._changed = threading.Condition()
        self._ends = False
        self._busy = False
        self._thread = threading.Thread(target=self._work, name="worker", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._tasks or self._ends)
                if not self._tasks:
                    return
                task = self._tasks.popleft()
                self._busy = True
            try:
                task()
            except BaseException as error:
                with self._changed:
                    self.error, self._ends, self._busy = error, True, False
                    self._tasks.clear()
                    self._changed.notify_all()
                return

    def put(self, task: Callable[[], object]) -> None:
        """Adds a task, after waiting until fewer than `ahead` wait. Raises the error of an earlier task."""
        self._wait(lambda: len(self._tasks) < self.ahead)
        with self._changed:
            self._tasks.append(task)
            self._changed.notify_all()

    def drain(self) -> None:
        """Waits until all tasks are done. Raises the error of a task."""
        self._wait(lambda: not self._tasks and not self._busy)

    def finish(self) -> None:
        """As `drain`, and ends the thread."""
        self.drain()
        self.close()

    def _wait(self, until: Callable[[], bool]) -> None:
        with self._changed:
            # With a timeout, since Python raises a signal's exception only between two waits.
            while not self._changed.wait_for(lambda: self.error is not None or until(), timeout=0.5):
                pass
        if self.error is not None:
            raise self.error

    def close(self, give_up: Callable[[], object] = lambda: None) -> None:
        """Drops waiting tasks, and returns when the current one has ended.

        Args:
            give_up: called if that takes longer than `GRACE`; makes the current task fail.
        """
        with self._changed:
            self._tasks.clear()
            self._ends = True
            self._changed.notify_all()
        self._thread.join(GRACE)
        if self._thread.is_alive():
            give_up()
            self._thread.join()
