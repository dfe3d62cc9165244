"""MagCache: a row of which a calibration run says that the residual hardly changes reuses that of an earlier row.

Ma et al. 2025, "MagCache: Fast Video Generation with Magnitude-Aware Cache". The residual of a row is what the block
stack adds to the tokens. How its magnitude changes from one step to the next,

    g[step] = mean over tokens of |residual of the step| / |residual of the step before|     (norms over channels)

is measured once for a model, a shift and a number of steps, for each pass of guidance. Before a row, the ratio of its
residual to the stored one is expected to be R = product of g since the last computed row; ``|1 - R|`` of the rows since
then is added up, and while the sum is below the threshold and at most `skips` rows in a row were skipped, the stored
residual is added in place of running the blocks.

Every frame has a product and a sum of its own, since in a row every frame may be at another step. A row is skipped
while the sums of all frames that move (take a step) in it are below the threshold, and computed where a frame takes one
of its first steps.

B batch, F latent frames, S tokens of a frame, D model width, N denoising steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from skyreels_v2_infer.modules.caches.base import CONDITIONAL, UNCONDITIONAL, BlockCache, WindowCache, WindowRows

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class MagCache:
    """Settings.

    Attributes:
        threshold: sum of expected relative deviations at which the blocks run again; 0: in every row.
        skips: most rows that are skipped one after the other.
        retention: share of its steps, from the first on, in which a frame is always computed; its first step is in any
            case.
        ratios: of the conditional and the unconditional pass, N each: g; the first ones are not used.
    """

    threshold: float
    skips: int
    retention: float
    ratios: tuple[tuple[float, ...], tuple[float, ...]]

    def window(self, rows: WindowRows) -> BlockCache:
        return BlockCache([self.decide(rows, ratios) for ratios in self.ratios], rows.agree)

    def decide(self, rows: WindowRows, ratios: Sequence[float]) -> list[bool]:
        """For each row, whether the blocks run."""
        schedule, g = rows.schedule, np.asarray(ratios, dtype=np.float64)
        if len(g) != schedule.num_steps:
            raise ValueError(f"ratios: must be {schedule.num_steps}, one for each step, not {len(g)}")
        always, frames = schedule.at_ends(self.retention, last=0), schedule.update.shape[1]
        product, error, skipped = np.ones(frames), np.zeros(frames), 0
        decisions = []
        for row, moving in enumerate(schedule.update):
            product[moving] *= g[schedule.steps[row, moving]]
            error[moving] += np.abs(1 - product[moving])
            skipped += 1
            near = error[moving].max() < self.threshold and skipped <= self.skips
            decisions.append(bool(always[row] or rows.grows(row) or not near))
            if decisions[-1]:
                product[:], error[:], skipped = 1, 0, 0
        return decisions


# Calibration


class Recorder:
    """Runs the blocks in every row and adds up the ratios; called around the blocks (`Around`).

    Args:
        rows: of the window.
        total, count: float64 ``[N]`` and int ``[N]``, added to in place when the window's last row has run.
    """

    def __init__(self, rows: WindowRows, total: np.ndarray, count: np.ndarray):
        self.rows, self.total, self.count = rows, total, count
        self._before: torch.Tensor | None = None
        self._means: list[torch.Tensor] = []

    def __call__(self, tokens: torch.Tensor, time: torch.Tensor, modulation: torch.Tensor, run) -> torch.Tensor:
        """tokens ``[B, F, S, D]``"""
        done = run(tokens)
        now = (done - tokens).float().norm(dim=-1)  # [B, F, S]
        if self._before is not None:
            ratio = now[:, : self._before.shape[1]] / self._before.clamp_min(1e-12)
            self._means.append(ratio.double().mean(dim=(0, 2)))  # [F]
        self._before = now
        if len(self._means) == len(self.rows.schedule) - 1:
            self._add_up()
        return done

    def _add_up(self) -> None:
        update, steps = self.rows.schedule.update, self.rows.schedule.steps
        for row, means in enumerate(self._means, start=1):
            # In a row in which a frame takes a step after its first, it took the step before in the row before.
            moving = update[row, : len(means)] & update[row - 1, : len(means)]
            np.add.at(self.total, steps[row, : len(means)][moving], means.cpu().numpy()[moving])
            np.add.at(self.count, steps[row, : len(means)][moving], 1)


class Recording:
    """Stands in for a `MagCache`: every row is computed, and ratios are averaged over frames, windows and videos.

    Args:
        num_steps: N.
    """

    def __init__(self, num_steps: int):
        self.totals, self.counts = np.zeros((2, num_steps)), np.zeros((2, num_steps), dtype=int)

    def window(self, rows: WindowRows) -> WindowCache:
        return RecordedWindow(self, rows)

    def ratios(self) -> list[list[float]]:
        """For the conditional and, with guidance, the unconditional pass: 1, then g of the steps from the second on."""
        branches = [CONDITIONAL, UNCONDITIONAL] if self.counts[UNCONDITIONAL].any() else [CONDITIONAL]
        return [[1.0, *(self.totals[b, 1:] / self.counts[b, 1:]).round(5).tolist()] for b in branches]


class RecordedWindow(WindowCache):
    def __init__(self, recording: Recording, rows: WindowRows):
        self.recording, self.rows = recording, rows

    def blocks(self, branch: int) -> Recorder:
        return Recorder(self.rows, self.recording.totals[branch], self.recording.counts[branch])
