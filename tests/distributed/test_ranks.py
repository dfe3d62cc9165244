"""Several ranks: which layouts are legal, that all of them make one rank's video, and how one's failure ends all."""

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import small_checkpoints
import torch
from PIL import Image
from script_runs import FORCING, GENERATE, LIMIT, ROOT, Run, contents, environment, read_frames, run

from skyreels_v2_infer.distributed import team
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.launch import Launch
from skyreels_v2_infer.plan.plan import make_plan
from skyreels_v2_infer.plan.sharing import Layout, Wanted, choose_layout
from skyreels_v2_infer.run import jobs

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
    with pytest.raises(InputError) as caught:
        choose(6, ulysses=4)
    assert str(caught.value) == (
        "--use_usp: 6 processes cannot share 40 heads and 2040 tokens a frame with --ulysses_degree 4; "
        "legal are 4, 8, 12, 16, 20, 24, 40, 48, 60"
    )
    with pytest.raises(InputError, match="tokens a frame with --no-cfg_parallel --ring_degree 2; legal are 2, 4, 8,"):
        choose(6, cfg_parallel=False, ring=2, ulysses=None)
    with pytest.raises(InputError, match="--ulysses_degree 3; no number of processes is legal"):
        choose(3, ulysses=3)
    with pytest.raises(InputError, match="--cfg_parallel: needs two branches"):
        choose_layout(2, 40, 2040, False, Wanted(cfg_parallel=True))


def test_without_the_attention_engine_only_guidance_can_be_shared(monkeypatch):
    plan = make_plan(5, 1, 5.0)
    jobs.check_packages(plan.with_sharing(Layout(2, 2, 1)))
    monkeypatch.setattr(jobs, "find_spec", {"yunchang": None}.__getitem__)
    jobs.check_packages(plan.with_sharing(Layout(2, 1, 1)))
    with pytest.raises(InputError) as refused:
        jobs.check_packages(plan.with_sharing(Layout(2, 2, 1)))
    assert refused.value.name == "use_usp"


def test_who_a_process_is():
    torchrun = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}
    assert Launch.from_environment(torchrun) == Launch(5, 1, 8, by_torchrun=True)
    assert Launch.from_environment({}) == Launch(0, 0, 1, by_torchrun=False)
    assert not Launch.from_environment(torchrun | {"RANK": ""}).by_torchrun


def test_each_process_takes_the_gpu_with_its_number(monkeypatch):
    assert team.own_device("cpu", 3) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert team.own_device(None, 3) == team.own_device("cuda", 3) == "cuda:3"
    with pytest.raises(InputError, match="--device cuda: process 5 of this machine finds only 4 GPUs"):
        team.own_device(None, 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert team.own_device(None, 3) == "cpu"


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
    assert len(apart) == 14 and not any(apart["work"].values()) and not any(apart["agree"].values())
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
    assert "7 processes cannot share 40 heads and 2040 tokens a frame with --ulysses_degree 5" in result.err
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
