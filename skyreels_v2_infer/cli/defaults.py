"""Per-model defaults: the value of a flag that is not given."""

from __future__ import annotations

from dataclasses import dataclass, replace

from skyreels_v2_infer import embedded
from skyreels_v2_infer.cli.settings import GenerateSettings
from skyreels_v2_infer.plan import models

DEFAULT_PROMPT = (
    "A white swan glides across a still lake at dawn; mist drifts over the water, and soft golden light plays on the "
    "ripples behind it."
)
DEFAULT_NEGATIVE_PROMPT = (
    "blurry, out of focus, low resolution, compression artifacts, grain, flicker, ghosting, overexposed, "
    "oversaturated, washed-out colors, color shift, frozen picture, stuttering motion, sudden cuts, warped shapes, "
    "melting objects, distorted face, deformed hands, extra fingers, extra limbs, duplicated subject, crowd, "
    "subtitles, watermark, logo, border"
)


@dataclass(frozen=True)
class Defaults:
    """Default values of flags for one model.

    height, width: pixels; None: from --resolution. num_frames, base_num_frames, overlap_history: video frames, 4n+1;
    overlap_history None: required where it is needed. addnoise_condition: thousandths of full noise.
    """

    height: int | None
    width: int | None
    num_frames: int
    fps: int
    inference_steps: int
    guidance_scale: float
    shift: float
    prompt: str
    negative_prompt: str
    base_num_frames: int
    overlap_history: int | None
    addnoise_condition: float


SOLVER = "unipc"
TEACACHE_THRESHOLD = 0.2  # of --teacache

# Values that --preset sets, for distilled models and LoRAs; flags given as well override them.
PRESETS = {"4steps": {"inference_steps": 4, "solver": "euler", "shift": 5.0, "guidance_scale": 1.0}}

PUBLISHED = Defaults(
    height=None,  # from --resolution
    width=None,
    num_frames=97,
    fps=24,
    inference_steps=30,
    guidance_scale=6.0,
    shift=8.0,
    prompt=DEFAULT_PROMPT,
    negative_prompt=DEFAULT_NEGATIVE_PROMPT,
    base_num_frames=97,
    overlap_history=None,
    addnoise_condition=0.0,
)

# The settings that it was trained for (docs/embedded_model.md).
TINY = Defaults(
    height=64,
    width=64,
    num_frames=33,
    fps=16,
    inference_steps=20,
    guidance_scale=2.0,
    shift=3.0,
    prompt="A red circle moves slowly to the right on a black background",
    negative_prompt="",
    base_num_frames=33,
    overlap_history=17,
    addnoise_condition=20.0,
)

# Of the 720P models: the length that they were trained on. Of the image-to-video models: the values that their release
# recommends, which its scripts leave to the user.
LENGTH_720P = {"num_frames": 121, "base_num_frames": 121}
IMAGE_TO_VIDEO = {"guidance_scale": 5.0, "shift": 5.0}


def defaults_of(model_id: str) -> Defaults:
    """The defaults for a model; the name of a folder is not interpreted, so folders have those of the 540P models."""
    if model_id == embedded.NAME:
        return TINY
    kind, _ = models.PUBLISHED.get(model_id, (None, None))
    length = LENGTH_720P if model_id in models.MODELS_720P else {}
    return replace(PUBLISHED, **length, **(IMAGE_TO_VIDEO if kind == "I2V" else {}))


# Settings in the line about what was chosen by default, and how they are written there.
SHOWN = {
    "num_frames": "{} frames",
    "fps": "{} fps",
    "inference_steps": "{} steps",
    "guidance_scale": "guidance {:g}",
    "shift": "shift {:g}",
}
SHOWN_OF_WINDOWS = {"base_num_frames": "windows of {} frames", "overlap_history": "overlap {}"}


def chosen_by_default(settings: GenerateSettings) -> str | None:
    """The line about values that were not given but taken from the model's defaults; None: all were given."""
    words = [f"{settings.height}x{settings.width}"] if "height" in settings.by_default else []
    shown = SHOWN
    if settings.num_frames > getattr(settings, "base_num_frames", settings.num_frames):
        shown = SHOWN | SHOWN_OF_WINDOWS
    words += [form.format(getattr(settings, name)) for name, form in shown.items() if name in settings.by_default]
    words += [f'prompt "{settings.prompt.partition(";")[0]}"'] * ("prompt" in settings.by_default)
    return f"by default: {', '.join(words)}" if words else None
