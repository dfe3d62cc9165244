"""--dry_run: the plan that would be executed, and its cost. Needs no weights and no torch."""

from __future__ import annotations

import json
from contextlib import suppress

from skyreels_v2_infer import embedded
from skyreels_v2_infer.cli.batch import JobList, JobRow
from skyreels_v2_infer.cli.model_ids import remarks_on
from skyreels_v2_infer.cli.names import stem_of
from skyreels_v2_infer.cli.planning import plan_of, wanted_layout
from skyreels_v2_infer.cli.settings import GenerateSettings
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.plan.cost import cost_of, forwards
from skyreels_v2_infer.plan.plan import Plan
from skyreels_v2_infer.plan.prompts import cut_lines, long_texts
from skyreels_v2_infer.plan.show import batch_table, describe, table, totals
from skyreels_v2_infer.run.inputs import count_video, read_images
from skyreels_v2_infer.run.model_files import Models, check_prompts, known_config
from skyreels_v2_infer.run.row_checks import InvalidRowsError, check_rows
from skyreels_v2_infer.run.sizes import chosen_memory
from skyreels_v2_infer.weights.download import local_folder
from skyreels_v2_infer.weights.locate import Checkpoint


def dry_run(settings: GenerateSettings, ranks: int) -> str:
    """The output of --dry_run: the plan that would be executed, and its cost. Needs no weights and no torch."""
    read_images(settings)  # damaged ones are found here, too
    source = count_video(settings)
    about = described(settings, source.frames if source else 0, ranks)
    return json.dumps(about, indent=2) if settings.dry_run == "json" else table(about)


def dry_run_batch(jobs: JobList) -> str:
    """The output of --dry_run for many videos: a line for each, and the total.

    Raises:
        InvalidRowsError: rows are invalid, and --keep_going is not given.
    """
    about, mine = [], {row.number for row in jobs.mine}

    def seen(row: JobRow, plan: Plan, config: dict | None) -> None:
        if row.number in mine:
            about.append(described_video(row, plan, config))

    _, jobs = check_rows(jobs, Models(), seen)
    invalid = [row for row in jobs.rows if row.settings is None]
    if invalid and not jobs.keep_going:
        raise InvalidRowsError(invalid)
    total = totals(about) | {"invalid": [f"{row.source}: {row.error}" for row in invalid if row.number in mine]}
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
    dtype = settings.dtype or ("float32" if settings.device == "cpu" else "bfloat16")
    chosen = None
    if config is not None:
        chosen = chosen_memory(settings, plan, config, dtype, free=None, on_cpu=settings.device == "cpu")
    about = describe(
        plan,
        config,
        model=embedded.name_of(settings.model_id),
        output=str(settings.outdir / f"{stem_of(settings, seed)}.mp4"),
        dtype=dtype,
        chosen=chosen,
        wanted=wanted_layout(settings),
    )
    about["remarks"] = remarks_on(settings)
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
