"""That benchmarks run, also those for a GPU where there is none, up to what only a GPU can tell."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENTRY = ROOT / "benchmarks"
STARTED = sorted(path for path in ENTRY.glob("*.py") if path.stem != "__main__" and "__main__" in path.read_text())
MODULES = [path for path in STARTED if "\nfrom benchmarks" in path.read_text()]
SCRIPTS = [path for path in STARTED if path not in MODULES]


def benchmarks(*words: object, timeout: float = 1800) -> subprocess.CompletedProcess:
    command = [sys.executable, ENTRY, "--device", "cpu", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


def measured(folder: Path, *words: object) -> dict[str, dict[str, dict]]:
    """results.json of a run with one repetition: part -> name -> row."""
    done = benchmarks(*words, "--runs", 1, "--out", folder)
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "results.json").read_text())
    return {part: {row["name"]: row for row in rows} for part, rows in found["rows"].items()}


@pytest.mark.parametrize("path", [ENTRY, *SCRIPTS], ids=lambda path: path.stem)
def test_it_starts_from_anywhere(path, tmp_path):
    command = [sys.executable, path, "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout, done.stderr


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_it_starts_as_a_module(path):
    command = [sys.executable, "-m", f"benchmarks.{path.stem}", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout, done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["atention"], "'atention' is no part: must be one of transformer, "),
        (["windows"], "windows needs a GPU"),
        (["--size", "14b"], "--size 14b: needs a GPU"),
        (["--runs", "0"], "--runs 0: must be at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(words, message):
    done = benchmarks(*words)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


def test_a_part_beside_diffusers(tmp_path):
    ours, theirs = measured(tmp_path, "solver")["solver"].values()
    assert ours["diffusers / it"] == pytest.approx(theirs["value"] / ours["value"]) and 0 < ours["error"] < 1e-5


def test_a_budget_ends_a_run_and_what_was_not_run_is_said(tmp_path):
    done = benchmarks("solver", "startup", "--budget", 0, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    assert not found["rows"] and found["not_run"]["vae"] == "not asked for"
    assert found["not_run"]["startup"].endswith("of the budget left, about 30 s needed")
    assert done.stdout == (tmp_path / "results.md").read_text() + "\n"


def test_pauses_of_a_device():
    windows = importlib.import_module("benchmarks.windows")
    second = 10**9
    spans = [(0, 4, "flash_fwd"), (1, 2, "copy"), (3, 5, "gemm"), (7, 8, "flash_fwd"), (second, second + 9, "conv")]
    length, inside, outside = windows.pauses(spans)
    assert length == pytest.approx(1 + 9e-9) and inside == pytest.approx([2e-9])
    assert outside == pytest.approx([1 - 8e-9])


@pytest.mark.parametrize("how", ["fails", "is interrupted"])
def test_a_part_that_ends_early_leaves_its_rows(how, tmp_path, capsys):
    measure, table = (importlib.import_module(f"benchmarks.{name}") for name in ("measure", "table"))
    import torch

    def rows():
        yield table.row("first", 1.5, "s", ratio=2.0, left_out=None)
        raise {"fails": ValueError("out of luck"), "is interrupted": KeyboardInterrupt()}[how]

    report = table.Report({"torch": "2"}, tmp_path)
    try:
        for found in measure.attempt("second", rows, torch.device("cpu")):
            report.add("part", found)
    except KeyboardInterrupt:
        pass
    kept = json.loads((tmp_path / "results.json").read_text())["rows"]["part"]
    assert kept[0] == {"name": "first", "value": 1.5, "unit": "s", "ratio": 2.0}
    failed = [{"name": "second", "value": None, "unit": "", "failed": "ValueError: out of luck"}]
    assert kept[1:] == (failed if how == "fails" else [])
    assert report.failed == (["part: second"] if how == "fails" else [])
    assert "| first | 1.50 s | 2.00 |" in (tmp_path / "results.md").read_text()


def test_quality_makes_what_is_missing(tmp_path, monkeypatch, capsys):
    quality = importlib.import_module("benchmarks.quality")
    out, flags = tmp_path / "quality.json", ("--num_frames=5", "--inference_steps=6")

    def made(*rows: str) -> tuple[dict, str]:
        monkeypatch.setattr(quality, "MODES", {"short": (flags, rows)})
        monkeypatch.setattr("sys.argv", ["quality.py", "--out", str(out), "--prompts", "2"])
        quality.main()
        return json.loads(out.read_text())["short"], capsys.readouterr().out

    cache = "easycache:threshold=1000,retention=0"
    first, _ = made(quality.EXACT, cache)
    assert [first[i][quality.EXACT][0] for i in "01"] == [12, 12]
    assert [first[i][cache][0] for i in "01"] == [6, 6]  # the first two steps and the last, in both passes
    assert all(10 < first[i][cache][2] < 60 < first[i][quality.EXACT][2] for i in "01")
    second, table = made(quality.EXACT, cache, "teacache:threshold=0")
    assert second["0"][cache] == first["0"][cache]
    assert second["0"]["teacache:threshold=0"][::2] == first["0"][quality.EXACT][::2]
    assert f"| `{cache}` | 2.00 |" in table and "**short** (2 prompts)" in table
    assert made(quality.EXACT, cache)[0] == second


@pytest.mark.slow
def test_a_cpu_compared_with_itself_is_the_same(tmp_path):
    pytest.importorskip("yunchang")
    rows = measured(tmp_path, "exact")["exact"]
    videos = [row for name, row in rows.items() if name.endswith(", latents")]
    assert len(videos) == 3
    for row in videos:
        assert row["value"] == row["of 255"] == row["with TF32"] == 0 and row["offloaded the same"]
        assert 15 < row["bfloat16, PSNR"] < 90
    assert all(rows[f"{name}: offloaded the same"]["value"] for name in ("GGUF Q4_K", "--quantize fp8"))
    for kind in ("default", "causal blocks", "flash with the log of the sum"):
        half, less, full = (rows[f"{dtype}, {kind}"]["value"] for dtype in ("bfloat16", "float16", "float32"))
        assert full < 1e-5 < less < 2e-3 and less < half < 1e-2
    assert rows["transformer, bfloat16"]["value"] < 0.02 < 0.1 > rows["transformer, --quantize fp8"]["value"]


@pytest.mark.slow
def test_parts_beside_diffusers(tmp_path):
    found = measured(tmp_path, "transformer", "vae")
    assert found["transformer"]["diffusers has the same weights"]["value"]
    assert found["transformer"]["ours, uncompiled"]["diffusers default / it"] > 0.3
    assert found["transformer"]["diffusers, default"]["error to the first"] < 1e-5
    for verb in ("encode", "decode"):
        assert found["vae"][f"{verb}, diffusers"]["error"] < 1e-4 and found["vae"][f"{verb}, float32"]["value"] > 0


@pytest.mark.slow
def test_gradients_in_bfloat16_are_about_those_in_float32(tmp_path):
    rows = measured(tmp_path, "training")["training"]
    cases = [row for name, row in rows.items() if "clips" in name]
    assert len(cases) == 4 and all(1e-4 < row["gradients"] < 0.02 for row in cases)


@pytest.mark.slow
def test_the_other_parts(tmp_path):
    parts = ("pipelines", "attention", "linears", "loading", "caches", "startup")
    found = measured(tmp_path, *parts)
    assert tuple(found) == parts
    assert found["loading"]["--offload: the same latents"]["value"]
    assert all(row["same numbers as on the CPU"] for row in found["linears"].values() if "expanding ms" in row)
    assert found["caches"]["teacache:threshold=0.2, forcing, 65 frames"]["forwards, %"] < 50
    assert found["startup"]["--help"]["value"] < found["startup"]["python -c 'import torch'"]["value"]


@pytest.mark.slow
def test_a_video_of_three_windows_from_one_session(tmp_path):
    measure, sizes, windows = (
        importlib.import_module(f"benchmarks.{name}") for name in ("measure", "sizes", "windows")
    )
    import torch

    run = measure.Run(torch.device("cpu"), sizes.SIZES["tiny"], 1, False, tmp_path)
    rows = list(windows.rows(run, steps=2, base=33))
    assert len(rows) == 4 and len(list(tmp_path.glob("*.mp4"))) == 2


@pytest.mark.slow
def test_memory_targets_run_in_small():
    command = [sys.executable, ENTRY / "memory_targets.py", "--device", "cpu", "--size", "tiny"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.count("decoding ") == 6, done.stderr


@pytest.mark.slow
def test_a_long_run_leaves_nothing_behind_on_its_way():
    command = [sys.executable, ROOT / "benchmarks" / "endurance.py", "--windows", "60", "--every", "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = [[float(cell) for cell in line.split()] for line in done.stdout.splitlines()[1:]]
    assert [row[0] for row in rows] == [1, 20, 40, 60]
    (_, early, *_), *_, (_, late, *_) = rows[1:]
    assert abs(late - early) < 8  # MiB; the decoded frames of 40 windows would take 2, the latents and models more
    assert all(threads <= 10 and descriptors <= 20 for _, _, threads, descriptors, _ in rows)


@pytest.mark.slow
def test_many_videos_leave_nothing_behind():
    command = [sys.executable, ROOT / "benchmarks" / "batch.py", "--memory", "30"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[1:-1]]
    assert [row[0] for row in rows] == ["5", "30"]
    assert float(rows[1][1]) < 1.03 * float(rows[0][1]) and int(rows[1][3]) <= int(rows[0][3]) + 2
