"""What a command takes before and beside the model's work: CPU and clock time of whole processes."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Run
from benchmarks.table import Row, row

SCRIPT = str(Path(__file__).parents[1] / "generate_video_df.py")
ONE_FRAME = ["--num_frames", "1", "--inference_steps", "1", "--seed", "1", "--no_preview"]


def commands(run: Run) -> dict[str, list[str]]:
    tiny = [SCRIPT, "--model_id", "tiny"]
    published = [SCRIPT, "--model_id", "Skywork/SkyReels-V2-DF-14B-540P"]
    return {
        "python -c pass": ["-c", "pass"],
        "--help": [SCRIPT, "--help"],
        "an unknown flag": [SCRIPT, "--no_such_flag"],
        "--dry_run, 14B, 257 frames": [*published, "--dry_run", "--num_frames", "257", "--overlap_history", "17"],
        "python -c 'import torch'": ["-c", "import torch"],
        "one frame of `tiny` in one step": [*tiny, *ONE_FRAME, "--device", str(run.device)],
    }


def spent(words: list[str], folder: Path) -> tuple[float, float]:
    """(CPU seconds, seconds by the clock) of a process."""
    began, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, *words], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return cpu, time.perf_counter() - began


def rows(run: Run) -> Iterator[Row]:
    words = commands(run)
    for command in words.values():  # fills the disk's cache
        spent(command, run.folder)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in words}
    for _ in range(run.runs):
        for name, command in words.items():
            times[name].append(spent(command, run.folder))
    for name, found in times.items():
        cpu, clock = (statistics.median(pair[i] for pair in found) for i in (0, 1))
        yield row(name, cpu, "s of CPU time", seconds_by_the_clock=clock)
