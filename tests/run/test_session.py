"""One plan, one decode of each input, one choice of the device per run; a session makes what processes make."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from script_runs import FORCING, GENERATE, ROOT, environment, run, scene, write_clip

from skyreels_v2_infer.cli.arguments import parse_diffusion_forcing
from skyreels_v2_infer.distributed.team import Team
from skyreels_v2_infer.run.jobs import Job
from skyreels_v2_infer.run.session import Session
from skyreels_v2_infer.run.worker import Worker

COUNTED = Path(__file__).parent / "counted.py"
SHORT = ("--model_id", "tiny", "--inference_steps", 2, "--seed", 3, "--prompt", "a red circle", "--device", "cpu")
ONCE = {"plans": 1, "noise levels": 1, "windows": 1, "placements": 1}


@pytest.fixture
def folder(tmp_path):
    for name in ("first", "last"):
        Image.fromarray(scene(90, 120, dusk=name == "last")).save(tmp_path / f"{name}.png")
    write_clip(tmp_path / "clip.mp4", [scene(64, 64, time) for time in range(24)], fps=16)
    return tmp_path


def counts(folder: Path, *command: object, ranks: int = 1) -> list[dict]:
    """What each rank of a command has counted."""
    start = [sys.executable]
    if ranks > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    script, *argv = command
    words = [*start, COUNTED, folder / "counts", ROOT / script, *argv]
    done = subprocess.run([*map(str, words)], cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = [f"counts{rank}" for rank in range(ranks)] if ranks > 1 else ["counts"]
    return [json.loads((folder / name).read_text()) for name in names]


def test_images_are_fitted_once_and_there_is_one_plan(folder):
    pictures = ("--image", "first.png", "--end_image", "last.png", "--num_frames", 49)
    assert counts(folder, FORCING, *SHORT, *pictures) == [ONCE | {"images": 2}]


def test_a_video_is_decoded_once(folder):
    (found,) = counts(folder, FORCING, *SHORT, "--video_path", "clip.mp4", "--num_frames", 16)
    assert found == ONCE | {"videos": 1, "decoding processes": 1}


def test_a_resumed_run_is_planned_once(folder):
    command = (GENERATE, *SHORT, "--num_frames", 5, "--resume")
    assert counts(folder, *command) == [ONCE]
    (found,) = counts(folder, *command)  # finished already
    assert found == {"plans": 1, "noise levels": 1, "windows": 1}


def test_a_resumed_run_decodes_its_video_only_if_it_has_to(folder):
    command = (FORCING, *SHORT, "--video_path", "clip.mp4", "--num_frames", 16, "--resume")
    (begun,) = counts(folder, *command)
    assert begun["videos"] == begun["counted videos"] == 1  # nothing to resume yet
    (finished,) = counts(folder, *command)
    assert "videos" not in finished and finished["counted videos"] == 1
    (shown,) = counts(folder, *command[:-1], "--dry_run")
    assert "videos" not in shown and "placements" not in shown


def test_wrong_flags_are_found_before_the_hub_is_asked(tmp_path):
    made = run(FORCING, "--prompt", "a red kite", "a blue kite", "--num_frames", 97, cwd=tmp_path)
    assert made.code == 2 and len(made.lines) == 1 and "--prompt" in made.err


def test_of_several_ranks_the_first_decodes(folder):
    flags = ("--image", "first.png", "--num_frames", 17, "--use_usp")
    first, second = counts(folder, FORCING, *SHORT, *flags, ranks=2)
    assert first == ONCE | {"images": 1} and second == ONCE


@pytest.mark.slow
def test_a_session_makes_the_files_that_processes_make(tmp_path, folder, monkeypatch):
    """Three videos of different shape, one of them with an image, after one loading of the model."""
    jobs = [
        ("--prompt", "a red circle moves slowly up", "--num_frames", 17, "--seed", 1),
        ("--prompt", "a blue square", "--num_frames", 49, "--ar_step", 2, "--seed", 2, "--image", "first.png"),
        ("--prompt", "a red circle", "--num_frames", 17, "--seed", 3, "--teacache", "--guidance_scale", 1),
    ]
    shared = ("--model_id", "tiny", "--inference_steps", 3, "--device", "cpu")
    expected = [run(FORCING, *shared, *job, cwd=folder).path for job in jobs]
    monkeypatch.chdir(folder)
    sessions: list[Session] = []

    def session(*given, **more) -> Session:
        if not sessions:
            sessions.append(Session(*given, **more))
        return sessions[0]

    made = []
    for job in jobs:
        settings = parse_diffusion_forcing([*map(str, (*shared, *job, "--outdir", "session"))])
        one = Job(FORCING, settings, lambda: None)
        try:
            made.append(one.run(Team(), session))
        finally:
            one.close()
    loaded = sessions[0]._pipeline
    assert sessions[0].load() is None and sessions[0]._pipeline is loaded
    for ours, theirs in zip(made, expected, strict=True):
        assert ours.name == theirs.name and ours.read_bytes() == theirs.read_bytes()


class TestWorker:
    def test_tasks_run_in_order_beside_the_caller(self):
        worker, seen = Worker(ahead=2), []
        for i in range(20):
            worker.put(lambda i=i: seen.append((i, threading.current_thread() is not threading.main_thread())))
        worker.finish()
        assert seen == [(i, True) for i in range(20)]

    def test_only_so_many_wait(self):
        worker, gate, begun = Worker(ahead=3), threading.Event(), []
        worker.put(gate.wait)
        threading.Timer(0.3, gate.set).start()
        for i in range(8):
            worker.put(lambda i=i: begun.append(i))
            assert i < 4 or gate.is_set()
        worker.finish()
        assert begun == [*range(8)]

    def test_an_error_ends_the_rest_and_comes_out(self):
        worker, seen = Worker(), []

        def fail():
            raise OSError("the disk is full")

        worker.put(fail)
        with pytest.raises(OSError, match="the disk is full"):
            for i in range(1000):
                worker.put(lambda i=i: seen.append(i))
                time.sleep(0.001)
        with pytest.raises(OSError, match="the disk is full"):
            worker.finish()
        worker.close()
        assert seen == []

    def test_closing_drops_what_waits_and_waits_for_the_task_at_hand(self):
        worker, seen, gate = Worker(), [], threading.Event()
        worker.put(lambda: (gate.set(), time.sleep(0.2), seen.append("ended")))
        worker.put(lambda: seen.append("dropped"))
        gate.wait()
        worker.close()
        assert seen == ["ended"] and not worker._thread.is_alive()


def test_the_next_window_is_denoised_while_frames_are_encoded(folder, monkeypatch):
    """Encoding is slowed down; windows do not wait for it, and the video is the same."""
    from skyreels_v2_infer.media.write import VideoWriter

    flags = ("--num_frames", 65, "--prompt", "a red circle", "--seed", 1)
    argv = [*map(str, ("--model_id", "tiny", "--inference_steps", 2, "--device", "cpu", *flags))]
    monkeypatch.chdir(folder)
    times: list[tuple[str, float]] = []
    real = VideoWriter.write

    def slow(self, frames):
        real(self, frames)
        time.sleep(0.2)
        times.append(("encoded", time.monotonic()))

    class Watched(Session):
        def execute(self, *given):
            for part in super().execute(*given):
                times.append(("denoised", time.monotonic()))
                yield part

    def make(outdir: str, kind: type) -> bytes:
        job = Job(FORCING, parse_diffusion_forcing([*argv, "--outdir", outdir]), lambda: None)
        try:
            return job.run(Team(), kind).read_bytes()
        finally:
            job.close()

    plain = make("plain", Session)
    monkeypatch.setattr(VideoWriter, "write", slow)
    assert make("slow", Watched) == plain
    denoised = [at for what, at in times if what == "denoised"]
    encoded = [at for what, at in times if what == "encoded"]
    assert len(denoised) == 3 and denoised[1] < encoded[-2] and np.diff(encoded).min() > 0.19
