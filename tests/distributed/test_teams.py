"""Teams of a batch: an error of one rank fails a video, not the processes, as long as they do not compute together."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from torch.distributed import HashStore

from skyreels_v2_infer.distributed.team import RankTeam, SilencedError, Team
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.launch import Launch


def on_ranks(work, count: int = 4, size: int = 2) -> list:
    """The results or errors of `work(team, rank)` on every process, each in a thread."""
    store = HashStore()

    def call(rank: int):
        try:
            return work(RankTeam(Launch(rank, rank, count, True), store, lambda: False, size), rank)
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(call, range(count)))


def test_processes_form_teams_in_their_order():
    found = on_ranks(lambda team, rank: (team.rank, team.size, team.meet(), team.meet_all()))
    assert found == [(0, 2, None, None), (1, 2, None, None)] * 2


def test_teams_of_one_claim_different_numbers():
    found = on_ranks(lambda team, rank: [team.claim() for _ in range(5)], count=3, size=1)
    assert sorted(number for numbers in found for number in numbers) == [*range(15)]
    alone = Team()
    assert [alone.claim() for _ in range(3)] == [0, 1, 2]


def test_processes_agree_on_a_text():
    assert on_ranks(lambda team, rank: team.agrees("a")) == [True] * 4
    assert sum(on_ranks(lambda team, rank: team.agrees(str(rank)))) == 1


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_one_rank_ends_the_attempt_of_both(failing):
    def work(team: RankTeam, rank: int):
        reasons = []
        for attempt in range(3):
            try:
                with team.attempt():
                    team.meet()
                    if (attempt, rank) == (1, failing):
                        raise InputError("image", "x.png", "is none")
                    team.meet()
                    team.commit()
                reasons.append(None)
            except (InputError, SilencedError) as error:
                reasons.append((type(error), team.recovered, team.reason()))
        return reasons

    one, other, *others = on_ranks(work)
    said = "--image x.png: is none"
    errors = {failing: InputError, 1 - failing: SilencedError}
    for rank, found in enumerate((one, other)):
        assert found == [None, (errors[rank], True, said), None]
    assert others == [[None] * 3] * 2  # another team does not notice


def test_an_error_while_ranks_compute_together_is_final():
    def work(team: RankTeam, rank: int):
        try:
            with team.attempt():
                team.commit()
                raise FloatingPointError(rank)
        except FloatingPointError:
            return team.recovered

    assert on_ranks(work) == [False] * 4
    assert on_ranks(work, size=1) == [True] * 4


@pytest.mark.parametrize("ours", [True, False])
def test_the_reason_is_that_of_a_rank_of_this_team(ours):
    """A rank that is silenced while all compute together learns whether its own team failed or another one."""
    failed = threading.Event()

    def work(store, rank: int):
        team = RankTeam(Launch(rank, rank, 4, True), store, failed.is_set, 2)
        try:
            with team.attempt():
                team.commit()
                if rank == (1 if ours else 3):
                    raise FloatingPointError("not finite")
                team.meet_all()
        except FloatingPointError:
            failed.set()  # as `assembled` reports it, after the attempt
        except SilencedError:
            return team.reason()

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(partial(work, HashStore()), range(4)))
    assert found[0] == ("not finite" if ours else None)


def test_waiting_ends_when_another_process_has_failed():
    failed = []

    def work(store, rank: int):
        team = RankTeam(Launch(rank, rank, 2, True), store, lambda: bool(failed), 1)
        if rank:
            failed.append(rank)
            return None
        with pytest.raises(SilencedError), team.attempt():
            team.meet_all()
        return team.recovered

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(partial(work, HashStore()), range(2))) == [False, None]
