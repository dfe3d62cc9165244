"""caption_video.py as a user starts it: real videos, a small Qwen2.5-VL and a small chat model, both on the CPU."""

import json
import signal

import imageio_ffmpeg
import pytest
import tiny_talkers
from captions import GOOD
from script_runs import contents, run, scene, write_clip

CAPTION = "caption_video.py"
TEXT = json.dumps(GOOD)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tiny_talkers.write_captioner(folder / "captioner", TEXT)
    tiny_talkers.write_chat_model(folder / "chat", "A woman walks along the pier.\n\nThe end.")
    return folder


@pytest.fixture
def clips(tmp_path):
    for i in range(2):
        write_clip(tmp_path / f"{i}.mp4", [scene(64, 96, t) for t in range(20)])
    return tmp_path


def flags(models, *more):
    return ("--model_id", models / "captioner", "--device", "cpu", *more)


def rows_in(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_videos_become_prompts(models, clips):
    more = flags(models, "--task", "t2v", "--fusion_model", models / "chat", "--output", "new/out.jsonl")
    result = run(CAPTION, "--input", "0.mp4", "1.mp4", *more, cwd=clips)
    assert (result.code, result.out) == (0, "new/out.jsonl\n"), result.err
    for row in rows_in(clips / "new" / "out.jsonl"):
        assert json.loads(row["structural_caption"]) == GOOD
        assert row["t2v_fusion_caption"] == "A woman walks along the pier. The camera moves backwards, tracking."
        assert not row["error"]
    assert contents(clips) == ["0.mp4", "1.mp4", "new", "new/out.jsonl"]


def test_a_plan_and_a_wrong_flag_need_no_torch(models, clips):
    result = run(CAPTION, "--input", "0.mp4", "--dry_run", cwd=clips)
    assert result.code == 0 and "1 captions" in result.out and result.cpu < 3
    result = run(CAPTION, "--input", "0.mp4", "--tsak", "t2v", cwd=clips)
    assert (result.code, result.lines) == (2, [f"{CAPTION}: --tsak t2v: unknown flag, did you mean --task?"])
    assert contents(clips) == ["0.mp4", "1.mp4"]


def test_a_missing_model_is_one_line(models, clips):
    (clips / "empty").mkdir()
    result = run(CAPTION, "--input", "0.mp4", "--model_id", "empty", "--device", "cpu", cwd=clips)
    assert (result.code, len(result.lines)) == (2, 1)
    assert result.lines[0].startswith(f"{CAPTION}: --model_id empty: cannot be loaded (")
    assert not (clips / "captions.jsonl").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_keeps_finished_rows(models, clips, number, code):
    write_clip(clips / "2.mp4", [scene(64, 96, 2)])
    ffmpeg = clips / "ffmpeg"  # which reads the third clip when the first has its row: it sends the signal, once
    send, real = f"2>/dev/null mkdir sent && kill -{int(number)} $PPID", imageio_ffmpeg.get_ffmpeg_exe()
    ffmpeg.write_text(f'#!/bin/sh\ncase "$*" in *2.mp4*) {send};; esac\nexec "{real}" "$@"\n')
    ffmpeg.chmod(0o755)
    more = flags(models, "--bs", 1)
    result = run(CAPTION, "--input", ".", *more, cwd=clips, IMAGEIO_FFMPEG_EXE=str(ffmpeg))
    assert (result.code, result.out) == (code, "")
    assert result.lines[-1].endswith("interrupted; finished rows are in captions.jsonl, and the same command adds the "
                                     "missing ones")  # fmt: skip
    assert 0 < len(rows_in(clips / "captions.jsonl")) < 3
