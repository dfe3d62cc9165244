"""The plan of a run: plain data, made once before weights are loaded, then printed, compared and executed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.plan.cache_settings import CachePlan
from skyreels_v2_infer.plan.sharing import Layout
from skyreels_v2_infer.plan.sizes import check_size
from skyreels_v2_infer.plan.story import Scene, of_prompts, scenes_of
from skyreels_v2_infer.scheduler.diffusion_forcing import MOST_CELLS, Schedule, ad_schedule, schedule_rows
from skyreels_v2_infer.scheduler.sigmas import check_sigmas, flow_sigmas, flow_timesteps
from skyreels_v2_infer.scheduler.windows import TEMPORAL_STRIDE, Window, latent_length, plan_windows

HISTORIES = ("pixel", "latent")
USUAL_STEPS = 1000  # above it, not the length of a window but the number of steps is what is unusual

Text = str | tuple[str, ...] | None  # one text, one per video of a batch, or None where embeddings are given


def is_guided(scale: float) -> bool:
    """Whether a guidance scale needs the unconditional pass as well."""
    return scale > 1


@dataclass(frozen=True)
class WindowPlan:
    """One window and how it is denoised.

    Attributes:
        window: its frames and its history.
        held: bool ``[F]``, latent frames that are given and not denoised: history or image at the beginning, an end
            image at the end.
        schedule: the rows of the denoising loop over these F latent frames.
        given_latents: number of held latent frames at the beginning.
        end_latents: 1 if the last latent frame is that of an end image, which is cut off before decoding; else 0.
        prompt, negative_prompt: None where the caller passes embeddings.
        guidance_scale: up to 1 there is only the conditional pass.
        seed: of this window's noise; None: the plan's.
        lora_strengths: of the plan's LoRAs, in their order.
    """

    window: Window
    held: np.ndarray
    schedule: Schedule
    given_latents: int
    end_latents: int
    prompt: Text = None
    negative_prompt: Text = None
    guidance_scale: float = 1.0
    seed: int | None = None
    lora_strengths: tuple[float, ...] = ()

    @property
    def latents(self) -> int:
        return len(self.held)

    @property
    def is_guided(self) -> bool:
        return is_guided(self.guidance_scale)


@dataclass(frozen=True)
class LoraPlan:
    """A LoRA file and its strength, any finite number; 0 changes nothing."""

    path: Path
    strength: float = 1.0

    @property
    def name(self) -> str:
        """The file's name without suffix; scenes of a story set the strength by it."""
        return self.path.stem


@dataclass(frozen=True)
class Plan:
    """Everything about a run that does not depend on weights.

    Attributes:
        windows: in order.
        num_frames: new frames.
        num_inference_steps, shift: of the noise levels `sigmas`, float32 ``[N + 1]``, falling to 0.
        overlap_history: frames of history of a later window, whether the video has one or not; 0: none.
        prefix_frames: frames of a video that is continued; 0: none.
        height, width: pixels.
        fps: frames per second.
        seed: of the noise; None: not drawn yet.
        scenes: prompts that change, in order; None: one prompt for all windows.
        addnoise: noise added to given latent frames in the model's input, in thousandths.
        history: "pixel" or "latent", what later windows start from.
        ar_step: steps between a block of frames and the next; 0: all frames of a window are denoised together.
        causal_block_size: latent frames per block of block-causal attention; None: full attention.
        cache: None: every row is computed.
        sharing: layout of the ranks; None: not known without the model.
        solver: a name of `scheduler.SOLVERS`.
        loras: applied to the transformer's weights.
    """

    windows: tuple[WindowPlan, ...]
    num_frames: int
    num_inference_steps: int
    shift: float
    sigmas: np.ndarray
    overlap_history: int = 0
    prefix_frames: int = 0
    height: int = 0
    width: int = 0
    fps: float = 24
    seed: int | None = None
    scenes: tuple[Scene, ...] | None = None
    addnoise: float = 0.0
    history: str = "pixel"
    ar_step: int = 0
    causal_block_size: int | None = None
    cache: CachePlan | None = None
    sharing: Layout | None = None
    solver: str = "unipc"
    loras: tuple[LoraPlan, ...] = ()

    @property
    def rows(self) -> int:
        """Iterations of the denoising loop over all windows."""
        return sum(len(w.schedule) for w in self.windows)

    @property
    def is_guided(self) -> bool:
        """Whether any window has an unconditional pass."""
        return any(window.is_guided for window in self.windows)

    @property
    def first_loras(self) -> tuple[LoraPlan, ...]:
        """The LoRAs at the strengths of the first window."""
        pairs = zip(self.loras, self.windows[0].lora_strengths, strict=True)
        return tuple(replace(lora, strength=strength) for lora, strength in pairs)

    @property
    def lora_strengths_change(self) -> bool:
        """Whether windows differ in the strength of a LoRA."""
        return len({window.lora_strengths for window in self.windows}) > 1

    @property
    def longest_history(self) -> int:
        """Number of newest frames that later windows, or a longer video, may need."""
        return max(self.overlap_history, *(w.window.history_frames for w in self.windows))

    @property
    def most_history_latents(self) -> int:
        """The same in latent frames."""
        return latent_length(self.longest_history) if self.longest_history else 0

    def with_seed(self, seed: int) -> Plan:
        return replace(self, seed=seed)

    def with_sharing(self, sharing: Layout | None) -> Plan:
        return replace(self, sharing=sharing)

    def with_prompt(self, prompt: str) -> Plan:
        """The same plan with another prompt in all windows; not for plans with scenes."""
        assert self.scenes is None
        return replace(self, windows=tuple(replace(window, prompt=prompt) for window in self.windows))


def make_plan(
    num_frames: int,
    num_inference_steps: int,
    shift: float,
    *,
    height: int | None = None,
    width: int | None = None,
    prompt: Text = None,
    negative_prompt: Text = None,
    guidance_scale: float = 1.0,
    seed: int | None = None,
    fps: float = 24,
    base_num_frames: int | None = None,
    overlap_history: int | None = None,
    ar_step: int = 0,
    causal_block_size: int = 1,
    causal_attention: bool = False,
    prefix_frames: int = 0,
    image: bool = False,
    end_image: bool = False,
    addnoise: float = 0.0,
    history: str = "pixel",
    story: Sequence[Scene] | None = None,
    window_prompts: Sequence[str] | None = None,
    cache: CachePlan | None = None,
    sharing: Layout | None = None,
    solver: str = "unipc",
    sigmas: Sequence[float] | None = None,
    loras: Sequence[LoraPlan] = (),
) -> Plan:
    """Settings -> plan. Without `base_num_frames` there is a single window.

    Args:
        num_frames, base_num_frames, overlap_history, prefix_frames: see `plan_windows`.
        num_inference_steps, shift: see `flow_sigmas`.
        height, width: pixels, multiples of 16; None: unknown, not checked.
        ar_step, causal_block_size: see `ad_schedule`.
        causal_attention: latent frames attend to their own block and earlier ones only.
        image: the first latent frame of the first window is given.
        end_image: one given latent frame follows those of the last window.
        addnoise: noise added to given latent frames in the model's input, in thousandths, 0 to below 1000.
        story: scenes in place of `prompt`; `negative_prompt`, `guidance_scale` and `seed` apply where a scene has none.
        window_prompts: in place of `prompt`, one per window; the last one holds to the end.
        cache, sharing, solver, loras: see `Plan`.
        sigmas: noise levels in place of those of `num_inference_steps` and `shift`, see `check_sigmas`.

    Raises:
        InputError, ValueError: name the argument, its value and the nearest legal ones.
    """
    if height is not None and width is not None:
        check_size(height, width)
    if image and prefix_frames:
        raise InputError("image", None, "not together with a video to continue, which starts with its own frames")
    if causal_attention and end_image:
        raise InputError("end_image", None, "not with causal attention: no earlier frame would see it")
    if not 0 <= addnoise < 1000:
        raise InputError("addnoise_condition", addnoise, "must be at least 0 and below 1000")
    if history not in HISTORIES:
        raise InputError("history", history, f"must be {' or '.join(HISTORIES)}")
    windows = plan_windows(num_frames, base_num_frames, overlap_history, prefix_frames)
    steps = num_inference_steps if sigmas is None else len(sigmas)
    check_schedule_size(windows, steps, ar_step, causal_block_size, end_image)
    levels = flow_sigmas(num_inference_steps, shift) if sigmas is None else check_sigmas(sigmas)
    timesteps = flow_timesteps(levels)
    if window_prompts is not None and len(window_prompts) > 1:
        story = of_prompts(window_prompts, windows)
    scenes = scenes_of(story, windows) if story is not None else [Scene(0, prompt)] * len(windows)
    defaults = {"negative_prompt": negative_prompt, "guidance_scale": guidance_scale}

    def schedule(held: np.ndarray) -> Schedule:
        return ad_schedule(len(held), timesteps, ar_step, held, causal_block_size)

    return Plan(
        tuple(window_plans(windows, scenes, schedule, image, end_image, defaults, loras)),
        num_frames,
        num_inference_steps=len(levels) - 1,
        shift=shift,
        sigmas=levels,
        overlap_history=overlap_history or 0,
        prefix_frames=prefix_frames,
        height=height or 0,
        width=width or 0,
        fps=fps,
        seed=seed,
        scenes=None if story is None else tuple(story),
        addnoise=addnoise,
        history=history,
        ar_step=ar_step,
        causal_block_size=causal_block_size if causal_attention else None,
        cache=cache,
        sharing=sharing,
        solver=solver,
        loras=tuple(loras),
    )


def window_plans(
    windows: Sequence[Window],
    scenes: Sequence[Scene],
    schedule: Callable[[np.ndarray], Schedule],
    image: bool,
    end_image: bool,
    defaults: dict,
    loras: Sequence[LoraPlan],
) -> Iterator[WindowPlan]:
    """Each window with its scene, its held frames and its schedule.

    Args:
        schedule: of held frames, bool ``[F]``; called once for windows that are alike.
        defaults: negative_prompt and guidance_scale where a scene has none.
    """
    made: dict[tuple, tuple[np.ndarray, Schedule]] = {}
    for window, scene in zip(windows, scenes, strict=True):
        given = 1 if image and window.index == 0 else window.history_latents
        end = 1 if end_image and window.index == len(windows) - 1 else 0
        alike = window.latents, given, end
        if alike not in made:
            held = np.zeros(window.latents + end, dtype=bool)
            held[:given] = True
            held[window.latents :] = True
            made[alike] = held, schedule(held)
        own = {name: value for name in defaults if (value := getattr(scene, name)) is not None}
        texts = {"prompt": scene.prompt, **(defaults | own)}
        strengths = strengths_of(loras, scene)
        yield WindowPlan(window, *made[alike], given, end, **texts, seed=scene.seed, lora_strengths=strengths)


def check_schedule_size(windows: Sequence[Window], steps: int, ar_step: int, block: int, end_image: bool) -> None:
    """Raises an `InputError` if a window's schedule would be too large, before any is made.

    Args:
        steps, block: denoising steps; latent frames of a block.
    """
    latents = max(window.latents for window in windows) + end_image
    if steps * latents > MOST_CELLS:
        frames = max(window.frames for window in windows)
        if steps > USUAL_STEPS:
            legal = f"must be at most {MOST_CELLS // latents} for windows of {frames} frames"
            raise InputError("inference_steps", steps, legal)
        most = (MOST_CELLS // steps - 1 - end_image) * TEMPORAL_STRIDE + 1
        name = "base_num_frames" if len(windows) > 1 else "num_frames"
        raise InputError(name, frames, f"a window must have at most {most} frames with --inference_steps {steps}")
    blocks = -(-latents // block) if block > 0 else 1
    if ar_step > 0 and schedule_rows(steps, blocks, ar_step) * latents > MOST_CELLS:
        most = (MOST_CELLS // latents - steps) // (blocks - 1)
        legal = f"must be at most {most} for windows of {latents} latent frames with --inference_steps {steps}"
        raise InputError("ar_step", ar_step, legal)


def strengths_of(loras: Sequence[LoraPlan], scene: Scene) -> tuple[float, ...]:
    """The strength of each LoRA in a scene: the scene's own where it has one.

    Raises:
        InputError: the scene names a LoRA that is not given.
    """
    own = scene.lora or {}
    names = [lora.name for lora in loras]
    for name in own:
        if name not in names:
            legal = f"must be one of the --lora files' names: {', '.join(names) or 'none is given'}"
            raise InputError("story", None, f"the scene from frame {scene.start} on has lora {name}; {legal}")
    return tuple(float(own.get(lora.name, lora.strength)) for lora in loras)
