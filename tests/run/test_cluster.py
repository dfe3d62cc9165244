"""Many videos on the workers of a Ray cluster. With `-m slow` on a cluster of this machine, also with lost workers."""

import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from script_runs import FORCING, LIMIT, ROOT, Run, environment, run

from skyreels_v2_infer.cli.arguments import parse_diffusion_forcing
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.progress import VideoProgress
from skyreels_v2_infer.run import cluster, cluster_worker, summary
from skyreels_v2_infer.run.cluster import check_answers, reason_in
from skyreels_v2_infer.run.cluster_room import Needs, described, needs_of, room_for, threads_of
from skyreels_v2_infer.run.cluster_worker import Place, RankWorker, with_images
from skyreels_v2_infer.run.model_files import Models
from skyreels_v2_infer.run.row_checks import check_rows

QUICK = ("--model_id", "tiny", "--device", "cpu", "--inference_steps", 2, "--num_frames", 5, "--outdir", "out")
SMALL = ("--height", 32, "--width", 32)
LONG = ("--num_frames", 17, "--base_num_frames", 9, "--overlap_history", 5)
HEAD = {"CPU": 4.0, "memory": 1e9}
GPUS = {"CPU": 64.0, "GPU": 8.0}


# What fits where


@pytest.mark.parametrize(
    ("machines", "device", "threads", "needs"),
    [
        ([HEAD, GPUS], None, "8", Needs(1, 1)),
        ([HEAD, GPUS], "cpu", "8", Needs(8)),
        ([HEAD], None, None, Needs(4)),
        ([{"memory": 1e9}, HEAD, {"CPU": 2.0}], None, None, Needs(2)),  # a head that takes no work
        ([HEAD], None, "2,1", Needs(2)),
        ([HEAD], None, "16", Needs(4)),
        ([HEAD], None, "x", Needs(4)),
        ([HEAD, {"CPU": 4.0, "GPU": 0.5}], None, "1", Needs(1)),
        ([], None, None, Needs(1)),
    ],
)
def test_what_a_worker_takes(machines, device, threads, needs):
    assert needs_of(machines, device, threads) == needs


def test_a_gpu_that_no_machine_has():
    with pytest.raises(InputError, match="--device cuda: no machine of the cluster has a GPU"):
        needs_of([HEAD], "cuda", None)


@pytest.mark.parametrize(
    ("machines", "needs", "size", "room"),
    [
        ([GPUS, GPUS, HEAD], Needs(1, 1), 1, (16, True)),
        ([GPUS, GPUS, HEAD], Needs(1, 1), 3, (4, True)),
        ([GPUS, GPUS, HEAD], Needs(1, 1), 16, (1, False)),  # over two machines
        ([GPUS, HEAD], Needs(1, 1), 9, (0, False)),
        ([{"CPU": 2.0, "GPU": 8.0}], Needs(1, 1), 1, (2, True)),
        ([HEAD, {"CPU": 2.0}], Needs(3), 1, (1, True)),
        ([], Needs(1), 1, (0, False)),
    ],
)
def test_how_many_groups_there_is_room_for(machines, needs, size, room):
    assert room_for(machines, needs, size) == room


def test_the_room_in_words():
    line = "room for 1 worker on 1 machine, 4 CPUs each"
    assert described([HEAD], Needs(4), 1, None) == f"{line}; with OMP_NUM_THREADS=1 for 4 workers"
    assert described([HEAD], Needs(4), 1, "4") == line
    assert described([GPUS, GPUS], Needs(1, 1), 4, "1") == "room for 4 groups of 4 workers on 2 machines, 1 GPU each"
    assert described([GPUS], Needs(1, 1), 1, None) == "room for 8 workers on 1 machine, 1 GPU each"


def test_threads_are_those_of_the_command_for_one_video():
    assert [threads_of({}, size) for size in (1, 2)] == [None, "1"]  # torchrun sets 1
    assert [threads_of({"OMP_NUM_THREADS": "3"}, size) for size in (1, 2)] == ["3", "3"]


# Messages


def test_why_an_actor_was_lost_in_one_line():
    died = "The actor died unexpectedly before finishing this task.\n\tclass_name: RayWorker\n\tactor_id: 8eed\n"
    killed = (
        "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: "
    )
    assert reason_in(f"{died}{killed}Worker unexpectedly exits with a connection error code 2. End of file. Some") == (
        "its process was killed or crashed"
    )
    assert reason_in(f"{died}The actor is dead because its node has died. Node Id: 5eff") == "its node has died"
    begun = "The actor died because of an error raised in its creation task, \x1b[36mray::RayWorker.__init__()\x1b[39m"
    missing = "ModuleNotFoundError: No module named 'skyreels_v2_infer'"
    assert reason_in(f"{begun} (pid=1)\nRuntimeError: failed to import\n{missing}\n") == missing
    assert reason_in("something\nelse") == "something else"


def test_an_address_where_no_cluster_answers():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(InputError, match=f"--ray 127.0.0.1:{port}: cannot be reached"):
        check_answers(f"127.0.0.1:{port}")
    with http.server.HTTPServer(("127.0.0.1", 0), Silent) as other:
        threading.Thread(target=other.handle_request, daemon=True).start()
        with pytest.raises(InputError, match="is not a Ray cluster"):
            check_answers(f"127.0.0.1:{other.server_port}")


class Silent(http.server.BaseHTTPRequestHandler):
    def log_message(self, *about) -> None:
        pass


# A worker, in this process


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in cluster_worker.PASSED_ON:  # `begin` changes them
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    return tmp_path


def write(folder: Path, rows: list[dict]) -> None:
    (folder / "jobs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_worker_makes_videos_and_stops(here, monkeypatch):
    write(here, [{"prompt": f"circle {i}", "seed": i} for i in range(2)])
    argv = (*QUICK, *SMALL, "--num_frames", 13, "--base_num_frames", 9, "--overlap_history", 5, "--jobs", "jobs.jsonl")
    videos, _ = check_rows(parse_diffusion_forcing([*map(str, argv)]), Models())
    worker = RankWorker()
    os.environ["HF_HUB_OFFLINE"] = "0"
    worker.begin(Place(FORCING, str(here), {"OMP_NUM_THREADS": "1"}, "cpu"))
    assert os.environ["OMP_NUM_THREADS"] == "1" and "HF_HUB_OFFLINE" not in os.environ

    outcome = worker.make(videos)
    assert (outcome.lost, outcome.failures, outcome.is_busy, worker.progress()) == (None, 0, False, 1.0)
    assert (outcome.result.row, outcome.result.path) == (1, "out/circle-0_0.mp4") and Path(outcome.result.path).exists()

    real, seen = VideoProgress.rows, []

    def until_second_window(self, window):
        seen.append(worker.progress())
        if window:
            worker.stop()
        return real(self, window)

    monkeypatch.setattr(VideoProgress, "rows", until_second_window)
    outcome = worker.make(videos[1:])
    assert (outcome.result, outcome.is_kept, seen) == (None, True, [0.0, 0.5])
    assert [path.suffix for path in Path("out").glob("circle-1*")] == [".parts"]


def test_a_worker_needs_the_folder_of_the_command(here):
    with pytest.raises(OSError, match="/none: No such file or directory; all machines need the same folders"):
        RankWorker().begin(Place(FORCING, "/none", {}, "cpu"))


def test_an_image_that_another_machine_has_downloaded(here, monkeypatch):
    write(here, [{"prompt": "x", "seed": 1}])
    [row] = parse_diffusion_forcing(["--model_id", "tiny", "--jobs", "jobs.jsonl"]).rows
    command = ["--image=https://here/a.png", "--end_image=there.png"]
    settings = [row.settings.__class__(**vars(row.settings) | {"image": Path(name)}) for name in ("none", "jobs.jsonl")]
    monkeypatch.setattr(cluster_worker, "download_image", lambda address, name: Path(name, address[8:]))
    found = [with_images(one, command).image for one in settings]
    assert found == [Path("image/here/a.png"), Path("jobs.jsonl")]

    monkeypatch.setattr(cluster_worker, "download_video", lambda address, name: Path(name, address[8:]))
    video = settings[0].__class__(**vars(settings[0]) | {"image": None, "video_path": Path("none")})
    assert with_images(video, ["--video_path=https://here/a.mp4"]).video_path == Path("video_path/here/a.mp4")

    def unreachable(address, name):
        raise OSError

    monkeypatch.setattr(cluster_worker, "download_image", unreachable)
    assert with_images(settings[0], command).image == Path("none")


# On a cluster of this machine


HELD = Path(__file__).with_name("held_cluster.py")


def on_cluster(*argv: object, cwd: Path, during: Callable[[subprocess.Popen], object] | None = None) -> Run:
    """Starts a script with --ray and waits for its end.

    Args:
        during: called with the process; while it runs, no worker begins a second window.
    """
    if during:
        (cwd / "hold").write_text("")
    with (cwd / "stdout").open("w") as out, (cwd / "stderr").open("w") as err:
        command = [sys.executable, *((HELD, FORCING) if during else (ROOT / FORCING,)), *map(str, argv), "--ray"]
        env = environment(PYTHONPATH=str(ROOT))  # for `HELD`
        own = {"cwd": cwd, "env": env, "stdin": subprocess.DEVNULL, "start_new_session": True}
        process = subprocess.Popen(command, stdout=out, stderr=err, **own)
        try:
            if during:
                during(process)
            process.wait(LIMIT)
        finally:
            process.kill()
            (cwd / "hold").unlink(missing_ok=True)
    return Run(process.returncode, (cwd / "stdout").read_text(), (cwd / "stderr").read_text(), 0.0, cwd)


def after_first_window(folder: Path, name: str = "") -> Path:
    """Waits until a video whose name begins with `name` has a finished window -> its folder."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        for record in folder.glob(f"{name}*.parts/run.json"):
            if json.loads(record.read_text())["pieces"]:
                return record.parent
        time.sleep(0.02)
    raise AssertionError((folder.parent / "stderr").read_text())


def holder_of(lock: Path) -> int:
    """The process that has this file open."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(link.resolve() == lock for link in (process / "fd").iterdir()):
                return int(process.name)
        except OSError:
            continue
    raise AssertionError(f"nobody has {lock}")


@pytest.mark.slow
def test_twenty_jobs_with_three_bad_rows_and_a_killed_worker(tmp_path):
    """Each of the 17 videos arrives; that of the killed worker as without Ray; a rerun makes three."""
    rows = [{"prompt": f"circle {i}", "seed": i} for i in range(20)]
    rows[0] |= {"num_frames": 25, "base_num_frames": 9, "overlap_history": 5, "inference_steps": 6}
    bad = {3: {"num_frames": 6}, 9: {"image": "none.png"}, 15: {"guidance": 3}}
    write(tmp_path, [row | bad.get(i, {}) for i, row in enumerate(rows)])
    argv = (*QUICK, *SMALL, "--jobs", "jobs.jsonl", "--keep_going")
    killed = []

    def kill(process) -> None:
        parts = after_first_window(tmp_path / "out", "circle-0_")  # others have one window and end meanwhile
        os.kill(holder_of(parts / "lock"), signal.SIGKILL)
        (tmp_path / "hold").unlink()
        killed.append(parts.name)

    made = on_cluster(*argv, cwd=tmp_path, during=kill)
    assert made.code == 1 and killed[0].startswith("circle-0_0-"), made.err
    assert made.lines[0].startswith("Ray (local): room for ")
    [lost] = [line for line in made.lines if "was lost" in line]
    assert lost.startswith("row 1: the worker on ") and "its process was killed" in lost
    assert len(made.lines) == 20 + 3  # and nothing of Ray's
    names = {f"circle-{i}_{i}.mp4" for i in range(20) if i not in bad}
    assert {Path(path).name for path in made.out.splitlines()} == names and len(made.out.splitlines()) == 17
    found = [json.loads(line) for line in (tmp_path / "out" / summary.NAME).read_text().splitlines()]
    assert Counter(one["status"] for one in found) == {"done": 17, "invalid": 3}
    assert (tmp_path / "out" / "report.html").is_file() and not [*(tmp_path / "out").glob("*.parts")]

    before = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in names}
    write(tmp_path, rows)
    again = on_cluster(*argv, cwd=tmp_path)
    assert again.code == 0 and len(again.out.splitlines()) == 20, again.err
    assert before == {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in names}
    assert len((tmp_path / "out" / summary.NAME).read_text().splitlines()) == 23

    write(tmp_path, [rows[0], rows[9]])
    run(FORCING, *argv, "--outdir", "alone", cwd=tmp_path)
    for i in (0, 9):
        name = f"circle-{i}_{i}.mp4"
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


@pytest.mark.slow
def test_groups_of_two_and_an_interrupt(tmp_path):
    """Two workers share each video; Ctrl-C, which every process of a terminal gets, leaves what can be continued."""
    write(tmp_path, [{"prompt": f"circle {i}", "seed": i} for i in range(2)])
    argv = (*QUICK, *LONG, "--inference_steps", 6, "--jobs", "jobs.jsonl")

    def interrupt(process) -> None:
        after_first_window(tmp_path / "out")
        os.killpg(process.pid, signal.SIGINT)

    stopped = on_cluster(*argv, "--gpus_per_job", 2, cwd=tmp_path, during=interrupt)
    assert stopped.code == 130, stopped.err
    # With four CPUs or more there are two groups, so that both videos are begun.
    said = "interrupted; 0 of 2 videos are done; of [12] more some windows are kept; the same command continues"
    assert re.fullmatch(f"{FORCING}: {said}", stopped.lines[-1]) and len(stopped.lines) == 2
    assert {path.name[:8] for path in (tmp_path / "out").glob("*.parts")} <= {"circle-0", "circle-1"}
    assert not [*(tmp_path / "out").glob("*.mp4")]

    made = on_cluster(*argv, "--gpus_per_job", 2, cwd=tmp_path)
    assert made.code == 0, made.err
    run(FORCING, *argv, "--outdir", "alone", cwd=tmp_path)
    for path in made.out.splitlines():  # parallel passes of guidance are bit-identical, see test_ranks.py
        assert (tmp_path / path).read_bytes() == (tmp_path / "alone" / Path(path).name).read_bytes()
    commands = [record["command"] for record in summary.read_summary(tmp_path / "out").values()]
    assert all(command.startswith(f"torchrun --nproc_per_node=2 {FORCING} --use_usp ") for command in commands)


def test_without_videos_to_make_no_cluster_is_started(here, monkeypatch, capsys):
    from skyreels_v2_infer.run.main import main

    monkeypatch.setattr("skyreels_v2_infer.cli.groups.find_spec", lambda name: name)
    monkeypatch.setattr(cluster, "connected", None)  # would fail
    write(here, [{"num_frames": 6}])
    argv = [*map(str, QUICK), "--jobs", "jobs.jsonl", "--keep_going", "--ray"]
    assert main(FORCING, parse_diffusion_forcing, argv) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"0 of 1 videos are done; {Path('out', summary.NAME)}"
