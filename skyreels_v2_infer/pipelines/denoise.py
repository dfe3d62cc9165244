"""Guidance, and the denoising loop that all tasks share."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from skyreels_v2_infer.plan.plan import is_guided
from skyreels_v2_infer.scheduler.diffusion_forcing import Schedule

# (x [B, C, F, H, W], t [1] or [1, F], the same for the whole batch) -> velocity [B, C, F, H, W]
Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def both_branches(positive: Velocity, negative: Velocity, x: torch.Tensor, t: torch.Tensor):
    """(conditional velocity, unconditional velocity), one after the other."""
    return positive(x, t), negative(x, t)


def directly(compute: Callable, x: torch.Tensor, t: torch.Tensor) -> Sequence[torch.Tensor]:
    """Computes the velocities of a row, with nothing around."""
    return compute(x, t)


class Guided:
    """Classifier-free guidance (Ho and Salimans 2022): ``negative + scale * (positive - negative)``.

    Args:
        positive, negative: conditional and unconditional velocity; without guidance negative is not called and can be
            None.
        scale: up to 1 is no guidance.
        branches: runs both, see `both_branches`.
        around: called in place of what computes the velocities, with that and its arguments, see `WindowCache`.
    """

    def __init__(
        self, positive: Velocity, negative: Velocity | None, scale: float, branches=both_branches, around=directly
    ):
        self.positive, self.negative, self.scale = positive, negative, scale
        self.branches, self.around = branches, around

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        positive, *others = self.around(self.passes, x, t)
        if not others:
            return positive
        (negative,) = others
        return negative.add(positive - negative, alpha=self.scale)

    def passes(self, x: torch.Tensor, t: torch.Tensor) -> Sequence[torch.Tensor]:
        """The velocity of the conditional and, with guidance, of the unconditional pass."""
        if not is_guided(self.scale):
            return [self.positive(x, t)]
        return self.branches(self.positive, self.negative, x, t)


class Row(NamedTuple):
    """The model's input in one row.

    Attributes:
        timesteps: float32 ``[1]`` where all frames share one, else ``[frames]``, on the latents' device.
        frames: number of leading latent frames that are computed.
    """

    timesteps: torch.Tensor
    frames: int


def rows_of(schedule: Schedule, device: torch.device, block_frames: int | None = None, noised=None) -> list[Row]:
    """The rows of a schedule as model inputs.

    Args:
        block_frames: latent frames per block of block-causal attention, where blocks that have not begun are left out;
            None: full attention.
        noised: see `NoisedHistory`; its frames get the timestep of their noise.
    """
    host = schedule.timesteps.astype(np.float32)
    if noised is not None:
        host[:, : noised.latents] = noised.level
    timesteps = torch.from_numpy(host).to(device)
    rows = []
    for row, frames in enumerate(schedule.reach(block_frames).tolist()):
        shared = noised is None and (host[row, :frames] == host[row, 0]).all()
        rows.append(Row(timesteps[row, : 1 if shared else frames], frames))
    return rows


def estimate(
    schedule: Schedule, sigmas: np.ndarray, row: int, latents: torch.Tensor, velocity: torch.Tensor
) -> torch.Tensor:
    """The denoised latents that a row points to, ``x - sigma v``; frames that it does not update as they are.

    Args:
        sigmas: noise levels ``[N + 1]``.
        latents: before the row, ``[B, C, F, H, W]``. velocity: of it, in the same shape.
    """
    frames = latents.shape[2]
    levels = np.where(schedule.update[row, :frames], sigmas[schedule.steps[row, :frames]], 0).astype(np.float32)
    return latents - velocity.float() * torch.from_numpy(levels).to(latents.device)[:, None, None]


def denoise(
    velocity: Velocity,
    solver,
    schedule: Schedule,
    rows: list[Row],
    latents: torch.Tensor,
    noised=None,
    on_row: Callable[[int, torch.Tensor], torch.Tensor] | None = None,
    noise: Callable[[int], torch.Tensor] | None = None,
    look: Callable[[int, torch.Tensor, torch.Tensor], object] | None = None,
) -> torch.Tensor:
    """Executes the rows of a schedule.

    Args:
        velocity: the guided model.
        solver: one of `SOLVERS`, with the schedule's noise levels.
        rows: from `rows_of`.
        latents: float32 ``[B, C, F, H, W]``: noise where the schedule updates, given latents elsewhere.
        noised: adds noise to the history in the model's input, ``(row, latents) -> latents``, see `NoisedHistory`.
        on_row: called after every row with its number and the latents; returns the latents to continue with.
        noise: row -> fresh noise in the shape of `latents`, for stochastic solvers.
        look: called in every row with its number, the latents before it and the velocity.

    Returns:
        the finished latents.
    """
    latents = latents.clone()
    for number, (t, frames) in enumerate(rows):
        x = (latents if noised is None else noised(number, latents))[:, :, :frames]
        v = velocity(x, t.unsqueeze(0) if len(t) > 1 else t)
        if look is not None:
            look(number, latents[:, :, :frames], v)
        drawn = noise(number).to(latents) if solver.stochastic else None
        latents = solver.step_frames(v, schedule.steps[number], latents, schedule.update[number], drawn)
        if on_row is not None:
            latents = on_row(number, latents)
    return latents
