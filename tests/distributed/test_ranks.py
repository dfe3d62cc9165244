"""Several ranks: which layouts are legal, that all of them make one rank's video, and how one's failure ends all."""

import itertools
import json
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small_checkpoints
import torch
from PIL import Image
from script_runs import FORCING, GENERATE, LIMIT, ROOT, Run, contents, environment, read_frames, run

from skyreels_v2_infer import console
from skyreels_v2_infer.distributed import heartbeat, team
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.launch import Launch
from skyreels_v2_infer.plan.plan import make_plan
from skyreels_v2_infer.plan.sharing import Layout, Wanted, choose_layout
from skyreels_v2_infer.run import placing
from skyreels_v2_infer.runtime import Placement

HERE = Path(__file__).parent
HEADS = {"14B": 40, "1.3B": 12}
FRAME_TOKENS = {"540P": 34 * 60, "720P": 45 * 80, "480x832": 30 * 52}
# Relative: the ranks' keys stand in another order, and matrices of fewer rows are multiplied, so sums round otherwise.
LATENTS = 1e-5
SMALL = ("--height", 64, "--width", 64, "--num_frames", 9, "--inference_steps", 3, "--seed", 1, "--prompt", "a swan")


def by_brute_force(ranks: int, heads: int, tokens: int, guided: bool) -> set[tuple[int, int, int]]:
    degrees = range(1, ranks + 1)
    return {
        (g, u, r)
        for g, u, r in itertools.product((1, 2) if guided else (1,), degrees, degrees)
        if g * u * r == ranks and heads % u == 0 and tokens % (u * r) == 0
    }


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("size", FRAME_TOKENS)
@pytest.mark.parametrize("model", HEADS)
def test_every_number_of_ranks_gets_the_best_legal_layout_or_is_refused(model, size, guided):
    heads, tokens = HEADS[model], FRAME_TOKENS[size]
    refused = 0
    for ranks in range(1, 65):
        legal = by_brute_force(ranks, heads, tokens, guided)
        if not legal:
            refused += 1
            with pytest.raises(InputError, match=f"--use_usp: {ranks} processes cannot share {heads} heads"):
                choose_layout(ranks, heads, tokens, guided=guided)
            continue
        chosen = choose_layout(ranks, heads, tokens, guided=guided)
        # branches side by side first, then as much Ulysses as possible
        assert (chosen.guidance, chosen.ulysses, chosen.ring) == max(legal)
        assert chosen.ranks == ranks
    assert refused < 64 and (refused > 0 or guided)


@pytest.mark.parametrize(
    ("ranks", "heads", "guided", "layout"),
    [
        (1, 40, True, Layout(1, 1, 1)),
        (2, 40, True, Layout(2, 1, 1)),
        (2, 40, False, Layout(1, 2, 1)),
        (3, 40, True, Layout(1, 1, 3)),
        (8, 40, True, Layout(2, 4, 1)),
        (8, 40, False, Layout(1, 8, 1)),
        (8, 12, False, Layout(1, 4, 2)),
        (16, 12, True, Layout(2, 4, 2)),
    ],
)
def test_layouts_of_540p(ranks, heads, guided, layout):
    assert choose_layout(ranks, heads, FRAME_TOKENS["540P"], guided=guided) == layout


def test_what_is_asked_for_is_kept_or_refused():
    def choose(ranks, **asked):
        return choose_layout(ranks, 40, 2040, True, Wanted(**asked))

    assert choose(8, ulysses=2) == Layout(2, 2, 2)
    assert choose(8, ulysses=2, ring=4) == Layout(1, 2, 4)
    assert choose(8, cfg_parallel=False) == Layout(1, 8, 1)
    assert choose(8, cfg_parallel=True, ring=4) == Layout(2, 1, 4)
    for asked, flag, value in (
        ({"ulysses": 4}, "ulysses_degree", 4),
        ({"ring": 4, "cfg_parallel": True}, "ring_degree", 4),
        ({"cfg_parallel": False, "ring": 4}, "ring_degree", 4),
        ({"ulysses": 6}, "ulysses_degree", 6),
        ({"ulysses": 2, "ring": 6}, "ulysses_degree", 2),  # each by itself can be
    ):
        with pytest.raises(InputError) as caught:
            choose(6, **asked)
        assert (caught.value.name, caught.value.value) == (flag, value)
    with pytest.raises(InputError, match=r"; legal are 4, 8, 12, 16, 20, 24, 40, 48, 60$"):
        choose(6, ulysses=4)
    with pytest.raises(InputError, match=r"^--ulysses_degree 3: .*no number of processes is legal"):
        choose(3, ulysses=3)
    with pytest.raises(InputError, match="--cfg_parallel: "):
        choose_layout(2, 40, 2040, False, Wanted(cfg_parallel=True))


@pytest.mark.parametrize(
    ("asked", "flag"),
    [
        ({"ulysses": 3}, "ulysses_degree"),
        ({"ring": 2}, "ring_degree"),
        ({"cfg_parallel": True}, "cfg_parallel"),
    ],
)
def test_one_rank_alone_cannot_share(asked, flag):
    with pytest.raises(InputError) as caught:
        choose_layout(1, 40, 2040, True, Wanted(**asked))
    assert caught.value.name == flag
    assert choose_layout(1, 40, 2040, True, Wanted(cfg_parallel=False, ulysses=1, ring=1)) == Layout()


@pytest.mark.parametrize("dry", [("--dry_run",), ()])
@pytest.mark.parametrize("flags", [("--ulysses_degree", 3), ("--cfg_parallel",)])
def test_one_process_of_torchrun_refuses_to_share(tmp_path, flags, dry):
    """It ignored the flags, and the dry run listed no GPUs."""
    one = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    result = run(GENERATE, *dry, "--model_id", "tiny", "--use_usp", *flags, cwd=tmp_path, **one)
    assert (result.code, result.out, len(result.lines)) == (2, "", 1)
    assert flags[0] in result.err
    assert contents(tmp_path) == []


def test_without_the_attention_engine_only_guidance_can_be_shared(monkeypatch):
    plan = make_plan(5, 1, 5.0)
    placing.check_packages(plan.with_sharing(Layout(2, 2, 1)))
    monkeypatch.setattr(placing, "find_spec", {"yunchang": None}.__getitem__)
    placing.check_packages(plan.with_sharing(Layout(2, 1, 1)))
    with pytest.raises(InputError) as refused:
        placing.check_packages(plan.with_sharing(Layout(2, 2, 1)))
    assert refused.value.name == "use_usp"


def test_a_ring_of_gpus_has_no_kernel_for_float32():
    Placement(torch.device("cpu"), torch.float32).check_ring()
    with pytest.raises(InputError, match="--dtype float32: "):
        Placement(torch.device("cuda"), torch.float32).check_ring()


TORCHRUN = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}


def test_rank_identity():
    assert Launch.from_environment(TORCHRUN) == Launch(5, 1, 8, by_torchrun=True)
    for alone in ({}, {"WORLD_SIZE": "1"}, dict.fromkeys(TORCHRUN, "")):
        assert Launch.from_environment(alone) == Launch(0, 0, 1, by_torchrun=False)


WRONG_ENVIRONMENTS = {
    "no processes": {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "0"},
    "too high a rank": {"RANK": "8"},
    "huge": {"RANK": "9" * 5000},
    "no number": {"WORLD_SIZE": "two"},
    "negative": {"RANK": "-1"},
    "local above global": {"LOCAL_RANK": "6"},
    "local alone": {"RANK": "", "WORLD_SIZE": ""},
    "no rank": {"RANK": ""},
    "no local rank": {"LOCAL_RANK": ""},
}


@pytest.mark.parametrize("case", WRONG_ENVIRONMENTS)
def test_a_wrong_environment_is_refused(case, monkeypatch, capsys):
    environ = TORCHRUN | WRONG_ENVIRONMENTS[case]
    with pytest.raises(InputError, match="|".join(TORCHRUN)) as caught:
        Launch.from_environment(environ)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    console.say("said")  # so that the error can be reported
    assert console.silent()
    assert capsys.readouterr().err == "said\n"


@pytest.mark.parametrize("argv", [("--dry_run",), (), ("--steps",)])
@pytest.mark.parametrize("case", ["no processes", "huge", "local alone"])
def test_a_wrong_environment_ends_in_one_line(tmp_path, case, argv):
    result = run(GENERATE, *argv, "--model_id", "tiny", cwd=tmp_path, **TORCHRUN | WRONG_ENVIRONMENTS[case])
    assert (result.code, result.out, len(result.lines)) == (2, "", 1)
    assert contents(tmp_path) == []


@pytest.mark.parametrize("missing", ["MASTER_ADDR", "MASTER_PORT"])
def test_without_a_place_to_meet_each_rank_ends_in_one_line(tmp_path, missing):
    known = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500", missing: ""}
    result = run(GENERATE, "--model_id", "tiny", "--use_usp", cwd=tmp_path, **TORCHRUN | known)
    assert (result.code, result.out, len(result.lines)) == (2, "", 1)
    assert missing in result.err
    assert contents(tmp_path) == []


def test_each_process_takes_the_gpu_with_its_number(monkeypatch):
    assert team.own_device("cpu", 3) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert team.own_device(None, 3) == team.own_device("cuda", 3) == "cuda:3"
    with pytest.raises(InputError, match="--device cuda: process 5 of this machine finds only 4 GPUs"):
        team.own_device(None, 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert team.own_device(None, 3) == "cpu"


def test_a_process_that_sees_one_gpu_takes_it(monkeypatch):
    """A cluster manager shows each process its own; the number on the machine says nothing then."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert [team.own_device(device, rank) for device in (None, "cuda") for rank in (0, 1, 7)] == ["cuda:0"] * 6


def test_two_processes_on_one_gpu_are_refused(monkeypatch):
    store = torch.distributed.HashStore()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for local_rank, gpu in enumerate(("a", "b")):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, gpu=gpu: SimpleNamespace(uuid=gpu))
        team.check_own_gpu(store, "cuda:0", local_rank)
    with pytest.raises(InputError, match="--device cuda: process 3 of this machine finds only 1 GPU, "):
        team.check_own_gpu(store, "cuda:0", 2)


def free_port() -> str:
    with socket.create_server(("localhost", 0)) as server:
        return str(server.getsockname()[1])


@contextmanager
def started(script: str, *argv: object, cwd: Path, count: int = 2, **more: str):
    """Processes that find each other without torchrun, which would wait half a minute for one that is stopped."""
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": free_port(), "WORLD_SIZE": str(count)}
    processes = [
        subprocess.Popen(
            [sys.executable, HERE / script, *map(str, argv)],
            cwd=cwd,
            env=environment(PYTHONPATH=str(ROOT), RANK=str(rank), LOCAL_RANK=str(rank), **place, **more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.parametrize(("where", "stopped"), [("collective", 1), ("meeting", 0)])
def test_a_stopped_rank_is_noticed_by_its_silence(tmp_path, where, stopped):
    """Its connections stay open. Rank 0 has the store through which the ranks meet."""
    with started("silent_ranks.py", where, cwd=tmp_path) as processes:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)
        processes[stopped].send_signal(signal.SIGSTOP)
        left = processes[1 - stopped]
        out, err = left.communicate(timeout=20)
        assert (left.returncode, out, err) == (1, "", f"failed: rank {stopped} gave no sign of life for 3 s\n")


def test_a_rank_that_works_for_long_is_waited_for(tmp_path):
    """For longer than a collective may take, and than a rank may be silent."""
    with started("silent_ranks.py", "busy", cwd=tmp_path) as processes:
        for process in processes:
            out, err = process.communicate(timeout=60)
            assert (process.returncode, out) == (0, "ready\ndone\n"), err


def test_time_in_which_all_were_stopped_does_not_count(monkeypatch):
    """As by Ctrl-Z, which stops the whole job."""
    monkeypatch.setattr(heartbeat, "BEAT", 0.05)
    monkeypatch.setattr(heartbeat, "SILENCE", 0.5)
    store, lost, late = torch.distributed.HashStore(), [], [0.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda real=time.monotonic: real() + late[0])
    hearts = [heartbeat.Heartbeat(store, rank, 2, lambda *about: lost.append(about)) for rank in range(2)]
    for heart in hearts:
        heart.start()
    time.sleep(0.3)
    late[0] = 3600.0
    time.sleep(0.3)
    assert lost == []
    hearts[1].stop(ended_well=True)  # it is silent from now on, but has said so
    time.sleep(0.8)
    assert lost == []
    hearts[0].stop(ended_well=True)
    alone = heartbeat.Heartbeat(store, 0, 2, lambda *about: lost.append(about))
    store.set("beat/1", "0")
    alone.start()
    time.sleep(0.8)
    assert lost == [(1, True)]


def torchrun(ranks: int, script: str | Path, *argv: object, cwd: Path, **more: str) -> Run:
    """As `script_runs.run`, with several processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    done = subprocess.run(
        [*command, str(ROOT / script), *map(str, argv)],
        cwd=cwd,
        env=environment(PYTHONPATH=str(ROOT), **more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    return Run(done.returncode, done.stdout, done.stderr, 0.0, cwd)


def said(result: Run) -> list[str]:
    """The lines that are ours, not torchrun's."""
    return [line for line in result.lines if line.startswith("generate_video")]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    for task in ("t2v", "df", "i2v"):
        small_checkpoints.write_original(folder / task, task)
    return folder


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_every_mode_in_every_layout_makes_what_one_rank_makes(checkpoints, tmp_path, ranks):
    result = torchrun(ranks, HERE / "ranks.py", checkpoints, tmp_path / "apart.json", cwd=tmp_path)
    assert result.code == 0, result.err
    apart = json.loads((tmp_path / "apart.json").read_text())
    assert len(apart) == 17
    assert not any(any(apart[name].values()) for name in ("work", "agree", "groups"))
    for mode, layouts in apart.items():
        assert len(layouts) == {2: 3, 4: 5}[ranks]
        for layout, difference in layouts.items():
            whole = layout == "2 1 1"
            assert difference <= (0 if whole else LATENTS), (mode, layout, difference)


# What is made; how the ranks share it, which the one alone is not told.
SHARED = {
    "guidance": (2, "t2v", GENERATE, (), ()),
    "ulysses with a cache": (
        *(2, "t2v", GENERATE),
        ("--teacache", "--teacache_coefficients", "0,0,0,1,0"),
        ("--no-cfg_parallel",),
    ),
    "ring with an image": (2, "i2v", GENERATE, ("--image", "../picture.png"), ("--ring_degree", 2, "--offload")),
    "windows": (
        *(2, "df", FORCING),
        ("--base_num_frames", 5, "--overlap_history", 1, "--ar_step", 1),
        ("--no-cfg_parallel",),
    ),
    "everything": (
        *(4, "tiny", FORCING),
        ("--num_frames", 49, "--ar_step", 1, "--causal_attention", "--image", "../picture.png", "--teacache"),
        ("--offload",),
    ),
}
SLOW = ("ulysses with a cache", "ring with an image", "windows", "everything")


@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.slow] * (c in SLOW)) for c in SHARED])
def test_several_ranks_write_the_video_of_one(checkpoints, tmp_path, case):
    count, task, script, flags, sharing = SHARED[case]
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "picture.png")
    model = ("--model_id", task if task == "tiny" else checkpoints / task, "--device", "cpu", *SMALL, *flags)
    frames = []
    for ranks, argv in ((1, model), (count, (*model, *sharing, "--use_usp"))):
        (folder := tmp_path / str(ranks)).mkdir()
        made = torchrun(ranks, HERE / "script_ranks.py", script, *argv, cwd=folder)
        frames.append(np.load(folder / "frames.npy").astype(int))
        assert read_frames(made.path).shape == frames[-1].shape
    assert np.abs(frames[0] - frames[1]).max() <= 1
    spoken = [line for line in made.lines if line.startswith("loaded ")]
    assert len(spoken) == 1  # the other ranks are silent
    assert contents(tmp_path / "1") == contents(tmp_path / str(count))


@pytest.mark.slow
def test_without_a_seed_all_ranks_take_the_first_one_s(checkpoints, tmp_path):
    flags = [flag for flag in SMALL if flag not in ("--seed", 1)]
    flags = ("--model_id", checkpoints / "t2v", "--device", "cpu", *flags)
    both = torchrun(2, GENERATE, *flags, "--use_usp", cwd=tmp_path)
    seed = both.path.stem.rpartition("_")[2]
    again = run(GENERATE, *flags, "--seed", seed, "--outdir", "again", cwd=tmp_path)
    assert np.array_equal(read_frames(both.path), read_frames(again.path))


def test_illegal_sizes_end_in_one_line(checkpoints, tmp_path):
    flags = ("--model_id", checkpoints / "t2v", "--device", "cpu", "--height", 48, "--width", 48)
    result = torchrun(2, GENERATE, *flags, "--num_frames", 5, "--guidance_scale", 1, "--use_usp", cwd=tmp_path)
    assert said(result) == [
        "generate_video.py: --use_usp: 2 processes cannot share 4 heads and 9 tokens a frame; legal are 1, 3, 9"
    ]
    assert result.code != 0
    assert contents(tmp_path) == []


def test_a_rank_that_fails_ends_all_with_its_error_shown_once(checkpoints, tmp_path):
    flags = ("--model_id", checkpoints / "t2v", "--device", "cpu", *SMALL)
    began = time.monotonic()
    result = torchrun(2, HERE / "script_ranks.py", GENERATE, *flags, "--use_usp", cwd=tmp_path, FAILING_RANK="1")
    assert result.code != 0
    failed, left = sorted(said(result))
    assert failed == "generate_video.py: failed: RuntimeError: a fault of rank 1"
    # Of the files only the first process knows, which may learn of it by the lost connection or by torchrun's SIGTERM.
    assert left in ("generate_video.py: no video was written", "generate_video.py: interrupted; no video was written")
    assert time.monotonic() - began < 90  # it would hang for hours
    assert contents(tmp_path / "video_out") == []


@pytest.mark.slow
def test_a_run_of_which_a_rank_is_stopped_ends_and_can_be_resumed(checkpoints, tmp_path):
    sizes = [17 if flag == 9 else flag for flag in SMALL]
    windows = ("--base_num_frames", 5, "--overlap_history", 1, "--device", "cpu", "--use_usp")
    flags = ("--model_id", checkpoints / "df", *sizes, *windows)
    with started("script_ranks.py", FORCING, *flags, cwd=tmp_path, SILENCE="6", STOPPED="1") as processes:
        out, err = processes[0].communicate(timeout=LIMIT)
    assert (processes[0].returncode, out) == (1, "")
    assert err.splitlines()[-1].startswith("generate_video_df.py: failed: rank 1 ") and "--resume" in err
    resumed = torchrun(2, FORCING, *flags, "--resume", cwd=tmp_path)
    assert read_frames(resumed.path).shape == (17, 64, 64, 3)
    assert any(line.startswith("--resume: ") for line in resumed.lines)


@pytest.mark.parametrize(
    ("environ", "flags", "message"),
    [
        ({}, ["--use_usp"], "--use_usp: needs torchrun: torchrun --nproc_per_node=GPUS SCRIPT ... --use_usp"),
        ({}, ["--ring_degree", 2], "--ring_degree: has no effect without --use_usp"),
        ({}, ["--no-cfg_parallel"], "--cfg_parallel: has no effect without --use_usp"),
        (
            {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"},
            [],
            "--use_usp: is not given, but torchrun has started 2 processes, which would all make the same video",
        ),
        (
            {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"},
            ["--use_usp", "--device", "cuda:1"],
            "--device cuda:1: each of several processes takes a GPU of its own; give cuda or cpu",
        ),
    ],
)
def test_wrong_flags(tmp_path, environ, flags, message):
    result = run(GENERATE, *flags, cwd=tmp_path, **environ)
    assert (result.code, result.err) == (2, f"generate_video.py: {message}\n")


def test_only_the_first_process_tells_of_a_dry_run(tmp_path):
    flags = (GENERATE, "--dry_run", "--use_usp", "--model_id", "tiny")
    first = run(*flags, cwd=tmp_path, RANK="0", LOCAL_RANK="0", WORLD_SIZE="2")
    second = run(*flags, cwd=tmp_path, RANK="1", LOCAL_RANK="1", WORLD_SIZE="2")
    assert first.out.startswith("tiny") and (second.code, second.out, second.err) == (0, "", "")


def test_a_dry_run_refuses_what_the_run_would_refuse(tmp_path):
    flags = (GENERATE, "--dry_run", "json", "--model_id", "Skywork/SkyReels-V2-T2V-14B-540P", "--use_usp")
    of_seven = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "7"}
    result = run(*flags, "--ulysses_degree", 5, cwd=tmp_path, **of_seven)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("generate_video.py: --use_usp: 7 processes ")
    result = run(*flags, "--ulysses_degree", 4, cwd=tmp_path, **of_seven | {"WORLD_SIZE": "8"})
    assert json.loads(result.out)["gpus"][:4] == [4, 8, 12, 16]


def test_only_the_first_process_without_a_gpu_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert team.own_device(None, 1) == "cuda:1"
    with pytest.raises(InputError, match="--device cuda: process 3 of this machine finds only 2 GPUs"):
        team.own_device(None, 2)
    with pytest.raises(team.SilencedError):
        team.own_device("cuda", 3)


def test_only_the_first_process_of_a_machine_says_what_is_wrong_with_a_flag(tmp_path):
    result = run(GENERATE, "--steps", cwd=tmp_path, RANK="9", LOCAL_RANK="1", WORLD_SIZE="16")
    assert (result.code, result.out, result.err) == (2, "", "")
