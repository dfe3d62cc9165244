"""Many videos on several processes of torchrun: groups of them take videos from a common list."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from script_runs import FORCING, LIMIT, ROOT, Run, environment, run

from skyreels_v2_infer.run import summary

QUICK = ("--model_id", "tiny", "--device", "cpu", "--inference_steps", 2, "--num_frames", 5, "--outdir", "out")
SMALL = ("--height", 32, "--width", 32)


def torchrun(ranks: int, *argv: object, cwd: Path) -> Run:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    done = subprocess.run(
        [*command, str(ROOT / FORCING), *map(str, argv)],
        cwd=cwd,
        env=environment(PYTHONPATH=str(ROOT)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    return Run(done.returncode, done.stdout, done.stderr, 0.0, cwd)


def write(folder: Path, rows: list[dict]) -> None:
    (folder / "jobs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_each_process_makes_videos_by_itself(tmp_path):
    write(tmp_path, [{"prompt": f"circle {i}", "seed": i} for i in range(4)] + [{"num_frames": 6}])
    made = torchrun(2, *QUICK, *SMALL, "--jobs", "jobs.jsonl", "--keep_going", cwd=tmp_path)
    assert made.code == 1
    assert sorted(made.out.splitlines()) == [f"out/circle-{i}_{i}.mp4" for i in range(4)], made.err
    assert f"4 of 5 videos are done; {Path('out', summary.NAME)}" in made.lines
    assert sum(line.startswith("5/5 invalid: jobs.jsonl:5: --num_frames 6: ") for line in made.lines) == 1


@pytest.mark.slow
def test_twenty_jobs_with_three_bad_rows_on_two_ranks(tmp_path):
    """Each process makes videos by itself; a rerun makes the three that were missing."""
    rows = [{"prompt": f"circle {i}", "seed": i} for i in range(20)]
    bad = {3: {"num_frames": 6}, 9: {"image": "none.png"}, 15: {"guidance": 3}}
    write(tmp_path, [row | bad.get(i, {}) for i, row in enumerate(rows)])
    argv = (*QUICK, *SMALL, "--jobs", "jobs.jsonl")
    refused = torchrun(2, *argv, cwd=tmp_path)
    assert refused.code == 1 and refused.out == "" and not (tmp_path / "out").exists()
    lines = [line for line in refused.lines if line.startswith(f"{FORCING}: jobs.jsonl:")]
    assert [line.split(":")[2] for line in lines] == ["4", "10", "16"]

    made = torchrun(2, *argv, "--keep_going", cwd=tmp_path)
    assert made.code == 1
    paths = made.out.splitlines()
    assert {Path(path).name for path in paths} == {f"circle-{i}_{i}.mp4" for i in range(20) if i not in bad}
    found = [json.loads(line) for line in (tmp_path / "out" / summary.NAME).read_text().splitlines()]
    assert Counter(one["status"] for one in found) == {"done": 17, "invalid": 3}
    assert sum(" invalid: jobs.jsonl:" in line for line in made.lines) == 3

    before = {path: (tmp_path / path).stat().st_mtime_ns for path in paths}
    write(tmp_path, rows)
    again = torchrun(2, *argv, "--keep_going", cwd=tmp_path)
    assert again.code == 0, again.err
    assert len(again.out.splitlines()) == 20
    assert before == {path: (tmp_path / path).stat().st_mtime_ns for path in paths}
    assert len((tmp_path / "out" / summary.NAME).read_text().splitlines()) == 23

    alone = run(FORCING, *QUICK, *SMALL, "--prompt", "circle 9", "--seed", 9, "--outdir", "alone", cwd=tmp_path)
    assert alone.path.read_bytes() == (tmp_path / "out" / alone.path.name).read_bytes()


@pytest.mark.slow
def test_groups_of_two_ranks_share_each_video(tmp_path):
    write(tmp_path, [{"prompt": f"circle {i}", "seed": i} for i in range(4)])
    one = run(FORCING, *QUICK, "--prompt", "circle 1", "--seed", 1, "--outdir", "alone", cwd=tmp_path)
    made = torchrun(4, *QUICK, "--jobs", "jobs.jsonl", "--gpus_per_job", 2, cwd=tmp_path)
    assert made.code == 0, made.err
    assert len(made.out.splitlines()) == 4
    # Parallel passes of guidance are bit-identical, see test_ranks.py.
    assert one.path.read_bytes() == (tmp_path / "out" / "circle-1_1.mp4").read_bytes()
    commands = [record["command"] for record in summary.read_summary(tmp_path / "out").values()]
    assert all(command.startswith(f"torchrun --nproc_per_node=2 {FORCING} --use_usp ") for command in commands)
