"""Speed and exactness on one device, as markdown on stdout and JSON in a folder.

    python -m benchmarks --size tiny --device cpu          # on a CPU
    python -m benchmarks --out results --budget 360        # on a GPU: the 14B's width, 97 frames at 540P
    python -m benchmarks attention vae --out results       # some parts

Rows go to stderr as they are measured, and with --out into results.json and results.md after each, so that a run that
is cut off keeps what it has. Parts run in the order below, the most important ones first; what does not fit into the
budget is listed as not run. Weights are random (a cache, `exact` and whole videos of `tiny` use the embedded model).
"""

import argparse
import importlib
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path

if not __package__:  # started by the folder's path
    sys.path[0] = str(Path(__file__).parents[1])

# name -> (module, seconds that it takes on an H200 with 4 layers of the 14B, what it measures)
PARTS = {
    "transformer": ("transformer", 75, "a forward and the guided step that it makes, beside diffusers'"),
    "pipelines": ("pipelines", 85, "whole videos: 4 steps, a guided step; on a CPU `tiny` beside diffusers"),
    "vae": ("vae", 45, "encoding and decoding, float32 and bfloat16, beside diffusers'"),
    "attention": ("attention", 15, "kernels at the length of a window and to few keys"),
    "windows": ("windows", 75, "how long a GPU waits between windows"),
    "linears": ("linears", 20, "bfloat16, float8, and stored quantised weights"),
    "loading": ("loading", 55, "loading, and a video with --offload and without"),
    "solver": ("solver", 5, "a row of diffusion forcing, beside diffusers'"),
    "exact": ("exact", 90, "results against a CPU's, float64 and float32; offloaded against not"),
    "caches": ("caches", 20, "speed-up and PSNR of caches, `tiny`"),
    "startup": ("startup", 30, "time of --help, --dry_run and a smallest video"),
    "training": ("training_update", 60, "an update of the embedded model's training, one CPU core"),
}
ON_CPU_ONLY = {"training"}
ON_GPU_ONLY = {"windows"}
SIZES = ("tiny", "1.3b", "14b-4layers", "14b")


def parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:12} {about}" for name, (_, _, about) in PARTS.items())
    found = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=f"parts:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    found.add_argument("parts", nargs="*", metavar="PART", help="default: all that the device can run")
    found.add_argument("--device", help="default: cuda if available, else cpu")
    found.add_argument("--size", choices=SIZES, help="default: 14b-4layers on a GPU, tiny on a CPU")
    found.add_argument("--budget", type=float, default=float("inf"), metavar="SECONDS", help="default: none")
    found.add_argument("--runs", type=int, default=3, help="timed repetitions, of which medians are taken (3)")
    found.add_argument("--compiled", action="store_true", help="measure what is compiled on a CPU as well")
    found.add_argument("--out", type=Path, metavar="FOLDER", help="for results.json and results.md")
    found.add_argument("--scratch", type=Path, metavar="FOLDER", help="for checkpoints and videos (/dev/shm or /tmp)")
    return found


def elsewhere(cuda: bool) -> dict[str, str]:
    """The parts that this device cannot run, and why."""
    if cuda:
        return dict.fromkeys(ON_CPU_ONLY, "is measured on a CPU")
    return dict.fromkeys(ON_GPU_ONLY, "needs a GPU")


def check(args: argparse.Namespace, cuda: bool) -> None:
    """Raises a `ValueError` if what is asked for cannot be measured."""
    cannot = elsewhere(cuda)
    for part in args.parts:
        if part not in PARTS:
            raise ValueError(f"{part!r} is no part: must be one of {', '.join(PARTS)}")
        if part in cannot:
            raise ValueError(f"{part} {cannot[part]}")
    if not cuda and args.size not in (None, "tiny"):
        raise ValueError(f"--size {args.size}: needs a GPU; a CPU takes tiny")


def chosen_parts(asked: list[str], cuda: bool) -> tuple[list[str], dict[str, str]]:
    """(parts to run, in order; reason for each that is not)."""
    left_out = elsewhere(cuda) | {part: "not asked for" for part in PARTS if asked and part not in asked}
    return [part for part in PARTS if part not in left_out], left_out


def machine(device) -> dict[str, object]:
    import torch

    from benchmarks import peer

    about = {"date": time.strftime("%Y-%m-%d"), "torch": torch.__version__, "python": platform.python_version()}
    if device.type == "cuda":
        about |= {"GPU": torch.cuda.get_device_name(device)}
    about |= {"threads": torch.get_num_threads()}
    if peer.installed():
        from importlib.metadata import version

        about["diffusers"] = version("diffusers")
    return about


def scratch_folder(asked: Path | None) -> Path:
    """Where large files are written: into memory where there is room, since no disk is measured."""
    shared = Path("/dev/shm")
    roomy = shared.is_dir() and shutil.disk_usage(shared).free > 20 * 2**30
    return asked or (shared if roomy else Path(tempfile.gettempdir()))


def measure(part: str, run, report) -> None:
    """Adds the rows of one part; an error ends the part and is reported."""
    import torch

    from benchmarks.measure import attempt, clear
    from skyreels_v2_infer.progress import doing, speaking

    began = time.monotonic()
    torch._dynamo.reset()  # the code of other parts counts against the limit of each function
    print(f"--- {part}, {PARTS[part][2]}", file=sys.stderr, flush=True)
    module = importlib.import_module(f"benchmarks.{PARTS[part][0]}")
    with torch.no_grad(), speaking(), doing(part):
        for found in attempt(part, lambda: module.rows(run), run.device):
            report.add(part, found)
    report.seconds[part] = time.monotonic() - began
    report.save()
    clear(run.device)


def main() -> int:
    arguments = parser()
    args = arguments.parse_args()
    began = time.monotonic()
    try:
        if args.runs < 1:
            raise ValueError(f"--runs {args.runs}: must be at least 1")
        if args.device is not None:  # is refused before torch is imported
            check(args, args.device.startswith("cuda"))
        from benchmarks.measure import Run
        from benchmarks.sizes import SIZES as FOUND
        from benchmarks.table import Report
        from skyreels_v2_infer.runtime import Placement

        device = Placement.choose(args.device).device
        cuda = device.type == "cuda"
        check(args, cuda)
    except ValueError as error:  # `InputError` is one as well
        arguments.exit(2, f"benchmarks: {error}\n")
    parts, left_out = chosen_parts(args.parts, cuda)
    size = args.size or ("14b-4layers" if cuda else "tiny")
    about = machine(device) | {"size": size, "runs": args.runs}
    report = Report(about, args.out)
    report.not_run = left_out
    with tempfile.TemporaryDirectory(dir=scratch_folder(args.scratch)) as folder:
        run = Run(device, FOUND[size], args.runs, cuda or args.compiled, Path(folder), began + args.budget)
        for part in parts:
            needs = PARTS[part][1]
            if run.left < needs:
                report.leave_out(part, f"{run.left:.0f} s of the budget left, about {needs} s needed")
                continue
            measure(part, run, report)
    print(report.text())
    if report.failed:
        print(f"failed: {'; '.join(report.failed)}", file=sys.stderr)
    return int(bool(report.failed))


if __name__ == "__main__":
    sys.exit(main())
