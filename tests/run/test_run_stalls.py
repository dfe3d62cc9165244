"""Runs whose ffmpeg makes no progress end in one line and can be resumed; Ctrl-C ends them at once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import imageio_ffmpeg
import pytest
from script_runs import FORCING, ROOT, environment, read_frames, run, scene, write_clip

IMPATIENT = Path(__file__).with_name("impatient.py")
SHORT = ("--model_id", "tiny", "--device", "cpu", "--inference_steps", 2, "--seed", 3, "--prompt", "a red circle")
TWO_WINDOWS = (*SHORT, "--num_frames", 49)
LEFT = "windows are kept, and the next one is denoised; the same command with --resume continues"


def stub(folder: Path, what: str, pattern: str, first: int = 1) -> dict[str, str]:
    """An ffmpeg that does `what` from the `first` command line on that contains `pattern`."""
    count = f'echo >> "{folder}/count"; [ "$(wc -l < "{folder}/count")" -lt {first} ] || {{ {what}; }}'
    path = folder / "stub"
    real = imageio_ffmpeg.get_ffmpeg_exe()
    path.write_text(f'#!/bin/sh\ncase " $* " in *{pattern}*) {count};; esac\nexec "{real}" "$@"\n')
    path.chmod(0o755)
    return {"IMAGEIO_FFMPEG_EXE": str(path)}


def start(folder: Path, seconds: float, *argv: object, **more: str) -> subprocess.Popen:
    command = [sys.executable, IMPATIENT, seconds, FORCING, *argv]
    return subprocess.Popen(
        [*map(str, command)],
        cwd=folder,
        env=environment(PYTHONPATH=str(ROOT), **more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def ends(process: subprocess.Popen) -> tuple[int, str]:
    """Exit code and last line of a process that makes no video."""
    try:
        out, err = process.communicate(timeout=100)
    finally:
        process.kill()
    assert out == "" and "Traceback" not in err, err
    return process.returncode, err.splitlines()[-1]


MORE = [pytest.param(what, marks=pytest.mark.slow) for what in ("sleep 200", "cat > /dev/null; sleep 200")]


@pytest.mark.parametrize("what", ["kill -STOP $$", *MORE])
def test_an_encoder_that_stalls_ends_the_run_which_is_resumable(tmp_path, what):
    """The second piece: the first is kept, and the latents of the second."""
    stalled = stub(tmp_path, what, "segment-", first=2)
    here = tmp_path / "here"
    here.mkdir()
    code, line = ends(start(here, 3, *TWO_WINDOWS, **stalled))
    assert code == 1 and "no progress for 3 s" in line and line.endswith(f"1 of 2 {LEFT}"), line
    made = run(FORCING, *TWO_WINDOWS, "--resume", cwd=here)
    assert made.frames.shape[0] == 49


def test_a_join_that_stalls_keeps_all_pieces(tmp_path):
    stalled = stub(tmp_path, "kill -STOP $$", "concat", first=2)  # the first is the check before the run
    code, line = ends(start(tmp_path, 3, *TWO_WINDOWS, **stalled))
    assert code == 1 and "no progress for 3 s" in line and "2 of 2 windows are kept" in line, line
    assert len(read_frames(run(FORCING, *TWO_WINDOWS, "--resume", cwd=tmp_path).path)) == 49


def test_a_video_that_no_decoder_gets_through_is_named(tmp_path):
    write_clip(tmp_path / "clip.mp4", [scene(64, 64, time) for time in range(24)])
    stalled = stub(tmp_path, "kill -STOP $$", "clip.mp4")
    more = ("--video_path", "clip.mp4", "--num_frames", 16)
    code, line = ends(start(tmp_path, 3, *SHORT, *more, **stalled))
    assert code == 1 and "clip.mp4" in line and "no progress for 3 s" in line and "no video was written" in line


def test_a_replayed_video_that_is_not_read_is_named(tmp_path):
    write_clip(tmp_path / "clip.mp4", [scene(64, 64, time) for time in range(3)])
    stalled = stub(tmp_path, "kill -STOP $$", "clip.mp4")
    code, line = ends(start(tmp_path, 3, "--replay", "clip.mp4", "--dry_run", **stalled))
    assert code == 1 and "clip.mp4" in line and "no progress for 3 s" in line


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("pattern", ["segment-", "clip.mp4"])
def test_a_signal_ends_a_run_whose_ffmpeg_is_stopped(tmp_path, pattern, number, code):
    """At once, however patient the run is; no ffmpeg is left."""
    write_clip(tmp_path / "clip.mp4", [scene(64, 64, time) for time in range(24)])
    stopped = stub(tmp_path, f'echo $$ > "{tmp_path}/pid"; kill -STOP $$', pattern)
    flags = ("--video_path", "clip.mp4") if pattern == "clip.mp4" else ()
    process = start(tmp_path, 60, *SHORT, "--num_frames", 48 if flags else 97, *flags, **stopped)
    limit = time.monotonic() + 100
    while not (tmp_path / "pid").exists():
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.05)
    time.sleep(3)  # until the run waits for it
    sent = time.monotonic()
    process.send_signal(number)
    ended, line = ends(process)
    assert ended == code and "interrupted" in line
    assert time.monotonic() - sent < 30  # about two, on a machine with nothing else to do
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
