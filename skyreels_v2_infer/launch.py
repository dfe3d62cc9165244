"""Rank identity, from the environment variables that torchrun sets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from skyreels_v2_infer.errors import InputError

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
MOST_DIGITS = 6


@dataclass(frozen=True)
class Launch:
    """Rank of this process and number of processes.

    Attributes:
        rank: among all processes, from 0.
        local_rank: among the processes of this machine, from 0.
        size: number of processes.
        by_torchrun: False for a process that was not started by torchrun.
    """

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    by_torchrun: bool = False

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Launch:
        """Reads RANK, LOCAL_RANK and WORLD_SIZE; a single process has neither of the first two.

        Raises:
            InputError: some are missing, or the values contradict each other.
        """
        given = {name: environ[name] for name in NAMES if environ.get(name)}
        if not given or given == {"WORLD_SIZE": "1"}:
            return cls()
        for name in NAMES:
            if name not in given:
                raise _unusable(name, f"is not set, but {' and '.join(given)} {'is' if len(given) == 1 else 'are'}")
            value = given[name]
            if not (value.isascii() and value.isdecimal() and len(value) <= MOST_DIGITS):
                raise _unusable(name, f"is {value[:40]!r}; must be a number of up to {MOST_DIGITS} digits")
        rank, local_rank, size = (int(given[name]) for name in NAMES)
        if size < 1:
            raise _unusable("WORLD_SIZE", f"is {size}; must be at least 1")
        if rank >= size:
            raise _unusable("RANK", f"is {rank}; must be below WORLD_SIZE ({size})")
        if local_rank > rank:
            raise _unusable("LOCAL_RANK", f"is {local_rank}; must be at most RANK ({rank})")
        return cls(rank, local_rank, size, by_torchrun=True)

    @classmethod
    def for_messages(cls) -> Launch:
        """As `from_environment`, but a single process where that raises, so that the error can be printed."""
        try:
            return cls.from_environment()
        except InputError:
            return cls()


def _unusable(name: str, problem: str) -> InputError:
    return InputError("use_usp", None, f"environment variable {name} {problem} (torchrun sets {', '.join(NAMES)})")
