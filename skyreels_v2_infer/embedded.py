"""The embedded model: a tiny SkyReels-V2 that comes with the package, for a bare CPU and for tests."""

from dataclasses import dataclass
from pathlib import Path

NAME = "tiny"
FOLDER = Path(__file__).parent / "assets" / "tiny"


@dataclass(frozen=True)
class Defaults:
    """What a flag that the user does not give is worth with a model.

    height, width: pixels, None where --resolution decides. num_frames, base_num_frames, overlap_history: video frames,
    4n+1; overlap_history None where the user has to say it. addnoise_condition: thousandths of full noise.
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


# What it was trained for (docs/embedded_model.md).
DEFAULTS = Defaults(
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


def folder(image_to_video: bool) -> Path:
    """The part of the embedded model that a job needs, a folder in diffusers' layout."""
    return FOLDER / ("i2v" if image_to_video else "df")


def name_of(model_id: str) -> str:
    """What a user calls a model: its `model_id`, but NAME for both parts of the embedded one."""
    return NAME if Path(model_id).parent == FOLDER else model_id
