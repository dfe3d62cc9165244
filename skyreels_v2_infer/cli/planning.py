"""Settings and a model's architecture -> the plan of a run; checks that they fit together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from skyreels_v2_infer.cli.settings import DiffusionForcingSettings, GenerateSettings
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.plan import cost
from skyreels_v2_infer.plan.caching import choose_coefficients
from skyreels_v2_infer.plan.plan import CachePlan, Plan, make_plan
from skyreels_v2_infer.plan.sharing import Wanted, choose_layout


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
        folder: with the transformer's TeaCache coefficients, if it has some of its own.
        video_frames: frames of settings.video_path.
        ranks: processes that share the run.

    Raises:
        InputError: the settings contradict each other or do not suit this model.
    """
    plan = plan_without_model(settings, video_frames)
    if config is None:
        return plan
    return with_cache(for_model(plan, settings, config, ranks), settings, config, folder)


def plan_without_model(settings: GenerateSettings, video_frames: int = 0) -> Plan:
    """The plan as far as the settings alone decide it: all but sharing and TeaCache's coefficients."""
    shared = {
        "height": settings.height,
        "width": settings.width,
        "negative_prompt": settings.negative_prompt,
        "guidance_scale": settings.guidance_scale,
        "seed": settings.seed,
        "fps": settings.fps,
        "prompt": settings.prompt,
        "solver": settings.solver,
        "sigmas": settings.sigmas,
        "loras": settings.lora,
    }
    if settings.teacache:
        given = settings.teacache_coefficients
        shared["cache"] = CachePlan(settings.teacache_thresh, given, settings.use_ret_steps)
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
    return make_plan(settings.num_frames, settings.inference_steps, settings.shift, **shared)


def for_model(plan: Plan, settings: GenerateSettings, config: dict, ranks: int) -> Plan:
    """The plan with the ranks' shares, for a model of the right kind.

    Raises:
        InputError: the model is of another kind, or its work cannot be shared as asked for.
    """
    check_kind(settings, config)
    tokens = cost.frame_tokens(settings.height, settings.width)
    layout = choose_layout(ranks, config["num_heads"], tokens, plan.is_guided, wanted_layout(settings))
    return replace(plan, sharing=layout)


def with_cache(plan: Plan, settings: GenerateSettings, config: dict, folder: Path | None) -> Plan:
    """The plan with TeaCache's coefficients: those given, the checkpoint's own or the published ones.

    Raises:
        InputError: there are none for this model.
    """
    if plan.cache is None or plan.cache.coefficients is not None:
        return plan
    size = settings.height, settings.width
    found = choose_coefficients(config, folder or Path(settings.model_id), *size, settings.use_ret_steps)
    return replace(plan, cache=replace(plan.cache, coefficients=found))


def wanted_layout(settings: GenerateSettings) -> Wanted:
    return Wanted(settings.cfg_parallel, settings.ulysses_degree, settings.ring_degree)


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
