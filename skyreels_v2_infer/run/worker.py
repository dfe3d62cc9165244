"""One thread that does work in order, beside the computation."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

GRACE = 1.5  # seconds for the task at hand to end by itself


class Worker:
    """Runs tasks one after the other in a thread of its own; an error in one ends the rest and comes out here.

    Args:
        ahead: how many tasks may wait.
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
        """Adds a task; waits while too many do. Raises the error of an earlier task."""
        self._wait(lambda: len(self._tasks) < self.ahead)
        with self._changed:
            self._tasks.append(task)
            self._changed.notify_all()

    def finish(self) -> None:
        """Waits until all tasks are done. Raises the error of one."""
        self._wait(lambda: not self._tasks and not self._busy)
        self.close()

    def _wait(self, until: Callable[[], bool]) -> None:
        with self._changed:
            # Woken now and then, so that a signal's exception, which Python raises between two waits, gets through.
            while not self._changed.wait_for(lambda: self.error is not None or until(), timeout=0.5):
                pass
        if self.error is not None:
            raise self.error

    def close(self, give_up: Callable[[], object] = lambda: None) -> None:
        """Drops what waits, and returns when the task at hand has ended.

        Args:
            give_up: called if that takes more than `GRACE`: makes the task fail.
        """
        with self._changed:
            self._tasks.clear()
            self._ends = True
            self._changed.notify_all()
        self._thread.join(GRACE)
        if self._thread.is_alive():
            give_up()
            self._thread.join()
