"""Callables that a run passes into a pipeline; the pipeline itself knows no caches, ranks or bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch

from skyreels_v2_infer.modules.attention import WHOLE, WholeSequence
from skyreels_v2_infer.pipelines.denoise import both_branches
from skyreels_v2_infer.progress import VideoProgress, WindowWork

if TYPE_CHECKING:
    from skyreels_v2_infer.modules.caches.base import Cache
    from skyreels_v2_infer.modules.transformer import PromptContext
    from skyreels_v2_infer.pipelines.prompts import TextMemory


class Progress(Protocol):
    """Shows how far a video is, see `skyreels_v2_infer.progress.VideoProgress`."""

    def video(self, work: Sequence[WindowWork], done: int) -> AbstractContextManager[None]:
        """Around the whole video, of which `done` windows are there already."""

    def doing(self, text: str) -> AbstractContextManager:
        """Around something that takes time."""

    def rows(self, window: int) -> AbstractContextManager[Callable[[], None]]:
        """Around the rows of a window; its value is called after every row."""

    def decoding(self, window: int, pieces: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
        """The same pieces."""


# (window, row, number of rows, function that returns the estimate of the denoised latents [B, C, F, h, w])
Look = Callable[[int, int, int, Callable[[], torch.Tensor]], None]


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
        progress: makes what shows the progress of a video, by default bars if stderr is a terminal.
        cache: makes the cache of each window, see `modules.caches.base`; None: every row is computed.
        ranks: see `Ranks`.
        look: called in every row, to look at what it would lead to; None: not.
        texts: embeddings of earlier runs (`TextMemory`); None: every run encodes its texts.
    """

    progress: Callable[[], Progress] = VideoProgress
    cache: Cache | None = None
    ranks: Ranks = field(default_factory=Ranks)
    texts: TextMemory | None = None
    look: Look | None = None
