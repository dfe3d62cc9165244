"""What a command would do, as a table or as JSON: the plan that would be executed and what it would cost."""

import json
from pathlib import Path

from skyreels_v2_infer import embedded
from skyreels_v2_infer.cli.settings import DiffusionForcingSettings, GenerateSettings
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.launch import Launch
from skyreels_v2_infer.plan import cost
from skyreels_v2_infer.plan.caching import choose_coefficients
from skyreels_v2_infer.plan.models import architecture
from skyreels_v2_infer.plan.naming import output_stem
from skyreels_v2_infer.plan.plan import Plan, is_guided, make_plan
from skyreels_v2_infer.plan.sharing import Layout, Wanted, choose_layout, legal_counts
from skyreels_v2_infer.plan.story import Scene, scenes_of
from skyreels_v2_infer.weights.locate import local_folder, read_transformer_config

WEIGHT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SHOWN_RANKS = 8  # in the table; the JSON has all
PROMPT_WIDTH = 40


def plan_of(settings: GenerateSettings) -> Plan:
    """The plan that the pipelines make of these settings and execute."""
    if not isinstance(settings, DiffusionForcingSettings):
        return make_plan(settings.num_frames, settings.inference_steps, settings.shift)
    return make_plan(
        settings.num_frames,
        settings.inference_steps,
        settings.shift,
        base_num_frames=settings.base_num_frames,
        overlap_history=settings.overlap_history,
        ar_step=settings.ar_step,
        causal_block_size=settings.causal_block_size,
        prefix_frames=settings.video_frames,
        image=settings.image is not None,
        end_image=settings.end_image is not None,
    )


def known_config(settings: GenerateSettings) -> dict | None:
    """The transformer's arguments, as far as they are known without a download."""
    config = architecture(settings.model_id)
    if config is None and local_folder(settings.model_id) is not None:
        config = read_transformer_config(settings.model_id)
    return config


def check_kind(settings: GenerateSettings, config: dict) -> None:
    """Raises an `InputError` if a model is not of the kind that the job needs."""
    image_to_video = config["model_type"] == "i2v"
    if isinstance(settings, DiffusionForcingSettings):
        if image_to_video:
            raise InputError("model_id", settings.model_id, "is an image-to-video model; generate_video.py runs those")
    elif image_to_video and settings.image is None:
        raise InputError("image", None, f"the image-to-video model {settings.model_id} needs one")
    elif settings.image is not None and not image_to_video:
        raise InputError("image", settings.image, f"{settings.model_id} is no image-to-video model")


def scenes_and_scales(settings: GenerateSettings, plan: Plan) -> tuple[list[Scene], list[float]]:
    """For each window its scene and its guidance scale."""
    scenes = [Scene(0, settings.prompt)] * len(plan.windows)
    if getattr(settings, "story", None) is not None:
        scenes = scenes_of(settings.story, [window.window for window in plan.windows])
    return scenes, [settings.guidance_scale if s.guidance_scale is None else s.guidance_scale for s in scenes]


def any_guided(settings: GenerateSettings) -> bool:
    """Whether any window has two branches of guidance."""
    return any(is_guided(scale) for scale in scenes_and_scales(settings, plan_of(settings))[1])


def wanted_layout(settings: GenerateSettings) -> Wanted:
    return Wanted(settings.cfg_parallel, settings.ulysses_degree, settings.ring_degree)


def choose_sharing(settings: GenerateSettings, ranks: int, config: dict) -> Layout:
    """How the ranks share the work."""
    tokens = cost.frame_tokens(settings.height, settings.width)
    return choose_layout(ranks, config["num_heads"], tokens, any_guided(settings), wanted_layout(settings))


def describe(settings: GenerateSettings) -> dict:
    """What the command would do, as plain data; what only the weights would tell is None."""
    plan, config = plan_of(settings), known_config(settings)
    forcing = isinstance(settings, DiffusionForcingSettings)
    scenes, scales = scenes_and_scales(settings, plan)
    guided = [is_guided(scale) for scale in scales]
    seed = "SEED" if settings.seed is None else settings.seed
    about = {
        "model": embedded.name_of(settings.model_id),
        "height": settings.height,
        "width": settings.width,
        "num_frames": settings.num_frames,
        "prefix_frames": settings.video_frames if forcing else 0,
        "fps": settings.fps,
        "seed": settings.seed,
        "mode": "asynchronous" if forcing and settings.ar_step else "synchronous",
        "inference_steps": settings.inference_steps,
        "windows": [
            {
                "first_frame": window.window.first_frame,
                "last_frame": window.window.first_frame + window.window.new_frames - 1,
                "new_frames": window.window.new_frames,
                "history_frames": window.window.history_frames,
                "image": window.given_latents > window.window.history_latents,
                "end_image": window.end_latents > 0,
                "latents": window.latents,
                "rows": len(window.schedule),
                "guidance_scale": scale,
                "prompt": scene.prompt,
            }
            for window, scene, scale in zip(plan.windows, scenes, scales, strict=True)
        ],
        "rows": plan.rows,
        "forwards": sum(cost.forwards(plan, guided)),
        "output": str(settings.outdir / f"{output_stem(settings.prompt, seed)}.mp4"),
    }
    if config is None:
        return about | dict.fromkeys(("dtype", "tokens", "pflop", "weights_gib", "activations_gib", "gpus"))
    check_kind(settings, config)
    choose_sharing(settings, Launch.from_environment().size, config)
    if settings.teacache and not settings.teacache_coefficients:
        folder = local_folder(settings.model_id) or Path(settings.model_id)
        choose_coefficients(config, folder, settings.height, settings.width, settings.use_ret_steps)
    dtype = settings.dtype or ("float32" if settings.device == "cpu" else "bfloat16")
    spent = cost.cost_of(
        plan,
        config,
        settings.height,
        settings.width,
        guided=guided,
        weight_bytes=WEIGHT_BYTES[dtype],
        offload=settings.offload,
        on_cpu=settings.device == "cpu",
        block_frames=settings.causal_block_size if forcing and settings.causal_attention else None,
    )
    tokens = cost.frame_tokens(settings.height, settings.width)
    return about | {
        "dtype": dtype,
        "tokens": spent.tokens,
        "pflop": spent.pflop,
        "weights_gib": spent.weights_gib,
        "activations_gib": spent.activations_gib,
        "gpus": legal_counts(config["num_heads"], tokens, any(guided), wanted_layout(settings)),
    }


def table(about: dict) -> str:
    """The same for reading."""
    seconds = (about["prefix_frames"] + about["num_frames"]) / about["fps"]
    frames = f"{about['num_frames']} frames"
    if about["prefix_frames"]:
        frames = f"{about['prefix_frames']} + {frames}"
    seed = "seed drawn by the run" if about["seed"] is None else f"seed {about['seed']}"
    lines = [
        f"{about['model']}   {about['height']}x{about['width']}, {frames} ({seconds:.1f} s at {about['fps']} fps), "
        f"{seed}, {about['mode']}"
    ]
    rows = [("window", "frames", "new", "history", "latents", "rows", "prompt")]
    prompt = None
    for number, window in enumerate(about["windows"], start=1):
        history = str(window["history_frames"] or ("image" if window["image"] else "-"))
        latents = f"{window['latents'] - 1}+end" if window["end_image"] else str(window["latents"])
        words = '"' if window["prompt"] == prompt else shortened(window["prompt"])
        prompt = window["prompt"]
        extent = f"{window['first_frame']}-{window['last_frame']}"
        rows.append((str(number), extent, str(window["new_frames"]), history, latents, str(window["rows"]), words))
    widths = [max(len(row[i]) for row in rows) + 3 for i in range(len(rows[0]) - 1)]
    lines += ["".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) + row[-1] for row in rows]
    total = f"{about['rows']} rows, {about['forwards']} forwards"
    if about["pflop"] is None:
        lines.append(f"{total}; the model is not known here, so neither is the cost")
    else:
        weights, activations = about["weights_gib"], about["activations_gib"]
        gpus = ", ".join(str(count) for count in about["gpus"] if count <= SHOWN_RANKS)
        lines.append(
            f"{total}, {about['pflop']:.3g} PFLOP; peak memory about {weights + activations:.3g} GiB "
            f"in {about['dtype']} (weights {weights:.3g}, activations {activations:.3g}); GPUs {gpus}"
        )
    return "\n".join([*lines, f"-> {about['output']}"])


def shortened(prompt: str) -> str:
    line = " ".join(prompt.split())
    return line if len(line) <= PROMPT_WIDTH else f"{line[: PROMPT_WIDTH - 3]}..."


def show(settings: GenerateSettings) -> str:
    """What --dry_run prints."""
    about = describe(settings)
    return json.dumps(about, indent=2) if settings.dry_run == "json" else table(about)
