"""Videos and the workers of a cluster: what is made where, and what becomes of a video whose worker is lost."""

from types import SimpleNamespace

import pytest

from skyreels_v2_infer.run import dispatch
from skyreels_v2_infer.run.dispatch import MOST_ATTEMPTS, Dispatcher, Outcome


class Script:
    """A pool whose groups end their calls at once, as told.

    Args:
        fate: (video, how many attempts at it there were before) -> Outcome, or None: the video is done.
    """

    def __init__(self, room: int, fate=lambda video, attempt: None, starts=()):
        self.room, self.fate, self.starts = room, fate, list(starts)
        self.groups: list[SimpleNamespace] = []
        self.made: list[tuple[int, int]] = []  # (group, video), in this order

    def most(self) -> int:
        return self.room

    def open(self):
        group = Worker(self, len(self.groups))
        self.groups.append(group)
        return group

    def wait(self, groups, seconds):
        return [group for group in groups if not group.goes_on]


class Worker:
    def __init__(self, pool: Script, number: int):
        self.pool, self.where, self.goes_on, self.closed = pool, f"m{number}", False, False
        self.number, self.stopped = number, False
        self.next = pool.starts.pop(0) if pool.starts else Outcome()

    def make(self, coming) -> None:
        video = coming[0].row.number
        attempt = sum(other == video for _, other in self.pool.made)
        self.pool.made.append((self.number, video))
        self.coming = [one.row.number for one in coming]
        self.next = self.pool.fate(video, attempt) or Outcome(f"{video} done")
        self.goes_on = self.next == "goes on"

    def outcome(self):
        return self.next

    def progress(self) -> float:
        return 0.5

    def stop(self) -> None:
        self.stopped, self.goes_on, self.next = True, False, Outcome(is_kept=self.number % 2 == 0)

    def close(self) -> None:
        self.closed = True


LOST = Outcome(lost="was killed")


def run(pool: Script, count: int, check=lambda: None) -> tuple[list, Dispatcher]:
    videos = [SimpleNamespace(row=SimpleNamespace(number=number)) for number in range(1, count + 1)]
    found: list = []
    made = Dispatcher(pool, videos, found.append, lambda video, error: f"{video.row.number} failed: {error}", check)
    try:
        made.run()
    finally:
        assert all(group.closed for group in pool.groups)
    return found, made


def test_groups_take_videos_in_order():
    pool = Script(2)
    found, _ = run(pool, 5)
    assert found == [f"{i} done" for i in range(1, 6)]
    assert len(pool.groups) == 2 and {group for group, _ in pool.made} == {0, 1}
    assert pool.groups[0].coming[0] == pool.made[-1][1]


def test_there_are_no_more_groups_than_videos():
    pool = Script(8)
    run(pool, 3)
    assert len(pool.groups) == 3


def test_a_video_of_a_lost_worker_is_made_by_another_one_next(capsys):
    pool = Script(1, lambda video, attempt: LOST if (video, attempt) == (2, 0) else None)
    found, _ = run(pool, 3)
    assert found == ["1 done", "2 done", "3 done"]
    assert pool.made == [(0, 1), (0, 2), (1, 2), (1, 3)]
    assert capsys.readouterr().err == "row 2: the worker on m0 was lost (was killed); another one continues\n"


def test_a_video_that_ends_its_worker_each_time_fails():
    pool = Script(1, lambda video, attempt: LOST if video == 1 else None)
    found, _ = run(pool, 2)
    where = f"m{MOST_ATTEMPTS - 1}"
    assert found == [f"1 failed: lost {MOST_ATTEMPTS} workers, the last one on {where}: was killed", "2 done"]


def test_an_error_of_a_group_is_recorded_and_another_group_goes_on():
    pool = Script(1, lambda video, attempt: Outcome("1 failed", lost="not finite") if video == 1 else None)
    found, _ = run(pool, 2)
    assert found == ["1 failed", "2 done"] and pool.made == [(0, 1), (1, 2)]


def test_a_worker_in_which_videos_fail_makes_no_more(capsys):
    def fate(video, attempt):
        return Outcome(f"{video} failed", failures=video)

    found, _ = run(Script(1, fate), 5)
    assert found == ["1 failed", "2 failed", "3 failed"]
    assert "3 videos in a row failed in a worker on m0, which makes no more" in capsys.readouterr().err


def test_workers_that_cannot_start_end_the_run():
    failed = Outcome(lost="no such folder")
    found, _ = run(Script(1, starts=[failed, failed]), 1)
    assert found == ["1 done"]
    with pytest.raises(OSError, match="workers cannot start: no such folder"):
        run(Script(1, starts=[failed] * 3), 1)


def test_a_cluster_that_has_no_room_is_waited_for(monkeypatch, capsys):
    monkeypatch.setattr(dispatch, "PATIENCE", -1.0)
    pool, looks = Script(0), []

    def check() -> None:
        looks.append(len(pool.groups))
        pool.room = int(len(looks) > 5)

    assert run(pool, 1, check)[0] == ["1 done"] and looks[:6] == [0] * 6
    assert capsys.readouterr().err.count("waiting for a worker to start") == 1


def test_the_lock_of_a_lost_worker_is_waited_for(monkeypatch):
    busy = Outcome("1 busy", is_busy=True)
    monkeypatch.setattr(dispatch, "LOOK_AT_LOCK", 0.0)
    found, _ = run(Script(1, lambda video, attempt: [LOST, busy, busy, None][attempt]), 1)
    assert found == ["1 done"]
    assert run(Script(1, lambda video, attempt: busy), 1)[0] == ["1 busy"]  # of another command
    monkeypatch.setattr(dispatch, "LOCK_LASTS", 0.0)
    assert run(Script(1, lambda video, attempt: [LOST, busy][attempt]), 1)[0] == ["1 busy"]


def test_an_interrupted_run_stops_its_workers_and_begins_nothing():
    pool = Script(3, lambda video, attempt: "goes on")

    def check() -> None:
        if len(pool.made) == 3:
            raise KeyboardInterrupt

    videos = [SimpleNamespace(row=SimpleNamespace(number=number)) for number in range(5)]
    found: list = []
    made = Dispatcher(pool, videos, found.append, None, check)
    with pytest.raises(KeyboardInterrupt):
        made.run()
    assert found == [] and len(pool.made) == 3 and made.kept == 2
    assert all(group.stopped and group.closed for group in pool.groups)
