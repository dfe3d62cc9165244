"""Whether a very long video leaves anything behind on the way: memory, threads, descriptors, time per window.

``python benchmarks/endurance.py`` runs the script itself and looks at its process from outside (/proc, so on Linux) at
every 50th window. Windows are small and have two denoising steps: what could grow does so with each of them.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
BASE, OVERLAP = 9, 5  # frames; each window after the first adds 4


def command(windows: int, side: int, outdir: str) -> list[str]:
    frames = BASE + (windows - 1) * (BASE - OVERLAP)
    words = [sys.executable, ROOT / "generate_video_df.py", "--model_id", "tiny", "--device", "cpu", "--seed", 1]
    words += ["--height", side, "--width", side, "--num_frames", frames, "--base_num_frames", BASE]
    words += ["--overlap_history", OVERLAP, "--inference_steps", 2, "--outdir", outdir]
    return [str(word) for word in words]


def sizes(pid: int) -> tuple[float, int, int]:
    """Resident memory in MiB, threads and open descriptors of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    resident, threads = (int(re.search(rf"{name}:\s+(\d+)", status)[1]) for name in ("VmRSS", "Threads"))
    return resident / 1024, threads, len(os.listdir(f"/proc/{pid}/fd"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=500)
    parser.add_argument("--every", type=int, default=50, help="windows from one line to the next")
    parser.add_argument("--side", type=int, default=32, help="height and width of the video, in pixels")
    args = parser.parse_args()
    print(f"{'window':>7} {'memory, MiB':>12} {'threads':>8} {'descriptors':>12} {'s per window':>13}")
    with tempfile.TemporaryDirectory() as folder:
        words = command(args.windows, args.side, folder)
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        began = time.monotonic()
        for line in process.stderr:
            window = re.match(r"window (\d+)/", line)
            if window is None:
                print(line, end="", file=sys.stderr)
            elif int(window[1]) in (1, args.windows) or int(window[1]) % args.every == 0:
                now, past = time.monotonic(), int(window[1]) % args.every or min(args.every, int(window[1]))
                memory, threads, descriptors = sizes(process.pid)
                row = f"{window[1]:>7} {memory:12.1f} {threads:8} {descriptors:12} {(now - began) / past:13.3f}"
                print(row, flush=True)
                began = now
        return process.wait()


if __name__ == "__main__":
    sys.exit(main())
