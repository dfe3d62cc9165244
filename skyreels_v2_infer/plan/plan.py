"""What a job will do, as plain data: decided before weights are loaded, then executed by the pipelines."""

from dataclasses import dataclass

import numpy as np

from skyreels_v2_infer.scheduler.diffusion_forcing import Schedule, ad_schedule
from skyreels_v2_infer.scheduler.sigmas import flow_sigmas, flow_timesteps
from skyreels_v2_infer.scheduler.windows import Window, latent_length, plan_windows


def is_guided(scale: float) -> bool:
    """Whether a guidance scale asks for the negative prompt as well; up to 1 the prompt stands alone."""
    return scale > 1


@dataclass(frozen=True)
class WindowPlan:
    """A window and how it is denoised.

    Attributes:
        window: which frames, from which history.
        held: bool ``[F]``, latent frames that are given: the history or the image in front, an end image behind.
        schedule: the rows of the denoising loop over these F latent frames.
        given_latents: how many of the held ones stand in front.
        end_latents: 1 if the last latent frame is an end image's, which is cut off before decoding; else 0.
    """

    window: Window
    held: np.ndarray
    schedule: Schedule
    given_latents: int
    end_latents: int

    @property
    def latents(self) -> int:
        return len(self.held)


@dataclass(frozen=True)
class Plan:
    """Windows in order.

    Attributes:
        num_frames: frames that are made.
        overlap_history: frames that a window goes on from, also one that a longer video would have; 0: none could.
    """

    windows: tuple[WindowPlan, ...]
    num_frames: int
    num_inference_steps: int
    shift: float
    overlap_history: int = 0

    @property
    def rows(self) -> int:
        """Iterations of the denoising loop over all windows."""
        return sum(len(w.schedule) for w in self.windows)

    @property
    def longest_history(self) -> int:
        """How many of the newest frames have to be kept."""
        return max(self.overlap_history, *(w.window.history_frames for w in self.windows))

    @property
    def most_history_latents(self) -> int:
        """The same in latent frames."""
        return latent_length(self.longest_history) if self.longest_history else 0


def make_plan(
    num_frames: int,
    num_inference_steps: int,
    shift: float,
    *,
    base_num_frames: int | None = None,
    overlap_history: int | None = None,
    ar_step: int = 0,
    causal_block_size: int = 1,
    prefix_frames: int = 0,
    image: bool = False,
    end_image: bool = False,
) -> Plan:
    """Settings -> plan. Without `base_num_frames` there is one window, whose frames share every timestep.

    Args:
        num_frames, base_num_frames, overlap_history, prefix_frames: see `plan_windows`.
        num_inference_steps, shift: see `flow_sigmas`.
        ar_step, causal_block_size: see `ad_schedule`.
        image: the first latent frame of the first window is given.
        end_image: one given latent frame follows those of the last window.

    Raises:
        ValueError: names the argument, its value and the nearest legal ones.
    """
    if image and prefix_frames:
        raise ValueError("image: a video that is continued starts with its own frames; give one or the other")
    windows = plan_windows(num_frames, base_num_frames, overlap_history, prefix_frames)
    timesteps = flow_timesteps(flow_sigmas(num_inference_steps, shift))
    plans = []
    for window in windows:
        given = 1 if image and window.index == 0 else window.history_latents
        end = 1 if end_image and window.index == len(windows) - 1 else 0
        held = np.zeros(window.latents + end, dtype=bool)
        held[:given] = True
        held[window.latents :] = True
        schedule = ad_schedule(len(held), timesteps, ar_step, held, causal_block_size)
        plans.append(WindowPlan(window, held, schedule, given, end))
    return Plan(tuple(plans), num_frames, num_inference_steps, shift, overlap_history or 0)
