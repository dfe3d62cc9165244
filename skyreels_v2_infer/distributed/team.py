"""The processes (ranks) of one run: what they agree on, where they wait for each other, how one's failure ends all.

torchrun's environment says which rank a process is. With one process nothing here imports torch, up to `Team.share`.
For many videos the processes form groups, each a team with a process group of its own; they count in the rendezvous
store which videos are taken.

Ranks wait for each other in two ways. Before work of which nobody knows how long one of them takes (rank 0 downloads,
loads, writes, joins) they `meet` in the rendezvous store, for as long as every rank's `Heartbeat` goes on. Collectives
of torch follow when all have arrived, and have a timeout.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from skyreels_v2_infer.distributed import heartbeat
from skyreels_v2_infer.errors import InputError, first_line
from skyreels_v2_infer.launch import Launch

if TYPE_CHECKING:
    from skyreels_v2_infer.distributed.xdit_context_parallel import Shared
    from skyreels_v2_infer.modules.attention import AttentionChoice
    from skyreels_v2_infer.plan.sharing import Layout

STARTING = timedelta(minutes=10)  # until all ranks have found each other
# Of a collective. The ranks have met before; what is left is how far the slowest GPU or CPU falls behind within a
# forward. A rank that does not run at all is noticed earlier, by its heartbeat.
COLLECTIVE = timedelta(minutes=10)
LONGEST_SLEEP = 0.1  # seconds between two looks at whether the others have come
LAST_WORDS = 5.0  # seconds that the end of a process may take: a message about a lost rank, the last to leave
T = TypeVar("T")


class SilencedError(Exception):
    """Another rank failed first and reports it; this one only ends."""


class Team:
    """One process by itself: agreeing and waiting do nothing.

    Attributes:
        rank, size: of this process in the team, and how many there are.
        recovered: whether the ranks may go on after the last `attempt`.
    """

    rank = 0
    size = 1
    recovered = True

    def __init__(self):
        self._claimed = 0

    def same(self, value: T) -> T:
        """Rank 0's value, on all ranks."""
        return value

    @contextmanager
    def first_rank_first(self) -> Iterator[None]:
        """A block that rank 0 runs before the others do."""
        yield

    def meet(self) -> None:
        """Waits until all ranks have called it, as long as they are alive."""

    def meet_all(self) -> None:
        """As `meet`, with the other teams of torchrun's processes."""

    def claim(self) -> int:
        """A number from 0 on that no other team has got."""
        self._claimed += 1
        return self._claimed - 1

    def agrees(self, text: str) -> bool:
        """Whether the text is the one of the first process, of all teams, that called this. To be called once."""
        return True

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """A block in which an error of one rank is one of all: the others raise SilencedError where they wait for it,
        and all leave the block together, up to `commit`."""
        yield

    def commit(self) -> None:
        """From here to the end of an `attempt` the ranks compute together, and an error of one ends all processes."""

    def reason(self) -> str | None:
        """The error of the rank of this team that failed first in the last `attempt`, if one did and told."""
        return None

    def share(self, layout: Layout, choice: AttentionChoice) -> Shared:
        """The operations with which a pipeline shares the work in this way; the same ones when asked again.

        Args:
            choice: the attention kernels.
        """
        from skyreels_v2_infer.distributed.xdit_context_parallel import alone

        if layout.ranks != 1:
            raise ValueError(f"{layout}: is for {layout.ranks} ranks, there is 1")
        return alone(choice)


class Failures:
    """How many ranks have failed. Where the store is gone, so is the rank that had it, and has said why."""

    def __init__(self, store):
        self._store = store

    def any(self) -> bool:
        return self._add(0) > 0

    def report(self) -> bool:
        """Adds this rank -> whether it is the first."""
        return self._add(1) == 1

    def _add(self, amount: int) -> int:
        try:
            return self._store.add("count", amount)
        except Exception:
            return 1 + amount


class Meetings:
    """Where processes wait for each other, in the store.

    Args:
        rank, size: of this process among those that meet.
        failed: whether another process has failed, so that nobody may come any more.
    """

    def __init__(self, store, rank: int, size: int, failed: Callable[[], bool]):
        self._store, self._rank, self._size, self._failed = store, rank, size, failed
        self._count = 0

    def meet(self) -> None:
        if self._size == 1:
            return
        self._count += 1
        arrived, complete = self._keys(self._count)
        if self._store.add(arrived, 1) == self._size:
            self._store.set(complete, "")
        sleep = LONGEST_SLEEP / 64
        while not self._store.check([complete]):
            if self._failed():
                raise SilencedError
            time.sleep(sleep)
            sleep = min(LONGEST_SLEEP, 1.5 * sleep)
        if not self._rank and self._count > 1:  # which all have left, or they would not be here
            for key in self._keys(self._count - 1):
                self._store.delete_key(key)

    def leave(self) -> None:
        """The last use of the store. Rank 0, which may have it in its process, stays until the others have left."""
        patience = time.monotonic() + LAST_WORDS
        with suppress(Exception):  # it may have left without the others
            self._store.add("left", 1)
            while not self._rank and self._store.add("left", 0) < self._size and time.monotonic() < patience:
                time.sleep(LONGEST_SLEEP / 64)

    @staticmethod
    def _keys(meeting: int) -> tuple[str, str]:
        return f"{meeting}/arrived", f"{meeting}/complete"


class RankTeam(Team):
    """This process as one of several, in torch's default process group, unless it is a team of one.

    Args:
        launch: this process among all.
        store: torch's.
        failed: whether another process has failed.
        size: of the team; the processes form teams of this size, in the order of their ranks.
    """

    def __init__(self, launch: Launch, store, failed: Callable[[], bool], size: int | None = None):
        super().__init__()
        self.size = launch.size if size is None else size
        number, self.rank = divmod(launch.rank, self.size)
        self._store, self._failed = prefixed(store, f"team/{number}"), failed
        self._all = Meetings(prefixed(store, "all"), launch.rank, launch.size, failed)
        self._own = self._meetings = Meetings(self._store, self.rank, self.size, failed)
        self._claims = store
        self._attempts = 0
        self._committed = False
        self._groups = None

    def same(self, value: T) -> T:
        if self.size == 1:
            return value
        import torch.distributed as dist

        self.meet()
        values = [value]
        dist.broadcast_object_list(values, src=0, device="cpu")
        return values[0]

    @contextmanager
    def first_rank_first(self) -> Iterator[None]:
        if self.rank:
            self.meet()
        yield
        if not self.rank:
            self.meet()

    def meet(self) -> None:
        self._meetings.meet()

    def meet_all(self) -> None:
        self._all.meet()

    def leave(self) -> None:
        self._all.leave()

    def claim(self) -> int:
        return self.same(None if self.rank else self._claims.add("claimed", 1) - 1)

    def agrees(self, text: str) -> bool:
        return self._claims.compare_set("agreed", "", text).decode() == text

    @contextmanager
    def attempt(self) -> Iterator[None]:
        self._attempts += 1
        self._committed = self.recovered = False
        store = prefixed(self._store, f"attempt/{self._attempts}")
        self._attempt = store
        self._meetings = Meetings(store, self.rank, self.size, lambda: self._failed() or store.check(["failed"]))
        try:
            yield
        except Exception as error:
            self._meetings = self._own
            if not isinstance(error, SilencedError):
                with suppress(Exception):  # the store may be gone
                    store.set("reason", first_line(error))
            if self._committed or self._failed():
                raise
            store.set("failed", "")
            self.meet()
            self.recovered = True
            raise
        else:
            self._meetings = self._own
            self.meet()
            self.recovered = True

    def commit(self) -> None:
        self.meet()
        self._committed = self.size > 1

    def reason(self) -> str | None:
        with suppress(Exception):  # the store may be gone
            return self._attempt.get("reason").decode() if self._attempt.check(["reason"]) else None

    def share(self, layout: Layout, choice: AttentionChoice) -> Shared:
        if self.size == 1:
            return super().share(layout, choice)
        from skyreels_v2_infer.distributed.xdit_context_parallel import RankGroups

        if self._groups is None:
            self._groups = RankGroups(self.meet, COLLECTIVE)
        return self._groups.share(layout, choice)


def prefixed(store, name: str):
    import torch.distributed as dist

    return dist.PrefixStore(name, store)


def own_device(device: str | None, local_rank: int) -> str | None:
    """The device of one of several processes: the GPU with its number on this machine, or the only one that it sees.

    Cluster managers (SLURM, or CUDA_VISIBLE_DEVICES set for each process) show each process one GPU of its own; whether
    two see the same one is checked by `assembled`.

    Raises:
        InputError: there is none for it; SilencedError where a process with a lower number reports that.
    """
    if device == "cpu":
        return device
    import torch

    if device is None and not torch.cuda.is_available():
        return "cpu"
    count = torch.cuda.device_count()
    if count == 1:
        return "cuda:0"
    if local_rank > count:
        raise SilencedError
    if local_rank == count:
        raise InputError("device", "cuda", f"process {local_rank + 1} of this machine finds only {count} GPUs")
    return f"cuda:{local_rank}"


def check_own_gpu(store, device: str, local_rank: int) -> None:
    """Raises an `InputError` if another process has the same GPU, on which NCCL would fail."""
    import torch

    gpu = torch.cuda.get_device_properties(device).uuid
    if store.add(f"{socket.gethostname()}/{gpu}", 1) > 1:
        count = torch.cuda.device_count()
        few = f"process {local_rank + 1} of this machine finds only {count} GPU{'s' * (count != 1)}"
        raise InputError("device", "cuda", f"{few}, which another process uses already")


def report(reason: str) -> None:
    print(f"failed: {reason}", file=sys.stderr, flush=True)


def ended_by_silence(lost: Callable[[str], None]) -> Callable[[int, bool], None]:
    """Ends this process when a rank is silent (see `Heartbeat`); `lost` reports it, which may take LAST_WORDS."""

    def end(rank: int, reports: bool) -> None:
        timer = threading.Timer(LAST_WORDS, os._exit, args=(1,))
        timer.daemon = True
        timer.start()
        try:
            if reports:
                lost(f"rank {rank} gave no sign of life for {heartbeat.SILENCE:g} s")
        finally:
            os._exit(1)

    return end


@contextmanager
def assembled(
    launch: Launch, device: str | None, lost: Callable[[str], None] = report, size: int | None = None
) -> Iterator[Team]:
    """The processes that torchrun has started, as a team; their process group ends with a block that ends well.

    Args:
        device: of this process, as from `own_device`; GPUs talk over NCCL, CPUs over gloo.
        size: of a team, of which there are several then; None: all processes.
        lost: called from a thread, with one line for the user, when another rank has been silent for too long. The
            process then ends at once with exit code 1, since the main thread may be inside a collective.

    Raises:
        InputError: an environment variable is missing, or two processes have the same GPU.
        ConnectionError: the other ranks cannot be reached.
        SilencedError: in place of any error, where another rank failed before.
    """
    if launch.size == 1:
        yield Team()
        return
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise InputError("use_usp", None, f"environment variable {name} is not set (torchrun sets it)")
    on_gpu = device is not None and device.startswith("cuda")
    size = launch.size if size is None else size
    store, beats = connect(device if on_gpu else None, size)
    import torch.distributed as dist

    failures = Failures(dist.PrefixStore("failures", store))
    heart = heartbeat.Heartbeat(beats, launch.rank, launch.size, ended_by_silence(lost))
    try:
        team = RankTeam(launch, dist.PrefixStore("meetings", store), failures.any, size)
        if on_gpu:
            check_own_gpu(dist.PrefixStore("gpus", store), device, launch.local_rank)
        team.meet_all()  # every rank has a heartbeat now
        heart.start()
        yield team
    except KeyboardInterrupt:
        heart.stop(ended_well=False)
        # torchrun asks the others to end when one has failed.
        if launch.rank or failures.any():
            raise SilencedError from None
        raise
    except Exception as error:
        heart.stop(ended_well=False)
        first = failures.report()
        if not on_gpu and size > 1:
            # While others wait for this rank, they notice that it is gone by its connections, which this closes. GPUs
            # would first wait for what they have begun together; there the process has to end as it is.
            dist.destroy_process_group()
        if not first:
            raise SilencedError(first_line(error)) from error
        raise
    else:
        heart.stop(ended_well=True)
        if size > 1:
            dist.destroy_process_group()
        team.leave()


def connect(gpu: str | None, team: int) -> tuple:
    """Finds the other ranks and makes torch's default process group -> (the store, another connection to it).

    Args:
        team: number of ranks in a process group; a single one needs none.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    if gpu is not None:
        torch.cuda.set_device(gpu)
    host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    try:
        store, rank, size = next(iter(rendezvous("env://", timeout=STARTING)))
        again = dist.TCPStore(host, int(port), is_master=False, timeout=STARTING, wait_for_workers=False)
        backend = "gloo" if gpu is None else "cpu:gloo,cuda:nccl"
        if team > 1:
            own = store if team == size else dist.PrefixStore(f"group/{rank // team}", store)
            dist.init_process_group(backend, store=own, rank=rank % team, world_size=team, timeout=COLLECTIVE)
    except (RuntimeError, ValueError, OSError) as error:
        raise ConnectionError(f"ranks cannot meet at {host}:{port} ({first_line(error)})") from error
    # torchrun keeps its store when it starts the processes anew.
    return store, dist.PrefixStore(f"beats/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", again)
