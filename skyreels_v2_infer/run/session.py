"""From checked settings to what is finished: opens the model's files, loads the pipeline, starts it.

Heavy imports happen where they are needed, after everything that can be refused without them.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec

from skyreels_v2_infer.cli.settings import DiffusionForcingSettings, GenerateSettings
from skyreels_v2_infer.console import say, silent
from skyreels_v2_infer.distributed.team import Team
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.media.images import read_image
from skyreels_v2_infer.modules.caches.teacache import TeaCache
from skyreels_v2_infer.plan.caching import choose_coefficients
from skyreels_v2_infer.plan.sharing import Layout
from skyreels_v2_infer.plan.show import check_kind, choose_sharing
from skyreels_v2_infer.weights.locate import Checkpoint, check_files, local_folder, read_transformer_config

KNOWN_FPS = (16, 24)  # the frame rates that the models were trained with
MUCH_NOISE = 60


@dataclass(frozen=True)
class Job:
    """What was asked for, as `settle` leaves it, and who does it.

    Attributes:
        check: to be called now and then, so that a signal ends the job.
        checkpoint: the model's files.
        resume: window, latents and history (see `Resume`, but numpy arrays) from which an interrupted run goes on;
            None: from the beginning.
    """

    settings: GenerateSettings
    team: Team
    check: Callable[[], None]
    checkpoint: Checkpoint
    resume: tuple | None = None


def open_checkpoint(settings: GenerateSettings, team: Team) -> Checkpoint:
    """A model's files, all there and whole, of the kind that the job needs."""
    with team.first_rank_first():  # which downloads what is missing; the others find it there
        config = read_transformer_config(settings.model_id)
        check_kind(settings, config)
        layout = choose_sharing(settings, team.size, config)  # before gigabytes are fetched
        check_layout(settings, layout)
        if local_folder(settings.model_id) is None:
            placed(settings)
        checkpoint = Checkpoint.open(settings.model_id)
    if not team.rank:
        check_files(checkpoint)
    return checkpoint


def check_layout(settings: GenerateSettings, layout: Layout) -> None:
    """Raises an `InputError` where tokens cannot be split: no package for it, or no kernel."""
    if layout.parts > 1 and find_spec("yunchang") is None:
        raise InputError("use_usp", None, "needs yunchang: pip install yunchang")
    if layout.ring > 1 and settings.device not in (None, "cpu") and settings.dtype == "float32":
        raise InputError("dtype", "float32", "a ring of GPUs needs bfloat16 or float16")


def with_coefficients(settings: GenerateSettings, checkpoint: Checkpoint) -> GenerateSettings:
    """The settings with the cache's polynomial chosen."""
    cache = choose_cache(checkpoint, settings)
    return replace(settings, teacache_coefficients=cache and cache.coefficients)


def settle(settings: GenerateSettings, checkpoint: Checkpoint) -> GenerateSettings:
    """The settings with device, precision and the cache's polynomial chosen.

    Raises:
        InputError: for what this machine or this model cannot do, before weights are loaded.
    """
    return placed(with_coefficients(settings, checkpoint))


def placed(settings: GenerateSettings) -> GenerateSettings:
    """The settings with device and precision chosen, or an `InputError` for what this machine cannot do."""
    from skyreels_v2_infer.runtime import Placement, check_offload

    place = Placement.choose(settings.device, settings.dtype)
    if settings.offload:
        check_offload(place.device)
    return replace(settings, device=str(place.device), dtype=str(place.dtype).removeprefix("torch."))


def load(pipeline_class: str, job: Job):
    """The pipeline, on the device and in the precision asked for; it lets signals through with every row."""
    from tqdm import tqdm

    settings, checkpoint = job.settings, job.checkpoint
    cache = choose_cache(checkpoint, settings)
    layout = choose_sharing(settings, job.team.size, checkpoint.transformer_config)
    from skyreels_v2_infer import pipelines

    check_layout(settings, layout)  # now that device and precision are chosen
    from skyreels_v2_infer.runtime import Placement, has_bfloat16

    place = Placement.choose(settings.device, settings.dtype)
    if place.device.type == "cuda":
        import torch

        if place.device.index is not None:  # else it is the current one
            torch.cuda.set_device(place.device)  # new streams, and what is said of memory, are of the current GPU
        if layout.ring > 1 and not has_bfloat16(place.device):
            raise InputError("use_usp", None, "a ring needs GPUs of compute capability 8.0 or above; try --offload")
        if place.dtype == torch.bfloat16 and not has_bfloat16(place.device):
            say("--dtype bfloat16: this GPU has no fast attention in it, only one that takes much memory; try float16")
    began = time.perf_counter()
    # Gone again when it is done: a checkpoint that does not fit is refused in one line.
    with tqdm(desc=f"loading {settings.model_id}", bar_format="{desc}", leave=False, disable=silent()):
        pipeline = getattr(pipelines, pipeline_class)(
            checkpoint, device=place.device, weight_dtype=place.dtype, offload=settings.offload
        )
    seconds = time.perf_counter() - began
    say(f"loaded {settings.model_id} on {settings.device} in {settings.dtype}, {seconds:.1f} s; seed {settings.seed}")
    pipeline.progress = partial(show_rows, job.check)
    if layout.ranks > 1:
        pipeline.share(job.team.share(layout))
        halves = "prompt and negative prompt side by side, " if layout.guidance == 2 else ""
        say(f"{layout.ranks} processes: {halves}each frame over {layout.ulysses} (ulysses) x {layout.ring} (ring)")
    pipeline.cache = cache
    if pipeline.transformer.inject_sample_info and settings.fps not in KNOWN_FPS:
        say(f"--fps {settings.fps}: this model knows 16 and 24 only and is told 24; the video plays at {settings.fps}")
    return pipeline


def choose_cache(checkpoint: Checkpoint, settings: GenerateSettings) -> TeaCache | None:
    if not settings.teacache:
        return None
    coefficients = settings.teacache_coefficients or choose_coefficients(
        checkpoint.transformer_config, checkpoint.folder, settings.height, settings.width, settings.use_ret_steps
    )
    return TeaCache(settings.teacache_thresh, coefficients, settings.use_ret_steps)


@contextmanager
def show_rows(check: Callable[[], None], window: int, windows: int, rows: int) -> Iterator[Callable[[], object]]:
    """A progress bar for a window where stderr is a terminal, and a line when it is done."""
    from tqdm import tqdm

    name = f"window {window + 1}/{windows}"
    began = time.perf_counter()
    with tqdm(total=rows, desc=name, unit="row", leave=False, disable=silent()) as bar:

        def advance() -> None:
            bar.update()
            check()

        yield advance
    say(f"{name}: {rows} rows, {time.perf_counter() - began:.1f} s")


def shared_arguments(settings: GenerateSettings) -> dict:
    """What every pipeline is asked in the same words."""
    names = ("prompt", "negative_prompt", "height", "width", "num_frames", "guidance_scale", "shift", "seed", "fps")
    return {name: getattr(settings, name) for name in names} | {"num_inference_steps": settings.inference_steps}


def forcing_arguments(settings: DiffusionForcingSettings) -> dict:
    """What diffusion forcing is asked beside `shared_arguments`, without pictures and videos."""
    names = ("ar_step", "causal_attention", "causal_block_size", "base_num_frames", "overlap_history")
    return {name: getattr(settings, name) for name in (*names, "addnoise_condition", "story", "history")}


def started(pipeline, job: Job, **arguments) -> Iterator:
    """What is finished, stretch by stretch (`Finished`)."""
    resume = None
    if job.resume is not None:
        import torch

        from skyreels_v2_infer.pipelines.history import Resume

        window, *arrays = job.resume
        resume = Resume(window, *(None if array is None else torch.from_numpy(array) for array in arrays))
    return pipeline.generate(**shared_arguments(job.settings), **arguments, resume=resume)


def generate(job: Job) -> Iterator:
    """Text or image to video: loads what is needed, then what is finished."""
    settings = job.settings
    if settings.image is None:
        return started(load("Text2VideoPipeline", job), job)
    image = read_image(settings.image, settings.height, settings.width)
    return started(load("Image2VideoPipeline", job), job, image=image)


def generate_df(job: Job) -> Iterator:
    """Diffusion forcing: loads what is needed, then what is finished, window by window."""
    settings: DiffusionForcingSettings = job.settings
    images = {
        name: read_image(path, settings.height, settings.width, name)
        for name in ("image", "end_image")
        if (path := getattr(settings, name)) is not None
    }
    pipeline = load("DiffusionForcingPipeline", job)
    if settings.addnoise_condition > MUCH_NOISE:
        say(f"--addnoise_condition {settings.addnoise_condition:g}: much; windows may not fit together (20 is usual)")
    if settings.video_fps and abs(settings.video_fps / settings.fps - 1) > 0.01:
        say(f"--fps {settings.fps}: {settings.video_path} has {settings.video_fps:g}; all will play at the new rate")
    return started(
        pipeline,
        job,
        **images,
        **forcing_arguments(settings),
        prefix_video=settings.video_path,
    )
