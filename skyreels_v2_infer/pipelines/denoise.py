"""Guidance, and the only denoising loop."""

from collections.abc import Callable

import torch

from skyreels_v2_infer.plan.plan import is_guided
from skyreels_v2_infer.scheduler.diffusion_forcing import Schedule

# (x [B, C, F, H, W], t [B] or [B, F]) -> velocity [B, C, F, H, W]
Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def both_branches(positive: Velocity, negative: Velocity, x: torch.Tensor, t: torch.Tensor):
    """(velocity under the prompt, velocity under the negative prompt), one after the other."""
    return positive(x, t), negative(x, t)


class Guided:
    """Classifier-free guidance (Ho and Salimans 2022): ``negative + scale * (positive - negative)``.

    Args:
        positive, negative: the velocity under the prompt and under the negative prompt; negative is not asked for
            (and can be None) without guidance.
        scale: up to 1 is no guidance.
        branches: asks both, see `both_branches`.
    """

    def __init__(self, positive: Velocity, negative: Velocity | None, scale: float, branches=both_branches):
        self.positive, self.negative, self.scale, self.branches = positive, negative, scale, branches

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if not is_guided(self.scale):
            return self.positive(x, t)
        positive, negative = self.branches(self.positive, self.negative, x, t)
        return negative.add(positive - negative, alpha=self.scale)


def model_rows(
    schedule: Schedule, device: torch.device, show=None, block_frames: int | None = None
) -> list[tuple[torch.Tensor, int]]:
    """For each row the timesteps that the model sees and the number of latent frames that it computes.

    Args:
        show, block_frames: as for `denoise`; of `show` only its `timesteps` are used.

    Returns:
        pairs of t, float32 ``[F]`` or, where all frames share it, ``[1]``, on `device`; and F.
    """
    timesteps = torch.from_numpy(schedule.timesteps).to(device, torch.float32)
    rows = []
    for row, reach in enumerate(schedule.reach(block_frames)):
        told = schedule.timesteps[row, :reach]
        t = timesteps[row, :reach]
        if show is not None:
            t = show.timesteps(t)
        elif (told == told[0]).all():
            t = t[:1]
        rows.append((t, int(reach)))
    return rows


def denoise(
    velocity: Velocity,
    solver,
    schedule: Schedule,
    latents: torch.Tensor,
    show=None,
    on_row: Callable[[int, torch.Tensor], torch.Tensor] | None = None,
    block_frames: int | None = None,
) -> torch.Tensor:
    """Executes the rows of a schedule.

    Args:
        velocity: the guided model.
        solver: a `FlowUniPCMultistepScheduler` that is set to the schedule's steps.
        latents: float32 ``[B, C, F, H, W]``: noise where the schedule updates, given latents elsewhere.
        show: changes what the model sees, see `NoisedHistory`: called with (row, latents), it returns latents; its
            `timesteps` maps t ``[F]`` to t ``[F]``.
        on_row: is handed every finished row and returns the latents to go on with.
        block_frames: latent frames of a block of block-causal attention, if the model has it; blocks that have not
            begun are then left out.

    Returns:
        the finished latents.
    """
    latents = latents.clone()
    for row, (t, reach) in enumerate(model_rows(schedule, latents.device, show, block_frames)):
        x = latents if show is None else show(row, latents)
        x = x[:, :, :reach]
        v = velocity(x, t.expand(len(x), -1) if len(t) > 1 else t.expand(len(x)))
        latents = solver.step_frames(v, schedule.steps[row], latents, schedule.update[row])
        if on_row is not None:
            latents = on_row(row, latents)
    return latents
