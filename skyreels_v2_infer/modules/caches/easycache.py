"""EasyCache: a row whose input has changed little reuses what the model made of an earlier one.

Zhou et al. 2025, "Less is Enough: Training-Free Video Diffusion Acceleration via Runtime-Adaptive Caching". It needs no
constants of the model. In a row that is computed, with x the latents and v the conditional velocity, the rate

    k = mean|v - v'| / mean|x - x'|

is measured, with x' and v' of the last computed row. Before a row the expected relative change of the velocity since
then is added up,

    error += k * mean|x - x of the row before| / mean|v'|

and while it is below the threshold, each pass of guidance gets ``x + (v' - x')`` without the model. In a row that is
computed the error starts at 0.

The means are over the frames that move (take a step) in the row; those of k over the frames that move in both of its
rows. Held frames, finished ones and those that have not begun do not count. A row is computed as well where a frame
takes one of its first steps or its last one, and where no k is known, as no frame moved in both rows.

B batch, C channels, F latent frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from skyreels_v2_infer.modules.caches.base import Passes, WindowCache, WindowRows

if TYPE_CHECKING:
    import numpy as np
    import torch

SMALLEST = 1e-12  # divisors are at least this


@dataclass(frozen=True)
class EasyCache:
    """Settings.

    Attributes:
        threshold: expected relative change of the velocity at which the model is called again; 0: in every row.
        retention: share of its steps, from the first on, in which a frame is always computed; its first and last step
            are in any case.
    """

    threshold: float
    retention: float = 0.2

    def window(self, rows: WindowRows) -> VelocityCache:
        return VelocityCache(self.threshold, rows, rows.schedule.at_ends(self.retention, last=1))


class VelocityCache(WindowCache):
    """One window.

    Args:
        always: bool ``[R]``, rows that are computed whatever is measured.

    Attributes:
        computed: for each row so far, whether the model was called.
    """

    def __init__(self, threshold: float, rows: WindowRows, always: np.ndarray):
        self.threshold, self.rows, self.always = threshold, rows, always
        self.computed: list[bool] = []
        self._before: torch.Tensor | None = None  # x of the row before
        self._last: tuple[int, torch.Tensor, Sequence[torch.Tensor]] | None = None  # computed: row, x, velocities
        self._rate: torch.Tensor | None = None  # k
        self._error: torch.Tensor | float = 0.0

    def velocities(self, compute: Passes, x: torch.Tensor, t: torch.Tensor) -> Sequence[torch.Tensor]:
        row = len(self.computed)
        runs = self._runs(row, x)
        self.computed.append(runs)
        self._before = x.clone()  # the solver works in place
        if runs:
            made = compute(x, t)
            self._measure(row, made)
            return made
        _, x_then, then = self._last
        return [x + (v - x_then) for v in then]

    def _runs(self, row: int, x: torch.Tensor) -> bool:
        """Whether the model is called. Where that is open, the device is waited for and rank 0 decides."""
        if self.always[row] or self._rate is None or self.rows.grows(row):
            return True
        moving = self._moving(row, row - 1)
        _, _, (velocity, *_) = self._last
        change = mean_of(x - self._before, moving) / mean_of(velocity, moving).clamp_min(SMALLEST)
        self._error = self._error + self._rate * change
        return not bool(self.rows.agree((self._error < self.threshold).reshape(1)))

    def _measure(self, row: int, made: Sequence[torch.Tensor]) -> None:
        """Keeps a computed row, and measures the rate of change since the last one."""
        x, self._error, self._rate = self._before, 0.0, None
        if self._last is not None:
            row_then, x_then, (then, *_) = self._last
            moving, common = self._moving(row, row_then), x_then.shape[2]
            if moving:
                change = mean_of(x[:, :, :common] - x_then, moving).clamp_min(SMALLEST)
                self._rate = mean_of(made[0][:, :, :common] - then, moving) / change
        self._last = row, x, [v.clone() for v in made]

    def _moving(self, row: int, other: int) -> list[int]:
        """The frames that take a step in both rows."""
        update = self.rows.schedule.update
        return (update[row] & update[other]).nonzero()[0].tolist()


def mean_of(x: torch.Tensor, frames: list[int]) -> torch.Tensor:
    """Mean absolute value over some frames; ``[B, C, F, H, W]`` -> scalar."""
    return x[:, :, frames].abs().mean()
