"""Whether the published models run in small GPUs' memory: planned peaks against those of an allocator with that limit.

For each target the plan chooses how parts are held, as `--memory` does. Then a window of 97 frames at 540P runs with
random weights of the published sizes: texts, a step with guidance, decoding. An allocation past the limit fails.
Before that, how far frames and latents of the VAE in tiles are from those of the whole.

    python benchmarks/memory_targets.py                               # on a GPU with any memory; 3 GB of host memory
    python benchmarks/memory_targets.py --size tiny --device cpu      # only whether it runs

Weights that take turns on the GPU are the same few numbers for every layer: what counts is where they are.
"""

import argparse
import gc
import re
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from small_checkpoints import write_tokenizer

from benchmarks.sizes import random_vae
from skyreels_v2_infer import DiffusionForcingPipeline, embedded
from skyreels_v2_infer.distributed.xdit_context_parallel import alone
from skyreels_v2_infer.modules import WanModel, WanVAE, get_vae, vae_tiles
from skyreels_v2_infer.modules.attention import choose_attention
from skyreels_v2_infer.modules.linear import quantize_blocks
from skyreels_v2_infer.modules.text_encoder import TextEncoder, empty_model, load_tokenizer
from skyreels_v2_infer.pipelines.hooks import Hooks, Ranks
from skyreels_v2_infer.plan import cost, memory
from skyreels_v2_infer.plan.inputs import Inputs
from skyreels_v2_infer.plan.models import architecture
from skyreels_v2_infer.plan.plan import make_plan
from skyreels_v2_infer.weights.key_tables import KEEP_FLOAT32

GIB = 2**30
UMT5 = {"vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
TINY = {"dim": 64, "ffn_dim": 96, "num_heads": 2, "num_layers": 2, "text_dim": 32}
TINY_UMT5 = {"vocab_size": 512, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
FP8_SCALE = 64.0  # float8 numbers are this much larger than the weights that they stand for


@dataclass(frozen=True)
class Target:
    """A model and the memory that it has to run in, in GiB."""

    model: str
    gib: float
    quantize: str | None = None

    def __str__(self) -> str:
        return f"{self.model}{f', --quantize {self.quantize}' if self.quantize else ''}, {self.gib:g} GiB"


TARGETS = (Target("DF-1.3B-540P", 8), Target("DF-14B-540P", 12), Target("DF-14B-540P", 24, "fp8"))


class Filler:
    """Puts random weights in place of those of modules on the meta device.

    Args:
        device: of the GPU. Weights in host memory are pinned for it, and shared by all layers of a list of modules.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.shared: dict[tuple, torch.Tensor] = {}

    def value(self, name: str, shape: torch.Size, dtype: torch.dtype, home: torch.device) -> torch.Tensor:
        if name.endswith(".scale"):
            return torch.full(shape, 1 / FP8_SCALE, dtype=torch.float32, device=home)
        if "norm" in name and name.endswith("weight"):
            return torch.ones(shape, dtype=dtype, device=home)
        values = torch.randn(shape, dtype=torch.bfloat16, device=self.device)
        values = values.mul_(0.02 * (FP8_SCALE if dtype.itemsize == 1 else 1)).to(dtype).to(home)
        return values.pin_memory() if home.type == "cpu" and self.device.type == "cuda" else values

    def fill(self, module: nn.Module, home: torch.device) -> nn.Module:
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            owner, _, leaf = name.rpartition(".")
            owner = module.get_submodule(owner)
            dtype = tensor.dtype
            if dtype.itemsize > 1:
                dtype = torch.float32 if KEEP_FLOAT32.search(name) else torch.bfloat16
            key = re.sub(r"\.\d+\.", ".", f".{name}", count=1), tuple(tensor.shape), dtype
            value = self.shared.get(key)
            if value is None:
                value = self.value(name, tensor.shape, dtype, home)
                if home.type == "cpu":
                    self.shared[key] = value
            is_parameter = isinstance(tensor, nn.Parameter)
            value = value.view_as(value)  # a tensor of its own: parts are moved one by one
            setattr(owner, leaf, nn.Parameter(value, requires_grad=False) if is_parameter else value)
        return module.eval()


def psnr(made: torch.Tensor, whole: torch.Tensor, span: float) -> float:
    """In decibels; span: of the values."""
    return float(10 * torch.log10(span**2 / (made - whole).double().square().mean()))


@torch.no_grad()
def compare_tiles(device: torch.device) -> None:
    """Prints how far the VAE in tiles is from the whole: trained weights of `tiny`, random ones of published width."""
    frames, height, width = (5, 352, 640) if device.type == "cuda" else (5, 336, 64)  # 4 and 2 tiles
    draw = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 16, (frames + 3) // 4, height // 8, width // 8, generator=draw)
    vaes = {"tiny": get_vae(embedded.folder(image_to_video=False), device), "published width": random_vae(96, device)}
    for name, vae in vaes.items():
        whole = vae.decode(latents)
        found = {"frames": psnr(torch.cat(list(vae_tiles.decode_stream(vae, latents)), dim=2), whole, 2.0)}
        encoded = vae.encode(whole)
        span = float(encoded.max() - encoded.min())
        found["latents"] = psnr(vae_tiles.encode(vae, whole), encoded, span)
        words = ", ".join(f"{what} {value:.1f} dB" for what, value in found.items())
        print(f"VAE in tiles, {name}, {frames} frames of {height}x{width}: PSNR of {words}", flush=True)


class Measured:
    """Peaks by stage, in GiB."""

    def __init__(self, device: torch.device):
        self.device, self.peaks, self.reserved = device, {}, 0.0

    def note(self, stage: str) -> None:
        """Ends a stage."""
        if self.device.type != "cuda":
            return
        torch.cuda.synchronize()
        self.peaks[stage] = max(self.peaks.get(stage, 0), torch.cuda.max_memory_allocated() / GIB)
        self.reserved = max(self.reserved, torch.cuda.max_memory_reserved() / GIB)
        torch.cuda.reset_peak_memory_stats()


def text_encoder(sizes: dict, filler: Filler) -> TextEncoder:
    model = empty_model({**sizes, "feed_forward_proj": "gated-gelu"})
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        return TextEncoder(filler.fill(model, torch.device("cpu")), load_tokenizer(Path(folder)))


def run(target: Target, encoder: TextEncoder, tiny: bool, steps: int, device: torch.device) -> None:
    """Runs one target and prints how it went."""
    config = architecture(f"Skywork/SkyReels-V2-{target.model}")
    plan = make_plan(97, steps, 8.0, height=544, width=960, guidance_scale=6.0, base_num_frames=97, seed=1)
    quantized = {}
    if target.quantize is not None:
        one_byte = cost.block_weights(config)
        quantized["transformer"] = (cost.parameters(config) - one_byte) * 2 + one_byte
    chosen = memory.choose(plan, config, weight_bytes=2, gib=target.gib, given=True, loaded=quantized)
    planned = chosen.cost.stages
    holding = chosen.holding
    print(f"{target}: {memory.in_words(holding) or 'everything on the GPU'}", flush=True)
    if tiny:
        config = config | TINY
        plan = make_plan(9, steps, 8.0, height=64, width=64, guidance_scale=6.0, base_num_frames=9, seed=1)
    texts = {"prompt": "a swan on a lake", "negative_prompt": "blurry"}
    plan = replace(plan, windows=tuple(replace(window, **texts) for window in plan.windows))

    began = time.perf_counter()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.set_per_process_memory_fraction(target.gib * GIB / torch.cuda.mem_get_info(device)[1], device)
    measured, filler = Measured(device), Filler(device)
    home = device if holding.offload == "none" else torch.device("cpu")
    with torch.device("meta"):
        transformer = WanModel(**config)
    if target.quantize is not None:
        quantize_blocks(transformer, target.quantize, device)
    hook = encoder.model.register_forward_hook(lambda *_: measured.note("texts"))
    vae = WanVAE(dim=8 if tiny else 96).to(home).eval().requires_grad_(False)
    attention = choose_attention(device, torch.bfloat16, config["dim"] // config["num_heads"], "auto", print)
    pipeline = DiffusionForcingPipeline.from_parts(
        filler.fill(transformer, home),
        vae,
        encoder,
        hooks=Hooks(ranks=Ranks.of(alone(attention))),
        device=device,
        offload=holding,
    )
    measured.note("loading")
    seconds = {"loading": time.perf_counter() - began}
    began = time.perf_counter()
    frames = 0
    for part in pipeline.execute(plan, Inputs()):
        measured.note("denoising")
        seconds["texts and steps"] = time.perf_counter() - began
        began = time.perf_counter()
        for piece in part.pieces:
            frames += piece.shape[2]
    measured.note("decoding")
    seconds["decoding"] = time.perf_counter() - began
    hook.remove()
    assert frames == plan.num_frames
    print(f"{'':12} {'planned':>9} {'measured':>9}   GiB")
    for stage in ("loading", *planned):
        values = (
            f"{found[stage]:.2f}" if stage in found else "-" for found in ({} if tiny else planned, measured.peaks)
        )
        print(f"{stage:12} {next(values):>9} {next(values):>9}")
    spent = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
    print(f"reserved by torch {measured.reserved:.2f} GiB; {spent}\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=("published", "tiny"), default="published")
    parser.add_argument("--targets", type=int, nargs="+", default=[1, 2, 3], choices=(1, 2, 3), help="which of them")
    parser.add_argument("--steps", type=int, default=1, help="denoising steps, each with guidance")
    args = parser.parse_args()
    device = torch.device(args.device)
    if args.device == "cuda":
        device = torch.device("cuda", 0)  # a limit on memory needs the number
    if device.type == "cuda" and not torch.cuda.is_available():
        reason = "there is no such GPU; --size tiny --device cpu shows whether it runs"
        parser.exit(2, f"{parser.prog}: --device {args.device}: {reason}\n")
    if device.type != "cuda" and args.size != "tiny":
        parser.exit(2, f"{parser.prog}: --size {args.size}: needs a GPU\n")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device
    print(f"torch {torch.__version__}, {name}", flush=True)
    tiny, failed = args.size == "tiny", 0
    compare_tiles(device)
    encoder = text_encoder(TINY_UMT5 if tiny else UMT5, Filler(device))
    for number in args.targets:
        try:
            run(TARGETS[number - 1], encoder, tiny, args.steps, device)
        except torch.cuda.OutOfMemoryError as error:
            print(f"does not fit: {str(error).splitlines()[0]}\n", flush=True)
            failed += 1
        gc.collect()
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
