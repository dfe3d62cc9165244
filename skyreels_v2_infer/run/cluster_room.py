"""What a worker takes of a cluster's machines, and how many there is room for. Plain data; knows nothing of Ray.

A machine is its resources by Ray's names: "CPU" and "GPU", in numbers of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.run.dispatch import counted


@dataclass(frozen=True)
class Needs:
    """What a worker takes of its machine's resources."""

    cpus: float
    gpus: float = 0.0

    def fits(self, machine: Mapping[str, float]) -> int:
        """How many workers a machine has room for."""
        counts = [machine.get("CPU", 0.0) // self.cpus]
        if self.gpus:
            counts.append(machine.get("GPU", 0.0) // self.gpus)
        return int(min(counts))


def threads_of(environ: Mapping[str, str], size: int) -> str | None:
    """OMP_NUM_THREADS of each worker; None: it is not set, and torch takes all cores.

    As for the command that makes the same video by itself: torchrun, which starts groups, sets it to 1.
    """
    return environ.get("OMP_NUM_THREADS") or ("1" if size > 1 else None)


def needs_of(machines: Sequence[Mapping[str, float]], device: str | None, threads: str | None) -> Needs:
    """A GPU and a CPU; in a cluster without GPUs, or with --device cpu, as many CPUs as a worker has threads, but not
    more than a machine has; where OMP_NUM_THREADS is not set, all CPUs of the smallest machine.

    Raises:
        InputError: --device cuda in a cluster without GPUs.
    """
    if any(machine.get("GPU", 0.0) >= 1 for machine in machines) and device != "cpu":
        return Needs(1.0, 1.0)
    if device == "cuda":
        raise InputError("device", device, "no machine of the cluster has a GPU that Ray knows of")
    sizes = [machine["CPU"] for machine in machines if machine.get("CPU", 0.0) >= 1] or [1.0]
    count = (threads or "").partition(",")[0]
    return Needs(min(float(count), max(sizes)) if count.isdecimal() and int(count) else min(sizes))


def room_for(machines: Sequence[Mapping[str, float]], needs: Needs, size: int) -> tuple[int, bool]:
    """(the number of groups that a cluster has room for, whether each fits into one machine)."""
    fitting = [needs.fits(machine) for machine in machines]
    within = sum(count // size for count in fitting)
    return (within, True) if within else (sum(fitting) // size, False)


def described(machines: Sequence[Mapping[str, float]], needs: Needs, size: int, threads: str | None) -> str:
    """The room in a cluster, for a message, with what would make more where workers take whole machines."""
    room, _ = room_for(machines, needs, size)
    count = counted(room, "worker") if size == 1 else f"{counted(room, 'group')} of {size} workers"
    many = sum(needs.fits(machine) > 0 for machine in machines)
    each = counted(needs.gpus, "GPU") if needs.gpus else counted(needs.cpus, "CPU")
    line = f"room for {count} on {counted(many, 'machine')}, {each} each"
    more, _ = room_for(machines, Needs(1.0), size)
    whole = not needs.gpus and threads is None and more > room
    return f"{line}; with OMP_NUM_THREADS=1 for {counted(more, 'worker')}" if whole else line
