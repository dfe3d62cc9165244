"""What a GPU makes of what the tests check on a CPU: how far apart the results are, and how fast it is; in markdown.

    python benchmarks/gpu.py                        # should need about 12 GiB of the GPU's memory
    python benchmarks/gpu.py --device cpu --quick   # only whether it runs: small, and without the times

The GPU computes float32 twice: without TF32 in cuDNN's convolutions, and with it, as torch has it. A difference is the
largest one, relative to the largest value, unless it is one of 255 levels.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from peers import apart, randomize
from side_by_side import lowered, timed
from yunchang.ring.utils import update_out_and_lse

from skyreels_v2_infer import DiffusionForcingPipeline, Image2VideoPipeline, Text2VideoPipeline, embedded
from skyreels_v2_infer.cli.defaults import TINY
from skyreels_v2_infer.modules import WanVAE
from skyreels_v2_infer.modules.attention import attend, attend_block_causal, attend_with_log_sum
from skyreels_v2_infer.modules.caches.teacache import TeaCache
from skyreels_v2_infer.modules.rope import rotary_table
from skyreels_v2_infer.modules.transformer import Block
from skyreels_v2_infer.pipelines.conditioning import to_frames
from skyreels_v2_infer.pipelines.hooks import Hooks
from skyreels_v2_infer.plan.caching import choose_coefficients
from skyreels_v2_infer.plan.cost import forward_flop
from skyreels_v2_infer.plan.models import SIZES
from skyreels_v2_infer.runtime import Placement
from skyreels_v2_infer.scheduler import FlowUniPCMultistepScheduler, ad_schedule
from skyreels_v2_infer.weights.key_tables import KEEP_FLOAT32
from skyreels_v2_infer.weights.locate import Checkpoint
from training.evaluate import forcing, psnr, settings

CPU = torch.device("cpu")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
PICTURES = Path(__file__).parents[1] / "docs" / "images"
LEFT, RIGHT = (Image.open(PICTURES / f"square_{side}.png") for side in ("left", "right"))
STEPS = 6
OWN = {"prompt": TINY.prompt, "num_inference_steps": STEPS}
SHORT, WINDOW = settings(**OWN, num_frames=17), forcing(**OWN, num_frames=33)
IMAGE = {"prompt": "a yellow square moves quickly to the right", "image": LEFT}
LATENT = {"num_frames": 65, "history": "latent"}
T2V, DF, I2V = Text2VideoPipeline, DiffusionForcingPipeline, Image2VideoPipeline
# pipeline, what it is asked for, threshold of TeaCache
MODES = {
    "T2V, 17 frames": (T2V, SHORT, None),
    "DF, 33 frames": (DF, WINDOW, None),
    ", TeaCache 0.2": (DF, WINDOW, 0.2),
    ", image": (DF, WINDOW | IMAGE, None),
    ", image and end image": (DF, WINDOW | IMAGE | {"end_image": RIGHT}, None),
    ", ar_step 4": (DF, WINDOW | {"ar_step": 4}, None),
    ", ar_step 4, causal": (DF, WINDOW | {"ar_step": 4, "causal_attention": True}, None),
    "DF, 65 frames, history pixel": (DF, WINDOW | {"num_frames": 65}, None),
    ", history latent": (DF, WINDOW | LATENT, None),
    ", history latent, TeaCache 0.2": (DF, WINDOW | LATENT, 0.2),
    "I2V, 17 frames": (I2V, SHORT | IMAGE, None),
}
QUICK = ("T2V, 17 frames", "DF, 33 frames", ", TeaCache 0.2", ", image", "I2V, 17 frames")
# query tokens, key tokens, head size: those of published models, those of the embedded one, and odd ones
ATTENTION = ((300, 300, 128), (300, 257, 128), (77, 1024, 128), (512, 512, 32), (1, 1, 32), (300, 512, 16))
FRAMES, ROWS, COLUMNS = 25, 34, 60  # of tokens: 97 frames at 544x960
TOKENS, HEAD_SIZE, TEXT_TOKENS = FRAMES * ROWS * COLUMNS, 128, 512


def row(*cells: object) -> None:
    print("|", " | ".join(map(str, cells)), "|", flush=True)


def header(title: str, *cells: str) -> None:
    print(f"\n{title}\n")
    row("", *cells)
    row(*["---"] * (len(cells) + 1))


def without_tf32():
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def computed(work: Callable, device: torch.device) -> tuple:
    """What `work(device)` returns for the CPU, and for the device without and with TF32."""
    expected = work(CPU)
    with without_tf32():
        exact = work(device)
    return expected, exact, work(device)


@cache
def loaded(kind: type, device: torch.device, dtype: torch.dtype, offload: bool):
    return kind(embedded.folder(kind is Image2VideoPipeline), device=device, weight_dtype=dtype, offload=offload)


def video(mode: tuple, device: torch.device, dtype=torch.float32, offload=False) -> tuple[torch.Tensor, np.ndarray]:
    """(latents, on the CPU; frames, uint8 ``[T, H, W, 3]``)"""
    kind, asked, threshold = mode
    pipeline = loaded(kind, device, dtype, offload)
    cache = None
    if threshold is not None:
        checkpoint = Checkpoint.open(embedded.folder(False))
        config, size = checkpoint.transformer_config, (asked["height"], asked["width"])
        found = choose_coefficients(config, checkpoint.folder, *size, use_ret_steps=False)
        cache = TeaCache(threshold, found)
    pipeline.hooks = Hooks(cache=cache)
    latents, frames = [], []
    for part in pipeline.generate(**asked):
        latents.append(part.latents.cpu())
        frames += [to_frames(piece)[0] for piece in part.pieces]
    return torch.cat(latents, dim=2), np.concatenate(frames)


def videos(names: tuple[str, ...], device: torch.device) -> None:
    columns = ("latents", "of 255", "with TF32: latents", "of 255", "bfloat16, offloaded", "bfloat16, PSNR to float32")
    header(f"The embedded model, {STEPS} steps: float32 against the CPU's, offloaded against not", *columns)
    for name in names:
        make = partial(video, MODES[name])
        (expected, expected_frames), *results = computed(make, device)
        cells = []
        for latents, frames in results:
            cells += [f"{apart(latents, expected):.1e}", np.abs(frames.astype(int) - expected_frames).max()]
        (latents, frames), (again, frames_again) = (make(device, torch.bfloat16, offload) for offload in (False, True))
        same = torch.equal(latents, again) and np.array_equal(frames, frames_again)
        row(name, *cells, "the same" if same else "differ", f"{psnr(frames, expected_frames):.1f} dB")


def in_float64(q, k, v, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention and its log of the sum of exponentials, on the CPU."""
    q, k, v = (x.double().cpu().transpose(1, 2) for x in (q, k, v))
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2), scores.logsumexp(-1)


def joined(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention to each half of the keys, put together by the engine of --use_usp as in a ring of two ranks."""
    out = log_sum = None
    for keys, values in zip(k.chunk(2, dim=1), v.chunk(2, dim=1), strict=True):
        out, log_sum = update_out_and_lse(out, log_sum, *attend_with_log_sum(q, keys, values))
    return out


def attention_errors(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, float]]:
    def heads(queries: int, keys: int, size: int) -> list[torch.Tensor]:
        """q, k and v of two videos and four heads."""
        return [torch.randn(2, tokens, 4, size).to(device, dtype) for tokens in (queries, keys, keys)]

    inputs = [heads(*sizes) for sizes in ATTENTION]
    yield "attend", max(apart(attend(*qkv).cpu(), in_float64(*qkv)[0]) for qkv in inputs)
    qkv, block = heads(330, 330, 128), torch.arange(330) // 60
    expected, _ = in_float64(*qkv, block[:, None] >= block)
    yield "attend_block_causal", apart(attend_block_causal(*qkv, 60).cpu(), expected)
    if device.type == "cuda" and dtype == torch.float32:  # FlashAttention, which tells the sum, has no float32
        return
    qkv = heads(300, 512, 128)
    (out, log_sum), (expected, expected_sum) = attend_with_log_sum(*qkv), in_float64(*qkv)
    yield "attend_with_log_sum", apart(out.cpu(), expected)
    yield ", the log of the sum", apart(log_sum.cpu(), expected_sum)
    yield ", halves joined as in a ring", apart(joined(*qkv).cpu(), expected)


def attention(device: torch.device) -> None:
    header("Attention against float64", *(str(dtype).removeprefix("torch.") for dtype in DTYPES))
    errors = [dict(attention_errors(device, dtype)) for dtype in DTYPES]
    for name in errors[0]:
        row(name, *(f"{found[name]:.1e}" if name in found else "-" for found in errors))


def solved(noise: torch.Tensor, device: torch.device) -> torch.Tensor:
    """What diffusion forcing, a frame two steps behind the one before it, makes of noise, for some velocity."""
    solver, x = FlowUniPCMultistepScheduler(), noise.to(device, copy=True)  # which is changed in place
    solver.set_timesteps(8, shift=8.0)
    schedule = ad_schedule(x.shape[2], solver.timesteps, ar_step=2)
    for steps, update in zip(schedule.steps, schedule.update, strict=True):
        x = solver.step_frames(torch.sin(x) - 0.3 * x, steps, x, update)
    return x


def components(device: torch.device, vae: WanVAE, frames: int, side: int) -> None:
    clip = torch.rand(1, 3, frames, side, side) * 2 - 1
    latents = torch.randn(1, 16, 1 + frames // 4, side // 8, side // 8)

    def work(device: torch.device) -> list[torch.Tensor]:
        vae.to(device)
        return [x.cpu() for x in (solved(latents, device), vae.encode(clip), vae.decode(latents))]

    expected, *results = computed(work, device)
    title = f"Float32 against the CPU's; VAE of published size with random weights, {frames} frames of {side}x{side}"
    header(title, "without TF32", "with TF32")
    for i, name in enumerate(("step_frames", "VAE, encode", "VAE, decode")):
        row(name, *(f"{apart(found[i], expected[i]):.1e}" for found in results))
    row(", of 255", *(f"{127.5 * float((found[2] - expected[2]).abs().max()):.2f}" for found in results))


def milliseconds(work: Callable, device: torch.device, runs: int = 5) -> float:
    work()
    return 1e3 * statistics.median(timed(work, device)[0] for _ in range(runs))


def transformer_times(device: torch.device) -> Iterator[tuple[str, float, float]]:
    """(of what, milliseconds, operations)"""
    random = partial(torch.randn, device=device, dtype=torch.bfloat16)
    for config in SIZES.values():
        count = config["num_heads"]
        q, k, v = (random(1, TOKENS, count, HEAD_SIZE) for _ in range(3))
        flop = 4 * TOKENS**2 * HEAD_SIZE * count
        for name, backend in (("cuDNN", SDPBackend.CUDNN_ATTENTION), ("Flash", SDPBackend.FLASH_ATTENTION)):
            kernel = partial(F.scaled_dot_product_attention, *(x.transpose(1, 2) for x in (q, k, v)))
            with sdpa_kernel(backend):
                took = milliseconds(kernel, device)
            yield f"attention, {count} heads, {name}", took, flop
        yield f"attention, {count} heads, `attend`", milliseconds(partial(attend, q, k, v), device), flop

    config = SIZES["14B"] | {"model_type": "t2v", "num_layers": 1}
    dim, count = config["dim"], config["num_heads"]
    with device:
        block = Block(dim, config["ffn_dim"], count, cross_attn_norm=True, eps=1e-6, with_image=False)
        modulation = 0.1 * torch.randn(1, 1, 6, dim)
    block = lowered(block, torch.bfloat16, KEEP_FLOAT32.search)
    text = [(random(1, TEXT_TOKENS, count, HEAD_SIZE), random(1, TEXT_TOKENS, count, HEAD_SIZE))]
    rotary = rotary_table(FRAMES, ROWS, COLUMNS, HEAD_SIZE).to(device)
    work = partial(block, random(1, FRAMES, ROWS * COLUMNS, dim), modulation, text, rotary, attend)
    yield "a block of the 14B", milliseconds(work, device), forward_flop(config, FRAMES, ROWS * COLUMNS)


def decoding(device: torch.device, vae: WanVAE, frames: int) -> tuple[str, str]:
    """(milliseconds a frame, peak memory in GiB) at 544x960"""
    latents = torch.randn(1, 16, 1 + frames // 4, 2 * ROWS, 2 * COLUMNS, device=device)
    torch.cuda.reset_peak_memory_stats(device)
    took = milliseconds(lambda: [piece.shape for piece in vae.decode_stream(latents)], device, runs=1)
    return f"{took / frames:.0f}", f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f}"


def times(device: torch.device, vae: WanVAE) -> None:
    header(f"bfloat16, {TOKENS} tokens (97 frames at 544x960)", "ms", "TFLOP/s")
    for name, took, flop in transformer_times(device):
        row(name, f"{took:.1f}", f"{flop / took / 1e9:.0f}")
    header("Decoding 33 frames at 544x960", "ms a frame", "peak, GiB")
    with without_tf32():
        row("without TF32", *decoding(device, vae, 33))
    row("with TF32", *decoding(device, vae, 33))


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="a few of the modes")
    args = parser.parse_args()
    device = Placement.choose(args.device).device
    on_gpu = device.type == "cuda"
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name(device) if on_gpu else device}")
    videos(QUICK if args.quick else tuple(MODES), device)
    attention(device)
    vae = randomize(WanVAE())
    components(device, vae, *((17, 128) if on_gpu else (5, 32)))
    if on_gpu:
        times(device, vae.to(device))


if __name__ == "__main__":
    main()
