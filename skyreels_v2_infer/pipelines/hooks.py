"""Callables that a run passes into a pipeline; the pipeline itself knows no caches, ranks or progress bars."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from skyreels_v2_infer.modules.attention import WHOLE, WholeSequence
from skyreels_v2_infer.pipelines.denoise import both_branches

if TYPE_CHECKING:
    from skyreels_v2_infer.modules.caches.base import Cache
    from skyreels_v2_infer.modules.transformer import PromptContext
    from skyreels_v2_infer.pipelines.prompts import TextMemory

# (index of the window, number of windows, rows) -> context manager whose value is called after every row
Progress = Callable[[int, int, int], AbstractContextManager[Callable[[], None]]]


def no_progress(window: int, windows: int, rows: int) -> AbstractContextManager[Callable[[], None]]:
    return nullcontext(lambda: None)


@dataclass(frozen=True)
class Ranks:
    """Operations with which ranks share the computation; the defaults are for a single rank.

    Attributes:
        sequence: splits tokens over ranks, joins them, and attends to the tokens of all ranks.
        branches: runs the conditional and the unconditional pass.
        agree: replaces a tensor by rank 0's.
        agree_context: replaces a prompt context by rank 0's.
    """

    sequence: WholeSequence = WHOLE
    branches: Callable = both_branches
    agree: Callable[[torch.Tensor], torch.Tensor] = lambda x: x
    agree_context: Callable[[PromptContext], PromptContext] = lambda context: context

    @classmethod
    def of(cls, shared) -> Ranks:
        """From the `Shared` of `xdit_context_parallel.share`."""
        return cls(shared.sequence, shared.branches or both_branches, shared.agree, shared.agree)


@dataclass(frozen=True)
class Hooks:
    """Hooks of one run.

    Attributes:
        progress: context manager around the rows of a window, see `Progress`.
        cache: makes the cache of each window, see `modules.caches.base`; None: every row is computed.
        ranks: see `Ranks`.
        texts: embeddings of earlier runs (`TextMemory`); None: every run encodes its texts.
    """

    progress: Progress = no_progress
    cache: Cache | None = None
    ranks: Ranks = field(default_factory=Ranks)
    texts: TextMemory | None = None
