"""Loading a checkpoint from files in memory, and what --offload saves and costs: the same video without and with it."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.checkpoints import size_gib, write_checkpoint
from benchmarks.measure import Run, check_space, clear, peak, seconds, wait
from benchmarks.table import Row, row
from skyreels_v2_infer import DiffusionForcingPipeline
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.pipelines.hooks import Hooks
from skyreels_v2_infer.progress import VideoProgress
from skyreels_v2_infer.runtime import check_offload

STEPS = 2
TEXT_LAYERS = 24  # of umT5-xxl
LARGEST, SHORTENED = 45, 12  # GiB of the largest checkpoint, and of one with few layers


def asked(run: Run) -> dict:
    height, width = run.size.whole
    frames = 4 * run.size.latents[0] - 3
    settings = {"height": height, "width": width, "num_frames": frames, "base_num_frames": frames}
    settings |= {"num_inference_steps": STEPS, "guidance_scale": 6.0, "shift": 8.0, "ar_step": 0, "seed": 1}
    return settings | {"prompt": "a swan on a lake"}


def measured(run: Run, folder: Path, **settings) -> tuple[torch.Tensor, dict[str, float | None]]:
    """The latents of a video, and what they and its frames took, by name."""
    clear(run.device)
    found: dict[str, float | None] = {}
    clock: list[float] = []

    class Timed(VideoProgress):
        @contextmanager
        def rows(self, window: int):
            clock.append(now(run))
            yield lambda: clock.append(now(run))

    with peak(run.device) as gib:
        found["loading, s"], pipeline = seconds(
            lambda: DiffusionForcingPipeline(folder, device=run.device, hooks=Hooks(progress=Timed), **settings),
            run.device,
        )
        began = now(run)
        (part,) = pipeline.generate(**asked(run))
        latents = part.latents.cpu()
        found["prompts, s"] = clock[0] - began
        found |= {"first step, s": clock[1] - clock[0], "last step, s": clock[-1] - clock[-2]}
        found["peak up to the latents, GiB"] = gib()
    with peak(run.device) as gib:
        found["decoding, s"] = seconds(lambda: [piece.shape for piece in part.pieces], run.device)[0]
        found["peak while decoding, GiB"] = gib()
    return latents, found


def now(run: Run) -> float:
    wait(run.device)
    return time.perf_counter()


def ways(run: Run) -> dict[str, dict]:
    """What is compared: the first with each of the others."""
    found = {"resident": {}, "--offload": {"offload": True}}
    if run.cuda:
        found["--quantize fp8"] = {"quantize": "fp8"}
        found["--quantize fp8 --offload"] = {"quantize": "fp8", "offload": True}
    return found


def rows(run: Run) -> Iterator[Row]:
    try:
        check_offload(run.device)
    except InputError as error:
        yield row("--offload", None, failed=str(error))
        return
    size, whole = run.size, run.size.scale == 1
    text_layers = TEXT_LAYERS if whole else size.layers
    check_space(run.folder, LARGEST if whole and run.cuda else SHORTENED)
    took, folder = seconds(
        lambda: write_checkpoint(run.folder / "loading", size.model, size.layers, text_layers), run.device
    )
    layers = f"{size.layers} layers, text encoder of {text_layers}"
    yield row(f"the checkpoint, {layers}", size_gib(folder), "GiB", written_in_s=took)
    latents: dict[str, torch.Tensor] = {}
    table: dict[str, dict] = {}
    for way, settings in ways(run).items():
        latents[way], table[way] = measured(run, folder, **settings)
        yield row(f"{way}: loading", table[way].pop("loading, s"), "s", **table[way])
    for resident, offloaded in (("resident", "--offload"), ("--quantize fp8", "--quantize fp8 --offload")):
        if offloaded in latents:
            yield row(f"{offloaded}: the same latents", torch.equal(latents[resident], latents[offloaded]))
    shutil.rmtree(folder)
