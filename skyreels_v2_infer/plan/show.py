"""What --dry_run prints: a plan as JSON data, and as a table."""

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.plan import cost
from skyreels_v2_infer.plan.cache_settings import CachePlan
from skyreels_v2_infer.plan.gpu_rates import H200, GpuRate, amount, in_words
from skyreels_v2_infer.plan.memory import Chosen
from skyreels_v2_infer.plan.plan import Plan, WindowPlan
from skyreels_v2_infer.plan.sharing import Wanted, legal_counts

WEIGHT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Values that depend on the model.
UNKNOWN = ("dtype", "tokens", "pflop", "weights_gib", "activations_gib", "memory_gib", "offload")
UNKNOWN += ("encoders_by_layers", "vae_tiling", "memory", "gpus")
SHOWN_RANKS = 8  # in the table; the JSON has all
PROMPT_WIDTH = 40


def describe(
    plan: Plan,
    config: dict | None,
    *,
    model: str,
    output: str,
    dtype: str,
    chosen: Chosen | None = None,
    wanted: Wanted = Wanted(),  # noqa: B008  frozen
) -> dict:
    """A plan and its cost as plain data; values that depend on an unknown model are None.

    Args:
        config: of the transformer; None: not known. chosen: how the device holds it; None: not known either.
        model, output: names of the model and of the video.
        dtype: of the weights.
        wanted: the requested layout.
    """
    about = {
        "model": model,
        "height": plan.height,
        "width": plan.width,
        "num_frames": plan.num_frames,
        "prefix_frames": plan.prefix_frames,
        "fps": plan.fps,
        "seed": plan.seed,
        "mode": "asynchronous" if plan.ar_step else "synchronous",
        "inference_steps": plan.num_inference_steps,
        "windows": [described_window(window) for window in plan.windows],
        "rows": plan.rows,
        "forwards": sum(cost.forwards(plan)),
        "cache": None if plan.cache is None else described_cache(plan, plan.cache),
        "output": output,
    }
    if config is None or chosen is None:
        return about | dict.fromkeys(UNKNOWN)
    spent = chosen.cost
    tokens = cost.frame_tokens(plan.height, plan.width)
    gpus = legal_counts(config["num_heads"], tokens, plan.is_guided, wanted)
    if not gpus:
        raise InputError("use_usp", None, f"no number of processes is legal with {wanted}")
    return about | {
        "dtype": dtype,
        "tokens": spent.tokens,
        "pflop": spent.pflop,
        "weights_gib": spent.weights_gib,
        "activations_gib": spent.activations_gib,
        "memory_gib": dict(spent.stages),
        "offload": chosen.holding.offload,
        "encoders_by_layers": chosen.holding.layers,
        "vae_tiling": chosen.holding.tiled,
        "memory": list(chosen.lines()),
        "gpus": gpus,
    }


def described_window(window: WindowPlan) -> dict:
    return {
        "first_frame": window.window.first_frame,
        "last_frame": window.window.first_frame + window.window.new_frames - 1,
        "new_frames": window.window.new_frames,
        "history_frames": window.window.history_frames,
        "image": window.given_latents > window.window.history_latents,
        "end_image": window.end_latents > 0,
        "latents": window.latents,
        "rows": len(window.schedule),
        "guidance_scale": window.guidance_scale,
        "prompt": window.prompt,
    }


def described_cache(plan: Plan, cache: CachePlan) -> dict:
    """A cache and how many rows it computes whatever it measures; the others it may skip."""
    return {"settings": str(cache), "fewest_rows": sum(cache.fewest_rows(window.schedule) for window in plan.windows)}


def table(about: dict) -> str:
    """The result of `describe` as a table.

    Optionally also the `seconds` at a rate, and the lines `download`, `machine`, `remarks`, `cut` (long prompts).
    """
    seconds = (about["prefix_frames"] + about["num_frames"]) / about["fps"]
    frames = counted(about["num_frames"], "frame")
    if about["prefix_frames"]:
        frames = f"{about['prefix_frames']} + {frames}"
    seed = "seed drawn by the run" if about["seed"] is None else f"seed {about['seed']}"
    lines = [
        f"{about['model']}   {about['height']}x{about['width']}, {frames} ({seconds:.1f} s at {about['fps']:g} fps), "
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
    total = f"{counted(about['rows'], 'row')}, {counted(about['forwards'], 'forward')}"
    if about["pflop"] is None:
        lines.append(f"{total}; the model is not known here, so neither is the cost")
    else:
        stages = ", ".join(f"{name} {gib:.3g}" for name, gib in about["memory_gib"].items())
        gpus = ", ".join(str(count) for count in about["gpus"] if count <= SHOWN_RANKS)
        lines.append(
            f"{total}, {about['pflop']:.3g} PFLOP; peak memory about "
            f"{max(about['memory_gib'].values()):.3g} GiB in {about['dtype']} ({stages}); GPUs {gpus}"
        )
        lines += about["memory"]
    if about.get("seconds") is not None:
        rate = f"{about['tflop_per_second']:g} TFLOP/s ({about['rate']})"
        lines.append(f"about {in_words(about['seconds'])} of denoising on one GPU at {rate}; --rate for another one")
    lines += [line for line in (about.get("download"), about.get("machine")) if line]
    if about["cache"] is not None:
        fewest = about["cache"]["fewest_rows"]
        are = "is" if fewest == 1 else "are"
        lines.append(f"cache {about['cache']['settings']}: at least {counted(fewest, 'row')} {are} computed")
    changes = about.get("source", {}).get("changes")
    if changes:
        lines.append(f"--video_path: {'; '.join(changes)}")
    lines += [f"--{name}: {'; '.join(changed)}" for name, changed in about.get("changes", {}).items()]
    return "\n".join([*lines, *about.get("remarks", ()), *about.get("cut", ()), f"-> {about['output']}"])


def totals(videos: list[dict], rate: GpuRate = H200) -> dict:
    """The sum over many videos; pflop and hours are None if a model is not known."""
    pflop = [video["pflop"] for video in videos]
    known = None not in pflop
    return {
        "videos": len(videos),
        "frames": sum(video["num_frames"] for video in videos),
        "forwards": sum(video["forwards"] for video in videos),
        "pflop": sum(pflop) if known else None,
        "tflop_per_second": rate.value,
        "rate": rate.source,
        "hours": sum(pflop) / (rate.value / 1000) / 3600 if known else None,
    }


def batch_table(videos: list[dict], total: dict) -> str:
    """Many videos, a line for each, and their `totals` with the invalid rows."""
    rows = [("row", "size", "frames", "forwards", "PFLOP", "")]
    for video in videos:
        size = f"{video['height']}x{video['width']}"
        pflop = "?" if video["pflop"] is None else f"{video['pflop']:.3g}"
        cells = str(video["row"]), size, str(video["num_frames"]), str(video["forwards"]), pflop
        rows.append((*cells, f"-> {video['output']}"))
    widths = [max(len(row[i]) for row in rows) + 3 for i in range(5)]
    lines = ["".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) + row[-1] for row in rows]
    lines += total["invalid"]
    parts = ((total["videos"], "video"), (total["frames"], "frame"), (total["forwards"], "forward"))
    work = ", ".join(counted(number, noun) for number, noun in parts)
    if total["pflop"] is None:
        return "\n".join([*lines, f"{work}; a model is not known here, so neither is the cost"])
    rate = f"{total['tflop_per_second']:g} TFLOP/s ({total['rate']})"
    hours = f"about {in_words(3600 * total['hours'])} of denoising on one GPU at {rate}"
    return "\n".join([*(line.rstrip() for line in lines), f"{work}, {amount(total['pflop'])} PFLOP; {hours}"])


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def shortened(prompt: str) -> str:
    line = " ".join(prompt.split())
    return line if len(line) <= PROMPT_WIDTH else f"{line[: PROMPT_WIDTH - 3]}..."
