"""How much memory a long video takes: the peak of the whole process, or of its GPU, for a few windows and for many.

``python benchmarks/memory.py`` runs the script itself, once for each number of windows, and reads the peak from the
manifest that it writes. One denoising step a window is enough: what could grow is what is kept of the frames.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
BASE, OVERLAP = 33, 5


def measured(model: str, windows: int, side: int, device: str | None) -> dict:
    """The manifest of a run."""
    frames = BASE + (windows - 1) * (BASE - OVERLAP)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, ROOT / "generate_video_df.py", "--model_id", model, "--outdir", folder]
        command += ["--height", side, "--width", side, "--num_frames", frames, "--base_num_frames", BASE]
        command += ["--overlap_history", OVERLAP, "--inference_steps", 1, "--guidance_scale", 1, "--seed", 1]
        command += ["--device", device] if device else []
        subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
        (manifest,) = Path(folder).glob("*.json")
        return json.loads(manifest.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_id", default="tiny")
    parser.add_argument("--windows", type=int, nargs="+", default=[4, 40])
    parser.add_argument("--side", type=int, default=256, help="height and width of the video, in pixels")
    parser.add_argument("--device")
    args = parser.parse_args()
    first = None
    print(f"{'windows':>8} {'frames':>8} {'peak, GiB':>10} {'of the first':>13} {'video in float32, GiB':>22}")
    for windows in args.windows:
        about = measured(args.model_id, windows, args.side, args.device)
        frames = sum(piece["frames"] for piece in about["pieces"])
        peak = about["peak_memory_gib"]["gpu" if about["settings"]["device"].startswith("cuda") else "host"]
        first = first or peak
        video = frames * args.side**2 * 3 * 4 / 2**30
        print(f"{windows:8} {frames:8} {peak:10.3f} {peak / first:13.3f} {video:22.3f}", flush=True)


if __name__ == "__main__":
    main()
