"""Whether a run survives being killed: SIGKILL at random moments, then --resume, again and again.

``python benchmarks/kills.py --count 50`` starts the script itself. Every video has to be the uninterrupted run's, bit
for bit, with nothing else left in its folder, and at most one window sampled again. Exit code 1 if one is not.
"""

import argparse
import collections
import filecmp
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
WINDOWS = 3
COMMAND = [
    sys.executable,
    str(ROOT / "generate_video_df.py"),
    "--model_id",
    "tiny",
    "--num_frames",
    "65",
    "--seed",
    "3",
]
COMMAND += ["--inference_steps", "6", "--prompt", "a red circle moves slowly up", "--device", "cpu", "--resume"]


def start(folder: Path) -> subprocess.Popen:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen([*COMMAND, "--outdir", str(folder)], env=env, text=True, **pipes)


def begun(process: subprocess.Popen, folder: Path) -> None:
    """Waits until there is something to go on with."""
    while process.poll() is None and not list(folder.glob("*.parts/run.json")):
        time.sleep(0.005)


def sampled(err: str) -> int:
    return sum(line.startswith("window ") for line in err.splitlines())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    args = parser.parse_args()
    draws, faults, stages = random.Random(args.seed), 0, collections.Counter()
    with tempfile.TemporaryDirectory() as work:
        whole = Path(work, "whole")
        process = start(whole)
        begun(process, whole)
        first = time.monotonic()
        process.communicate()
        spent = time.monotonic() - first  # from the first file to the end of the process
        (wanted,) = whole.glob("*.mp4")
        number = 0
        while number < args.count:
            folder = Path(work, str(number))
            process = start(folder)
            begun(process, folder)
            moment = draws.uniform(0, spent)
            try:
                process.wait(moment)
                process.communicate()
                shutil.rmtree(folder)
                continue  # faster than the first one, it has ended by itself
            except subprocess.TimeoutExpired:
                process.kill()
            number += 1
            before = sampled(process.communicate()[1])
            again = start(folder)
            err = again.communicate()[1]
            stage = err.partition("\n")[0].removeprefix("--resume: ").split(" in ")[0]
            stages[stage] += 1
            names = sorted(path.name for path in folder.iterdir())
            wrong = [] if again.returncode == 0 else [f"exit code {again.returncode}: {err}"]
            if names != [wanted.with_suffix(suffix).name for suffix in (".json", ".mp4", ".png")]:
                wrong.append(f"left {names}")
            elif not filecmp.cmp(folder / wanted.name, wanted, shallow=False):
                wrong.append("another video")
            if before + sampled(err) > WINDOWS + 1:
                wrong.append(f"{before} windows, and {sampled(err)} again")
            faults += bool(wrong)
            verdict = "; ".join(wrong) or "right"
            print(f"{number:3} killed {moment:5.2f} s into it: {stage}: {verdict}", flush=True)
    for stage, count in sorted(stages.items()):
        print(f"{count:3} x {stage}")
    print(f"{args.count - faults} of {args.count} as if nothing had happened")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
