"""What all caches share: how a window is described to them, and what they wrap.

A cache reuses what the transformer computed in an earlier row of the denoising loop. `Cache.window` is called once per
window, before its first row, and returns a `WindowCache`. That holds all the state there is, so nothing passes from one
window to the next, and wraps either

- the block stack of one pass of guidance (`WindowCache.blocks`), which then adds the residual of an earlier row, or
- the velocities of all passes (`WindowCache.velocities`), where a skipped row does not call the model at all.

Decisions are the same on all ranks, since rank 0 makes them (`WindowRows.agree`).

B batch, F latent frames, S tokens of a frame, D model width, R rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from skyreels_v2_infer.scheduler.diffusion_forcing import Schedule

if TYPE_CHECKING:  # --help of the calibration does without torch
    import torch

CONDITIONAL, UNCONDITIONAL = 0, 1  # the passes of guidance

# Of each row: the timesteps that the model sees, float32 [F] or, shared by all frames, [1]; latent frames computed
Rows = Sequence[tuple["torch.Tensor", int]]
# t [1, F or 1] -> time embedding [1, F or 1, D] and modulation [1, F or 1, 6, D]
Embed = Callable[["torch.Tensor"], tuple["torch.Tensor", "torch.Tensor"]]
# (x [B, C, F, H, W], t [1] or [1, F]) -> the velocity of the conditional and, with guidance, of the unconditional pass
Passes = Callable[["torch.Tensor", "torch.Tensor"], "Sequence[torch.Tensor]"]


@dataclass(frozen=True)
class WindowRows:
    """A window before its first row.

    Attributes:
        model: the model's input in each row, see `denoise.rows_of`.
        schedule: which frame takes which step in which row.
        embed: `WanModel.embed_time` with the frame rate filled in.
        agree: replaces a tensor by rank 0's, on all ranks; the identity on one rank.
    """

    model: Rows
    schedule: Schedule
    embed: Embed
    agree: Callable[[torch.Tensor], torch.Tensor]

    def grows(self, row: int) -> bool:
        """Whether a row computes another number of frames than the one before, so that nothing stored fits it."""
        return row == 0 or self.model[row][1] != self.model[row - 1][1]


class WindowCache:
    """Wraps the computation of one window; this one changes nothing."""

    def blocks(self, branch: int) -> Callable | None:
        """What wraps the block stack of a pass (`Around`), called once per pass; None: nothing does.

        Args:
            branch: CONDITIONAL or UNCONDITIONAL.
        """
        return None

    def velocities(self, compute: Passes, x: torch.Tensor, t: torch.Tensor) -> Sequence[torch.Tensor]:
        """The velocities in the next row; called once per row, in order."""
        return compute(x, t)


class Cache(Protocol):
    """Settings of a cache."""

    def window(self, rows: WindowRows) -> WindowCache:
        """The cache of one window."""


class BlockCache(WindowCache):
    """Skips the block stack in rows that are known before the window begins.

    Args:
        decisions: for each pass, for each row, whether the blocks run.
        agree: see `WindowRows`.
    """

    def __init__(self, decisions: Sequence[Sequence[bool]], agree: Callable[[torch.Tensor], torch.Tensor]):
        import torch

        self.decisions = agree(torch.tensor(decisions, dtype=torch.bool)).tolist()

    def blocks(self, branch: int) -> FeatureCache:
        return FeatureCache(self.decisions[branch])


class FeatureCache:
    """Runs the blocks or adds the stored residual, row by row as decided; called around the blocks (`Around`).

    Args:
        decisions: for each row, whether the blocks run; the first does.
    """

    def __init__(self, decisions: Sequence[bool]):
        self.decisions = tuple(decisions)
        self._rows = 0
        self._residual: torch.Tensor | None = None

    @property
    def computed(self) -> tuple[bool, ...]:
        """For each row so far, whether the blocks ran."""
        return self.decisions[: self._rows]

    def __call__(self, tokens: torch.Tensor, time: torch.Tensor, modulation: torch.Tensor, run) -> torch.Tensor:
        """tokens ``[B, F, S, D]``; the embeddings are not used."""
        if self.decisions[self._rows]:
            self._residual = None  # its memory is needed while the blocks run
            done = run(tokens)
            self._residual = done - tokens
        else:
            done = tokens + self._residual
        self._rows += 1
        return done
