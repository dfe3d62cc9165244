"""Frozen settings of the two scripts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from skyreels_v2_infer.plan.story import Scene


@dataclass(frozen=True, kw_only=True)
class GenerateSettings:
    """What `generate_video.py` was asked for, checked.

    height, width: pixels, multiples of 16, portrait already applied. num_frames: 4n+1. fps: frames per second, 1..240.
    seed: 0..2**63-1, None for one drawn by the run. device, dtype: None to be chosen by the run. teacache_thresh: at
    least 0. teacache_coefficients: five of them, highest degree first; None for the model's own. cfg_parallel,
    ulysses_degree, ring_degree: None to be chosen.
    """

    model_id: str
    outdir: Path
    prompt: str
    negative_prompt: str
    image: Path | None
    height: int
    width: int
    num_frames: int
    inference_steps: int
    guidance_scale: float
    shift: float
    fps: int
    seed: int | None
    device: str | None
    dtype: str | None
    teacache: bool
    teacache_thresh: float
    use_ret_steps: bool
    teacache_coefficients: tuple[float, ...] | None
    use_usp: bool
    cfg_parallel: bool | None
    ulysses_degree: int | None
    ring_degree: int | None
    offload: bool
    prompt_enhancer: bool
    prompt_enhancer_model: str
    dry_run: str | None
    resume: bool
    replay: Path | None
    no_preview: bool
    keep_parts: bool


@dataclass(frozen=True, kw_only=True)
class DiffusionForcingSettings(GenerateSettings):
    """What `generate_video_df.py` was asked for, checked.

    video_fps is the rate of video_path, video_frames its length (0 without one). With video_path, num_frames counts the
    frames to add and is a multiple of 4 (else 4n+1). base_num_frames and overlap_history are video frames, 4n+1;
    overlap_history can be None only where a single window is made. causal_block_size is in latent frames, ar_step in
    denoising steps, addnoise_condition in thousandths of full noise, 0 <= a < 1000. story: scenes, the first of which
    has `prompt`; None: `prompt` holds throughout.
    """

    end_image: Path | None
    video_path: Path | None
    video_fps: float | None
    video_frames: int
    ar_step: int
    causal_attention: bool
    causal_block_size: int
    base_num_frames: int
    overlap_history: int | None
    addnoise_condition: float
    story: tuple[Scene, ...] | None
    history: str
