"""TeaCache on a model: for several thresholds, how many steps are computed, how much faster, and how near the result.

Of text-to-video and diffusion-forcing models. Each video is made without the cache and then with every threshold, in
one process; times are medians.

    python benchmarks/teacache.py --model_id tiny
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from skyreels_v2_infer import Text2VideoPipeline, embedded
from skyreels_v2_infer.checkpoint import Checkpoint
from skyreels_v2_infer.cli import parse_generate
from skyreels_v2_infer.modules.feature_cache import FeatureCache, TeaCache, choose_coefficients
from training.evaluate import psnr

THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.5)
PROMPTS = (
    "a red circle moves slowly to the right on a black background",
    "a fast blue square moving upward, gray background",
    "a yellow triangle glides gently to the left",
)

SETTINGS = ("height", "width", "num_frames", "inference_steps", "guidance_scale", "shift")


def timed(pipeline, around, prompt: str, arguments: dict) -> tuple[np.ndarray, float]:
    """The video, and the seconds that the latents took."""
    pipeline.around_blocks = around
    began = time.perf_counter()
    latents = pipeline(prompt, output_type="latent", **arguments)
    if latents.is_cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    frames = pipeline.vae.decode(latents).add(1).mul(127.5).round()
    return frames.cpu().numpy(), seconds


def shown(near: float) -> str:
    return f"{near:.1f} dB" if near < psnr(np.zeros(1), np.zeros(1)) else "the same"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_id", default=embedded.NAME, help="tiny, a folder or a published model")
    parser.add_argument("--prompt", nargs="+", default=PROMPTS, help="default: three of tiny's world")
    parser.add_argument("--seeds", type=int, default=4, help="videos for each prompt")
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--use_ret_steps", action="store_true")
    for name in SETTINGS:
        parser.add_argument(f"--{name}", help="default: as in generate_video.py")
    args = parser.parse_args()
    given = {name: getattr(args, name) for name in ("model_id", *SETTINGS) if getattr(args, name) is not None}
    settings = parse_generate([f"--{name}={value}" for name, value in given.items()])
    if args.threads:
        torch.set_num_threads(args.threads)
    checkpoint = Checkpoint.open(settings.model_id)
    config = checkpoint.transformer_config
    found = choose_coefficients(config, checkpoint.folder, settings.height, settings.width, args.use_ret_steps)
    pipeline = Text2VideoPipeline(checkpoint, device=args.device)
    asked = {name: getattr(settings, name) for name in SETTINGS if name != "inference_steps"}
    asked |= {"num_inference_steps": settings.inference_steps, "negative_prompt": settings.negative_prompt}
    jobs = [(prompt, asked | {"seed": seed}) for prompt in args.prompt for seed in range(args.seeds)]
    timed(pipeline, None, *jobs[0])

    rows = {threshold: [] for threshold in THRESHOLDS}
    for prompt, arguments in jobs:
        plain, whole = timed(pipeline, None, prompt, arguments)
        for threshold in THRESHOLDS:
            branches: list[FeatureCache] = []

            def around(steps: int, threshold=threshold, branches=branches) -> FeatureCache:
                branches.append(TeaCache(threshold, found, args.use_ret_steps).branch(steps))
                return branches[-1]

            frames, seconds = timed(pipeline, around, prompt, arguments)
            computed = float(np.mean([branch.computed for branch in branches]))
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
