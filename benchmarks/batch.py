"""What a job file saves over a command for each video, and whether many videos leave anything behind.

``python benchmarks/batch.py`` makes the same clips of the embedded model by one command with --jobs and by a command
each, in turns, and compares seconds: of the clock, and of CPU, which other programs on the machine do not lengthen.
``--memory 200`` makes so many small videos in one command and looks at its process from outside (/proc, so on Linux).
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.endurance import sizes  # noqa: E402


def command(*more: object) -> list[str]:
    words = [sys.executable, ROOT / "generate_video_df.py", "--model_id", "tiny", "--device", "cpu", *more]
    return [str(word) for word in words]


def rows(count: int) -> list[dict]:
    """Rows whose seeds differ, of four prompts."""
    prompts = [f"a {color} circle moves slowly up" for color in ("red", "green", "blue", "white")]
    return [{"prompt": prompts[i % len(prompts)], "seed": i} for i in range(count)]


def timed(words: list[str]) -> tuple[float, float]:
    """CPU and wall-clock seconds of a command, its children included."""
    began, before = time.monotonic(), os.times()
    subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return used, time.monotonic() - began


def compare(count: int, frames: int) -> None:
    shared = ("--num_frames", frames)
    with tempfile.TemporaryDirectory() as folder:
        jobs = Path(folder, "jobs.jsonl")
        jobs.write_text("".join(json.dumps(row) + "\n" for row in rows(count)))
        print(f"{'':30} {'CPU, s':>8} {'clock, s':>9}")
        half = [timed(command(*shared, *words_of(row), "--outdir", f"{folder}/alone")) for row in rows(count)[::2]]
        together = timed(command(*shared, "--jobs", jobs, "--outdir", f"{folder}/together"))
        half += [timed(command(*shared, *words_of(row), "--outdir", f"{folder}/alone")) for row in rows(count)[1::2]]
        alone = tuple(map(sum, zip(*half, strict=True)))
        for name, (cpu, clock) in ((f"{count} commands", alone), ("one command with --jobs", together)):
            print(f"{name:30} {cpu:8.1f} {clock:9.1f}")
        print(f"{'ratio':30} {together[0] / alone[0]:8.2f} {together[1] / alone[1]:9.2f}")
        same = digests(Path(folder, "alone")) == digests(Path(folder, "together"))
        print(f"the files are {'the same' if same else 'NOT the same'}")


def words_of(row: dict) -> list[str]:
    return [f"--{name}={value}" for name, value in row.items()]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.mp4"))}


def endure(count: int, first: int, side: int) -> float:
    """Makes `count` videos and prints memory; returns memory at the end by that after `first` videos."""
    seen = {}
    with tempfile.TemporaryDirectory() as folder:
        jobs = Path(folder, "jobs.jsonl")
        jobs.write_text("".join(json.dumps(row) + "\n" for row in rows(count)))
        small = ("--height", side, "--width", side, "--num_frames", 9, "--inference_steps", 2)
        words = command(*small, "--jobs", jobs, "--outdir", f"{folder}/out")
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        print(f"{'videos':>7} {'memory, MiB':>12} {'threads':>8} {'descriptors':>12}")
        for number, _ in enumerate(process.stdout, start=1):
            if number in (first, count) or number % 50 == 0:
                seen[number] = sizes(process.pid)
                memory, threads, descriptors = seen[number]
                print(f"{number:7} {memory:12.1f} {threads:8} {descriptors:12}", flush=True)
        if process.wait():
            raise SystemExit(f"exit code {process.returncode}")
    ratio = seen[count][0] / seen[first][0]
    print(f"after {count} videos {100 * (ratio - 1):+.1f} % of what there was after {first}")
    return ratio


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=12, help="clips to compare")
    parser.add_argument("--frames", type=int, default=33, help="frames of a clip")
    parser.add_argument("--memory", type=int, default=0, metavar="N", help="make N small videos and look at memory")
    parser.add_argument("--side", type=int, default=32, help="height and width of these, in pixels")
    args = parser.parse_args()
    if args.memory:
        endure(args.memory, min(5, args.memory), args.side)
    else:
        compare(args.clips, args.frames)
    return 0


if __name__ == "__main__":
    sys.exit(main())
