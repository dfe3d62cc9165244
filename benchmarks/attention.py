"""Attention kernels at the length of a window, and to few keys."""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.measure import Run, alternate, attempt
from benchmarks.table import Row, row
from skyreels_v2_infer.modules.attention import AttentionChoice, attend, refusal
from skyreels_v2_infer.plan.models import SIZES

KEYS = (512, 1024, 2040, 4080)


def kernels(run: Run, head_size: int) -> list[str]:
    names = ("fa4", "cudnn", "flash") if run.cuda else ("flash", "math")
    return [name for name in names if refusal(name, run.device, run.dtype, head_size) is None]


def times(run: Run, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> dict[str, float]:
    """Milliseconds of each kernel that can be used."""
    works = {}
    for kernel in kernels(run, q.shape[3]):
        work = partial(attend, q, k, v, AttentionChoice(kernel, kernel))
        try:
            work()
            works[kernel] = work
        except Exception as error:
            print(f"{kernel}: {error}", flush=True)
    return alternate(works, run.device, 2 * run.runs)


def long(run: Run, heads: int, head_size: int) -> Iterator[Row]:
    q, k, v = (run.random(1, run.size.tokens, heads, head_size, seed=i) for i in range(3))
    flop = 4 * run.size.tokens**2 * head_size * heads
    for kernel, took in times(run, q, k, v).items():
        yield row(
            f"{run.size.tokens} tokens, {heads} heads of {head_size}, {kernel}", took, "ms", **run.limit(flop, took)
        )


def short(run: Run, heads: int, head_size: int) -> Iterator[Row]:
    q = run.random(1, run.size.tokens, heads, head_size)
    for keys in KEYS:
        k, v = (run.random(1, keys, heads, head_size, seed=i) for i in (1, 2))
        for kernel, took in times(run, q, k, v).items():
            yield row(f"{keys} keys, {heads} heads, {kernel}", took, "ms")


def rows(run: Run) -> Iterator[Row]:
    heads = run.size.model["num_heads"]
    counts = [heads, SIZES["1.3B"]["num_heads"]] if run.cuda else [heads]
    for count in dict.fromkeys(counts):
        yield from attempt(f"{count} heads", partial(long, run, count, run.size.head_size), run.device)
    yield from attempt("few keys", partial(short, run, heads, run.size.head_size), run.device)
