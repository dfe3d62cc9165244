"""caption_video.py's work with a stub for the model: rows in, rows out, resuming, broken videos. Over real files."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from importlib import metadata

import imageio_ffmpeg
import numpy as np
import pytest
from captions import TEXT
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import completion, server
from script_runs import ROOT, environment, write_clip

from skyreels_v2_infer.captioner.inputs import PATH, rows_of
from skyreels_v2_infer.captioner.rows import whole_videos
from skyreels_v2_infer.chat import endpoint
from skyreels_v2_infer.chat.reply import Reply
from skyreels_v2_infer.cli.captions import parse_captions
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.media.ffmpeg import READING_PATIENCE
from skyreels_v2_infer.run.caption_plan import PARAMETERS
from skyreels_v2_infer.run.caption_table import CaptionTable, record_ends
from skyreels_v2_infer.run.captions import CaptionWork
from skyreels_v2_infer.run.main import run_process

CAPTION = "caption_video.py"


def test_clips_that_are_read_ahead_end_with_the_batches(tmp_path, monkeypatch):
    """Else an interrupt would wait for an ffmpeg that hangs, as long as its patience lasts."""
    clips = [tmp_path / "0.mp4", tmp_path / "1.mp4"]
    for clip in clips:
        write_clip(clip, [np.zeros((64, 96, 3), np.uint8)] * 4)
    stub, real, began = tmp_path / "stub", imageio_ffmpeg.get_ffmpeg_exe(), tmp_path / "began"
    stub.write_text(f'#!/bin/sh\ncase "$*" in *1.mp4*) : > {began}; sleep 100;; esac\nexec "{real}" "$@"\n')
    stub.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(stub))
    batches = whole_videos([{PATH: str(clip)} for clip in clips], "faithful", 1)
    [clip] = next(batches).clips
    assert clip.shape == (16, 420, 360, 3)
    deadline = time.monotonic() + READING_PATIENCE / 4
    while not began.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    readers = [thread for thread in threading.enumerate() if thread.name.startswith("reader")]
    batches.close()
    assert readers
    for thread in readers:
        thread.join(READING_PATIENCE / 4)
        assert not thread.is_alive()


class StubCaptioner:
    """Describes a clip by its brightness; counts what it is asked."""

    def __init__(self, answer=TEXT):
        self.answer, self.asked, self.freed = answer, [], 0

    def describe(self, clips, question, tokens, attempt):
        assert all(clip.shape == (16, 420, 360, 3) for clip in clips)
        self.asked.append([round(float(clip.mean())) for clip in clips])
        return [Reply(self.answer.replace("morning", f"{clip.mean():.0f}"), False) for clip in clips]

    def free(self):
        self.freed += 1


class StubChat:
    def __init__(self, answer="A woman walks."):
        self.answer, self.asked, self.freed = answer, 0, 0

    def say(self, user="", system="", tokens=0, stop=None):
        self.asked += 1
        return Reply(self.answer, False)

    def free(self):
        self.freed += 1


@pytest.fixture
def clips(tmp_path, monkeypatch):
    """Five videos, the fourth broken."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips" / "more").mkdir(parents=True)
    for i, name in enumerate(["a", "b", "c", "d", "more/e"]):
        write_clip(tmp_path / "clips" / f"{name}.mp4", [np.full((32, 32, 3), 40 + 30 * i, np.uint8)] * 3)
    broken = tmp_path / "clips" / "d.mp4"
    broken.write_bytes(broken.read_bytes()[:400])
    (tmp_path / "clips" / "notes.txt").write_text("no video")
    return tmp_path / "clips"


def work(*argv, captioner=None, chat=None):
    """-> (exit code, captioner, chat)."""
    captioner, chat = captioner or StubCaptioner(), chat or StubChat()
    argv = [*map(str, argv), "--device", "cpu"]
    code = run_process(CAPTION, CaptionWork(argv, lambda settings: captioner, lambda settings: chat))
    return code, captioner, chat


def read(path):
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
def test_a_folder_becomes_a_table(clips, tmp_path, capsys, name):
    code, captioner, _ = work("--input", "clips", "--output", name, "--bs", 2)
    printed = capsys.readouterr()
    assert (code, printed.out) == (0, f"{name}\n")
    assert "1 of 5 rows have no result; their column error says why" in printed.err
    rows = read(tmp_path / name)
    assert [row["path"] for row in rows] == [f"clips/{stem}.mp4" for stem in ("a", "b", "c", "d", "more/e")]
    assert [bool(row["structural_caption"]) for row in rows] == [True, True, True, False, True]
    assert [bool(row["error"]) for row in rows] == [False, False, False, True, False]
    assert "must be a" in rows[3]["error"]
    # each row has its own video's caption
    levels = [json.loads(row["structural_caption"])["lighting"] for row in rows if row["structural_caption"]]
    assert levels == [f"soft {level} light" for level in sorted(x for batch in captioner.asked for x in batch)]
    assert [len(batch) for batch in captioner.asked] == [2, 1, 1]
    assert captioner.freed == 1
    assert rows[0]["made_by"] == "Skywork/SkyCaptioner-V1 (faithful)"


def test_a_second_run_does_what_is_missing(clips, tmp_path, capsys):
    work("--input", "clips/a.mp4", "clips/d.mp4", "--output", "out.csv")
    code, captioner, _ = work("--input", "clips/*.mp4", "--output", "out.csv")
    assert code == 0 and sum(map(len, captioner.asked)) == 2
    assert sorted(row["path"] for row in read(tmp_path / "out.csv")) == [f"clips/{x}.mp4" for x in "abcd"]
    before = (tmp_path / "out.csv").read_bytes()
    code, captioner, _ = work("--input", "clips/*.mp4", "--output", "out.csv")
    assert (code, captioner.asked, captioner.freed) == (0, [], 0)
    assert (tmp_path / "out.csv").read_bytes() == before


def test_published_names_and_columns(clips, tmp_path):
    (tmp_path / "in.csv").write_text('index,path,title\n7,clips/a.mp4,"one, two"\n8,clips/b.mp4,\n')
    names = ("--input_csv", "in.csv", "--out_csv", "out.csv", "--bs", 4, "--model_path", "some/model")
    assert work(*names)[0] == 0
    rows = read(tmp_path / "out.csv")
    assert [(row["index"], row["title"]) for row in rows] == [("7", "one, two"), ("8", "")]
    assert list(rows[0])[:4] == ["path", "index", "title", "structural_caption"]
    assert json.loads(rows[0]["structural_caption"])["shot_type"] == "medium_shot"


def test_prompts_by_rule_and_by_a_chat_model(clips, tmp_path):
    code, captioner, chat = work(
        "--input", "clips", "--output", "rule.jsonl", "--task", "i2v", "--fusion_model", "none"
    )
    assert (code, chat.asked) == (0, 0)
    rows = read(tmp_path / "rule.jsonl")
    assert rows[0]["i2v_fusion_caption"].startswith("Woman: walks along the pier, calm. ")
    code, captioner, chat = work("--input", "clips", "--output", "chat.jsonl", "--task", "t2v")
    assert (code, chat.asked) == (0, 4)
    assert (captioner.freed, chat.freed) == (1, 1)
    rows = read(tmp_path / "chat.jsonl")
    assert rows[0]["t2v_fusion_caption"] == "A woman walks. The camera moves backwards, tracking."
    assert rows[3]["error"] and not rows[3]["t2v_fusion_caption"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chat.jsonl", "clips", "rule.jsonl"]


def test_a_table_beside_the_output_is_not_taken_for_captions_in_between(clips, tmp_path, capsys):
    (tmp_path / "out.struct.jsonl").write_text("")
    argv = ("--input", "clips/a.mp4", "--output", "out.jsonl", "--task", "t2v")
    assert work(*argv)[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips", "out.jsonl", "out.struct.jsonl"]
    os.rename("out.jsonl", ".out.struct.part.jsonl")
    assert work("--input", ".out.struct.part.jsonl", "clips", *argv[2:])[0] == 2
    assert "--output out.jsonl: captions are kept in .out.struct.part.jsonl meanwhile" in capsys.readouterr().err


def test_the_captioner_is_freed_before_the_chat_model_is_loaded(clips):
    captioner, chat, order = StubCaptioner(), StubChat(), []
    captioner.free = lambda: order.append("captioner freed")
    argv = ["--input", "clips/a.mp4", "--output", "out.jsonl", "--task", "t2v", "--device", "cpu"]
    opened = CaptionWork(argv, lambda s: captioner, lambda s: order.append("chat opened") or chat)
    assert run_process(CAPTION, opened) == 0
    assert order == ["captioner freed", "chat opened"]


def test_finished_captions_are_fused_without_a_captioner(clips, tmp_path):
    (tmp_path / "in.csv").write_text(
        "structural_caption\n" + json.dumps(TEXT)[:0] + '"' + TEXT.replace('"', '""') + '"\n'
    )
    code, captioner, chat = work("--input", "in.csv", "--output", "out.csv", "--task", "t2v")
    assert (code, captioner.asked, chat.asked) == (0, [], 1)
    assert read(tmp_path / "out.csv")[0]["t2v_fusion_caption"].startswith("A woman walks.")


def test_a_failed_row_is_tried_again_from_the_table_that_names_it(clips, tmp_path):
    """A table of results is an input as well: rows with a caption keep it, those with an error are captioned."""
    work("--input", "clips/a.mp4", "clips/d.mp4", "--output", "first.csv")
    whole = (clips / "a.mp4").read_bytes()
    (clips / "d.mp4").write_bytes(whole)
    code, captioner, _ = work("--input", "first.csv", "--output", "second.csv")
    assert (code, sum(map(len, captioner.asked))) == (0, 1)
    assert [row["error"] for row in read(tmp_path / "second.csv")] == ["", ""]


def test_an_answer_that_is_no_caption_is_kept_with_the_reason(clips, tmp_path, capsys):
    code, captioner, _ = work("--input", "clips/a.mp4", "--output", "out.jsonl", captioner=StubCaptioner("A woman."))
    assert code == 1
    assert len(captioner.asked) == 3
    (row,) = read(tmp_path / "out.jsonl")
    assert (row["structural_caption"], row["error"], row["answer"]) == ("", "there is no JSON in it", "A woman.")
    assert "no row has a result" in capsys.readouterr().err


def test_the_same_video_twice_is_two_rows(clips, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"path": "clips/a.mp4", "n": 1}\n{"path": "clips/a.mp4", "n": [2]}\n')
    for name in ("out.jsonl", "out.csv"):
        assert work("--input", "in.jsonl", "--output", name)[0] == 0
        assert work("--input", "in.jsonl", "--output", name)[0] == 0
        assert [str(row["n"]) for row in read(tmp_path / name)] == ["1", "[2]"]


def test_the_dry_run_names_work_and_memory(clips, capsys):
    assert work("--input", "clips", "--task", "t2v", "--dry_run", "json", "--bs", 2)[0] == 0
    about = json.loads(capsys.readouterr().out)
    assert (about["rows"], about["captions"], about["prompts"], about["batches"]) == (5, 5, 5, 3)
    assert (about["frames"], about["video_tokens"]) == (16, 1560)
    assert about["models"]["captioner"] == {"model": "Skywork/SkyCaptioner-V1", "weights_gib": 15.4}
    assert about["models"]["fusion"] == {"model": "Qwen/Qwen2.5-32B-Instruct", "weights_gib": 61.0}


def test_the_dry_run_of_models_elsewhere(clips, capsys):
    argv = ["--input", "clips", "--endpoint", "http://localhost:1/v1", "--dry_run"]
    assert run_process(CAPTION, CaptionWork(argv)) == 0
    out = capsys.readouterr().out
    assert "at http://localhost:1/v1" in out and "GiB" not in out


def test_the_parameters_of_the_published_models():
    """Counted in transformers' own classes, without memory, with the published sizes."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Config, Qwen2ForCausalLM

    text = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
    text |= {"num_key_value_heads": 4, "vocab_size": 152064}
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
    large = {"hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 64, "num_attention_heads": 40}
    with torch.device("meta"):
        captioner = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))
        chat = Qwen2ForCausalLM(Qwen2Config(num_key_value_heads=8, vocab_size=152064, **large))
    counts = [sum(weight.numel() for weight in model.parameters()) for model in (captioner, chat)]
    assert counts == list(PARAMETERS.values())


# Shots, training data, scores


@pytest.fixture
def cuts(clips):
    """A video of two shots, of 20 and 24 frames, in which a bright bar moves."""

    def frame(t, level):
        picture = np.full((64, 96, 3), level, np.uint8)
        picture[:, 2 * (t % 40) : 2 * (t % 40) + 8] = 250
        return picture

    write_clip(clips / "cuts.mp4", [frame(t, 30) for t in range(20)] + [frame(t, 160) for t in range(24)])
    return clips / "cuts.mp4"


def test_the_shots_of_a_video_are_rows(cuts, tmp_path):
    pytest.importorskip("scenedetect", reason="an extra")
    argv = ("--input", cuts, "clips/a.mp4", "clips/d.mp4", "--scenes", "--bs", 1)
    code, captioner, _ = work(*argv, "--output", "out.csv", "--task", "t2v", "--fusion_model", "none")
    assert code == 0 and [len(asked) for asked in captioner.asked] == [1, 1, 1]
    assert captioner.asked[0][0] < 60 < captioner.asked[1][0]
    rows = read(tmp_path / "out.csv")
    names = ("shot", "shots", "first_frame", "last_frame")
    assert [tuple(row[name] for name in names) for row in rows] == [
        ("1", "2", "0", "19"),
        ("2", "2", "20", "43"),
        ("1", "1", "0", "2"),
        ("", "", "", ""),
    ]
    assert rows[3]["error"] and all(row["t2v_fusion_caption"] for row in rows[:3])
    # killed within the first video: it is done again; then the table as an input of another model
    lines = (tmp_path / "out.csv").read_text().splitlines(keepends=True)
    (tmp_path / "out.csv").write_text("".join(lines[:2]))
    assert work(*argv, "--output", "out.csv", "--task", "t2v", "--fusion_model", "none")[0] == 0
    assert read(tmp_path / "out.csv") == rows
    for _ in range(2):
        code, captioner, _ = work("--input", "out.csv", "--output", "next.csv", "--task", "i2v")
        assert code == 0 and not sum(map(len, captioner.asked))
    assert [row["shot"] for row in read(tmp_path / "next.csv")] == ["1", "2", "1", ""]


@pytest.mark.parametrize("scenes", [(), ("--scenes",)])
def test_rows_that_name_their_shot(cuts, tmp_path, scenes):
    if scenes:
        pytest.importorskip("scenedetect", reason="an extra")
    shots = [
        (1, 20, 43),
        (2, 0, 0),
        (3, None, 4),
        (4, "x", 4),
        (5, 4, 3),
        (6, -1, 4),
        (7, 0, 10**400),
        ("8", "40", "60"),
    ]
    lines = [{"path": str(cuts), "shot": n, "first_frame": a, "last_frame": b} for n, a, b in shots]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    argv = ("--input", "in.jsonl", "--output", "out.jsonl", *scenes)
    code = work(*argv)[0]
    rows = read(tmp_path / "out.jsonl")
    assert code == 0 and [bool(row["structural_caption"]) for row in rows] == [True] * 2 + [False] * 6
    assert [row["shot"] for row in rows] == [n for n, _, _ in shots] and all(row["error"] for row in rows[2:])
    before = (tmp_path / "out.jsonl").read_bytes()
    assert work(*argv)[1].asked == [] and (tmp_path / "out.jsonl").read_bytes() == before


def test_a_shot_that_cannot_be_read_is_a_row(cuts, tmp_path, monkeypatch):
    pytest.importorskip("scenedetect", reason="an extra")
    monkeypatch.setattr("skyreels_v2_infer.captioner.rows.shots_of", lambda path: [(0, 20), (20, 400)])
    assert work("--input", cuts, "--scenes", "--output", "out.jsonl")[0] == 0
    assert [bool(row["error"]) for row in read(tmp_path / "out.jsonl")] == [False, True]


def test_shots_and_a_chat_model(cuts, tmp_path):
    pytest.importorskip("scenedetect", reason="an extra")
    argv = ("--input", cuts, cuts, "clips/a.mp4", "--scenes", "--output", "out.jsonl", "--task", "t2v")
    code, _, chat = work(*argv)
    assert (code, chat.asked) == (0, 5)
    assert [row["shot"] for row in read(tmp_path / "out.jsonl")] == [1, 2, 1, 2, 1]


def test_scenes_need_their_package(monkeypatch, capsys):
    def absent(name):
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "version", absent)
    with pytest.raises(SystemExit):
        parse_captions(["--input", "a.mp4", "--scenes"])
    assert "--scenes: needs PySceneDetect" in capsys.readouterr().err


def test_training_captions_lack_the_same_fields_again(clips, tmp_path):
    argv = ("--input", "clips/a.mp4", "--task", "t2v", "--fusion_model", "none", "--drop_fields")
    prompts = set()
    for seed in range(12):
        assert work(*argv, seed, "--output", f"{seed}.jsonl")[0] == 0
        (row,) = read(tmp_path / f"{seed}.jsonl")
        assert len(json.loads(row["structural_caption"])["lighting"]) > 5  # the caption itself is whole
        prompts.add(row["t2v_fusion_caption"])
    assert work(*argv, 11, "--output", "again.jsonl")[0] == 0
    assert read(tmp_path / "again.jsonl") == [row]
    assert len(prompts) > 2


def test_a_score_of_the_captioner_itself_is_full(clips, tmp_path, capsys):
    work("--input", "clips/a.mp4", "clips/b.mp4", "--output", "reference.jsonl")
    capsys.readouterr()
    code, captioner, _ = work("--score", "reference.jsonl", "--output", "mine.jsonl")
    assert code == 0 and sum(map(len, captioner.asked)) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["mean", "100.0", "2"]
    assert all(line.split()[-2] == "100.0" for line in lines[1:])
    other = StubCaptioner(TEXT.replace("medium_shot", "close_up"))
    assert work("--score", "reference.jsonl", "--output", "other.csv", captioner=other)[0] == 0
    lines = {line[:22].strip(): line.split()[-2:] for line in capsys.readouterr().out.splitlines()}
    assert lines["shot_type"] == ["0.0", "2"] and lines["shot_angle"] == ["100.0", "2"]
    assert work("--score", "reference.jsonl", "--output", "mine.jsonl")[1].asked == []


def test_prompts_of_another_command_are_made_anew(clips, tmp_path):
    rule = ("--task", "t2v", "--fusion_model", "none")
    work("--input", "clips/a.mp4", "--output", "1.jsonl", *rule)
    (row,) = read(tmp_path / "1.jsonl")
    (tmp_path / "1.jsonl").write_text(json.dumps(row | {"t2v_fusion_caption": "kept"}) + "\n")
    work("--input", "1.jsonl", "--output", "2.jsonl", *rule)
    assert read(tmp_path / "2.jsonl")[0]["t2v_fusion_caption"] == "kept"
    work("--input", "1.jsonl", "--output", "3.jsonl", *rule, "--drop_fields", 1)
    assert read(tmp_path / "3.jsonl")[0]["t2v_fusion_caption"] != "kept"
    _, _, chat = work("--input", "1.jsonl", "--output", "4.jsonl", "--task", "t2v")
    assert chat.asked == 1 and read(tmp_path / "4.jsonl")[0]["t2v_fusion_caption"].startswith("A woman walks.")


def test_a_score_without_results_is_a_failure(clips, tmp_path, capsys):
    lines = [{"path": f"clips/{name}.mp4", "structural_caption": TEXT} for name in ("a", "d")]
    (tmp_path / "both.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "bad.jsonl").write_text(json.dumps(lines[1]) + "\n")
    assert work("--score", "bad.jsonl", "--output", "1.jsonl")[0] == 1
    assert "no row has a result" in capsys.readouterr().err
    assert work("--score", "both.jsonl", "--output", "2.jsonl")[0] == 0
    assert "1 of 2 rows have no result" in capsys.readouterr().err
    assert work("--input", "clips/a.mp4", "--score", "both.jsonl", "--output", "3.jsonl")[0] == 0
    assert "1 of 2 rows of both.jsonl have no partner in 3.jsonl" in capsys.readouterr().err


def test_captions_that_are_objects_are_compared(clips, tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text(json.dumps({"path": "clips/a.mp4", "structural_caption": json.loads(TEXT)}))
    argv = ("--input", "in.jsonl", "--score", "in.jsonl", "--output", "out.jsonl")
    assert work(*argv)[0] == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["mean", "100.0", "1"]


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (("--score", "nowhere.jsonl"), "--score nowhere.jsonl: must be an existing file"),
        (("--score", "clips/a.mp4"), "--score clips/a.mp4: must end in .csv or"),
        (("--score", "bare.csv"), "--score bare.csv: row 1: its structural_caption is none"),
        (("--score", "bare.csv", "--output", "bare.csv"), "--output bare.csv: is an input as well"),
        (("--input", "clips", "--drop_fields", "1"), "--drop_fields 1: has no effect without --task"),
        (("--input", "clips", "--drop_fields", "-1", "--task", "t2v"), "--drop_fields -1: must be a whole number"),
    ],
)
def test_a_wrong_score_is_one_line(clips, tmp_path, capsys, argv, line):
    (tmp_path / "bare.csv").write_text("path\nclips/a.mp4\n")
    try:
        code, _, _ = work(*argv)
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert capsys.readouterr().err.startswith(f"{CAPTION}: {line}")


# Endpoints


def over_endpoint(monkeypatch, *answers, argv=("--input", "clips/a.mp4", "clips/b.mp4", "clips/d.mp4")):
    """-> (exit code, requests) of a run over an endpoint."""
    monkeypatch.setattr(endpoint.Endpoint.__init__, "__defaults__", ("", 0.1, 300.0, lambda seconds: None))
    with server(*answers) as (url, requests):
        code = run_process(CAPTION, CaptionWork([*argv, "--endpoint", url, "--output", "out.jsonl"]))
    return code, requests


def test_captions_and_prompts_over_an_endpoint(clips, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    argv = ("--input", "clips", "--task", "t2v", "--model_id", "captions", "--fusion_model", "prompts", "--bs", "2")

    code, requests = over_endpoint(monkeypatch, completion(TEXT), argv=argv)
    assert code == 0
    assert [body["model"] for _, body, _ in requests].count("captions") == 4
    assert [body["model"] for _, body, _ in requests].count("prompts") == 4
    assert all(headers["Authorization"] == "Bearer secret" for headers, _, _ in requests)
    rows = read(tmp_path / "out.jsonl")
    assert [bool(row["t2v_fusion_caption"]) for row in rows] == [True, True, True, False, True]


def test_a_key_that_cannot_be_sent_is_not_printed(clips, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "secret\x01part")
    code, requests = over_endpoint(monkeypatch, completion(TEXT))
    assert (code, requests) == (2, [])
    err = capsys.readouterr().err
    assert "OPENAI_API_KEY has characters" in err and "secret" not in err and "part" not in err


def test_an_endpoint_on_this_machine_is_reached_without_a_proxy(clips, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    code, requests = over_endpoint(monkeypatch, completion(TEXT))
    assert code == 0 and requests


def test_an_endpoint_that_recovers_loses_nothing(clips, tmp_path, monkeypatch):
    busy = (429, {"Retry-After": "1"}, b"")
    code, requests = over_endpoint(monkeypatch, busy, b"garbage", completion(TEXT[:50], "length"), completion(TEXT))
    assert code == 0 and len(requests) >= 5
    assert [bool(row["structural_caption"]) for row in read(tmp_path / "out.jsonl")] == [True, True, False]


def test_an_endpoint_that_fails_ends_the_run_and_the_next_one_goes_further(clips, tmp_path, monkeypatch, capsys):
    argv = ("--input", "clips/a.mp4", "clips/b.mp4", "clips/d.mp4", "--bs", "1")
    code, _ = over_endpoint(monkeypatch, completion(TEXT), (500, {}, b""), argv=argv)
    assert code == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "no usable answer in 4 tries (status 500); finished rows are in out.jsonl" in line
    assert [row["path"] for row in read(tmp_path / "out.jsonl")] == ["clips/a.mp4"]
    code, requests = over_endpoint(monkeypatch, completion(TEXT), argv=argv)
    assert (code, len(requests)) == (0, 1)
    assert len(read(tmp_path / "out.jsonl")) == 3


def test_an_endpoint_that_refuses_is_a_wrong_command(clips, tmp_path, monkeypatch, capsys):
    code, _ = over_endpoint(monkeypatch, (401, {}, b'{"error": {"message": "no key"}}'))
    assert code == 2
    assert "refuses the request with status 401 (no key); its key is read from" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (("--endpoint", "localhost:8000"), "--endpoint localhost:8000: must be an address like http"),
        (("--endpoint", "http://user:word@host/v1"), "--endpoint http://user:word@host/v1: must be an address like"),
        (("--endpoint", "http://[x"), "--endpoint http://[x: must be an address like"),
        (("--endpoint", "http://h:99999/v1"), "--endpoint http://h:99999/v1: must be an address like"),
        (("--endpoint", "http://\u00e4/v1"), "--endpoint http://\u00e4/v1: must be an address like"),
        (("--endpoint", "http://h/v1", "--backend", "vllm"), "--backend vllm: has no effect with --endpoint"),
        (("--endpoint", "http://h/v1", "--device", "cpu"), "--device cpu: has no effect with --endpoint"),
        (("--endpoint", "http://h/v1", "--tp", "2"), "--tp 2: has no effect with --endpoint"),
        (("--tp", "2", "--device", "cpu"), "--tp 2: needs --backend vllm"),
        (("--backend", "vllm", "--device", "cpu"), "--device cpu: has no effect with --backend vllm"),
        (("--backend", "vllm"), "--backend vllm: needs vllm: pip install vllm"),
        (("--backend", "onnx"), "--backend onnx: must be transformers or vllm"),
    ],
)
def test_where_models_run_is_one_choice(capsys, argv, line):
    with pytest.raises(SystemExit) as error:
        parse_captions(["--input", "a.mp4", *argv])
    assert error.value.code == 2
    assert capsys.readouterr().err.startswith(f"{CAPTION}: {line}")


# Wrong commands


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ((), "--input: is needed"),
        (("--input",), "--input: needs a value"),
        (("--input", "nowhere.mp4"), "--input nowhere.mp4: must be a video, a folder"),
        (("--input", "*.mkv"), "--input *.mkv: must be a video, a folder"),
        (("--input", "empty"), "--input empty: has no videos in it"),
        (("--input", "clips", "--output", "out.txt"), "--output out.txt: must end in .csv or .jsonl"),
        (("--input", "clips", "--output", "folder.csv"), "--output folder.csv: is a folder"),
        (("--input", "bad.csv"), "--input bad.csv: line 1: no column path among a, b"),
        (("--input", "long.csv"), "--input long.csv: line 3: it has more cells"),
        (("--input", "bad.jsonl"), "--input bad.jsonl: line 2: "),
        (("--input", "latin.csv"), "--input latin.csv: line "),
        (("--input", "in.csv", "--output", "in.csv"), "--output in.csv: is an input as well"),
        (("--input", "clips", "--task", "v2t"), "--task v2t: must be struct, t2v or i2v"),
        (("--input", "clips", "--bs", "0"), "--bs 0: must be a whole number from 1"),
        (("--input", "clips", "--fusion_model", "none"), "--fusion_model none: has no effect without --task"),
        (("--input", "clips", "--model_id", "no model"), "--model_id no model: is neither a folder nor"),
        (("--input", "clips", "--instruction", "nowhere.txt"), "--instruction nowhere.txt: must be a text file"),
        (("--input", "clips", "--sampling", "good"), "--sampling good: must be faithful or better"),
    ],
)
def test_a_wrong_command_is_one_line(clips, tmp_path, capsys, argv, line):
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "in.csv").write_text("path\nclips/a.mp4\n")
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    (tmp_path / "long.csv").write_text("path\nclips/a.mp4\nclips/b.mp4,more\n")
    (tmp_path / "bad.jsonl").write_text('{"path": "clips/a.mp4"}\n["clips/b.mp4"]\n')
    (tmp_path / "latin.csv").write_bytes(b"path\n\xff.mp4\n")
    before = sorted(tmp_path.rglob("*"))
    try:
        code, _, _ = work(*argv)
    except SystemExit as error:
        code = error.code
    assert code == 2
    (printed,) = capsys.readouterr().err.splitlines()
    assert printed.startswith(f"{CAPTION}: {line}")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["note", "error", "answer"])
def test_a_column_of_the_users_is_not_written_over(clips, tmp_path, capsys, name):
    (tmp_path / "in.csv").write_text(f"path,{name}\nclips/a.mp4,\nclips/b.mp4,mine\n")
    assert work("--input", "in.csv", "--output", "out.csv")[0] == 2
    assert f"has a column {name} of its own" in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()


def test_a_link_is_no_output(tmp_path, capsys):
    (tmp_path / "out.csv").symlink_to("elsewhere.csv")
    with pytest.raises(SystemExit):
        parse_captions(["--input", "clips", "--output", str(tmp_path / "out.csv"), "--device", "cpu"])
    assert "must be a file, not a link or a device" in capsys.readouterr().err


def test_another_commands_table_is_refused(clips, tmp_path, capsys):
    work("--input", "clips/a.mp4", "--output", "out.csv")
    before = (tmp_path / "out.csv").read_bytes()
    for more in (("--model_id", "some/other"), ("--sampling", "better"), ("--task", "t2v", "--fusion_model", "none")):
        assert work("--input", "clips", "--output", "out.csv", *more)[0] == 2
        assert "name another file" in capsys.readouterr().err
    (tmp_path / "other.csv").write_text("some,other\n1,2\n")
    assert work("--input", "clips", "--output", "other.csv")[0] == 2
    assert (tmp_path / "other.csv").read_text() == "some,other\n1,2\n"
    assert (tmp_path / "out.csv").read_bytes() == before


def test_an_instruction_that_has_changed_is_another_one(clips, tmp_path, capsys):
    asked = ("--output", "own.csv", "--instruction", "own.txt")
    (tmp_path / "own.txt").write_text("Describe it.")
    work("--input", "clips/a.mp4", *asked)
    assert work("--input", "clips/a.mp4", *asked)[0] == 0
    (tmp_path / "own.txt").write_text("Describe it well.")
    assert work("--input", "clips", *asked)[0] == 2
    assert "name another file" in capsys.readouterr().err


# The table


def test_one_process_at_a_time(tmp_path):
    with CaptionTable(tmp_path / "a.jsonl", ["path", "made_by"], "x") as table:
        with pytest.raises(InputError, match="another process is writing it"):
            CaptionTable(tmp_path / "a.jsonl", ["path", "made_by"], "x")
        table.add([{"path": "a"}])
    assert len(CaptionTable(tmp_path / "a.jsonl", ["path", "made_by"], "x").rows) == 1


def test_a_table_without_rows_leaves_no_file(tmp_path):
    CaptionTable(tmp_path / "a.csv", ["path", "made_by"], "x").close()
    assert not list(tmp_path.iterdir())


ROWS = st.lists(st.fixed_dictionaries({"path": st.text(max_size=6), "note": st.text(max_size=12)}), max_size=4)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(ROWS.filter(bool), st.sampled_from([".csv", ".jsonl"]), st.data())
def test_a_table_that_was_cut_anywhere_has_its_first_rows(tmp_path_factory, rows, suffix, data):
    """And after the missing ones are added, each exactly once."""
    path = tmp_path_factory.mktemp("table") / f"t{suffix}"
    columns = ["path", "note", "made_by"]
    with CaptionTable(path, columns, "x") as table:
        table.add(rows)
        written = [dict(row) for row in table.rows]
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    with CaptionTable(path, columns, "x") as table:
        assert table.rows == written[: len(table.rows)]
        table.add(table.missing(rows))
    assert path.read_bytes() == whole


FOREIGN = {
    "a last line without its end.jsonl": b'{"prompt": "valuable"}',
    "the same column first.jsonl": b'{"path": "valuable"}',
    "an empty line first.jsonl": b'\n{"prompt": "valuable"}',
    "numbers.jsonl": b"1\n2\n",
    "returns.csv": b"path,note,made_by\ra,b,x\r",
    "an odd quote.csv": b'path,no"te\na,b\n',
    "an empty line first.csv": b"\npath;note\na;b",
    "nothing.csv": b"",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_that_this_program_did_not_write_is_kept(tmp_path, name):
    (tmp_path / name).write_bytes(FOREIGN[name])
    try:
        CaptionTable(tmp_path / name, ["path", "note", "made_by"], "x").close()
    except InputError as error:
        assert "name another file" in str(error)
    else:
        assert not FOREIGN[name]
    assert (tmp_path / name).read_bytes() == FOREIGN[name]


def test_shots_that_the_input_names_are_no_reason_to_drop_rows(tmp_path):
    columns, row = ["path", "shot", "shots", "made_by"], {"path": "a", "shot": 1, "shots": 2}
    with CaptionTable(tmp_path / "t.jsonl", columns, "x") as table:
        table.add([row])
    for more in ({}, {"scenes": True, "named": {("a", "1")}}):
        with CaptionTable(tmp_path / "t.jsonl", columns, "x", **more) as table:
            assert len(table.rows) == 1


def test_shots_of_a_video_are_all_there_or_none(tmp_path):
    columns = ["path", "shot", "shots", "made_by"]
    with CaptionTable(tmp_path / "t.csv", columns, "x", scenes=True) as table:
        table.add([{"path": "a", "shot": n, "shots": 2} for n in (1, 2)])
        table.add([{"path": "b", "shot": n, "shots": 3} for n in (1, 2, 3)])
    lines = (tmp_path / "t.csv").read_bytes().splitlines(keepends=True)
    (tmp_path / "t.csv").write_bytes(b"".join(lines[:5]))
    with CaptionTable(tmp_path / "t.csv", columns, "x", scenes=True) as table:
        assert [row["path"] for row in table.rows] == ["a", "a"]
        assert table.missing([{"path": "a"}, {"path": "b"}]) == [{"path": "b"}]


def test_a_long_path_is_a_row_and_a_long_cell_is_read_again(clips, tmp_path):
    lines = [{"path": "x" * 5000}, {"path": "clips/a.mp4", "title": "y" * 200_000}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for more in ([], [], ["clips/b.mp4"]):
        assert work("--input", "in.jsonl", *more, "--output", "out.csv")[0] == 0
    csv.field_size_limit(2**31 - 1)
    try:
        assert [bool(row["error"]) for row in read(tmp_path / "out.csv")] == [True, False, False]
    finally:
        csv.field_size_limit(131_072)
    assert work("--input", "out.csv", "--output", "next.csv")[0] == 0


def test_records_of_a_csv_end_outside_quotes():
    content = b'a,b\n1,"x\ny"\n2,"""\n'
    assert record_ends(content, quotes=True) == [4, 12]
    assert record_ends(content, quotes=False) == [4, 9, 12, 18]


def test_a_path_beside_the_table_is_found(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.mp4").write_text("")
    (tmp_path / "data" / "in.csv").write_text("path\na.mp4\n")
    monkeypatch.chdir(tmp_path)
    assert rows_of(("data/in.csv",)) == [{"path": "data/a.mp4"}]


def test_the_settings_are_frozen():
    found = parse_captions(["--input", "a.mp4", "--device", "cpu"])
    with pytest.raises(AttributeError):
        found.task = "t2v"
    assert found.fusion_model is None and found.output.name == "captions.jsonl"


# Killed

STUB = """
import os, sys, time
from pathlib import Path
from skyreels_v2_infer.chat.reply import Reply
from skyreels_v2_infer.run.captions import CaptionWork
from skyreels_v2_infer.run.main import run_process
left = int(os.environ.get("CLIPS", 1000))
class Stub:
    def describe(self, clips, question, tokens, attempt):
        global left
        left -= 1
        time.sleep(0.02 if left else 100)
        return [Reply(Path("answer.json").read_text(), False) for clip in clips]
    def free(self):
        pass
sys.exit(run_process("caption_video.py", CaptionWork(sys.argv[1:], lambda settings: Stub())))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
def test_a_run_of_200_clips_killed_three_times_has_each_row_once(tmp_path, name):
    (tmp_path / "answer.json").write_text(TEXT)
    write_clip(tmp_path / "0.mp4", [np.full((32, 32, 3), 90, np.uint8)] * 3)
    for i in range(1, 200):
        os.link(tmp_path / "0.mp4", tmp_path / f"{i}.mp4")
    command = [sys.executable, "-c", STUB, "--input", ".", "--output", name, "--device", "cpu", "--task", "t2v"]
    command += ["--fusion_model", "none"]
    draw = random.Random(name)
    started = {"cwd": tmp_path, "stderr": subprocess.DEVNULL}
    kills = 0
    while kills < 3:
        rows = draw.randrange(10, 50)
        waits = environment(PYTHONPATH=str(ROOT), CLIPS=str(rows + 15))  # so that it does not end before
        process = subprocess.Popen(command, **started, env=waits)
        before = lines_of(tmp_path / name)
        while process.poll() is None and lines_of(tmp_path / name) < before + rows:
            time.sleep(0.01)
        time.sleep(draw.random() / 10)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
        kills += 1
    own = environment(PYTHONPATH=str(ROOT))
    done = subprocess.run(command, **started, env=own, stdout=subprocess.PIPE, text=True)
    assert (done.returncode, done.stdout) == (0, f"{name}\n")
    paths = [row["path"] for row in read(tmp_path / name)]
    assert len(paths) == 200 and len(set(paths)) == 200


def lines_of(path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
