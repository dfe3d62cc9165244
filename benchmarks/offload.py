"""What --offload saves and what it costs: one video without and with it, in one process, on random weights.

The checkpoint has the files, names, shapes and precision of a published model, so loading, memory and time are a real
one's. It is written where --folder says, 39 GB for the 14B, or used if one is there already.

    python benchmarks/offload.py --folder /dev/shm/df-14b
    python benchmarks/offload.py --model DF-1.3B-540P --layers 1 --num_frames 5 --height 64 --width 64 --device cpu
"""

import argparse
import gc
import json
import mmap
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import small_checkpoints
from small_checkpoints import published_shapes

from skyreels_v2_infer import DiffusionForcingPipeline
from skyreels_v2_infer.pipelines.hooks import Hooks
from skyreels_v2_infer.runtime import Placement
from skyreels_v2_infer.weights.layouts import ORIGINAL_TOKENIZER
from skyreels_v2_infer.weights.locate import Checkpoint
from skyreels_v2_infer.weights.verify import check_files

# name in the table of shapes; kind of config.json; dim, ffn_dim, heads, layers
MODELS = {
    "DF-14B-540P": ("SkyReels-V2-DF-14B and SkyReels-V2-T2V-14B", "t2v", (5120, 13824, 40, 40)),
    "DF-1.3B-540P": ("SkyReels-V2-DF-1.3B-540P", "df", (1536, 8960, 12, 30)),
}
SHARD_BYTES = 5e9
SMALL = 2**20  # elements; what is larger is cut from one piece of noise, since drawing it all would take minutes
SIZE_OF_WEIGHTS = 0.02  # about 1 / sqrt(width): signals neither die out nor explode

Shapes = dict[str, tuple[int, ...]]


class Noise:
    """Random bfloat16 tensors, the large ones cut from the same values, each from another place on."""

    def __init__(self):
        self.values = (SIZE_OF_WEIGHTS * torch.randn(2**26, generator=torch.Generator().manual_seed(0))).bfloat16()

    def pieces(self, name: str, shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
        """The values of a tensor, flat, one stretch after the other."""
        missing = torch.Size(shape).numel()
        if missing <= SMALL:
            yield small_checkpoints.random_tensor(name, shape, 0).bfloat16().flatten()
            return
        start = sum(name.encode()) * 4099 % (len(self.values) // 2)
        while missing:
            piece = self.values[start : start + missing]
            yield piece
            missing, start = missing - len(piece), 0


def write_archive(file: Path, shapes: Shapes, noise: Noise) -> None:
    """As `torch.save` does, but filled in where it lies: nothing is held in memory, and several threads share it."""
    with torch.serialization.skip_data():
        torch.save({name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}, file)
    with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
        tensors = torch.load(file, mmap=True)
    for name, shape in shapes.items():
        torch.cat(list(noise.pieces(name, shape)), out=tensors[name].view(-1))


def write_shard(file: Path, shapes: Shapes, noise: Noise) -> None:
    """A safetensors file; the library's own writer would hold a whole shard in memory, several of them at once."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            for piece in noise.pieces(name, shape):
                stream.write(piece.view(torch.int16).numpy().data)


def shards(shapes: Shapes) -> list[Shapes]:
    found, room = [{}], SHARD_BYTES
    for name, shape in shapes.items():
        room -= 2 * torch.Size(shape).numel()
        if room < 0 and found[-1]:
            found.append({})
            room = SHARD_BYTES - 2 * torch.Size(shape).numel()
        found[-1][name] = shape
    return found


def write_checkpoint(folder: Path, model: str, layers: int | None) -> None:
    """In the original layout; config.json, without which it is none, comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    name, kind, sizes = MODELS[model]
    noise = Noise()
    parts = shards(published_shapes(name, layers))

    def write_vae() -> None:
        shapes = published_shapes(small_checkpoints.VAE)
        torch.save(small_checkpoints.random_weights(shapes, 0), folder / small_checkpoints.VAE)

    with ThreadPoolExecutor(len(parts) + 2) as pool:
        shapes = published_shapes(small_checkpoints.T5, layers)
        work = [pool.submit(write_archive, folder / small_checkpoints.T5, shapes, noise), pool.submit(write_vae)]
        for i, part in enumerate(parts, start=1):
            file = folder / f"model-{i:05}-of-{len(parts):05}.safetensors"
            work.append(pool.submit(write_shard, file, part, noise))
        for done in work:
            done.result()
    small_checkpoints.write_tokenizer(folder / ORIGINAL_TOKENIZER)
    config = small_checkpoints.transformer_config(kind, *sizes[:3], layers or sizes[3]) | {"text_dim": 4096}
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak(device: torch.device, measure: Callable) -> float | None:
    return measure(device) / 2**30 if device.type == "cuda" else None


def measured(folder: Path, offload: bool, device: torch.device, asked: dict) -> tuple[torch.Tensor, dict]:
    """The latents of a video, and what they and its frames took."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    began = now(device)
    pipeline = DiffusionForcingPipeline(folder, device=device, offload=offload)
    figures = {"loading, s": now(device) - began}
    ticks: list[float] = []

    @contextmanager
    def progress(window: int, windows: int, rows: int):
        ticks.append(now(device))
        yield lambda: ticks.append(now(device))

    pipeline.hooks = Hooks(progress=progress)
    began = now(device)
    (part,) = pipeline.generate(**asked)
    latents = part.latents.cpu()
    figures["prompts, s"] = ticks[0] - began
    figures |= {"first row, s": ticks[1] - ticks[0], "last row, s": ticks[-1] - ticks[-2]}
    figures["peak up to the latents, GiB"] = peak(device, torch.cuda.max_memory_allocated)
    reserved = peak(device, torch.cuda.max_memory_reserved)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = now(device)
    frames = sum(piece.shape[2] for piece in part.pieces)
    figures["decoding, s"] = now(device) - began
    assert frames == asked["num_frames"]
    figures["peak of decoding, GiB"] = peak(device, torch.cuda.max_memory_allocated)
    later = peak(device, torch.cuda.max_memory_reserved)
    figures["peak reserved, GiB"] = reserved and max(reserved, later)
    return latents, figures


def shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="DF-14B-540P", help="whose architecture is written")
    parser.add_argument("--layers", type=int, help="this many of its blocks, and of the text encoder's")
    parser.add_argument("--folder", type=Path, help="of the checkpoint (default: one that is removed in the end)")
    parser.add_argument("--num_frames", type=int, default=97)
    parser.add_argument("--height", type=int, default=544)
    parser.add_argument("--width", type=int, default=960)
    parser.add_argument("--steps", type=int, default=2, help="denoising steps, each with guidance")
    parser.add_argument("--device")
    args = parser.parse_args()
    device = Placement.choose(args.device).device
    asked = {"prompt": "a swan on a lake", "guidance_scale": 6.0, "shift": 8.0, "ar_step": 0, "seed": 1}
    asked |= {name: getattr(args, name) for name in ("num_frames", "height", "width")}
    asked |= {"base_num_frames": args.num_frames, "num_inference_steps": args.steps}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        if not (folder / "config.json").is_file():
            began = time.perf_counter()
            write_checkpoint(folder, args.model, args.layers)
            print(f"written to {folder} in {time.perf_counter() - began:.1f} s", flush=True)
        checkpoint = Checkpoint.open(folder)
        check_files(checkpoint)
        config = checkpoint.transformer_config
        print(f"torch {torch.__version__}, {name}; {config['num_layers']} blocks of width {config['dim']}")
        print(f"{args.height}x{args.width}, {args.num_frames} frames", flush=True)
        resident, without = measured(folder, False, device, asked)
        print("without:", {label: shown(value) for label, value in without.items()}, file=sys.stderr, flush=True)
        offloaded, with_it = measured(folder, True, device, asked)
    print(f"{'':28} {'without':>10} {'with':>10} {'ratio':>8}")
    for label, first in without.items():
        second = with_it[label]
        print(f"{label:28} {shown(first):>10} {shown(second):>10} {shown(second / first if first else None):>8}")
    if torch.equal(resident, offloaded):
        print("latents: the same bit for bit")
    else:
        apart = float((resident - offloaded).abs().max() / resident.abs().max())
        print(f"latents: {apart:.1e} apart, relative to the largest")


if __name__ == "__main__":
    main()
