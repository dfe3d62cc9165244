"""Many videos: each as if it were made alone, the model loaded once, and what failed or is missing made by a rerun."""

import json
import os
import shlex
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from report_folders import data_of
from script_runs import FORCING, GENERATE
from torch.distributed import HashStore

from skyreels_v2_infer import embedded
from skyreels_v2_infer.cli.arguments import parse_diffusion_forcing, parse_generate
from skyreels_v2_infer.distributed.team import RankTeam, SilencedError, Team
from skyreels_v2_infer.launch import Launch
from skyreels_v2_infer.media.pipes import StalledError
from skyreels_v2_infer.modules.text_encoder import TextEncoder
from skyreels_v2_infer.run import batch, summary
from skyreels_v2_infer.run.main import main
from skyreels_v2_infer.run.session import Session

PARSE = {GENERATE: parse_generate, FORCING: parse_diffusion_forcing}
QUICK = ["--model_id", "tiny", "--device", "cpu", "--inference_steps", "2", "--num_frames", "5", "--outdir", "out"]
# What one run and another of the same video do not share.
OF_A_RUN = ("seconds", "peak_memory_gib")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


class Watched(Session):
    """Counts sessions, and fails or stops for prompts that say so."""

    opened = 0

    def __init__(self, *given, **more):
        super().__init__(*given, **more)
        type(self).opened += 1

    def execute(self, plan, *given):
        for part in super().execute(plan, *given):
            if "fails" in plan.windows[0].prompt and part.window == len(plan.windows) - 1:
                raise FloatingPointError("the output is not finite")
            if "stops" in plan.windows[0].prompt and part.window == len(plan.windows) - 1:
                raise KeyboardInterrupt
            yield part


@pytest.fixture
def make(capfd):
    """Runs a script in this process -> (exit code, lines of stdout, lines of stderr, sessions opened)."""

    def call(*argv: object, script: str = FORCING, kind: type = Watched):
        capfd.readouterr()
        kind.opened = 0
        code = main(script, PARSE[script], [*map(str, argv)], kind)
        out, err = capfd.readouterr()
        return code, out.splitlines(), err.splitlines(), kind.opened

    return call


def jobs(*rows: dict, name: str = "jobs.jsonl") -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def manifest(path: Path) -> dict:
    about = json.loads(path.with_suffix(".json").read_text())
    return {name: value for name, value in about.items() if name not in OF_A_RUN} | {
        "pieces": [{name: value for name, value in piece.items() if name != "seconds"} for piece in about["pieces"]]
    }


def names(folder: str = "out") -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


ROWS = (
    {"prompt": "a red circle", "seed": 1},
    {"prompt": "a blue square", "seed": 2, "num_frames": 13, "base_num_frames": 9, "overlap_history": 5},
    {"prompt": "a red circle", "image": "first.png", "guidance_scale": 1, "teacache": True},
    {"prompt": "a green ball", "seed": 4, "num_frames": 9, "ar_step": 1, "causal_attention": True, "name": "ball"},
)


def test_videos_of_a_batch_are_those_made_alone(make):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save("first.png")
    code, paths, lines, opened = make(*QUICK, "--jobs", jobs(*ROWS))
    assert (code, opened, len(paths)) == (0, 1, 4), lines
    assert [line.split(": ")[0] for line in lines if " done: " in line] == [f"{i}/4 done" for i in range(1, 5)]
    records = [json.loads(line) for line in Path("out", "summary.jsonl").read_text().splitlines()]
    assert [(r["row"], r["status"], r["path"], r["source"]) for r in records] == [
        (i, "done", path, f"jobs.jsonl:{i}") for i, path in enumerate(paths, start=1)
    ]
    assert all(r["seconds"] > 0 and r["peak_memory"]["host"] > 0 and r["error"] is None for r in records)
    videos = data_of(Path("out", "report.html"))["videos"]
    assert [(video["row"], video["name"]) for video in videos] == [
        (i, Path(path).stem) for i, path in enumerate(paths, start=1)
    ]
    make(*QUICK, "--outdir", "turned", "--jobs", jobs(*reversed(ROWS)))
    for path, record in zip(map(Path, paths), records, strict=True):
        words = [*parse_words(record["command"]), "--outdir", "alone"]
        assert make(*words)[0] == 0
        for other in ("turned", "alone"):
            assert path.read_bytes() == Path(other, path.name).read_bytes()
            assert manifest(path) == manifest(Path(other, path.name))
    loading = [json.loads(Path(path).with_suffix(".json").read_text())["seconds"]["loading"] for path in paths]
    assert loading[0] > 0 and loading[1:] == [0, 0, 0]


def parse_words(command: str) -> list[str]:
    python, script, *words = shlex.split(command)
    assert (python, script) == ("python", FORCING)
    return words


def test_a_rerun_makes_what_is_missing_or_changed(make):
    rows = [{"prompt": "a red circle"}, {"prompt": "a red circle"}, {"prompt": "a blue square", "seed": 3}]
    code, paths, _, _ = make(*QUICK, "--jobs", jobs(*rows))
    assert code == 0 and len(set(paths)) == 3
    before = {path: Path(path).stat().st_mtime_ns for path in paths}
    page = Path("out", "report.html")
    page.unlink()
    make(*QUICK, "--jobs", "jobs.jsonl", "--no_report")
    assert not page.exists()
    code, again, lines, opened = make(*QUICK, "--jobs", "jobs.jsonl")
    assert len(data_of(page)["videos"]) == 3
    assert (code, again, opened) == (0, paths, 0) and sum("there already" in line for line in lines) == 3
    assert len(Path("out", "summary.jsonl").read_text().splitlines()) == 3
    for suffix in (".mp4", ".json", ".png"):
        Path(paths[1]).with_suffix(suffix).unlink()
    rows[2] |= {"guidance_scale": 3}
    code, again, _, opened = make(*QUICK, "--jobs", jobs(*rows))
    assert (code, again, opened) == (0, [*paths[:2], "out/a-blue-square_3-2.mp4"], 1)
    assert Path(paths[0]).stat().st_mtime_ns == before[paths[0]] and Path(paths[2]).exists()


def test_a_failed_video_does_not_stop_the_others(make):
    rows = [{"prompt": f"a {word} circle", "seed": 1} for word in ("red", "fails", "blue")]
    code, paths, lines, opened = make(*QUICK, "--jobs", jobs(*rows))
    assert (code, opened, len(paths)) == (1, 2, 2)  # a model is not used again after an error
    reason = "the output is not finite"
    assert [line for line in lines if "failed" in line] == [f"2/3 failed: jobs.jsonl:2: {reason}"]
    found = summary.read_summary(Path("out"))
    assert (found["a-fails-circle_1"]["status"], found["a-fails-circle_1"]["error"]) == ("failed", reason)
    assert found["a-fails-circle_1"]["path"] is None and not any("fails" in name for name in names())
    page = Path("out", "report.html")
    [left] = data_of(page)["jobs"]
    assert (left["row"], left["status"], left["error"]) == ("2", "failed", reason)
    page.unlink()
    code, again, lines, opened = make(*QUICK, "--jobs", "jobs.jsonl", kind=Session_)
    assert len(data_of(page)["videos"]) == 3 and data_of(page)["jobs"] == []
    assert (code, len(again), opened) == (0, 3, 1)
    assert sum("there already" in line for line in lines) == 2
    assert again[-1] == "out/a-fails-circle_1.mp4"  # what failed before is made last
    assert summary.read_summary(Path("out"))["a-fails-circle_1"]["status"] == "done"


def test_a_process_gives_up_after_three_failures_in_a_row(make):
    words = ["fails", "fails", "red", "fails", "fails", "fails", "blue"]
    rows = [{"prompt": f"a {word} circle {i}", "seed": 1} for i, word in enumerate(words)]
    code, paths, lines, _ = make(*QUICK, "--jobs", jobs(*rows))
    assert (code, paths) == (1, ["out/a-red-circle-2_1.mp4"])
    assert sum(" failed: jobs.jsonl:" in line for line in lines) == 5
    assert lines[-2] == "3 videos in a row failed in this process, which makes no more; the same command continues"
    code, paths, lines, _ = make(*QUICK, "--jobs", "jobs.jsonl", kind=Session_)
    assert (code, len(paths)) == (0, 7)


def test_processes_that_find_different_rows_valid_make_nothing():
    """As when an address does not answer one of them. Their devices may differ."""

    class Claimed(RankTeam):
        def claim(self):
            return 3  # others have taken all

    rows = {"prompt": "x", "seed": 1}, {"prompt": "y", "seed": 2}
    for wrong in (False, True):
        store = HashStore()
        for rank, row in enumerate((rows[0], rows[0] | ({"num_frames": 6} if wrong else {}))):
            argv = [*QUICK, "--jobs", jobs(row, rows[1]), "--keep_going"]
            made = batch.Batch(FORCING, parse_diffusion_forcing(argv).on_device(f"cuda:{rank}"), bool)
            with pytest.raises(OSError, match="disagree") if wrong and rank else nullcontext():
                made.run(Claimed(Launch(rank, rank, 2, True), store, bool, 1))


@pytest.mark.parametrize(("reason", "recorded"), [(None, {}), ("not finite", {"x_1": "not finite"})])
def test_another_teams_failure_is_not_recorded_for_this_video(monkeypatch, reason, recorded):
    class Others(Team):
        def reason(self):
            return reason

    def silenced(maker, coming):
        raise SilencedError

    monkeypatch.setattr(batch.Maker, "make", silenced)
    made = batch.Batch(FORCING, parse_diffusion_forcing([*QUICK, "--jobs", jobs({"prompt": "x", "seed": 1})]), bool)
    with pytest.raises(SilencedError):
        made.run(Others())
    assert {name: found["error"] for name, found in summary.read_summary(Path("out")).items()} == recorded


class Session_(Session):
    """Without faults."""

    opened = 0

    def __init__(self, *given, **more):
        super().__init__(*given, **more)
        type(self).opened += 1


LONG = ["--num_frames", "17", "--base_num_frames", "9", "--overlap_history", "5"]


def test_an_interrupted_batch_continues_inside_the_video(make):
    rows = [{"prompt": f"a {word} circle", "seed": 1} for word in ("red", "stops", "blue")]
    code, paths, lines, _ = make(*QUICK, *LONG, "--jobs", jobs(*rows))
    assert (code, paths) == (130, ["out/a-red-circle_1.mp4"])
    videos = data_of(Path("out", "report.html"))["videos"]  # written while the batch goes on
    assert [video["name"] for video in videos] == ["a-red-circle_1"]
    said = "interrupted; 1 of 3 videos are done; of the next one 2 of 3 windows are kept"
    assert lines[-1] == f"{FORCING}: {said}; the same command continues"
    code, again, lines, _ = make(*QUICK, *LONG, "--jobs", "jobs.jsonl", kind=Session_)
    assert code == 0 and "--resume: 2 of 3 windows are there" in lines
    make(*QUICK, *LONG, *("--prompt", "a stops circle", "--seed", 1, "--outdir", "alone"), kind=Session_)
    assert Path(again[1]).read_bytes() == Path("alone", "a-stops-circle_1.mp4").read_bytes()


def test_all_bad_rows_are_named_before_anything_is_made(make):
    Image.new("RGB", (64, 64), "red").save("cut.png")
    Path("cut.png").write_bytes(Path("cut.png").read_bytes()[:-30])
    rows = [{"prompt": f"row {i}"} for i in range(1, 8)]
    rows[2] |= {"num_frames": 50}
    rows[4] |= {"num_frames": 33, "base_num_frames": 9, "overlap_history": 5, "story": [{"start": 1, "prompt": "x"}]}
    rows[5] |= {"model_id": "."}
    rows[6] |= {"image": "cut.png"}
    code, out, lines, opened = make(*QUICK, "--jobs", jobs(*rows))
    assert (code, out, opened) == (2, [], 0) and not Path("out").exists()
    starts = ["3: --num_frames 50: ", "5: --story ", "6: --model_id .: ", "7: --image cut.png: "]
    assert len(lines) == 4
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(f"{FORCING}: jobs.jsonl:{start}"), line
    code, out, lines, _ = make(*QUICK, "--jobs", "jobs.jsonl", "--keep_going")
    assert (code, len(out)) == (1, 3)
    assert sum("invalid: jobs.jsonl:" in line for line in lines) == 4
    records = [json.loads(line) for line in Path("out", "summary.jsonl").read_text().splitlines()]
    assert Counter(record["status"] for record in records) == {"done": 3, "invalid": 4}


@pytest.mark.parametrize(
    "probe", ["skyreels_v2_infer.media.read.video_header", "skyreels_v2_infer.run.row_checks.count_video"]
)
def test_a_video_that_cannot_be_probed_is_the_error_of_its_row(make, monkeypatch, probe):
    def stalled(*given):
        raise StalledError

    monkeypatch.setattr(
        "skyreels_v2_infer.media.read.video_header", lambda *given: SimpleNamespace(height=64, width=64)
    )
    monkeypatch.setattr(probe, stalled)
    Path("a.mp4").touch()
    rows = {"prompt": "x", "seed": 1}, {"prompt": "y", "seed": 2, "video_path": "a.mp4", "num_frames": 4}
    code, _, lines, opened = make(*QUICK, "--overlap_history", 5, "--base_num_frames", 9, "--jobs", jobs(*rows))
    assert (code, opened, lines) == (2, 0, [f"{FORCING}: jobs.jsonl:2: StalledError"])


def test_a_batch_has_no_prompts_of_the_captioners(make):
    Image.new("RGB", (64, 64), "red").save("a.png")
    code, _, lines, opened = make(*QUICK, "--jobs", jobs({"prompt": "auto", "image": "a.png"}))
    assert (code, opened) == (2, 0)
    assert lines[0].startswith(f"{FORCING}: jobs.jsonl:1: --prompt auto: not in a batch")


def test_an_image_to_video_model_and_its_image(make):
    rows = {"prompt": "x"}, {"prompt": "x", "model_id": str(embedded.folder(image_to_video=True))}
    code, _, lines, _ = make(*QUICK, "--jobs", jobs(*rows), script=GENERATE)
    assert code == 2 and lines[0].startswith(f"{GENERATE}: jobs.jsonl:2: --image: the image-to-video model ")


def test_models_are_loaded_once_each(make):
    Image.new("RGB", (64, 64), "red").save("red.png")
    texts = [{"prompt": f"text {i}", "seed": 1} for i in range(2)]
    pictures = [{"prompt": f"picture {i}", "seed": 1, "image": "red.png"} for i in range(2)]
    rows = [row for pair in zip(texts, pictures, strict=True) for row in pair]
    code, paths, lines, opened = make(*QUICK, "--jobs", jobs(*rows), script=GENERATE)
    assert (code, opened) == (0, 2)
    order = [Path(path).name for path in paths]
    assert order == ["text-0_1.mp4", "text-1_1.mp4", "picture-0_1.mp4", "picture-1_1.mp4"]
    assert sum(line.startswith("loaded ") for line in lines) == 2


def test_texts_are_encoded_once_and_together(make, monkeypatch):
    encoded, real = [], TextEncoder.encode
    monkeypatch.setattr(
        TextEncoder, "encode", lambda self, text, *more: encoded.append(text) or real(self, text, *more)
    )
    made, real_make = [], batch.Maker.make
    monkeypatch.setattr(batch.Maker, "make", lambda self, coming: made.append(len(encoded)) or real_make(self, coming))
    rows = [{"prompt": prompt} for prompt in ("one", "two", "one", "three")]
    code, *_ = make(*QUICK, "--jobs", jobs(*rows), "--negative_prompt", "four")
    assert code == 0 and sorted(encoded) == ["four", "one", "three", "two"]
    assert made == [0, 4, 4, 4]


def test_the_plan_of_a_batch(make):
    argv = (*QUICK, "--jobs", jobs({"prompt": "a", "seed": 1}, {"prompt": "b", "seed": 2, "guidance_scale": 1}))
    code, out, _, _ = make(*argv, "--sweep", "num_frames=5,9", "--dry_run")
    assert code == 0 and not Path("out").exists()
    assert [line.split()[1:4] for line in out[1:-1]] == [
        ["64x64", str(frames), str(forwards)] for forwards in (4, 2) for frames in (5, 9)
    ]
    assert out[1].endswith("-> out/a_5_1.mp4") and out[-1].startswith("4 videos, 28 frames, 12 forwards, ")
    code, out, _, _ = make(*argv, "--sweep", "num_frames=5,9", "--dry_run", "json")
    about = json.loads("\n".join(out))
    total = about["total"]
    assert total["pflop"] == pytest.approx(sum(video["pflop"] for video in about["videos"]))
    assert total["hours"] == pytest.approx(total["pflop"] / total["tflop_per_second"] * 1000 / 3600)


def test_two_shards_make_all_videos(make):
    rows = [{"prompt": "x", "seed": seed} for seed in range(3)]
    found = [make(*QUICK, "--jobs", jobs(*rows), "--shard", f"{i}/2")[1] for i in (1, 2)]
    assert found == [["out/x_0.mp4", "out/x_2.mp4"], ["out/x_1.mp4"]]
    assert len(summary.read_summary(Path("out"))) == 3


def test_a_name_for_a_single_video(make):
    argv = (*QUICK, "--prompt", "a red circle", "--name", "circle {guidance_scale}, {seed}", "--resume")
    code, paths, *_ = make(*argv)
    assert code == 0 and paths[0].startswith("out/circle 2, ")
    assert make(*argv)[1] == paths  # of any seed
    assert make(*argv[:-1])[1] != paths


def test_summaries_of_several_processes_do_not_mix(tmp_path):
    results = [summary.Result(i, f"jobs:{i}", f"video-{i % 5}", "done", error="x" * 5000) for i in range(20)]
    (tmp_path / summary.NAME).write_text('{"name": \n[1]\n')
    for result in results:
        summary.append(tmp_path, result)
    found = summary.read_summary(tmp_path)
    assert {name: record["row"] for name, record in found.items()} == {f"video-{i % 5}": i for i in range(15, 20)}
    assert summary.read_summary(tmp_path / "none") == {}


def test_a_line_of_the_summary_that_was_cut_off_does_not_take_the_next_one(tmp_path, monkeypatch):
    (tmp_path / summary.NAME).write_text('{"row": 1, "name": "cut')
    real = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda handle, line: real(handle, line[:7]))
        for row in (2, 3):
            summary.append(tmp_path, summary.Result(row, "jobs:2", f"video-{row}", "done"))
    found = summary.read_summary(tmp_path)
    assert {name: record["row"] for name, record in found.items()} == {"video-2": 2, "video-3": 3}
    assert len((tmp_path / summary.NAME).read_text().splitlines()) == 3


def test_a_summary_that_cannot_be_written_does_not_end_the_batch(make):
    Path("out", summary.NAME).mkdir(parents=True)
    rows = [{"prompt": f"circle {i}", "seed": 1} for i in range(2)]
    code, paths, lines, _ = make(*QUICK, "--jobs", jobs(*rows))
    assert (code, paths) == (1, ["out/circle-0_1.mp4", "out/circle-1_1.mp4"])
    assert sum("summary.jsonl cannot be written: " in line for line in lines) == 1
    assert lines[-1] == "2 of 2 videos are done; out/summary.jsonl"
