"""What a device makes of what the tests check on a CPU: how far apart the results are.

float32 is computed twice on a GPU: without TF32 in cuDNN's convolutions, and with it, as torch has it. Errors of
attention and of the wide transformer are norms of the difference over norms of the reference.
"""

import copy
from collections.abc import Callable, Iterator
from functools import cache, partial

import numpy as np
import torch
from PIL import Image

from benchmarks import ROOT
from benchmarks.measure import Run, attempt, clear, relative_error
from benchmarks.sizes import fill, random_transformer, twin, window_inputs
from benchmarks.table import Row, row
from skyreels_v2_infer import DiffusionForcingPipeline, Image2VideoPipeline, Text2VideoPipeline, embedded
from skyreels_v2_infer.cli.arguments import parse_diffusion_forcing
from skyreels_v2_infer.cli.defaults import TINY
from skyreels_v2_infer.cli.planning import plan_of
from skyreels_v2_infer.modules import WanVAE
from skyreels_v2_infer.modules.attention import (
    AttentionChoice,
    WholeSequence,
    attend,
    attend_block_causal,
    attend_with_log_sum,
    choose_attention,
    refusal,
)
from skyreels_v2_infer.modules.caches.base import Cache
from skyreels_v2_infer.modules.caches.planned import planned_cache
from skyreels_v2_infer.modules.compiled import compile_blocks
from skyreels_v2_infer.modules.linear import quantize_blocks
from skyreels_v2_infer.pipelines.conditioning import to_frames
from skyreels_v2_infer.pipelines.hooks import Hooks
from skyreels_v2_infer.runtime import check_offload
from skyreels_v2_infer.scheduler import FlowUniPCMultistepScheduler, ad_schedule
from skyreels_v2_infer.weights.locate import Checkpoint
from training.evaluate import forcing, psnr, settings

CPU = torch.device("cpu")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LEFT, RIGHT = (Image.open(ROOT / "docs" / "images" / f"square_{side}.png") for side in ("left", "right"))
STEPS = 6
OWN = {"prompt": TINY.prompt, "num_inference_steps": STEPS}
SHORT, WINDOW = settings(**OWN, num_frames=17), forcing(**OWN, num_frames=33)
IMAGE = {"prompt": "a yellow square moves quickly to the right", "image": LEFT}
LONGER, LATENT = {"num_frames": 65}, {"num_frames": 65, "history": "latent"}
T2V, DF, I2V = Text2VideoPipeline, DiffusionForcingPipeline, Image2VideoPipeline
TEACACHE, EASYCACHE, MAGCACHE = (
    "teacache:threshold=0.2",
    "easycache:threshold=0.3,retention=0.05",
    "magcache:threshold=0.3,retention=0.05",
)
# pipeline, what it is asked for, --cache
MODES = {
    "text to video, 17 frames": (T2V, SHORT, None),
    "forcing, 33 frames": (DF, WINDOW, None),
    "forcing, TeaCache": (DF, WINDOW, TEACACHE),
    "forcing, EasyCache": (DF, WINDOW, EASYCACHE),
    "forcing, MagCache": (DF, WINDOW, MAGCACHE),
    "forcing, image": (DF, WINDOW | IMAGE, None),
    "forcing, image and end image": (DF, WINDOW | IMAGE | {"end_image": RIGHT}, None),
    "forcing, ar_step 4": (DF, WINDOW | {"ar_step": 4}, None),
    "forcing, ar_step 4, causal": (DF, WINDOW | {"ar_step": 4, "causal_attention": True}, None),
    "65 frames, history pixel": (DF, WINDOW | LONGER, None),
    "65 frames, history latent": (DF, WINDOW | LATENT, None),
    "65 frames, history latent, TeaCache": (DF, WINDOW | LATENT, TEACACHE),
    "65 frames, history latent, EasyCache": (DF, WINDOW | LATENT, EASYCACHE),
    "forcing, ar_step 4, EasyCache": (DF, WINDOW | {"ar_step": 4}, EASYCACHE),
    "image to video, 17 frames": (I2V, SHORT | IMAGE, None),
}
ON_A_CPU = ("text to video, 17 frames", "forcing, EasyCache", "image to video, 17 frames")
# query tokens, key tokens, head size: those of published models, those of the embedded one, and odd ones
ATTENTION = ((300, 300, 128), (300, 257, 128), (77, 1024, 128), (512, 512, 32), (1, 1, 32), (300, 512, 16))


def largest(ours: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((ours.double() - reference.double()).abs().max() / reference.double().abs().max())


def without_tf32():
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def computed(work: Callable, device: torch.device) -> tuple:
    """What `work(device)` returns for the CPU, and for the device without and with TF32."""
    expected = work(CPU)
    with without_tf32():
        exact = work(device)
    return expected, exact, work(device)


# The embedded model


@cache
def loaded(kind: type, device: torch.device, dtype: torch.dtype, offload: bool):
    return kind(embedded.folder(kind is Image2VideoPipeline), device=device, weight_dtype=dtype, offload=offload)


def cache_of(settings: str) -> Cache:
    """What `--cache SETTINGS` makes of them for the embedded model."""
    flags = ["--model_id", embedded.NAME, "--inference_steps", str(STEPS), "--cache", settings]
    checkpoint = Checkpoint.open(embedded.folder(False))
    plan = plan_of(parse_diffusion_forcing(flags), checkpoint.transformer_config, checkpoint.folder)
    return planned_cache(plan.cache)


def video(mode: tuple, device: torch.device, dtype=torch.float32, offload=False) -> tuple[torch.Tensor, np.ndarray]:
    """(latents, on the CPU; frames, uint8 ``[T, H, W, 3]``)"""
    kind, asked, cache = mode
    pipeline = loaded(kind, device, dtype, offload)
    pipeline.hooks = Hooks(cache=None if cache is None else cache_of(cache))
    return collected(pipeline, asked)


def collected(pipeline, asked: dict) -> tuple[torch.Tensor, np.ndarray]:
    latents, frames = [], []
    for part in pipeline.generate(**asked):
        latents.append(part.latents.cpu())
        frames += [to_frames(piece)[0] for piece in part.pieces]
    return torch.cat(latents, dim=2), np.concatenate(frames)


def same(ours: tuple[torch.Tensor, np.ndarray], others: tuple[torch.Tensor, np.ndarray]) -> bool:
    return torch.equal(ours[0], others[0]) and np.array_equal(ours[1], others[1])


def mode_rows(run: Run, name: str) -> Iterator[Row]:
    make = partial(video, MODES[name])
    (expected, expected_frames), (exact, exact_frames), (usual, usual_frames) = computed(make, run.device)

    def levels(frames: np.ndarray) -> int:
        return int(np.abs(frames.astype(int) - expected_frames).max())

    more = {"of 255": levels(exact_frames), "with TF32": largest(usual, expected), ", of 255": levels(usual_frames)}
    resident, offloaded = (make(run.device, torch.bfloat16, offload) for offload in (False, True))
    more |= {"offloaded the same": same(resident, offloaded), "bfloat16, PSNR": psnr(resident[1], expected_frames)}
    yield row(f"{name}, latents", largest(exact, expected), **more)


# Quantised weights with --offload


def quantised_rows(run: Run) -> Iterator[Row]:
    """A small model from a GGUF file, and the embedded one rounded to float8 and int8: without and with `offload`."""
    import forms
    import small_checkpoints

    folder = small_checkpoints.write_original(run.folder / "small", "t2v")
    forms.write_gguf(run.folder / "q4_k.gguf", forms.weights("t2v"), "Q4_K")
    stored = Checkpoint.open(run.folder / "q4_k.gguf", ("transformer",), config=forms.config("t2v"))
    asked = {"prompt": "a swan", "height": 64, "width": 64, "num_frames": 17, "num_inference_steps": 3, "seed": 1}
    asked |= {"base_num_frames": 17, "ar_step": 0, "guidance_scale": 3.0, "shift": 8.0}
    tiny = embedded.folder(False)
    cases = {
        "GGUF Q4_K": (folder, {"dit_path": stored}, asked),
        "--quantize fp8": (tiny, {"quantize": "fp8"}, WINDOW),
        "--quantize int8": (tiny, {"quantize": "int8"}, WINDOW),
    }
    for name, (model, options, asked) in cases.items():
        made = [
            collected(DF(model, device=run.device, weight_dtype=run.dtype, offload=offload, **options), asked)
            for offload in (False, True)
        ]
        yield row(f"{name}: offloaded the same", same(*made))


# Attention


def in_float64(q, k, v, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention and its log of the sum of exponentials, on the CPU."""
    q, k, v = (x.double().cpu().transpose(1, 2) for x in (q, k, v))
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2), scores.logsumexp(-1)


def attention_rows(run: Run, dtype: torch.dtype) -> Iterator[Row]:
    def heads(queries: int, keys: int, size: int) -> list[torch.Tensor]:
        """q, k and v of two videos and four heads."""
        tokens = (queries, keys, keys)
        return [run.random(2, count, 4, size, dtype=torch.float32, seed=i).to(dtype) for i, count in enumerate(tokens)]

    name = str(dtype).removeprefix("torch.")
    for kernel in ("default", "fa4", "cudnn", "flash", "sage"):
        sizes = ATTENTION if kernel == "default" else ATTENTION[:3]
        if kernel != "default" and (not run.cuda or refusal(kernel, run.device, dtype, 128)):
            continue
        choice = AttentionChoice(kernel, kernel)
        yield from attempt(
            f"{name}, {kernel}", partial(kernel_row, name, choice, [heads(*s) for s in sizes]), run.device
        )
    qkv, block = heads(330, 330, 128), torch.arange(330) // 60
    expected, _ = in_float64(*qkv, block[:, None] >= block)
    yield row(f"{name}, causal blocks", relative_error(attend_block_causal(*qkv, 60).cpu(), expected))
    if run.cuda and dtype == torch.float32:  # FlashAttention, which tells the sum, has no float32
        return
    qkv = heads(300, 512, 128)
    for kernel in ("flash", "fa4"):
        if refusal(kernel, run.device, dtype, 128) is None:
            choice = AttentionChoice(kernel, kernel)
            yield from attempt(f"{name}, log of the sum, {kernel}", partial(sum_rows, name, choice, qkv), run.device)


def kernel_row(name: str, choice: AttentionChoice, inputs: list) -> Iterator[Row]:
    worst = max(relative_error(attend(*qkv, choice).cpu(), in_float64(*qkv)[0]) for qkv in inputs)
    yield row(f"{name}, {choice}", worst)


def sum_rows(name: str, choice: AttentionChoice, qkv: list) -> Iterator[Row]:
    (out, log_sum), (expected, expected_sum) = attend_with_log_sum(*qkv, choice), in_float64(*qkv)
    more = {"log of the sum": relative_error(log_sum.cpu(), expected_sum)}
    yield row(f"{name}, {choice} with the log of the sum", relative_error(out.cpu(), expected), **more)


def ring_row(run: Run) -> Iterator[Row]:
    """Attention to each half of the keys, put together by the engine of --use_usp as in a ring of two ranks."""
    from yunchang.ring.utils import update_out_and_lse

    q, k, v = (run.random(2, count, 4, 128, seed=i) for i, count in enumerate((300, 512, 512)))
    out = log_sum = None
    for keys, values in zip(k.chunk(2, dim=1), v.chunk(2, dim=1), strict=True):
        out, log_sum = update_out_and_lse(out, log_sum, *attend_with_log_sum(q, keys, values))
    yield row("halves of the keys joined as in a ring", relative_error(out.cpu(), in_float64(q, k, v)[0]))


# Parts of the published width


def solved(noise: torch.Tensor, device: torch.device) -> torch.Tensor:
    """What diffusion forcing, a frame two steps behind the one before it, makes of noise, for some velocity."""
    solver, x = FlowUniPCMultistepScheduler(), noise.to(device, copy=True)  # which is changed in place
    solver.set_timesteps(8, shift=8.0)
    schedule = ad_schedule(x.shape[2], solver.timesteps, ar_step=2)
    for steps, update in zip(schedule.steps, schedule.update, strict=True):
        x = solver.step_frames(torch.sin(x) - 0.3 * x, steps, x, update)
    return x


def component_rows(run: Run) -> Iterator[Row]:
    frames, side, dim = (17, 128, 96) if run.cuda else (5, 32, 16)
    with torch.device("meta"):
        vae = WanVAE(dim=dim)
    vae = fill(vae, CPU, torch.float32)
    draw = torch.Generator().manual_seed(0)
    clip = torch.rand(1, 3, frames, side, side, generator=draw) * 2 - 1
    latents = torch.randn(1, 16, 1 + frames // 4, side // 8, side // 8, generator=draw)

    def work(device: torch.device) -> list[torch.Tensor]:
        vae.to(device)
        return [x.cpu() for x in (solved(latents, device), vae.encode(clip), vae.decode(latents))]

    expected, exact, usual = computed(work, run.device)
    names = ("solver, rows of forcing", f"VAE encodes {frames} frames of {side}x{side}", "VAE decodes them")
    for i, name in enumerate(names):
        levels = 127.5 * float((usual[i] - expected[i]).abs().max()) if name.endswith("decodes them") else None
        more = {"with TF32": largest(usual[i], expected[i])} | ({"of 255": levels} if levels is not None else {})
        yield row(name, largest(exact[i], expected[i]), **more)


def transformer_rows(run: Run) -> Iterator[Row]:
    """Two layers and few tokens, against the same weights in float32."""
    config = run.size.config | {"num_layers": 2}
    latents = (5, 16, 20) if run.cuda else (3, 4, 8)
    model = random_transformer(config, run.device, torch.bfloat16)
    given = window_inputs(model, latents, run.device)
    expected = copy.deepcopy(model).float()(**given)
    sequence = WholeSequence(choose_attention(run.device, torch.bfloat16, run.size.head_size))
    kinds = {"bfloat16": None, "--quantize int8": "int8", "--quantize fp8": "fp8"}
    for name, kind in kinds.items():
        yield from attempt(name, partial(kind_row, run, name, twin(model), kind, given, sequence, expected), run.device)


def kind_row(run: Run, name: str, model, kind: str | None, given: dict, sequence, expected) -> Iterator[Row]:
    more = {}
    if kind is not None:
        quantize_blocks(model, kind, run.device)
    uncompiled = relative_error(model(**given, sequence=sequence), expected)
    if run.compiled:
        compile_blocks(model)
        more = {"compiled": relative_error(model(**given, sequence=sequence), expected)}
    yield row(f"transformer, {name}", uncompiled, **more)


def rows(run: Run) -> Iterator[Row]:
    check_offload(run.device)
    yield from attempt("quantised", partial(quantised_rows, run), run.device)
    for name in MODES if run.cuda else ON_A_CPU:
        yield from attempt(name, partial(mode_rows, run, name), run.device)
    yield from attempt("transformer", partial(transformer_rows, run), run.device)
    for dtype in DTYPES:
        yield from attempt(f"attention in {dtype}", partial(attention_rows, run, dtype), run.device)
    yield from attempt("ring", partial(ring_row, run), run.device)
    yield from attempt("parts", partial(component_rows, run), run.device)
    loaded.cache_clear()
    clear(run.device)
