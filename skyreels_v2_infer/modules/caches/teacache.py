"""TeaCache: a step whose timestep embedding has changed little reuses the residual of an earlier step.

Liu et al. 2024, "Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model". A polynomial that is fitted
to the model maps the relative change of the timestep embedding, from step to step, to the change of the residual (what
the blocks add to the tokens). These predictions are summed; when the sum reaches a threshold, the blocks run again, and
the sum starts at 0.

The timesteps of a window are known before its first step, and so is every decision. `TeaCache.window` makes them at
once: with one transfer from the device, and from rank 0 for all ranks, which would otherwise have to reach the same
sums to the last bit.

`plan.caching` has the polynomials; ``python -m skyreels_v2_infer.run.calibrate`` fits one to a checkpoint.

B batch, F latent frames, S tokens of a frame, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from skyreels_v2_infer.modules.caches.base import BlockCache, Embed, Rows, WindowCache, WindowRows
from skyreels_v2_infer.plan.caching import DEGREE

if TYPE_CHECKING:  # --help of the calibration does without torch
    import torch

RETAINED = 5  # first steps that are always computed with `use_ret_steps`


@dataclass(frozen=True)
class TeaCache:
    """Settings.

    Attributes:
        threshold: sum of predicted relative changes at which the blocks run again; 0: in every step.
        coefficients: of the polynomial, highest degree first.
        use_ret_steps: measures the change on the modulation (the projected embedding), and always computes the first 5
            steps instead of the first and the last.
    """

    threshold: float
    coefficients: tuple[float, ...]
    use_ret_steps: bool = False

    def window(self, rows: WindowRows) -> BlockCache:
        """Decides which rows of a window run the blocks, alike for both passes of guidance."""
        decisions = self.decide(rows.model, rows.embed)
        return BlockCache((decisions, decisions), rows.agree)

    def decide(self, rows: Rows, embed: Embed) -> list[bool]:
        """For each row, whether the blocks run.

        They do in the first rows (and the last, see `use_ret_steps`), in a row with another number of frames than the
        row before (the stored residual does not fit), and where the sum of predicted changes reaches the threshold.
        """
        decisions, total = [], 0.0
        for change in self._changes(rows, embed):
            if change is not None:
                total += predicted(change, self.coefficients)
            runs = change is None or not total < self.threshold
            if runs:
                total = 0.0
            decisions.append(runs)
        return decisions

    def _changes(self, rows: Rows, embed: Embed) -> list[float | None]:
        """For each row the change from the row before, None where the blocks run in any case."""
        import torch

        retained, last = (RETAINED, len(rows)) if self.use_ret_steps else (1, len(rows) - 1)
        changes: dict[int, torch.Tensor] = {}
        before = None
        for row, (t, frames) in enumerate(rows):
            time, modulation = embed(t.unsqueeze(0))
            signal = modulation if self.use_ret_steps else time
            if retained <= row != last and frames == rows[row - 1][1]:
                changes[row] = change_of_moving(signal, before)
            before = signal
        values = torch.stack(list(changes.values())).tolist() if changes else []
        known = dict(zip(changes, values, strict=True))
        return [known.get(row) for row in range(len(rows))]


def relative_change(new: torch.Tensor, old: torch.Tensor) -> float:
    """Mean absolute difference, relative to the old values."""
    return float((new - old).abs().mean() / old.abs().mean())


def change_of_moving(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """`relative_change` over the frames whose values change; ``[B, F or 1, ...]`` -> scalar.

    Frames that are held, finished or not yet begun would lower the mean below what the polynomial was fitted on, and in
    a window with a long history the blocks would hardly ever run.
    """
    difference = (new - old).abs().flatten(2)
    moving = difference.sum(dim=2, keepdim=True) > 0
    return difference.sum() / (old.abs().flatten(2) * moving).sum().clamp_min(1e-12)


def predicted(change: float, coefficients: Sequence[float]) -> float:
    """The polynomial, by Horner; at least 0, since a fit can swing below 0 between its points."""
    value = 0.0
    for coefficient in coefficients:
        value = value * change + coefficient
    return max(0.0, value)


# Fitting the polynomial


class Recorder:
    """Runs the blocks in every step and records the changes; called around the blocks (`Around`).

    Attributes:
        changes: for every step but the first: of the time embedding, of the modulation, and of the residual.
    """

    def __init__(self):
        self.changes: list[tuple[float, float, float]] = []
        self._before: tuple[torch.Tensor, ...] | None = None

    def __call__(self, tokens: torch.Tensor, time: torch.Tensor, modulation: torch.Tensor, run) -> torch.Tensor:
        done = run(tokens)
        now = time, modulation, (done - tokens).float()
        if self._before is not None:
            pairs = zip(now, self._before, strict=True)
            self.changes.append(tuple(relative_change(new, old) for new, old in pairs))
        self._before = now
        return done


class Recording(WindowCache):
    """Stands in for a `TeaCache`: every pass of every window gets a `Recorder`.

    Attributes:
        windows: the `Recorder.changes` of each pass, in the order in which they began.
    """

    def __init__(self):
        self.windows: list[list[tuple[float, float, float]]] = []

    def window(self, rows: WindowRows) -> WindowCache:
        return self

    def blocks(self, branch: int) -> Recorder:
        recorder = Recorder()
        self.windows.append(recorder.changes)  # not the recorder, which holds a step's tokens
        return recorder


def fit(changes: Sequence[tuple[float, float, float]]) -> dict[str, list[float]]:
    """The content of a `plan.caching.FILE`: polynomials from a change of the embedding to that of the residual."""
    import numpy as np

    time, modulation, residual = np.array(changes).T
    return {
        "coefficients": np.polyfit(time, residual, DEGREE).tolist(),
        "ret_steps_coefficients": np.polyfit(modulation, residual, DEGREE).tolist(),
    }
