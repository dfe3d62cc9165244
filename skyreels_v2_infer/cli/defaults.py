"""Per-model defaults: the value of a flag that is not given."""

from dataclasses import dataclass

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
