"""Caches on a model: how many rows are computed, how much faster that is, and how near the result is to the exact one.

Each video is made without a cache and then with each one, in one process; times are medians.

    python -m benchmarks caches                                  # `tiny`, three modes
    python -m benchmarks.caches --model_id path/to/model --forcing --ar_step 5 --caches easycache magcache:skips=2

Flags of the second form that are not its own are those of generate_video.py, with --forcing of generate_video_df.py.
(`python benchmarks/quality.py`: more prompts of `tiny`, FP8, and the judge.)
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

if not __package__:  # started by the file's path
    sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.measure import Run, attempt, wait
from benchmarks.table import Row, markdown, row
from skyreels_v2_infer import DiffusionForcingPipeline, embedded
from skyreels_v2_infer.cli.arguments import parse_diffusion_forcing, parse_generate
from skyreels_v2_infer.cli.planning import plan_of
from skyreels_v2_infer.modules.caches.planned import planned_cache
from skyreels_v2_infer.pipelines.base import collect
from skyreels_v2_infer.pipelines.hooks import Hooks
from skyreels_v2_infer.plan.inputs import Inputs
from skyreels_v2_infer.plan.plan import Plan
from skyreels_v2_infer.weights.locate import Checkpoint
from training.evaluate import psnr

CACHES = (
    *("teacache:threshold=0.1", "teacache:threshold=0.2"),
    *("easycache:threshold=0.1", "easycache:threshold=0.2"),
    *("magcache:threshold=0.12", "magcache:threshold=0.24"),
)
PROMPTS = (
    "a red circle moves slowly to the right on a black background",
    "a fast blue square moving upward, gray background",
    "a yellow triangle glides gently to the left",
)
# parser, flags
MODES = {
    "text to video, 33 frames": (parse_generate, ["--num_frames", "33"]),
    "forcing, 65 frames": (parse_diffusion_forcing, ["--num_frames", "65"]),
    "forcing, ar_step 4, 33 frames": (parse_diffusion_forcing, ["--num_frames", "33", "--ar_step", "4"]),
}


def timed(pipeline, plan: Plan) -> tuple[np.ndarray, float, int]:
    """The frames, the seconds that the latents took, and the forwards of the transformer's blocks, by samples."""
    forwards = []
    hook = pipeline.transformer.blocks[0].register_forward_pre_hook(lambda _, given: forwards.append(len(given[0])))
    began = time.perf_counter()
    latents = collect(pipeline.execute(plan, Inputs(), hooks=Hooks(cache=planned_cache(plan.cache))), "latent")
    wait(pipeline.device)
    seconds = time.perf_counter() - began
    hook.remove()
    frames = pipeline.vae.decode(latents).add(1).mul(127.5).round()
    return frames.cpu().numpy(), seconds, sum(forwards)


def compared(
    pipeline,
    checkpoint: Checkpoint,
    parse: Callable,
    flags: Sequence[str],
    caches: Sequence[str],
    prompts: Sequence[str],
    seeds: Sequence[int],
) -> Iterator[tuple[str, float, dict[str, float]]]:
    """For each cache: its settings, the speed-up, and further columns."""

    def plan(*cache: str) -> Plan:
        return plan_of(parse([*flags, *cache]), checkpoint.transformer_config, checkpoint.folder)

    exact = plan()
    variants = {name: plan("--cache", name).cache for name in caches}
    table: dict[str, list] = {name: [] for name in caches}
    timed(pipeline, exact.with_prompt(prompts[0]).with_seed(0))
    for prompt in prompts:
        for seed in seeds:
            whole = exact.with_prompt(prompt).with_seed(seed)
            plain, whole_seconds, whole_forwards = timed(pipeline, whole)
            for name, cache in variants.items():
                frames, seconds, forwards = timed(pipeline, replace(whole, cache=cache))
                computed = 100 * forwards / whole_forwards
                table[name].append((computed, whole_seconds / seconds, psnr(frames, plain)))
    for name, values in table.items():
        computed, faster, near = zip(*values, strict=True)
        more = {"forwards, %": float(np.mean(computed)), "PSNR, median": statistics.median(near), "least": min(near)}
        yield name, statistics.median(faster), more


def mode(run: Run, name: str, pipeline: DiffusionForcingPipeline, checkpoint: Checkpoint) -> Iterator[Row]:
    parse, flags = MODES[name]
    # In asynchronous rows some frame takes one of its first steps in most rows if these are a fifth of all.
    fewer = ",retention=0.05" if "--ar_step" in flags else ""
    caches = [cache if cache.startswith("teacache") else cache + fewer for cache in CACHES]
    given = ["--model_id", embedded.NAME, *flags]
    for cache, faster, more in compared(pipeline, checkpoint, parse, given, caches, PROMPTS, [0]):
        yield row(f"{cache}, {name}", faster, "x", **more)


def rows(run: Run) -> Iterator[Row]:
    checkpoint = Checkpoint.open(embedded.folder(image_to_video=False))
    pipeline = DiffusionForcingPipeline(checkpoint, device=run.device)
    for name in MODES:
        yield from attempt(name, partial(mode, run, name, pipeline, checkpoint), run.device)


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter, allow_abbrev=False)
    parser.add_argument("--model_id", default=embedded.NAME, help="tiny, a folder or a published model")
    parser.add_argument("--caches", nargs="+", default=CACHES, help="as for --cache")
    parser.add_argument("--prompt", nargs="+", default=PROMPTS, help="default: three of tiny's world")
    parser.add_argument("--seeds", type=int, default=2, help="videos for each prompt")
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--forcing", action="store_true", help="by diffusion forcing, in windows or asynchronous")
    args, others = parser.parse_known_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    parse = parse_diffusion_forcing if args.forcing else parse_generate
    flags = ["--model_id", args.model_id, *others]
    checkpoint = Checkpoint.open(parse(flags).model_id)
    pipeline = DiffusionForcingPipeline(checkpoint, device=args.device)
    found = compared(pipeline, checkpoint, parse, flags, args.caches, args.prompt, range(args.seeds))
    print(markdown([row(cache, faster, "x", **more) for cache, faster, more in found]))


if __name__ == "__main__":
    main()
