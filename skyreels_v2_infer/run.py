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
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

from skyreels_v2_infer.checkpoint import Checkpoint, check_files, read_transformer_config
from skyreels_v2_infer.cli import DiffusionForcingSettings, GenerateSettings
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


def say(message: str) -> None:
    """A message for the person at the terminal; stdout is for results."""
    if "tqdm" in sys.modules:
        sys.modules["tqdm"].tqdm.write(message, file=sys.stderr)  # above the bars, if there are any
    else:
        print(message, file=sys.stderr)
    sys.stderr.flush()


def main(
    prog: str,
    parse: Callable[[Sequence[str]], GenerateSettings],
    start: Callable[[GenerateSettings, Callable[[], None]], Iterator],
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
            if settings.seed is None:
                settings = replace(settings, seed=secrets.randbelow(SEEDS))
            path = write_video(settings, start(settings, interrupts.check), interrupts.check)
    except InputError as error:
        say(f"{prog}: {error}")
        return REFUSED
    except KeyboardInterrupt:
        say(f"{prog}: interrupted; no video was written")
        return interrupts.code or INTERRUPTED
    except Exception as error:
        if not isinstance(error, OSError | MemoryError) and "out of memory" not in str(error):
            traceback.print_exc()  # nobody's disk or memory: a defect of ours, which its report needs
        say(f"{prog}: failed: {type(error).__name__}: {first_line(error)}; no video was written")
        return FAILED
    return tell(prog, path)


def tell(prog: str, path: Path) -> int:
    """Prints the result; where it cannot be printed, the video is still there."""
    try:
        print(path, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would fail once more at its exit
        say(f"{prog}: stdout cannot be written ({error.strerror}), but the video is complete: {path}")
        return FAILED
    return DONE


def write_video(settings: GenerateSettings, pieces: Iterator, check: Callable[[], None]) -> Path:
    """Streams frames, uint8 ``[t, H, W, 3]``, into a video in `settings.outdir` -> its path."""
    from tqdm import tqdm

    began = time.perf_counter()
    try:
        settings.outdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError("outdir", settings.outdir, f"cannot be created ({error.strerror})") from None
    stem = output_stem(settings.prompt, settings.seed)
    with (
        VideoWriter(settings.outdir, stem, settings.height, settings.width, settings.fps) as writer,
        tqdm(desc="finished", unit=" frames", leave=False, disable=not sys.stderr.isatty()) as bar,
    ):
        frames = 0
        for piece in pieces:
            writer.write(piece)
            frames += len(piece)
            bar.update(len(piece))
            check()
    say(f"{frames} frame{'s' * (frames != 1)}, seed {settings.seed}, {time.perf_counter() - began:.1f} s")
    return writer.path


def open_checkpoint(model_id: str, image_to_video: bool, otherwise: InputError) -> Checkpoint:
    """A model's files, all there and whole; raises `otherwise` if it is not of the kind that the job needs."""
    if (read_transformer_config(model_id)["model_type"] == "i2v") != image_to_video:
        raise otherwise
    checkpoint = Checkpoint.open(model_id)
    check_files(checkpoint)
    return checkpoint


def load(pipeline_class: str, checkpoint: Checkpoint, settings: GenerateSettings, check: Callable[[], None]):
    """The pipeline, on the device and in the precision asked for; it calls `check` with every row."""
    from tqdm import tqdm

    cache = choose_cache(checkpoint, settings)
    from skyreels_v2_infer import pipelines
    from skyreels_v2_infer.runtime import Placement

    place = Placement.choose(settings.device, settings.dtype)
    dtype = str(place.dtype).removeprefix("torch.")
    began = time.perf_counter()
    # Gone again when it is done: a checkpoint that does not fit is refused in one line.
    with tqdm(desc=f"loading {settings.model_id}", bar_format="{desc}", leave=False, disable=not sys.stderr.isatty()):
        pipeline = getattr(pipelines, pipeline_class)(checkpoint, device=place.device, weight_dtype=place.dtype)
    seconds = time.perf_counter() - began
    say(f"loaded {settings.model_id} on {place.device} in {dtype}, {seconds:.1f} s; seed {settings.seed}")
    pipeline.progress = partial(show_rows, check)
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
    with tqdm(total=rows, desc=name, unit="row", leave=False, disable=not sys.stderr.isatty()) as bar:

        def advance() -> None:
            bar.update()
            check()

        yield advance
    say(f"{name}: {rows} rows, {time.perf_counter() - began:.1f} s")


def shared_arguments(settings: GenerateSettings) -> dict:
    """What every pipeline is asked in the same words."""
    names = ("prompt", "negative_prompt", "height", "width", "num_frames", "guidance_scale", "shift", "seed", "fps")
    return {name: getattr(settings, name) for name in names} | {"num_inference_steps": settings.inference_steps}


def generate(settings: GenerateSettings, check: Callable[[], None]) -> Iterator:
    """Text or image to video: loads what is needed, then the frames as they are made."""
    if settings.image is None:
        otherwise = InputError("image", None, f"the image-to-video model {settings.model_id} needs one")
        pipeline = load("Text2VideoPipeline", open_checkpoint(settings.model_id, False, otherwise), settings, check)
        return pipeline.stream(**shared_arguments(settings))
    otherwise = InputError("image", settings.image, f"{settings.model_id} is no image-to-video model")
    checkpoint = open_checkpoint(settings.model_id, True, otherwise)
    image = read_image(settings.image, settings.height, settings.width)
    pipeline = load("Image2VideoPipeline", checkpoint, settings, check)
    return pipeline.stream(image=image, **shared_arguments(settings))


def generate_df(settings: DiffusionForcingSettings, check: Callable[[], None]) -> Iterator:
    """Diffusion forcing: loads what is needed, then the frames as they are made."""
    otherwise = InputError("model_id", settings.model_id, "is an image-to-video model; generate_video.py runs those")
    checkpoint = open_checkpoint(settings.model_id, False, otherwise)
    images = {
        name: read_image(path, settings.height, settings.width, name)
        for name in ("image", "end_image")
        if (path := getattr(settings, name)) is not None
    }
    names = ("ar_step", "causal_attention", "causal_block_size", "base_num_frames", "overlap_history")
    pipeline = load("DiffusionForcingPipeline", checkpoint, settings, check)
    if settings.addnoise_condition > MUCH_NOISE:
        say(f"--addnoise_condition {settings.addnoise_condition:g}: much; windows may not fit together (20 is usual)")
    if settings.video_fps and abs(settings.video_fps / settings.fps - 1) > 0.01:
        say(f"--fps {settings.fps}: {settings.video_path} has {settings.video_fps:g}; all will play at the new rate")
    return pipeline.stream(
        **shared_arguments(settings),
        **images,
        **{name: getattr(settings, name) for name in names},
        addnoise_condition=settings.addnoise_condition,
        prefix_video=settings.video_path,
    )
