"""Rank identity: which of torchrun's processes this one is, from the environment it sets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """Who this process is: its number among all, on its machine, and how many there are."""

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    by_torchrun: bool = False

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Launch:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
        if not all(environ.get(name, "").isdecimal() for name in names):
            return cls()
        return cls(*(int(environ[name]) for name in names), by_torchrun=True)
