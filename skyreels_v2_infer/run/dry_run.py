"""--dry_run: the plan that would be executed, and its cost. Needs no weights and no torch."""

from __future__ import annotations

import itertools
import json
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from skyreels_v2_infer import embedded
from skyreels_v2_infer.cli.batch import InvalidRowsError, JobList, JobRow
from skyreels_v2_infer.cli.model_ids import remarks_on
from skyreels_v2_infer.cli.names import stem_of
from skyreels_v2_infer.cli.planning import plan_of, wanted_layout
from skyreels_v2_infer.cli.settings import GenerateSettings, replaced_parts
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.plan.cost import cost_of, forwards
from skyreels_v2_infer.plan.downloads import download_bytes
from skyreels_v2_infer.plan.gpu_rates import H200, rate_of_gpu
from skyreels_v2_infer.plan.models import PUBLISHED
from skyreels_v2_infer.plan.plan import Plan
from skyreels_v2_infer.plan.prompts import cut_lines, long_texts
from skyreels_v2_infer.plan.show import batch_table, describe, table, totals
from skyreels_v2_infer.plan.trained_on import outside
from skyreels_v2_infer.run.inputs import count_video, read_images
from skyreels_v2_infer.run.machine import Machine, this_machine
from skyreels_v2_infer.run.model_files import Models, check_prompts, known_config
from skyreels_v2_infer.run.sizes import chosen_memory
from skyreels_v2_infer.weights.download import local_folder
from skyreels_v2_infer.weights.locate import Checkpoint

COMPLETE = 0.98  # of the bytes of a model, whose number is an estimate


def dry_run(settings: GenerateSettings, ranks: int) -> str:
    """The output of --dry_run: the plan that would be executed, and its cost. Needs no weights and no torch."""
    changes: dict[str, list[str]] = {}
    read_images(settings, changes)  # damaged ones are found here, too
    source = count_video(settings)
    about = described(settings, source.frames if source else 0, ranks)
    if source is not None:
        about["source"] = source.about
    about["changes"] = changes
    return json.dumps(about, indent=2) if settings.dry_run == "json" else table(about)


def dry_run_batch(jobs: JobList) -> str:
    """The output of --dry_run for many videos: a line for each, and the total.

    Raises:
        InvalidRowsError: rows are invalid, and --keep_going is not given.
    """
    from skyreels_v2_infer.run.row_checks import check_rows  # slow to import

    about, mine = [], {row.number for row in jobs.mine}

    def seen(row: JobRow, plan: Plan, config: dict | None) -> None:
        if row.number in mine:
            about.append(described_video(row, plan, config))

    _, jobs = check_rows(jobs, Models(), seen)
    invalid = [row for row in jobs.rows if row.settings is None]
    if invalid and not jobs.keep_going:
        raise InvalidRowsError(jobs.rows)
    rates = [row.settings.rate for row in jobs.rows if row.settings is not None and row.settings.rate is not None]
    total = totals(about, *rates[:1]) | {
        "invalid": [f"{row.source}: {row.error}" for row in invalid if row.number in mine]
    }
    return (
        json.dumps({"videos": about, "total": total}, indent=2) if jobs.dry_run == "json" else batch_table(about, total)
    )


def described_video(row: JobRow, plan: Plan, config: dict | None) -> dict:
    """One video of many: its size, its work, and where it will be; pflop is None where the model is not known."""
    settings = row.settings
    return {
        "row": row.number,
        "source": row.source,
        "output": str(settings.outdir / f"{settings.name}.mp4"),
        "model": embedded.name_of(settings.model_id),
        "height": plan.height,
        "width": plan.width,
        "num_frames": plan.num_frames,
        "windows": len(plan.windows),
        "seed": plan.seed,
        "forwards": sum(forwards(plan)),
        "pflop": None if config is None else cost_of(plan, config, weight_bytes=2).pflop,
    }


def described(settings: GenerateSettings, video_frames: int = 0, ranks: int = 1) -> dict:
    """The plan and its cost, as far as they are known without a download."""
    config, folder = known_config(settings)
    plan = plan_of(settings, config, folder, video_frames, ranks)
    seed = "SEED" if settings.seed is None else settings.seed
    here = this_machine(settings.device)
    # Large models are planned for a GPU where there is none: the plan may be for another machine.
    elsewhere = (
        here.device == "cpu" and settings.device is None and embedded.name_of(settings.model_id) != embedded.NAME
    )
    on_cpu = here.device == "cpu" and not elsewhere
    dtype = settings.dtype or ("bfloat16" if elsewhere else here.dtype)
    chosen = None
    if config is not None:
        chosen = chosen_memory(settings, plan, config, dtype, free=None, on_cpu=on_cpu)
    about = describe(
        plan,
        config,
        model=embedded.name_of(settings.model_id),
        output=str(free_path(settings.outdir, stem_of(settings, seed))),
        dtype=dtype,
        chosen=chosen,
        wanted=wanted_layout(settings),
    )
    about |= time_of(settings, about["pflop"], here, on_cpu)
    about["download"] = download_line(settings)
    about["machine"] = f"this machine: {replace(here, dtype=settings.dtype or here.dtype).words()}"
    if elsewhere and config is not None:
        about["machine"] += f"; the estimates are for a GPU, in {dtype} (--device cpu: for this machine)"
    about["remarks"] = [*remarks_on(settings), *(outside(plan, folder) if folder is not None else ())]
    about["cut"] = []
    local = settings.text_encoder_path is None and folder is not None and local_folder(settings.model_id) is not None
    if local and config is not None and long_texts(plan, config):
        tokenizer = None
        with suppress(InputError):  # a missing tokenizer is reported by the run itself
            tokenizer = Checkpoint.open(settings.model_id, ("tokenizer",)).parts["tokenizer"].files[0]
        if tokenizer is not None:
            check_prompts(settings, plan, tokenizer)
            about["cut"] = cut_lines(plan, tokenizer, config)
    return about


def time_of(settings: GenerateSettings, pflop: float | None, here: Machine, on_cpu: bool) -> dict:
    """Seconds of denoising on one GPU: at --rate, else at the rate of this machine's GPU, else at the H200's."""
    rate = settings.rate or (rate_of_gpu(here.name) if here.name else H200)
    if pflop is None or rate is None or (on_cpu and settings.rate is None):
        return {"seconds": None, "tflop_per_second": None, "rate": None}
    return {"seconds": 1000 * pflop / rate.value, "tflop_per_second": rate.value, "rate": rate.source}


def download_line(settings: GenerateSettings) -> str | None:
    """What has to be downloaded of a published model; None for models in folders and on other accounts."""
    if settings.model_id not in PUBLISHED:
        return None
    total = sum(download_bytes(settings.model_id, without=replaced_parts(settings)).values())
    there = cached_bytes(settings.model_id)
    if there >= COMPLETE * total:
        return "nothing to download: the model is here"
    some = f", of which {there / 1e9:.0f} GB are here" if there > 5e8 else ""
    return f"downloads about {total / 1e9:.0f} GB{some}"


def cached_bytes(model_id: str) -> int:
    """Bytes of a model's files in the hub's cache, unfinished downloads included."""
    from huggingface_hub import constants

    blobs = Path(constants.HF_HUB_CACHE, f"models--{model_id.replace('/', '--')}", "blobs")
    with suppress(OSError):
        return sum(entry.stat().st_size for entry in os.scandir(blobs))
    return 0


def free_path(outdir: Path, stem: str) -> Path:
    """The path that a video will have: no file of that name is there yet, nor one beside it."""
    for number in itertools.count(1):
        path = outdir / (f"{stem}.mp4" if number == 1 else f"{stem}-{number}.mp4")
        if not any(path.with_suffix(suffix).exists() for suffix in (".mp4", ".json", ".png")):
            return path
