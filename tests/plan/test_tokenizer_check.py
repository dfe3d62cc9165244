"""Tokenizers from elsewhere: no regular expression and no table in them can hang or end the process."""

import base64
import json

import pytest
import small_checkpoints
from script_runs import FORCING, run

from skyreels_v2_infer import embedded
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.limited import Limits
from skyreels_v2_infer.plan import tokenizer_check
from skyreels_v2_infer.plan.tokenizer_check import check_tokenizer

TEXT = "a" * 40 + "!"
HANGS = {"type": "Replace", "pattern": {"Regex": "((a+)+)+$"}, "content": "b"}
PANICS = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(b"\x90\1\0\0" + b"\xff" * 400).decode()}
LARGE = {"direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>", "pad_to_multiple_of": None}


def changed(folder, **changes):
    file = folder / "tokenizer.json"
    content = json.loads((embedded.FOLDER / "df" / "tokenizer" / "tokenizer.json").read_text())
    file.write_text(json.dumps(content | changes))
    return file


def test_a_usable_tokenizer_passes(tmp_path):
    check_tokenizer(changed(tmp_path), [TEXT, "a dog"], "model_id", "some")
    check_tokenizer(changed(tmp_path, padding=LARGE | {"strategy": {"Fixed": 10**12}}), [TEXT], "model_id", "some")


@pytest.mark.parametrize("normalizer", [HANGS, PANICS, {"type": "Replace"}, HANGS | {"pattern": {"Regex": "((("}}])
def test_one_that_hangs_or_panics_is_one_line(tmp_path, normalizer):
    with pytest.raises(InputError) as error:
        check_tokenizer(changed(tmp_path, normalizer=normalizer), [TEXT], "model_id", "some")
    assert str(error.value).startswith("--model_id some: ") and "\n" not in str(error.value)
    assert "tokenizer.json" in str(error.value)


def test_one_that_grows_only_where_it_truncates_is_one_line(tmp_path):
    """What is left over of each of the thousand copies is put together with that of all others."""
    copies = {"type": "TemplateProcessing", "pair": [], "special_tokens": {}}
    copies["single"] = [{"Sequence": {"id": "A", "type_id": 0}}] * 1000
    with pytest.raises(InputError, match="takes more than"):
        check_tokenizer(changed(tmp_path, post_processor=copies), ["a dog " * 40], "model_id", "some")


def test_one_that_takes_too_long_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_check, "TRIED", "while True: pass")
    monkeypatch.setattr(tokenizer_check, "LIMITS", Limits(seconds=0, patience=60, gib=2))
    with pytest.raises(InputError, match="takes more than"):
        check_tokenizer(changed(tmp_path), [TEXT], "model_id", "some")


def test_nothing_is_imported_from_the_folder_where_it_is_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("tokenizers", "json", "resource"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(f'{__name__} was run')")
    check_tokenizer(changed(tmp_path), [TEXT], "model_id", "some")


@pytest.mark.parametrize("dry", [(), ("--dry_run",)])
def test_a_run_refuses_it(tmp_path, dry):
    model = small_checkpoints.write_original(tmp_path / "model", "df")
    file = model / "google" / "umt5-xxl" / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"normalizer": PANICS}))
    prompt = "a dog " * 200  # which --dry_run looks at, too
    size = ("--height", 32, "--width", 32, "--num_frames", 5, "--device", "cpu")
    result = run(FORCING, "--model_id", model, *size, "--prompt", prompt, *dry, cwd=tmp_path)
    assert result.code == 2 and len(result.lines) == 1 and f"--model_id {model}: " in result.err, result.err
    assert not (tmp_path / "video_out").exists()
