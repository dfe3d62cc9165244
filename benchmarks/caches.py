"""Caches on the embedded model: how many steps run the blocks, how much faster that is, and how near the result."""

import statistics
from collections.abc import Iterator
from functools import partial

import numpy as np

from benchmarks import teacache
from benchmarks.measure import Run, attempt
from benchmarks.table import Row, row
from skyreels_v2_infer import DiffusionForcingPipeline, embedded
from skyreels_v2_infer.cli.arguments import parse_diffusion_forcing, parse_generate
from skyreels_v2_infer.cli.planning import plan_of
from skyreels_v2_infer.modules.caches.teacache import TeaCache
from skyreels_v2_infer.plan.caching import choose_coefficients
from skyreels_v2_infer.weights.locate import Checkpoint

THRESHOLDS = (0.1, 0.2)
# parser, flags
MODES = {
    "text to video, 33 frames": (parse_generate, ["--num_frames", "33"]),
    "forcing, 65 frames": (parse_diffusion_forcing, ["--num_frames", "65"]),
    "forcing, ar_step 4, 33 frames": (parse_diffusion_forcing, ["--num_frames", "33", "--ar_step", "4"]),
}


def mode(run: Run, name: str, pipeline: DiffusionForcingPipeline, checkpoint: Checkpoint) -> Iterator[Row]:
    parse, flags = MODES[name]
    settings = parse(["--model_id", embedded.NAME, *flags])
    config = checkpoint.transformer_config
    found = choose_coefficients(config, checkpoint.folder, settings.height, settings.width, False)
    plan = plan_of(settings, config, checkpoint.folder)
    plans = [plan.with_prompt(prompt).with_seed(0) for prompt in teacache.PROMPTS]
    teacache.timed(pipeline, None, plans[0])
    table: dict[float, list] = {threshold: [] for threshold in THRESHOLDS}
    for plan in plans:
        plain, whole = teacache.timed(pipeline, None, plan)
        for threshold in THRESHOLDS:
            cache = teacache.Counted(TeaCache(threshold, found))
            frames, seconds = teacache.timed(pipeline, cache, plan)
            computed = float(np.mean([step for window in cache.windows for step in window.decisions[0]]))
            table[threshold].append((100 * computed, whole / seconds, teacache.psnr(frames, plain)))
    for threshold, values in table.items():
        computed, faster, near = zip(*values, strict=True)
        more = {"steps computed, %": float(np.mean(computed)), "PSNR, median": statistics.median(near)}
        faster = statistics.median(faster)
        yield row(f"TeaCache {threshold}, {name}", faster, "x", **more, least=min(near))


def rows(run: Run) -> Iterator[Row]:
    checkpoint = Checkpoint.open(embedded.folder(image_to_video=False))
    pipeline = DiffusionForcingPipeline(checkpoint, device=run.device)
    for name in MODES:
        yield from attempt(name, partial(mode, run, name, pipeline, checkpoint), run.device)
