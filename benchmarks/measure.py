"""What the parts share: the run, and clocks that know a GPU."""

import gc
import shutil
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.sizes import Size
from benchmarks.table import Row, row
from skyreels_v2_infer.errors import InputError, first_line

GIB = 2**30
MATMUL = 790.0  # TFLOP/s of a plain bfloat16 matrix product on an H200


@dataclass(frozen=True)
class Run:
    """One call of the command.

    Attributes:
        runs: timed repetitions, of which medians are taken.
        compiled: also measure what is compiled.
        folder: for checkpoints and videos; removed at the end.
        until: `time.monotonic()` at which the budget is spent.
    """

    device: torch.device
    size: Size
    runs: int
    compiled: bool
    folder: Path
    until: float = float("inf")

    @property
    def left(self) -> float:
        """Seconds left of the budget."""
        return self.until - time.monotonic()

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.cuda else torch.float32

    def random(self, *shape: int, dtype: torch.dtype | None = None, seed: int = 0) -> torch.Tensor:
        draw = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(shape, generator=draw, device=self.device, dtype=dtype or self.dtype)

    def limit(self, flop: float, milliseconds: float) -> dict[str, float]:
        """Columns that relate a time to the arithmetic in it; empty on a CPU."""
        if not self.cuda:
            return {}
        return {"TFLOP/s": flop / milliseconds / 1e9, "of_790": flop / milliseconds / 1e9 / MATMUL}


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clear(device: torch.device) -> None:
    """Frees what an earlier measurement has left."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def milliseconds(work: Callable[[], object], device: torch.device) -> float:
    """Time of one call; on a GPU that of the device."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)
    began = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - began)


def alternate(works: Mapping[str, Callable[[], object]], device: torch.device, runs: int) -> dict[str, float]:
    """Median milliseconds of each, taken in turn, so that none alone meets a slower clock. Call each once before."""
    wait(device)
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(runs):
        for name, work in works.items():
            times[name].append(milliseconds(work, device))
    return {name: statistics.median(found) for name, found in times.items()}


def timed(work: Callable[[], object], device: torch.device, runs: int) -> float:
    """Median milliseconds of `work`, after one call to warm up."""
    work()
    return alternate({"": work}, device, runs)[""]


def seconds(work: Callable[[], object], device: torch.device) -> tuple[float, object]:
    """(seconds by the clock until the device is done, result) of one call."""
    wait(device)
    began = time.perf_counter()
    result = work()
    wait(device)
    return time.perf_counter() - began, result


def relative_error(ours: torch.Tensor, reference: torch.Tensor) -> float:
    """Norm of the difference over the norm of the reference."""
    ours, reference = ours.double(), reference.to(ours.device).double()
    return float((ours - reference).norm() / reference.norm())


def reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error, 160)}"


def attempt(name: str, rows: Callable[[], Iterator[Row]], device: torch.device) -> Iterator[Row]:
    """The rows; an error becomes a row without a value, so that the next measurement can run."""
    try:
        yield from rows()
    except Exception as error:  # compilers and drivers raise anything
        traceback.print_exc(limit=-6, file=sys.stderr)
        yield row(name, None, failed=reason(error))
        clear(device)


@contextmanager
def peak(device: torch.device) -> Iterator[Callable[[], float | None]]:
    """A function that returns the peak of GPU memory inside the context in GiB; None on a CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    yield lambda: torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else None


def check_space(folder: Path, gib: float) -> None:
    """Raises an `InputError` if a folder has less than `gib` free: on its disk, and if that is memory, there."""
    free = shutil.disk_usage(folder).free / GIB
    if is_in_memory(folder):  # where writing more than that ends the process
        free = min(free, free_memory() / GIB)
    if free < gib:
        raise InputError("folder", folder, f"has {free:.1f} GiB free, {gib:.1f} are needed")


def is_in_memory(folder: Path, mounts: Path = Path("/proc/mounts")) -> bool:
    """Whether a folder's file system is in memory, as /dev/shm is on Linux."""
    try:
        lines = [line.split() for line in mounts.read_text().splitlines()]
    except OSError:
        return False
    found = max((len(line[1]), line[2]) for line in lines if folder.resolve().is_relative_to(line[1]))
    return found[1] in ("tmpfs", "ramfs")


def free_memory(proc: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes of memory that this machine has available, or this container; infinity if it does not say."""
    found = float("inf")
    with suppress(OSError, IndexError, ValueError):
        found = 1024.0 * int(proc.read_text().partition("MemAvailable:")[2].split()[0])
    with suppress(OSError, ValueError):  # "max": no limit
        limit = int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
        found = min(found, limit)
    return found


def check_memory(device: torch.device, gib: float) -> None:
    """Raises an `InputError` if a GPU has less than `gib` free."""
    if device.type == "cuda" and (free := torch.cuda.mem_get_info(device)[0] / GIB) < gib:
        raise InputError("device", device, f"has {free:.1f} GiB free, {gib:.1f} are needed")
