"""Settings and a model's architecture -> the plan of a run; checks that they fit together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from skyreels_v2_infer import embedded
from skyreels_v2_infer.cli.model_ids import check_type
from skyreels_v2_infer.cli.settings import DiffusionForcingSettings, GenerateSettings
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.plan import cost
from skyreels_v2_infer.plan.cache_settings import CachePlan, MagCachePlan, TeaCachePlan, read_cache
from skyreels_v2_infer.plan.caching import check_ratios, choose_coefficients, choose_ratios, resampled
from skyreels_v2_infer.plan.plan import Plan, make_plan
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
        folder: with the transformer's files for caches, if it has some of its own.
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
    """The plan as far as the settings alone decide it: all but sharing and what a cache knows of the model."""
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
    shared["cache"] = cache_of(settings)
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


def cache_of(settings: GenerateSettings) -> CachePlan | None:
    """The cache that --cache or --teacache asks for, with what is given of the model's values."""
    if settings.cache is None and not settings.teacache:
        return None
    if settings.cache is None:
        plan = TeaCachePlan(settings.teacache_thresh, int(settings.use_ret_steps))
    else:
        plan = read_cache(settings.cache)
    if isinstance(plan, TeaCachePlan):
        return replace(plan, coefficients=settings.teacache_coefficients)
    if isinstance(plan, MagCachePlan) and settings.magcache_ratios is not None:
        given, steps = settings.magcache_ratios, settings_steps(settings)
        both = check_ratios((given[: len(given) // 2], given[len(given) // 2 :]))
        return replace(plan, ratios=tuple(value for each in both for value in resampled(each, steps)))
    return plan


def settings_steps(settings: GenerateSettings) -> int:
    return settings.inference_steps if settings.sigmas is None else len(settings.sigmas)


def with_cache(plan: Plan, settings: GenerateSettings, config: dict, folder: Path | None) -> Plan:
    """The plan with what its cache has to know of the model: values given, the checkpoint's own or published ones.

    Raises:
        InputError: there are none for this model.
    """
    cache = plan.cache
    if isinstance(cache, TeaCachePlan) and cache.coefficients is None:
        size = settings.height, settings.width
        found = choose_coefficients(config, folder or Path(settings.model_id), *size, bool(cache.ret_steps))
        return replace(plan, cache=replace(cache, coefficients=found))
    if isinstance(cache, MagCachePlan) and cache.ratios is None:
        if settings.sigmas is not None:
            raise InputError("cache", "magcache", "its tables are for a --shift, not for --sigmas")
        if folder is None:  # not downloaded yet
            return plan
        model = embedded.name_of(settings.model_id)
        found = choose_ratios(folder, model, settings.shift, settings.inference_steps)
        return replace(plan, cache=replace(cache, ratios=found))
    return plan


def wanted_layout(settings: GenerateSettings) -> Wanted:
    return Wanted(settings.cfg_parallel, settings.ulysses_degree, settings.ring_degree)


def check_kind(settings: GenerateSettings, config: dict) -> None:
    """Raises an `InputError` if a model is of the wrong type for the settings."""
    forcing = isinstance(settings, DiffusionForcingSettings)
    check_type(settings.model_id, config["model_type"] == "i2v", settings.image, forcing)
