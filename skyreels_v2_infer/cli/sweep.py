"""--sweep and --shard: values of flags to combine, and which part of the videos this command makes."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from itertools import product

from skyreels_v2_infer.errors import InputError

MOST_VALUES = 10_000  # of one flag
NUMBER = r"[-+]?(?:[0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18})"
RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})(?:\.\.({NUMBER}))?")
SLURM = "SLURM_ARRAY_TASK_"


@dataclass(frozen=True)
class Sweep:
    """One flag and the values that it takes in turn, as in a row of a job file."""

    name: str
    values: tuple[object, ...]


def swept(text: str) -> Sweep:
    """Converts FLAG=VALUES: values and ranges (1..4, 0..1..0.25) with commas between them, or a JSON list."""
    name, equals, values = text.partition("=")
    try:
        if not equals or not name:
            raise ValueError("must be FLAG=VALUES, as in guidance_scale=4,6,8 or seed=1..4")
        if values.lstrip().startswith("["):
            found = json.loads(values)
        else:
            found = [value for word in values.split(",") for value in in_range(word.strip())]
        if not found:
            raise ValueError("has no values")
        if len(found) > MOST_VALUES:
            raise ValueError(f"has more than {MOST_VALUES} values")
        if repeated := [word for word, count in Counter(map(json.dumps, found)).items() if count > 1]:
            raise ValueError(f"{json.loads(repeated[0])} is there twice")
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text}: is no JSON list ({error.msg})") from None
    except RecursionError:
        raise argparse.ArgumentTypeError(f"{text}: is nested too deeply") from None
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None
    return Sweep(name, tuple(found))


def in_range(word: str) -> list[str]:
    """The numbers of a range with both ends, or the word itself if it is none."""
    match = RANGE.fullmatch(word)
    if match is None:
        if not word:
            raise ValueError("has an empty value; a JSON list may contain any text")
        return [word]
    first, last, step = (None if number is None else Decimal(number) for number in match.groups())
    if step is None:
        step = Decimal(1 if last >= first else -1)
    if not step or (last - first) * step < 0:
        raise ValueError(f"{word} never ends")
    count = int((last - first) / step) + 1
    if count > MOST_VALUES:
        raise ValueError(f"{word} has more than {MOST_VALUES} values")
    return [str(first + i * step) for i in range(count)]


def combinations(sweeps: tuple[Sweep, ...]) -> Iterator[dict[str, object]]:
    """Every combination of values; the last flag changes fastest. Without sweeps a single empty one."""
    for values in product(*(sweep.values for sweep in sweeps)):
        yield dict(zip((sweep.name for sweep in sweeps), values, strict=True))


def shard(text: str) -> tuple[int, int]:
    """Converts I/N, I from 1 to N."""
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text}: must be I/N, I from 1 to N")
    return int(match[1]), int(match[2])


def slurm_shard(environ: Mapping[str, str] = os.environ) -> tuple[int, int] | None:
    """This task of a Slurm array as (I, N); None outside of one.

    Raises:
        InputError: the numbers of the tasks are not evenly spaced, so that they cannot be counted from one task.
    """
    if not environ.get(f"{SLURM}ID"):
        return None
    try:
        task, low, count = (int(environ[f"{SLURM}{name}"]) for name in ("ID", "MIN", "COUNT"))
        step = int(environ.get(f"{SLURM}STEP") or 1)
        high = int(environ[f"{SLURM}MAX"])
        number, rest = divmod(task - low, step)
        last = low + step * (count - 1)
        if rest or not 0 <= number < count or not last <= high < last + step:
            raise ValueError
    except (KeyError, ValueError, ZeroDivisionError):
        legal = "the tasks of this Slurm array are not evenly numbered, as in --array=0-9; give --shard I/N"
        raise InputError("shard", None, legal) from None
    return number + 1, count
