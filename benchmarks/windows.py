"""How long a GPU waits in a video of several windows, made as the scripts make it.

Two videos from one session: the first compiles all that the second needs. The model has the width and the video the
size of a published one but few layers and steps, so a window is many times shorter than a real one, in which the pauses
between windows would be the same in seconds and those between kernels the same in proportion.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.checkpoints import write_checkpoint
from benchmarks.measure import Run, check_space
from benchmarks.table import Row, row
from skyreels_v2_infer.cli.arguments import parse_diffusion_forcing
from skyreels_v2_infer.distributed.team import Team
from skyreels_v2_infer.plan.cost import forward_flop, frame_tokens
from skyreels_v2_infer.run.jobs import Job
from skyreels_v2_infer.run.session import Session

STEPS, REAL_STEPS = 4, 30
RATE = 6.4e14  # operations a second of compiled denoising on an H200, see the part `transformer`
ATTENTION = "flash"  # in the names of flash-attn-4's, cuDNN's and torch's kernels, not in that of the VAE's attention
APART = 0.3  # seconds between two kernels of attention, above which something else than denoising goes on
LONG = 0.005  # seconds; a pause that is longer is not that between two kernels of a step


Span = tuple[int, int, str]  # start and end in nanoseconds, name of the kernel


class OneSession:
    """Opens a session for the first job, and gives it to later ones as well."""

    def __init__(self):
        self.session: Session | None = None

    def __call__(self, *parts, **settings) -> Session:
        self.session = self.session or Session(*parts, **settings)
        return self.session


def make(argv: list[object], session: OneSession, check: Callable[[], None]) -> Path:
    job = Job("generate_video_df.py", parse_diffusion_forcing([str(word) for word in argv]), check)
    try:
        return job.run(Team(), session)
    finally:
        job.close()


class Watch:
    """Profiles a device from the first call after `armed` is set."""

    def __init__(self, cuda: bool):
        from torch.autograd import DeviceType
        from torch.profiler import ProfilerActivity, profile

        self.profiler = profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU])
        self.kind = DeviceType.CUDA if cuda else DeviceType.CPU
        self.armed = False

    def __call__(self) -> None:
        """A session calls it after every row and every piece of frames."""
        if self.armed:
            self.armed = False
            self.profiler.start()

    def spans(self) -> list[Span]:
        """All that the device did, in order."""
        self.profiler.stop()
        events = self.profiler.profiler.kineto_results.events()
        found = (event for event in events if event.device_type() == self.kind)
        return sorted((event.start_ns(), event.start_ns() + event.duration_ns(), event.name()) for event in found)


def denoising(spans: list[Span]) -> list[tuple[int, int]]:
    """(start, end) of the stretches in which a kernel of long attention runs again and again."""
    found: list[tuple[int, int]] = []
    for start, stop, name in spans:
        if ATTENTION not in name.lower():
            continue
        if found and start - found[-1][1] < 1e9 * APART:
            found[-1] = found[-1][0], stop
        else:
            found.append((start, stop))
    return found


def pauses(spans: list[Span]) -> tuple[float, list[float], list[float]]:
    """(seconds from the first start to the last end, seconds of each pause within denoising, of each other pause)."""
    inside, outside, end = [], [], spans[0][1]
    stretches = denoising(spans)
    for start, stop, _ in spans:
        if start > end:
            within = any(first <= end and start <= last for first, last in stretches)
            (inside if within else outside).append((start - end) / 1e9)
        end = max(end, stop)
    return (end - spans[0][0]) / 1e9, inside, outside


def rows(run: Run, steps: int = STEPS, base: int = 97, overlap: int = 17) -> Iterator[Row]:
    height, width = run.size.whole
    check_space(run.folder, 12)
    layers = min(4, run.size.model["num_layers"])
    folder = write_checkpoint(run.folder / "windows", run.size.model, layers, text_layers=1)
    argv = [
        "--model_id",
        folder,
        "--outdir",
        run.folder,
        "--device",
        run.device,
        "--compile",
        "on" if run.cuda else "off",
    ]
    argv += ["--height", height, "--width", width, "--base_num_frames", base, "--overlap_history", overlap]
    argv += ["--no_preview", "--prompt", "a swan on a lake"]
    session, watch = OneSession(), Watch(run.cuda)
    make([*argv, "--num_frames", 2 * base - overlap, "--inference_steps", 2, "--seed", 1], session, watch)
    watch.armed = True  # the session keeps the first job's
    frames = 3 * base - 2 * overlap
    make([*argv, "--num_frames", frames, "--inference_steps", steps, "--seed", 2], session, watch)
    length, inside, outside = pauses(watch.spans())
    idle = sum(inside) + sum(outside)
    name = f"three windows of {base} frames, {layers} layers, {steps} guided steps"
    yield row(name, length, "s", **{"idle, s": idle, "idle, %": 100 * idle / length})
    for name, found in (("within denoising", inside), ("decoding, encoding and between windows", outside)):
        long = sorted((pause for pause in found if pause > LONG), reverse=True)
        listed = ", ".join(f"{1e3 * pause:.0f}" for pause in long[:8])
        yield row(f"pauses, {name}", sum(found), "s", **{"over 5 ms, s": sum(long), "longest, ms": listed})
    # A window as published models make it: pauses within denoising are in proportion to layers and steps, others equal.
    scaled = run.size.model["num_layers"] / layers * REAL_STEPS / steps
    config = run.size.model | {"num_layers": layers, "model_type": "t2v"}
    computing = 3 * steps * 2 * forward_flop(config, (base + 3) // 4, frame_tokens(height, width)) / RATE
    waiting = scaled * sum(inside) + sum(outside)
    working = length - idle + (scaled - 1) * computing
    name = f"estimate for {run.size.model['num_layers']} layers and {REAL_STEPS} steps at {RATE / 1e12:.0f} TFLOP/s"
    yield row(name, 100 * waiting / (waiting + working), "% idle")
