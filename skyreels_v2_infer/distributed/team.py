"""The processes of one run: who this one is, what all of them agree on, and how a failure of one ends all.

torchrun says by the environment who a process is. With one process nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from skyreels_v2_infer.errors import InputError, first_line
from skyreels_v2_infer.launch import Launch

PATIENCE = timedelta(hours=12)  # rank 0 may download for long; a rank that fails is noticed at once all the same
T = TypeVar("T")


class SilencedError(Exception):
    """Another rank has failed first and says why; this one only ends."""


class Team:
    """One process alone. What it agrees on is what it says."""

    rank = 0
    size = 1

    def same(self, value: T) -> T:
        """Rank 0's value, on all ranks."""
        return value

    @contextmanager
    def first_rank_first(self) -> Iterator[None]:
        """A block that rank 0 runs before the others do."""
        yield

    def meet(self) -> None:
        """Waits until all ranks are here."""


class RankTeam(Team):
    """This process as one of several; torch's default process group is there."""

    def __init__(self, launch: Launch):
        self.rank, self.size = launch.rank, launch.size

    def same(self, value: T) -> T:
        import torch.distributed as dist

        values = [value]
        dist.broadcast_object_list(values, src=0, device="cpu")
        return values[0]

    @contextmanager
    def first_rank_first(self) -> Iterator[None]:
        if self.rank:
            self.same(None)
        yield
        if not self.rank:
            self.same(None)

    def meet(self) -> None:
        import torch
        import torch.distributed as dist

        dist.all_reduce(torch.zeros(1))


def own_device(device: str | None, local_rank: int) -> str | None:
    """The device of one of several processes: each GPU takes the process with its number.

    Raises:
        InputError: there is none for it; SilencedError where a process before it has said so.
    """
    if device == "cpu":
        return device
    import torch

    if device is None and not torch.cuda.is_available():
        return "cpu"
    count = torch.cuda.device_count()
    if local_rank > count:
        raise SilencedError  # a process before this one says it
    if local_rank == count:
        raise InputError("device", "cuda", f"process {local_rank + 1} of this machine finds only {count} GPUs")
    return f"cuda:{local_rank}"


@contextmanager
def assembled(launch: Launch, device: str | None) -> Iterator[Team]:
    """The processes that torchrun has started, as a team; its process group is gone again after a block that ends well.

    Args:
        device: of this process, as from `own_device`; GPUs talk over NCCL, CPUs over gloo.

    Raises:
        SilencedError: in place of any error, where another rank has failed before.
    """
    if launch.size == 1:
        yield Team()
        return
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    on_gpu = device is not None and device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(device)
    store, rank, size = next(iter(rendezvous("env://", timeout=PATIENCE)))
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    failures = dist.PrefixStore("failures", store)
    try:
        yield RankTeam(launch)
    except KeyboardInterrupt:
        # torchrun asks the others to end when one has failed.
        if failures.add("count", 0) or rank:
            raise SilencedError from None
        raise
    except Exception as error:
        first = failures.add("count", 1) == 1
        if not on_gpu:
            # While others wait for this rank, they notice that it is gone by its connections, which this closes. GPUs
            # would first wait for what they have begun together; there the process has to end as it is.
            dist.destroy_process_group()
        if not first:
            raise SilencedError(first_line(error)) from error
        raise
    else:
        dist.destroy_process_group()
