"""That benchmarks run, also those for a GPU where there is none, up to what only a GPU can tell."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_it_starts_from_anywhere(path, tmp_path):
    if path.stem == "gpu":
        pytest.importorskip("yunchang")
    command = [sys.executable, path, "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout, done.stderr


@pytest.mark.slow
def test_a_cpu_compared_with_itself_is_the_same():
    pytest.importorskip("yunchang")
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--device", "cpu", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in done.stdout.splitlines() if "|" in line]
    videos = {row[0]: row[1:] for row in rows if row[-1].endswith(" dB")}
    assert len(videos) == 5
    for cells in videos.values():
        assert cells[:5] == ["0.0e+00", "0", "0.0e+00", "0", "the same"]
        assert float(cells[5].removesuffix(" dB")) > 15  # bfloat16
    errors = {row[0]: [float(cell) for cell in row[1:]] for row in rows if row[0] in ("attend", "attend_block_causal")}
    for in_bfloat16, in_float16, in_float32 in errors.values():
        assert in_float32 < 1e-5 < in_float16 < 2e-3 and in_float16 < in_bfloat16 < 1e-2
    assert len(errors) == 2


@pytest.mark.slow
def test_gradients_in_bfloat16_are_about_those_in_float32():
    command = [sys.executable, ROOT / "benchmarks" / "training_update.py", "--batch", "1", "--runs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in done.stdout.splitlines() if "|" in line]
    assert [row[:2] for row in rows[2:]] == [["5", "5"], ["5", "9"], ["10", "5"], ["10", "9"]]
    assert all(1e-4 < float(row[-1]) < 0.02 for row in rows[2:])


@pytest.mark.slow
def test_the_gpu_s_benchmarks_run_on_a_cpu_in_small(tmp_path):
    whole = [sys.executable, ROOT / "benchmarks" / "whole.py", "--device", "cpu", "--tiny"]
    done = subprocess.run(whole, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.count(" s") >= 3, done.stderr
    hopper = [sys.executable, ROOT / "benchmarks" / "hopper.py", "--out", tmp_path, "--device", "cpu", "--tiny"]
    done = subprocess.run([*hopper, "--sections", "exact"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and (tmp_path / "results.json").is_file(), done.stdout + done.stderr


def test_a_long_run_leaves_nothing_behind_on_its_way():
    command = [sys.executable, ROOT / "benchmarks" / "endurance.py", "--windows", "60", "--every", "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = [[float(cell) for cell in line.split()] for line in done.stdout.splitlines()[1:]]
    assert [row[0] for row in rows] == [1, 20, 40, 60]
    (_, early, *_), *_, (_, late, *_) = rows[1:]
    assert abs(late - early) < 8  # MiB; the decoded frames of 40 windows would take 2, the latents and models more
    assert all(threads <= 10 and descriptors <= 20 for _, _, threads, descriptors, _ in rows)
