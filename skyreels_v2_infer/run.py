"""One job from the command line to a finished file: the only conductor.

What needs no weights is checked first, so that a wrong command ends within a second; torch is imported after that.
"""

import os
import secrets
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

from skyreels_v2_infer.checkpoint import Checkpoint, check_files, read_transformer_config
from skyreels_v2_infer.cli import DiffusionForcingSettings, GenerateSettings
from skyreels_v2_infer.cost import frame_tokens
from skyreels_v2_infer.distributed.layout import Layout, choose_layout
from skyreels_v2_infer.distributed.team import Launch, SilencedError, Team, assembled, own_device
from skyreels_v2_infer.dry_run import check_kind, show
from skyreels_v2_infer.errors import InputError, first_line
from skyreels_v2_infer.modules.feature_cache import TeaCache, choose_coefficients
from skyreels_v2_infer.video_io import VideoWriter, output_stem, read_image

DONE, FAILED, REFUSED, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143

SEEDS = 2**32  # a seed that nobody chose is below this: short enough to be typed again
KNOWN_FPS = (16, 24)  # the frame rates that the models were trained with
MUCH_NOISE = 60


class Interrupts:
    """SIGINT and SIGTERM raise KeyboardInterrupt where they arrive, so that files are tidied up on the way out.

    Python drops an exception that is raised in a finalizer. So whoever works for long calls `check` now and then, which
    raises again what was dropped.

    Attributes:
        code: the exit code for the signal that has arrived; None: none has.
    """

    CODES = MappingProxyType({signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED})

    def __init__(self):
        self.code: int | None = None

    def __enter__(self) -> "Interrupts":
        self.before = {number: signal.signal(number, self._arrived) for number in self.CODES}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _arrived(self, number: int, frame) -> None:
        self.code = self.CODES[number]
        raise KeyboardInterrupt

    def check(self) -> None:
        if self.code is not None:
            raise KeyboardInterrupt


def say(message: str, from_any_rank: bool = False) -> None:
    """A message for the person at the terminal, of several processes from the first; stdout is for results."""
    if Launch.from_environment().rank and not from_any_rank:
        return
    if "tqdm" in sys.modules:
        sys.modules["tqdm"].tqdm.write(message, file=sys.stderr)  # above the bars, if there are any
    else:
        print(message, file=sys.stderr)
    sys.stderr.flush()


def silent() -> bool:
    """Whether progress bars would disturb: where nobody looks, and on all ranks but the first."""
    return not sys.stderr.isatty() or Launch.from_environment().rank > 0


@dataclass(frozen=True)
class Job:
    """What was asked for, who does it, what is to be called now and then so that a signal ends it, and a title."""

    settings: GenerateSettings
    team: Team
    check: Callable[[], None]
    title: str


def main(
    prog: str,
    parse: Callable[[Sequence[str]], GenerateSettings],
    start: Callable[[Job], Iterator],
    argv: Sequence[str] | None = None,
) -> int:
    """Runs a script and returns its exit code: 0 done, 1 failed while running, 2 refused, 130 or 143 interrupted.

    Args:
        prog: what the script is called in messages.
        parse: argv -> settings; exits with 2 by itself.
        start: `generate` or `generate_df`.
        argv: arguments; None: the process's own.
    """
    interrupts = Interrupts()
    try:
        with interrupts:
            settings = parse(sys.argv[1:] if argv is None else argv)
            if settings.dry_run:
                return tell(prog, show(settings))
            launch = Launch.from_environment()
            if launch.rank:  # nothing to tidy up here, and Python would not see the signal while it waits for others
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if launch.size > 1:
                settings = replace(settings, device=own_device(settings.device, launch.local_rank))
            with assembled(launch, settings.device) as team:
                if settings.seed is None:
                    settings = replace(settings, seed=team.same(secrets.randbelow(SEEDS)))
                job = Job(enhance(settings, team), team, interrupts.check, settings.prompt)
                path = write_video(job, start(job))
    except InputError as error:
        say(f"{prog}: {error}", from_any_rank=True)
        return REFUSED
    except SilencedError:
        return interrupts.code or FAILED
    except KeyboardInterrupt:
        say(f"{prog}: interrupted; no video was written")
        return interrupts.code or INTERRUPTED
    except Exception as error:
        if not isinstance(error, OSError | MemoryError) and "out of memory" not in str(error):
            traceback.print_exc()  # nobody's disk or memory: a defect of ours, which its report needs
        say(f"{prog}: failed: {type(error).__name__}: {first_line(error)}; no video was written", from_any_rank=True)
        return FAILED
    return DONE if path is None else tell(prog, path)


def enhance(settings: GenerateSettings, team: Team) -> GenerateSettings:
    """The settings with the prompt written out, if that was asked for; the language model is gone again afterwards."""
    if not settings.prompt_enhancer:
        return settings
    prompt = settings.prompt
    if not team.rank:
        import transformers

        from skyreels_v2_infer.pipelines.prompt_enhancer import PromptEnhancer

        if silent():
            transformers.logging.disable_progress_bar()
        device_map = "cpu" if settings.device == "cpu" else "auto"
        enhancer = PromptEnhancer(settings.prompt_enhancer_model, device_map)
        prompt = enhancer(settings.prompt)
        enhancer.free()
        say(f"prompt: {settings.prompt}")
        unusable = "not enhanced: the language model had no usable answer"
        say(unusable if prompt == settings.prompt else f"enhanced: {prompt}")
    return replace(settings, prompt=team.same(prompt))


def tell(prog: str, result: Path | str) -> int:
    """Prints the result; where it cannot be printed, a video is still there."""
    try:
        print(result, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would fail once more at its exit
        complete = f", but the video is complete: {result}" if isinstance(result, Path) else ""
        say(f"{prog}: stdout cannot be written ({error.strerror}){complete}")
        return FAILED
    return DONE


def write_video(job: Job, pieces: Iterator) -> Path | None:
    """Streams frames, uint8 ``[t, H, W, 3]``, into a video in the job's outdir -> its path.

    On other ranks than the first, only goes through what is made; None.
    """
    if job.team.rank:
        for _ in pieces:
            job.check()
        return None
    from tqdm import tqdm

    settings, began = job.settings, time.perf_counter()
    try:
        settings.outdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError("outdir", settings.outdir, f"cannot be created ({error.strerror})") from None
    stem = output_stem(job.title, settings.seed)
    with (
        VideoWriter(settings.outdir, stem, settings.height, settings.width, settings.fps) as writer,
        tqdm(desc="finished", unit=" frames", leave=False, disable=silent()) as bar,
    ):
        frames = 0
        for piece in pieces:
            writer.write(piece)
            frames += len(piece)
            bar.update(len(piece))
            job.check()
    say(f"{frames} frame{'s' * (frames != 1)}, seed {settings.seed}, {time.perf_counter() - began:.1f} s")
    return writer.path


def open_checkpoint(job: Job) -> Checkpoint:
    """A model's files, all there and whole, of the kind that the job needs."""
    model_id = job.settings.model_id
    with job.team.first_rank_first():  # which downloads what is missing; the others find it there
        config = read_transformer_config(model_id)
        check_kind(job.settings, config)
        choose_sharing(job, config)  # before gigabytes are fetched
        checkpoint = Checkpoint.open(model_id)
    if not job.team.rank:
        check_files(checkpoint)
    return checkpoint


def choose_sharing(job: Job, config: dict) -> Layout:
    """How the ranks share the work."""
    settings = job.settings
    if job.team.size == 1:
        return Layout()
    return choose_layout(
        job.team.size,
        config["num_heads"],
        frame_tokens(settings.height, settings.width),
        guided=settings.guidance_scale != 1,
        cfg_parallel=settings.cfg_parallel,
        ulysses=settings.ulysses_degree,
        ring=settings.ring_degree,
    )


def load(pipeline_class: str, checkpoint: Checkpoint, job: Job):
    """The pipeline, on the device and in the precision asked for; it lets signals through with every row."""
    from tqdm import tqdm

    settings = job.settings
    cache = choose_cache(checkpoint, settings)
    layout = choose_sharing(job, checkpoint.transformer_config)
    from skyreels_v2_infer import pipelines
    from skyreels_v2_infer.runtime import Placement

    place = Placement.choose(settings.device, settings.dtype)
    dtype = str(place.dtype).removeprefix("torch.")
    began = time.perf_counter()
    # Gone again when it is done: a checkpoint that does not fit is refused in one line.
    with tqdm(desc=f"loading {settings.model_id}", bar_format="{desc}", leave=False, disable=silent()):
        pipeline = getattr(pipelines, pipeline_class)(
            checkpoint, device=place.device, weight_dtype=place.dtype, offload=settings.offload
        )
    seconds = time.perf_counter() - began
    say(f"loaded {settings.model_id} on {place.device} in {dtype}, {seconds:.1f} s; seed {settings.seed}")
    pipeline.progress = partial(show_rows, job.check)
    if layout.ranks > 1:
        from skyreels_v2_infer.distributed.xdit_context_parallel import share

        job.team.meet()  # loading takes its time; groups can only be made while all are there
        pipeline.share(share(layout))
        halves = "prompt and negative prompt side by side, " if layout.guidance == 2 else ""
        say(f"{layout.ranks} processes: {halves}each frame over {layout.ulysses} (ulysses) x {layout.ring} (ring)")
    if cache is not None:
        pipeline.around_blocks = cache.branch
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


def frames_from(pipeline, job: Job, **arguments) -> Iterator:
    """The frames as they are made; on other ranks than the first, what they come from: nobody wants them twice."""
    return (pipeline.generate if job.team.rank else pipeline.stream)(**shared_arguments(job.settings), **arguments)


def generate(job: Job) -> Iterator:
    """Text or image to video: loads what is needed, then the frames as they are made."""
    settings = job.settings
    if settings.image is None:
        return frames_from(load("Text2VideoPipeline", open_checkpoint(job), job), job)
    checkpoint = open_checkpoint(job)
    image = read_image(settings.image, settings.height, settings.width)
    return frames_from(load("Image2VideoPipeline", checkpoint, job), job, image=image)


def generate_df(job: Job) -> Iterator:
    """Diffusion forcing: loads what is needed, then the frames as they are made."""
    settings: DiffusionForcingSettings = job.settings
    checkpoint = open_checkpoint(job)
    images = {
        name: read_image(path, settings.height, settings.width, name)
        for name in ("image", "end_image")
        if (path := getattr(settings, name)) is not None
    }
    names = ("ar_step", "causal_attention", "causal_block_size", "base_num_frames", "overlap_history")
    pipeline = load("DiffusionForcingPipeline", checkpoint, job)
    if settings.addnoise_condition > MUCH_NOISE:
        say(f"--addnoise_condition {settings.addnoise_condition:g}: much; windows may not fit together (20 is usual)")
    if settings.video_fps and abs(settings.video_fps / settings.fps - 1) > 0.01:
        say(f"--fps {settings.fps}: {settings.video_path} has {settings.video_fps:g}; all will play at the new rate")
    return frames_from(
        pipeline,
        job,
        **images,
        **{name: getattr(settings, name) for name in names},
        addnoise_condition=settings.addnoise_condition,
        prefix_video=settings.video_path,
    )
