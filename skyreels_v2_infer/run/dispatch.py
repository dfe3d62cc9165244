"""Which workers make which video of a batch, and what becomes of a video whose worker is lost.

Knows nothing of Ray: `cluster.py` starts workers and calls them. Imports no torch.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from skyreels_v2_infer.console import say
from skyreels_v2_infer.progress import Stage, doing
from skyreels_v2_infer.run.row_checks import CheckedRow
from skyreels_v2_infer.run.summary import Result

MOST_ATTEMPTS = 3  # at a video whose worker is lost each time: the video may be what ends it
MOST_FAILURES = 3  # in a row, of videos in one group or of starts of groups
LOOKS_AHEAD = 64  # videos whose texts may be encoded with those of the current one
LOOK = 0.2  # seconds between two looks at signals and progress
GRACE = 30.0  # seconds in which workers that are asked to stop have to do so
# A lost worker's lock on a video's folder can last on: a file server waits for a machine that is gone (NFS: 90 s).
LOCK_LASTS, LOOK_AT_LOCK = 300.0, 10.0
PATIENCE = 20.0  # seconds without any worker after which a message says so


@dataclass(frozen=True)
class Outcome:
    """How a call of a group ended.

    Attributes:
        result: the video's record; None: there is none, as the group was stopped or is lost, or has only started.
        lost: why the group cannot be used any more, in one line; None: it can.
        failures: videos in a row that failed in this group.
        is_busy: another process works on the video.
        is_kept: the video was stopped, and some of its pieces are kept.
    """

    result: Result | None = None
    lost: str | None = None
    failures: int = 0
    is_busy: bool = False
    is_kept: bool = False


def counted(count: float, name: str) -> str:
    """As in "1 video" and "2 videos"."""
    return f"{count:g} {name}{'s' * (count != 1)}"


class Group(Protocol):
    """Workers that share each video.

    Attributes:
        where: for messages, once it has started.
    """

    where: str

    def make(self, coming: Sequence[CheckedRow]) -> None:
        """Begins to make the first of these videos; texts of the others may be encoded as well."""

    def outcome(self) -> Outcome:
        """Of the call, or of the start, that has ended."""

    def progress(self) -> float:
        """The part of the current video that is done, 0 to 1."""

    def stop(self) -> None:
        """Asks it to leave the current video."""

    def close(self) -> None:
        """Ends its processes."""


class Pool(Protocol):
    """Where groups run."""

    def most(self) -> int:
        """How many there is room for."""

    def open(self) -> Group:
        """Begins to start a group."""

    def wait(self, groups: Sequence[Group], seconds: float) -> list[Group]:
        """Those of these groups whose call, or start, has ended; waits for the first one, up to so many seconds."""


@dataclass(eq=False)
class Task:
    """A video to make.

    Attributes:
        losses: how many workers were lost while they made it. lost_at: when the last one was.
        not_before: a time (`time.monotonic`).
    """

    video: CheckedRow
    losses: int = 0
    lost_at: float = 0.0
    not_before: float = 0.0


class Dispatcher:
    """Has videos made by the groups of a pool.

    Args:
        videos: in the order in which they are begun.
        add: takes the record of each video that is finished or has failed.
        failed: (a video, its error) -> a record.
        check: called regularly; raises once the process has to stop.

    Attributes:
        kept: how many videos were stopped of which some pieces are kept.
    """

    def __init__(
        self,
        pool: Pool,
        videos: Sequence[CheckedRow],
        add: Callable[[Result], object],
        failed: Callable[[CheckedRow, str], Result],
        check: Callable[[], object],
    ):
        self.pool, self.add, self.failed, self.check = pool, add, failed, check
        self.kept = 0
        self._count = len(videos)
        self._waiting = deque(map(Task, videos))
        self._starting: list[Group] = []
        self._idle: list[Group] = []
        self._working: dict[Group, Task] = {}
        self._failed_starts = self._given_up = 0
        self._alone_since: float | None = time.monotonic()  # without any group that has started

    def run(self) -> None:
        """Makes all videos; returns early if no group can be used any more.

        Raises:
            OSError: no group can be started.
            KeyboardInterrupt: from `check`, after videos in work were left in a state from which they continue.
        """
        try:
            with doing("videos", total=self._count, unit="videos") as stage:
                self._make_all(stage)
        except KeyboardInterrupt:
            with doing("stopping"):
                self._drain()
            raise
        finally:
            for group in self._groups():
                group.close()

    def _make_all(self, stage: Stage) -> None:
        while self._waiting or self._working:
            self.check()
            self._open()
            if self._given_up and not self._groups():
                break  # videos fail everywhere
            self._give()
            self._look(LOOK)
            self._show(stage)

    def _groups(self) -> list[Group]:
        return [*self._starting, *self._idle, *self._working]

    def _open(self) -> None:
        """Starts groups for which there are room and videos."""
        room = self.pool.most() - self._given_up
        while len(self._groups()) < min(room, len(self._waiting) + len(self._working)):
            self._starting.append(self.pool.open())
        if self._idle or self._working:
            self._alone_since = None
        elif self._alone_since is None:
            self._alone_since = time.monotonic()
        elif time.monotonic() > self._alone_since + PATIENCE:
            say("waiting for a worker to start: the cluster may be in use, or machines may be gone; Ctrl-C stops this")
            self._alone_since = float("inf")

    def _give(self) -> None:
        """Gives each group that does nothing the next video."""
        now = time.monotonic()
        for task in [task for task in self._waiting if task.not_before <= now][: len(self._idle)]:
            self._waiting.remove(task)
            group = self._idle.pop(0)
            self._working[group] = task
            following = (other.video for other, _ in zip(self._waiting, range(LOOKS_AHEAD), strict=False))
            group.make([task.video, *following])

    def _look(self, seconds: float) -> None:
        """Handles the calls that have ended, and waits for the first one."""
        for group in self.pool.wait([*self._starting, *self._working], seconds):
            outcome = group.outcome()
            task = self._working.pop(group, None)
            if task is None:
                self._starting.remove(group)
                self._started(group, outcome)
            else:
                self._ended(group, task, outcome)

    def _started(self, group: Group, outcome: Outcome) -> None:
        if outcome.lost is None:
            self._failed_starts = 0
            self._idle.append(group)
            return
        group.close()
        self._failed_starts += 1
        if self._failed_starts == MOST_FAILURES:
            raise OSError(f"workers cannot start: {outcome.lost}")

    def _ended(self, group: Group, task: Task, outcome: Outcome) -> None:
        result = outcome.result
        if outcome.is_busy and time.monotonic() < task.lost_at + LOCK_LASTS and task.losses:
            task.not_before = time.monotonic() + LOOK_AT_LOCK
            self._waiting.append(task)
        elif result is not None:
            self.add(result)
        elif outcome.lost is not None:
            self._lost(group, task, outcome.lost)
        if outcome.lost is not None:
            group.close()
        elif outcome.failures >= MOST_FAILURES:
            group.close()
            self._given_up += 1
            many = f"{MOST_FAILURES} videos in a row failed in a worker on {group.where}"
            say(f"{many}, which makes no more; the same command continues")
        else:
            self._idle.append(group)

    def _lost(self, group: Group, task: Task, reason: str) -> None:
        task.losses += 1
        task.lost_at = time.monotonic()
        if task.losses == MOST_ATTEMPTS:
            self.add(self.failed(task.video, f"lost {MOST_ATTEMPTS} workers, the last one on {group.where}: {reason}"))
            return
        say(f"row {task.video.row.number}: the worker on {group.where} was lost ({reason}); another one continues")
        self._waiting.appendleft(task)

    def _drain(self) -> None:
        """Has the groups leave their videos in an orderly way; those that do not in time are ended as they are."""
        for group in self._working:
            group.stop()
        deadline = time.monotonic() + GRACE
        while self._working and time.monotonic() < deadline:
            for group in self.pool.wait([*self._working], LOOK):
                outcome = group.outcome()
                del self._working[group]
                self._idle.append(group)
                self.kept += outcome.is_kept
                if outcome.result is not None and not outcome.is_busy:
                    self.add(outcome.result)

    def _show(self, stage: Stage) -> None:
        left = len(self._waiting) + len(self._working)
        stage.done = round(self._count - left + sum(group.progress() for group in self._working), 1)
        stage.text = f"{counted(len(self._working), 'group')} at work"
