"""Whether the VAE computes in tiles is decided once and recorded: what memory is there later changes no frame."""

import json
import signal

from script_runs import FORCING, run, signal_at

# 336 pixels are more than a tile has. The smallest windows.
LARGE = ("--model_id", "tiny", "--prompt", "a red circle", "--seed", 3, "--height", 336, "--width", 64)
LARGE += ("--num_frames", 9, "--base_num_frames", 5, "--overlap_history", 1, "--inference_steps", 1, "--device", "cpu")


def tiling(made) -> str:
    return json.loads(made.path.with_suffix(".json").read_text())["settings"]["vae_tiling"]


def test_resumed_and_replayed_runs_use_tiles_where_the_first_one_did(tmp_path):
    begun = run(FORCING, *LARGE, "--memory", 0.4, cwd=tmp_path, **signal_at("segment-0000.mp4", signal.SIGINT))
    assert begun.code == 130 and "--memory 0.4: the VAE in tiles; planned peak 0.3 GiB instead of 0.4" in begun.err
    resumed = run(FORCING, *LARGE, "--resume", cwd=tmp_path)
    assert "windows are there" in resumed.err and tiling(resumed) == "on"
    replayed = run(FORCING, "--replay", resumed.path, "--outdir", "again", cwd=tmp_path)
    assert replayed.path.read_bytes() == resumed.path.read_bytes()
