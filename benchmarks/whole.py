"""Whole runs of the 14B's size on a GPU: random weights, 97 frames at 540P, through the pipeline that the scripts use.

    python benchmarks/whole.py                        # exact and float8, about three minutes on an H200, 40 GB
    python benchmarks/whole.py --device cpu --tiny    # only whether it runs

A guided step is the difference of runs of three steps and of one. Text is not encoded; frames are decoded in float32,
written as mp4 where that is timed, and the VAE's norms are not compiled. The first run of every shape compiles.
"""

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from skyreels_v2_infer import DiffusionForcingPipeline
from skyreels_v2_infer.distributed.xdit_context_parallel import alone
from skyreels_v2_infer.media.write import VideoWriter
from skyreels_v2_infer.modules import WanModel, WanVAE
from skyreels_v2_infer.modules.attention import choose_attention
from skyreels_v2_infer.modules.compiled import compile_blocks, restore_blocks
from skyreels_v2_infer.modules.linear import quantize_blocks
from skyreels_v2_infer.pipelines.hooks import Hooks, Ranks
from skyreels_v2_infer.plan.inputs import Inputs
from skyreels_v2_infer.plan.models import SIZES
from skyreels_v2_infer.plan.plan import Plan, make_plan
from skyreels_v2_infer.run.session import on_host
from skyreels_v2_infer.run.worker import Worker
from skyreels_v2_infer.weights.key_tables import KEEP_FLOAT32

TINY = {"dim": 64, "ffn_dim": 96, "num_heads": 2, "num_layers": 2}
GIB = 2**30


def random_model(sizes: dict, device: torch.device) -> WanModel:
    """A transformer with random weights of a scale that keeps activations finite."""
    with torch.device("meta"):
        model = WanModel(**sizes)
    draw = torch.Generator(device).manual_seed(0)
    for name, parameter in list(model.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        dtype = torch.float32 if KEEP_FLOAT32.search(name) else torch.bfloat16
        value = torch.randn(parameter.shape, generator=draw, device=device, dtype=torch.bfloat16)
        value = value * (0.02 if parameter.ndim > 1 else 0.1) + ("norm" in name and leaf == "weight")
        setattr(model.get_submodule(owner), leaf, torch.nn.Parameter(value.to(dtype), requires_grad=False))
    return model.to(device).eval()


class Whole:
    """The parts, and runs of plans."""

    def __init__(self, device: torch.device, tiny: bool):
        sizes = TINY if tiny else SIZES["14B"]
        self.device, self.size = device, (64, 64) if tiny else (544, 960)
        self.model = random_model(sizes, device)
        self.vae = WanVAE(dim=8 if tiny else 96).to(device).eval().requires_grad_(False)
        self.choice = choose_attention(device, torch.bfloat16, sizes["dim"] // sizes["num_heads"], "auto", print)
        print(f"attention: {self.choice}")
        text = torch.randn(1, self.model.text_len, self.model.text_dim, device=device, dtype=torch.bfloat16)
        self.inputs = Inputs(prompt_embeds=text, negative_prompt_embeds=text)

    def plan(self, frames: int, steps: int, **settings) -> Plan:
        height, width = self.size
        settings = {"shift": 8.0, "guidance_scale": 6.0, "base_num_frames": 97, "seed": 1} | settings
        return make_plan(frames, steps, height=height, width=width, **settings)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def run(self, plan: Plan, writer: VideoWriter | None = None) -> dict[str, float]:
        """Seconds until the last window is denoised, until it is decoded, and until all is written."""
        hooks = Hooks(ranks=Ranks.of(alone(self.choice)))
        pipeline = DiffusionForcingPipeline.from_parts(self.model, self.vae, hooks=hooks)
        worker, spent = Worker(), {}
        began = time.perf_counter()
        for part in pipeline.execute(plan, self.inputs):
            if writer is None:
                self.wait()
                spent["denoised"] = time.perf_counter() - began
            for frames in part.pieces:
                if writer is not None:
                    worker.put(partial(write, writer, on_host(frames)))
            if writer is None:
                self.wait()
                spent["decoded"] = time.perf_counter() - began
        worker.finish()
        if writer is not None:
            writer.close()
        self.wait()
        return spent | {"all": time.perf_counter() - began}

    def steps(self, label: str) -> None:
        """A guided step and the decoding of 97 frames."""
        one, three = self.plan(97, 1), self.plan(97, 3)
        first = self.run(one)["denoised"]
        once, thrice = self.run(one), self.run(three)
        step = (thrice["denoised"] - once["denoised"]) / 2
        decoding = thrice["decoded"] - thrice["denoised"]
        print(f"{label}: guided step {step:.2f} s (first {first:.1f} s), decoding {decoding:.2f} s", flush=True)

    def few_steps(self) -> None:
        plan = self.plan(97, 4, shift=5.0, guidance_scale=1.0, solver="euler")
        with tempfile.TemporaryDirectory() as folder:
            seconds = self.run(plan, VideoWriter(folder, "few", *self.size, 24))["all"]
        print(f"4 steps without guidance, 97 frames, decoded and written: {seconds:.1f} s", flush=True)

    def idle(self) -> None:
        """How long a GPU computes nothing in two windows, the second of which starts from the first."""
        from torch.profiler import ProfilerActivity, profile

        plan = self.plan(177, 2, guidance_scale=1.0, overlap_history=17)
        self.run(plan)  # compiles what a window with a history needs
        with tempfile.TemporaryDirectory() as folder, profile(activities=[ProfilerActivity.CUDA]) as profiled:
            self.run(plan, VideoWriter(folder, "idle", *self.size, 24))
        events = profiled.profiler.kineto_results.events()
        spans = sorted(
            (e.start_ns(), e.start_ns() + e.duration_ns()) for e in events if str(e.device_type()).endswith("CUDA")
        )
        busy, end = 0, spans[0][0]
        for start, stop in spans:
            busy += max(0, stop - max(start, end))
            end = max(end, stop)
        share = 1 - busy / (end - spans[0][0])
        print(f"two windows of two steps: the GPU is idle for {100 * share:.1f} % of the time", flush=True)


def write(writer: VideoWriter, fetch) -> None:
    writer.write(fetch())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a model of two layers, 64x64")
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: there is no such GPU; --device cpu --tiny shows whether it runs")
    with torch.no_grad():
        whole = Whole(device, args.tiny)
        if device.type == "cuda":
            compile_blocks(whole.model, print)
        whole.steps("exact")
        whole.few_steps()
        if device.type == "cuda":
            whole.idle()
            restore_blocks(whole.model)
            quantize_blocks(whole.model, "fp8", device)
            torch.cuda.empty_cache()
            compile_blocks(whole.model, print)
            whole.steps("float8")
            print(f"peak GPU memory {torch.cuda.max_memory_allocated() / GIB:.1f} GiB")


if __name__ == "__main__":
    main()
