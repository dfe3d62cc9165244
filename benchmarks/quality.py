"""What approximations cost in quality: FP8 and the caches on `tiny`, against the exact run of the same prompt and seed.

Held-out prompts of the world, in three modes: all frames together, asynchronously, and in three windows. For each
prompt and mode the exact video is made first, then each approximation. Speed-ups are in forwards of the transformer and
in CPU seconds of denoising; PSNR is that of the frames; "right": the judge sees what the prompt names (colour, shape,
size, motion, speed), in windows in the first one, and motion continues across all seams.

    python benchmarks/quality.py --out quality.json

Results are kept after every mode of every prompt, and a further call with the same file makes what is missing; with
--budget it ends after so many seconds. The table of what is there is printed at the end (--table: only that).
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from skyreels_v2_infer import DiffusionForcingPipeline, embedded
from skyreels_v2_infer.cli.arguments import parse_diffusion_forcing
from skyreels_v2_infer.cli.defaults import TINY
from skyreels_v2_infer.cli.planning import plan_of
from skyreels_v2_infer.modules.caches.planned import planned_cache
from skyreels_v2_infer.pipelines.base import collect
from skyreels_v2_infer.pipelines.conditioning import to_frames
from skyreels_v2_infer.pipelines.hooks import Hooks
from skyreels_v2_infer.plan.inputs import Inputs
from skyreels_v2_infer.plan.plan import Plan
from skyreels_v2_infer.weights.locate import Checkpoint
from training import judge, scores, world
from training.evaluate import SEED, psnr

EXACT = "exact"
FP8 = "--quantize fp8"
SHARED = (EXACT, FP8, "teacache:threshold=0.14", "teacache:threshold=0.2")
TOGETHER = (
    *("easycache:threshold=0.1", "easycache:threshold=0.2"),
    *("magcache:threshold=0.12", "magcache:threshold=0.24"),
)
# In asynchronous rows some frame takes one of its first steps in most rows if these are a fifth of all.
STAGGERED = (
    *("easycache:threshold=0.2,retention=0.1", "easycache:threshold=0.1,retention=0.05"),
    *("magcache:threshold=0.12,retention=0.05", "magcache:threshold=0.24,retention=0.05"),
)
MODES = {
    "synchronous": ((), (*SHARED, *TOGETHER)),
    "asynchronous, --ar_step 4": (("--ar_step=4",), (*SHARED, *STAGGERED)),
    "three windows, 65 frames": (("--num_frames=65",), (*SHARED, *TOGETHER)),
}


class Maker:
    """Makes videos of `tiny`, and counts forwards of the transformer."""

    def __init__(self):
        self.checkpoint = Checkpoint.open(embedded.folder(image_to_video=False))
        self.forwards, self._pipelines = 0, {}

    def pipeline(self, quantize: str | None) -> DiffusionForcingPipeline:
        if quantize not in self._pipelines:
            made = DiffusionForcingPipeline(self.checkpoint, device="cpu", quantize=quantize)
            made.transformer.blocks[0].register_forward_pre_hook(self._count)
            self._pipelines[quantize] = made
        return self._pipelines[quantize]

    def _count(self, _block, given) -> None:
        self.forwards += len(given[0])  # both passes of guidance may be one batch

    def __call__(self, plan: Plan, quantize: str | None = None) -> tuple[np.ndarray, int, float]:
        """Frames uint8 ``[T, H, W, 3]``, forwards, and CPU seconds of all but the last window's decoding."""
        pipeline = self.pipeline(quantize)
        self.forwards, began = 0, time.process_time()
        latents = collect(pipeline.execute(plan, Inputs(), hooks=Hooks(cache=planned_cache(plan.cache))), "latent")
        seconds = time.process_time() - began
        return to_frames(pipeline.vae.decode(latents))[0], self.forwards, seconds


def plan_for(row: str, flags: tuple[str, ...], checkpoint: Checkpoint) -> Plan:
    cache = () if row in (EXACT, FP8) else ("--cache", row)
    settings = parse_diffusion_forcing(["--model_id", embedded.NAME, "--device=cpu", *flags, *cache])
    return plan_of(settings, checkpoint.transformer_config, checkpoint.folder)


def is_right(frames: np.ndarray, clip: world.Clip) -> bool:
    first = scores.score(judge.judge(frames[: TINY.base_num_frames]), clip.named).core
    if len(frames) == TINY.base_num_frames:
        return first
    verdict, step = judge.judge(frames), TINY.base_num_frames - TINY.overlap_history
    seams = range(TINY.base_num_frames, len(frames), step)
    return first and all(scores.continues(verdict, seam) for seam in seams)


def measure(make: Maker, mode: str, clip: world.Clip, seed: int, known: dict[str, list]) -> dict[str, list]:
    """For each row that is not known: forwards, seconds, PSNR to the exact run, whether it is right."""
    flags, rows = MODES[mode]
    found, exact = dict(known), None
    for row in rows:
        if row in known and row != EXACT:
            continue
        plan = plan_for(row, flags, make.checkpoint).with_prompt(clip.prompt).with_seed(seed)
        frames, forwards, seconds = make(plan, "fp8" if row == FP8 else None)
        exact = frames if row == EXACT else exact
        found[row] = [forwards, round(seconds, 4), round(psnr(frames, exact), 3), bool(is_right(frames, clip))]
    return found


def table(results: dict[str, dict[str, dict[str, list]]]) -> str:
    """A table in markdown for each mode, over the prompts that are there."""
    lines = []
    for mode, prompts in results.items():
        lines += [f"**{mode}** ({len(prompts)} prompts)", ""]
        lines += ["| | speed-up in forwards | in time | PSNR, median | least | right |", "|---|---|---|---|---|---|"]
        for row in MODES[mode][1]:
            pairs = [(found[row], found[EXACT]) for found in prompts.values() if row in found]
            if not pairs:
                continue
            values, whole = zip(*pairs, strict=True)
            forwards, seconds = (sum(w[i] for w in whole) / sum(v[i] for v in values) for i in range(2))
            near = [value[2] for value in values]
            shown = ["", ""] if row == EXACT else [f"{f(near):.1f} dB" for f in (statistics.median, min)]
            right = f"{100 * np.mean([value[3] for value in values]):.0f} %"
            name = row if row == EXACT else f"`{row}`"
            lines.append(f"| {name} | {forwards:.2f} | {seconds:.2f} | {shown[0]} | {shown[1]} | {right} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter, allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, help="JSON file of results, continued if it exists")
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--first", type=int, default=0, help="prompts before this one are not made (default: 0)")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which to end")
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    args = parser.parse_args()
    results = json.loads(args.out.read_text()) if args.out.exists() else {mode: {} for mode in MODES}
    began = time.monotonic()
    if not args.table:
        torch.set_num_threads(1)
        make = Maker()
        clips = world.core_prompts(args.prompts, 33, "test")
        for i, clip in enumerate(clips):
            for mode in MODES if i >= args.first else ():
                known = results[mode].get(str(i), {})
                if known.keys() >= set(MODES[mode][1]) or time.monotonic() - began > args.budget:
                    continue
                results[mode][str(i)] = measure(make, mode, clip, SEED + i, known)
                part = args.out.with_suffix(".part")
                part.write_text(json.dumps(results))
                os.replace(part, args.out)
                print(f"prompt {i + 1}, {mode}", file=sys.stderr, flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
