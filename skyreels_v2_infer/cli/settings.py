"""Frozen settings of the two scripts; the metadata of every field states what it affects.

A run's identity, the keys of its pieces, the manifest and --replay are derived from that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any

from skyreels_v2_infer.media.input_options import InputOptions
from skyreels_v2_infer.plan.auto_prompt import wish_in
from skyreels_v2_infer.plan.gpu_rates import GpuRate
from skyreels_v2_infer.plan.plan import LoraPlan
from skyreels_v2_infer.plan.story import Scene


class Affects(Enum):
    """What changes with the value of a setting."""

    FRAMES = "the frames"
    MACHINE = "where and how fast they are computed"
    RUN = "folders, resuming, messages"


def _kind(affects: Affects, by_window: bool = False, replayed: bool = False) -> Mapping[str, Any]:
    """Metadata of a field.

    Args:
        by_window: may differ between windows, so it is part of a window's key instead of every window's.
        replayed: recorded in the manifest and read by --replay.
    """
    return {"affects": affects, "by_window": by_window, "replayed": replayed}


FRAMES = _kind(Affects.FRAMES, replayed=True)
WINDOW = _kind(Affects.FRAMES, by_window=True, replayed=True)
PREPARED = _kind(Affects.FRAMES, by_window=True)  # the manifest records its result instead
MACHINE = _kind(Affects.MACHINE)
RUN = _kind(Affects.RUN)


@dataclass(frozen=True, kw_only=True)
class GenerateSettings:
    """Validated settings of `generate_video.py`.

    height, width: pixels, multiples of 16, portrait already applied. num_frames: 4n+1. fps: frames per second, see
    `media.rates`. quality: of the mp4, 0..10, see `media.ffmpeg.crf_of`. fit: crop or pad. background: #rrggbb.
    seed: 0..2**63-1; None: drawn by the run. device, dtype: None: chosen by the run. teacache_thresh: at least 0.
    teacache_coefficients: five, highest degree first; None: the model's. cache: as for `read_cache`, with all keys.
    magcache_ratios: of the conditional, then of the unconditional pass; None: the model's. sigmas: noise levels,
    falling, in place of those of inference_steps and shift; None: those. lora: files and strengths. cfg_parallel,
    ulysses_degree, ring_degree: None: chosen by the plan. memory: GiB; None: what is free on the GPU. name: pattern of
    the file's name, see `plan.naming`; None: prompt and seed.
    captioner_model, fusion_model: for a prompt that is ``auto``, see `plan.auto_prompt`; fusion_model None: by rule.
    rate: for --dry_run; None: that of this machine's GPU.
    by_default: names of the settings that were not given and come from the model's defaults.
    """

    model_id: str = field(metadata=FRAMES)
    outdir: Path = field(metadata=RUN)
    name: str | None = field(metadata=RUN)
    prompt: str = field(metadata=WINDOW)
    negative_prompt: str = field(metadata=FRAMES)
    image: Path | None = field(metadata=FRAMES)
    fit: str = field(metadata=FRAMES)
    background: str = field(metadata=FRAMES)
    height: int = field(metadata=FRAMES)
    width: int = field(metadata=FRAMES)
    num_frames: int = field(metadata=WINDOW)
    inference_steps: int = field(metadata=FRAMES)
    guidance_scale: float = field(metadata=WINDOW)
    shift: float = field(metadata=FRAMES)
    fps: float = field(metadata=FRAMES)
    quality: float = field(metadata=FRAMES)
    seed: int | None = field(metadata=FRAMES)
    device: str | None = field(metadata=MACHINE)
    dtype: str | None = field(metadata=FRAMES)
    teacache: bool = field(metadata=FRAMES)
    teacache_thresh: float = field(metadata=FRAMES)
    use_ret_steps: bool = field(metadata=FRAMES)
    teacache_coefficients: tuple[float, ...] | None = field(metadata=FRAMES)
    cache: str | None = field(metadata=FRAMES)
    magcache_ratios: tuple[float, ...] | None = field(metadata=FRAMES)
    dit_path: str | None = field(metadata=FRAMES)
    vae_path: str | None = field(metadata=FRAMES)
    text_encoder_path: str | None = field(metadata=FRAMES)
    image_encoder_path: str | None = field(metadata=FRAMES)
    weights: str = field(metadata=FRAMES)
    quantize: str | None = field(metadata=FRAMES)
    solver: str = field(metadata=FRAMES)
    sigmas: tuple[float, ...] | None = field(metadata=FRAMES)
    lora: tuple[LoraPlan, ...] = field(metadata=FRAMES)
    vae_dtype: str = field(metadata=FRAMES)
    vae_tiling: str = field(metadata=FRAMES)
    attention: str = field(metadata=MACHINE)
    compile: str = field(metadata=MACHINE)
    use_usp: bool = field(metadata=MACHINE)
    cfg_parallel: bool | None = field(metadata=MACHINE)
    ulysses_degree: int | None = field(metadata=MACHINE)
    ring_degree: int | None = field(metadata=MACHINE)
    offload: bool = field(metadata=MACHINE)
    memory: float | None = field(metadata=MACHINE)
    prompt_enhancer: bool = field(metadata=PREPARED)
    prompt_enhancer_model: str = field(metadata=PREPARED)
    captioner_model: str = field(metadata=PREPARED)
    fusion_model: str | None = field(metadata=PREPARED)
    dry_run: str | None = field(metadata=RUN)
    rate: GpuRate | None = field(metadata=RUN)
    resume: bool = field(metadata=RUN)
    replay: Path | None = field(metadata=RUN)
    no_preview: bool = field(metadata=RUN)
    preview_every: int | None = field(metadata=RUN)
    no_report: bool = field(metadata=RUN)
    keep_parts: bool = field(metadata=RUN)
    by_default: tuple[str, ...] = field(metadata=RUN)
    frames_dir: Path | None = field(metadata=RUN)

    @property
    def input_options(self) -> InputOptions:
        """How images and videos are read."""
        background = tuple(bytes.fromhex(self.background.removeprefix("#")))
        return InputOptions(background, self.fit, getattr(self, "input_color", None))

    @property
    def prepares_prompt(self) -> bool:
        """Whether a language model makes the prompt before the video is made."""
        return self.prompt_enhancer or wish_in(self.prompt) is not None

    def on_device(self, device: str | None) -> GenerateSettings:
        return replace(self, device=device)


@dataclass(frozen=True, kw_only=True)
class DiffusionForcingSettings(GenerateSettings):
    """Validated settings of `generate_video_df.py`.

    keep_rate: video_path is read frame for frame, not by timestamps. no_audio: without its sound, which no window
    depends on. With video_path, num_frames counts the frames to add and is a multiple of 4 (else 4n+1).
    base_num_frames and overlap_history are video frames, 4n+1; overlap_history is None only for a single window.
    causal_block_size is in latent frames, ar_step in denoising steps, addnoise_condition in thousandths of full noise,
    0 <= a < 1000. story: scenes, the first with `prompt`; None: no story. prompts: one per window, the first is
    `prompt`, the last one holds to the end; None: one prompt.
    """

    end_image: Path | None = field(metadata=WINDOW)
    video_path: Path | None = field(metadata=FRAMES)
    keep_rate: bool = field(metadata=FRAMES)
    no_audio: bool = field(metadata=WINDOW)
    input_color: str | None = field(metadata=FRAMES)
    ar_step: int = field(metadata=FRAMES)
    causal_attention: bool = field(metadata=FRAMES)
    causal_block_size: int = field(metadata=FRAMES)
    base_num_frames: int = field(metadata=FRAMES)
    overlap_history: int | None = field(metadata=FRAMES)
    addnoise_condition: float = field(metadata=FRAMES)
    story: tuple[Scene, ...] | None = field(metadata=WINDOW)
    prompts: tuple[str, ...] | None = field(metadata=PREPARED)
    history: str = field(metadata=FRAMES)


PARTS = {
    "transformer": "dit_path",
    "vae": "vae_path",
    "text_encoder": "text_encoder_path",
    "image_encoder": "image_encoder_path",
}


def replaced_parts(settings: GenerateSettings) -> dict[str, str]:
    """The parts that do not come from model_id, and where they are."""
    given = {part: getattr(settings, name) for part, name in PARTS.items()}
    return {part: path for part, path in given.items() if path is not None}


def fields_that(settings: type | GenerateSettings, **wanted: Any) -> Iterator[Field]:
    """Fields whose metadata (affects, by_window, replayed) equal all the `wanted` values."""
    for found in fields(settings):
        if all(found.metadata[name] == value for name, value in wanted.items()):
            yield found
