"""TeaCache on a model: for several thresholds, how many steps are computed, how much faster, and how near the result.

Of text-to-video and diffusion-forcing models. Each video is made without the cache and then with every threshold, in
one process; times are medians.

    python benchmarks/teacache.py --model_id tiny
    python benchmarks/teacache.py --model_id tiny --forcing --num_frames 97

Flags that are not its own are those of generate_video.py, with --forcing of generate_video_df.py.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from skyreels_v2_infer import DiffusionForcingPipeline, embedded
from skyreels_v2_infer.cli.arguments import parse_diffusion_forcing, parse_generate
from skyreels_v2_infer.cli.planning import plan_of
from skyreels_v2_infer.modules.caches.base import BlockCache, WindowRows
from skyreels_v2_infer.modules.caches.teacache import TeaCache
from skyreels_v2_infer.pipelines.base import collect
from skyreels_v2_infer.pipelines.hooks import Hooks
from skyreels_v2_infer.plan.caching import choose_coefficients
from skyreels_v2_infer.plan.inputs import Inputs
from skyreels_v2_infer.plan.plan import Plan
from skyreels_v2_infer.weights.locate import Checkpoint
from training.evaluate import psnr

THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.5)
PROMPTS = (
    "a red circle moves slowly to the right on a black background",
    "a fast blue square moving upward, gray background",
    "a yellow triangle glides gently to the left",
)


class Counted:
    """A TeaCache that keeps the decisions of every window."""

    def __init__(self, cache: TeaCache):
        self.cache, self.windows = cache, []

    def window(self, rows: WindowRows) -> BlockCache:
        self.windows.append(self.cache.window(rows))
        return self.windows[-1]


def timed(pipeline, cache, plan: Plan) -> tuple[np.ndarray, float]:
    """The video, and the seconds that the latents took."""
    began = time.perf_counter()
    latents = collect(pipeline.execute(plan, Inputs(), hooks=Hooks(cache=cache)), "latent")
    if latents.is_cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    frames = pipeline.vae.decode(latents).add(1).mul(127.5).round()
    return frames.cpu().numpy(), seconds


def shown(near: float) -> str:
    return f"{near:.1f} dB" if near < psnr(np.zeros(1), np.zeros(1)) else "the same"


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter, allow_abbrev=False)
    parser.add_argument("--model_id", default=embedded.NAME, help="tiny, a folder or a published model")
    parser.add_argument("--prompt", nargs="+", default=PROMPTS, help="default: three of tiny's world")
    parser.add_argument("--seeds", type=int, default=4, help="videos for each prompt")
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--use_ret_steps", action="store_true")
    parser.add_argument("--forcing", action="store_true", help="by diffusion forcing, in windows or asynchronous")
    args, others = parser.parse_known_args()
    parse = parse_diffusion_forcing if args.forcing else parse_generate
    settings = parse(["--model_id", args.model_id, *others])
    if args.threads:
        torch.set_num_threads(args.threads)
    checkpoint = Checkpoint.open(settings.model_id)
    config = checkpoint.transformer_config
    found = choose_coefficients(config, checkpoint.folder, settings.height, settings.width, args.use_ret_steps)
    pipeline = DiffusionForcingPipeline(checkpoint, device=args.device)
    plan = plan_of(settings, config, checkpoint.folder)
    plans = [plan.with_prompt(prompt).with_seed(seed) for prompt in args.prompt for seed in range(args.seeds)]
    timed(pipeline, None, plans[0])

    rows = {threshold: [] for threshold in THRESHOLDS}
    for plan in plans:
        plain, whole = timed(pipeline, None, plan)
        for threshold in THRESHOLDS:
            cache = Counted(TeaCache(threshold, found, args.use_ret_steps))
            frames, seconds = timed(pipeline, cache, plan)
            computed = float(np.mean([step for window in cache.windows for step in window.decisions[0]]))
            rows[threshold].append((100 * computed, whole / seconds, psnr(frames, plain)))
    print("| threshold | steps computed | speed-up | PSNR to the uncached run, median | least |\n|---|---|---|---|---|")
    for threshold, values in rows.items():
        computed, faster, near = zip(*values, strict=True)
        print(
            f"| {threshold} | {np.mean(computed):.0f} % | {statistics.median(faster):.2f} "
            f"| {shown(statistics.median(near))} | {shown(min(near))} |"
        )


if __name__ == "__main__":
    main()
