"""Settings and a model's architecture -> the plan of a run; checks that they fit together."""

from __future__ import annotations

from pathlib import Path

from skyreels_v2_infer.cli.settings import DiffusionForcingSettings, GenerateSettings
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.plan import cost
from skyreels_v2_infer.plan.caching import choose_coefficients
from skyreels_v2_infer.plan.plan import CachePlan, Plan, make_plan
from skyreels_v2_infer.plan.sharing import Layout, Wanted, choose_layout


def plan_of(
    settings: GenerateSettings,
    config: dict | None,
    folder: Path | None = None,
    video_frames: int = 0,
    ranks: int = 1,
) -> Plan:
    """The plan that is printed, keyed for resume and executed.

    Args:
        config: of the transformer, arguments of `WanModel`; None: not known.
        folder: of the checkpoint, if it is local; it may hold TeaCache coefficients.
        video_frames: frames of settings.video_path.
        ranks: processes that share the run.

    Raises:
        InputError: the settings contradict each other or do not suit this model.
    """
    if config is not None:
        check_kind(settings, config)
    shared = {
        "height": settings.height,
        "width": settings.width,
        "negative_prompt": settings.negative_prompt,
        "guidance_scale": settings.guidance_scale,
        "seed": settings.seed,
        "fps": settings.fps,
        "prompt": settings.prompt,
        "cache": cache_of(settings, config, folder),
        "solver": settings.solver,
        "sigmas": settings.sigmas,
        "loras": settings.lora,
    }
    if isinstance(settings, DiffusionForcingSettings):
        shared |= {
            "base_num_frames": settings.base_num_frames,
            "overlap_history": settings.overlap_history,
            "ar_step": settings.ar_step,
            "causal_block_size": settings.causal_block_size,
            "causal_attention": settings.causal_attention,
            "prefix_frames": video_frames,
            "image": settings.image is not None,
            "end_image": settings.end_image is not None,
            "addnoise": settings.addnoise_condition,
            "history": settings.history,
            "story": settings.story,
            "window_prompts": settings.prompts,
        }
    plan = make_plan(settings.num_frames, settings.inference_steps, settings.shift, **shared)
    return plan.with_sharing(sharing_of(settings, plan, config, ranks))


def wanted_layout(settings: GenerateSettings) -> Wanted:
    return Wanted(settings.cfg_parallel, settings.ulysses_degree, settings.ring_degree)


def sharing_of(settings: GenerateSettings, plan: Plan, config: dict | None, ranks: int) -> Layout | None:
    if config is None:
        return None
    tokens = cost.frame_tokens(settings.height, settings.width)
    return choose_layout(ranks, config["num_heads"], tokens, plan.is_guided, wanted_layout(settings))


def cache_of(settings: GenerateSettings, config: dict | None, folder: Path | None) -> CachePlan | None:
    if not settings.teacache:
        return None
    coefficients = settings.teacache_coefficients
    if coefficients is None and config is not None:
        coefficients = choose_coefficients(
            config, folder or Path(settings.model_id), settings.height, settings.width, settings.use_ret_steps
        )
    return CachePlan(settings.teacache_thresh, coefficients, settings.use_ret_steps)


def check_kind(settings: GenerateSettings, config: dict) -> None:
    """Raises an `InputError` if a model is of the wrong type for the settings."""
    image_to_video = config["model_type"] == "i2v"
    if isinstance(settings, DiffusionForcingSettings):
        if image_to_video:
            raise InputError("model_id", settings.model_id, "is an image-to-video model; use generate_video.py")
    elif image_to_video and settings.image is None:
        raise InputError("image", None, f"the image-to-video model {settings.model_id} needs one")
    elif settings.image is not None and not image_to_video:
        raise InputError("image", settings.image, f"{settings.model_id} is not an image-to-video model")
