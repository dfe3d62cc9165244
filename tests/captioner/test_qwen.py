"""The captioner with transformers' own Qwen2.5-VL, small and random, or one that always gives the same answer."""

import json
import shutil

import numpy as np
import pytest
import tiny_talkers
import torch
from captions import GOOD, TEXT
from scenes import scene

from skyreels_v2_infer.captioner import qwen
from skyreels_v2_infer.captioner.caption import ATTEMPTS, structural_captions
from skyreels_v2_infer.captioner.instruction import STRUCTURAL, read_instruction
from skyreels_v2_infer.captioner.qwen import QwenCaptioner
from skyreels_v2_infer.captioner.schema import OPTIONS
from skyreels_v2_infer.chat.reply import Reply
from skyreels_v2_infer.errors import InputError


def clip(height: int = 420, width: int = 360, start: int = 0) -> np.ndarray:
    return np.stack([scene(height, width, start + 9 * t) for t in range(16)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_talkers.write_captioner(tmp_path_factory.mktemp("captioner") / "random")


@pytest.fixture(scope="module")
def captioner(folder):
    return QwenCaptioner(str(folder), device_map="cpu")


def positions(captioner, inputs) -> torch.Tensor:
    """Positions (time, height, width) that the library gives to the tokens: ``[3, batch, length]``."""
    names = ("input_ids", "mm_token_type_ids", "video_grid_thw", "second_per_grid_ts", "attention_mask")
    return captioner.model.model.get_rope_index(**{name: inputs.get(name) for name in names})[0]


def times(captioner, inputs) -> list[int]:
    """The position in time of each grid, from the video's first one."""
    video = inputs["input_ids"][0] == captioner.config.video_token_id
    found = positions(captioner, inputs)[0, 0][video]
    return (found - found[0]).unique().tolist() if len(found.unique()) == 8 else (found - found[0])[::195].tolist()


def test_a_clip_is_1560_tokens_at_8_times(captioner):
    inputs = captioner.inputs([clip()], "Describe it.")
    assert (inputs["input_ids"] == captioner.config.video_token_id).sum() == 1560
    assert inputs["video_grid_thw"].tolist() == [[8, 30, 26]]
    assert inputs["pixel_values_videos"].shape == (6240, 1176)
    assert times(captioner, inputs) == [0, 2, 4, 6, 8, 10, 12, 14]


def test_the_rate_that_transformers_assumes_without_metadata_would_put_them_elsewhere(captioner):
    """Why second_per_grid_ts is given: 2 / 24 is what its processor gives."""
    inputs = captioner.inputs([clip()], "Describe it.")
    assert times(captioner, inputs | {"second_per_grid_ts": torch.tensor([2 / 24])}) == [0, 0, 0, 0, 0, 0, 1, 1]


def test_text_follows_the_video_as_it_was_trained(captioner):
    """The first token behind the video is one position behind the largest of its axes."""
    inputs = captioner.inputs([clip()], "Describe it.")
    video = (inputs["input_ids"][0] == captioner.config.video_token_id).nonzero()[:, 0]
    found = positions(captioner, inputs)[:, 0]
    assert (found[:, video[-1] + 1] == found[:, video].max() + 1).all()
    assert found[0, video[-1] + 1] - found[0, video[0]] == 15


def test_the_conversation_is_the_models_own(captioner):
    ids = captioner.tokens_of("Describe it.", 3)
    assert captioner.tokenizer.decode(ids) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        + "<|video_pad|>" * 3
        + "<|vision_end|>Describe it.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_question_is_tried_on_the_tokenizer_once(folder, monkeypatch):
    """In a process of its own, which takes a second."""
    tried = []
    monkeypatch.setattr(qwen, "check_file_of", lambda model, texts, flag: tried.append(texts))
    captioner = QwenCaptioner(str(folder), device_map="cpu")
    for _ in range(2):
        captioner.inputs([clip(), clip()], "Describe it.")
    captioner.inputs([clip()], "What is it?")
    assert len(tried) == 2


def test_answers_depend_on_the_pixels_and_not_on_the_batch(captioner):
    """Clips of different sizes, so that the shorter conversation is padded."""
    one, other = clip(), clip(280, 448, start=400)
    alone = [captioner.describe([c], "Describe it.", 12)[0] for c in (one, other)]
    assert alone[0].text != alone[1].text
    assert captioner.describe([one, other], "Describe it.", 12) == alone
    assert captioner.describe([one], "Describe it.", 12)[0] == alone[0]
    assert alone[0].cut_off


def test_a_second_attempt_differs_and_a_third_is_repeatable(captioner):
    first, second, third = (captioner.describe([clip()], "Describe it.", 24, attempt)[0] for attempt in range(3))
    assert len({first.text, second.text, third.text}) > 1
    state = torch.random.get_rng_state()
    assert captioner.describe([clip()], "Describe it.", 24, 2)[0] == third
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_generation_config_changes_nothing(folder, captioner, tmp_path):
    """That of Qwen2.5-VL penalises repetition; the published script passed its own settings."""
    copy = tmp_path / "own"
    shutil.copytree(folder, copy)
    file = copy / "generation_config.json"
    own = {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "do_sample": True, "num_beams": 2, "top_k": 3}
    file.write_text(json.dumps(json.loads(file.read_text()) | own))
    other = QwenCaptioner(str(copy), device_map="cpu")
    assert other.model.generation_config.repetition_penalty == 5.0
    for attempt in (0, 2):
        answers = [one.describe([clip()], "Describe it.", 16, attempt)[0] for one in (captioner, other)]
        assert answers[0] == answers[1]


@pytest.mark.parametrize(
    "own",
    [
        {"stop_strings": ["a"]},
        {"return_dict_in_generate": True},
        {"eos_token_id": "x"},
        {"cache_implementation": "quantized"},
        {"max_time": -1.0},
    ],
)
def test_other_ways_of_decoding_are_not_taken(folder, captioner, tmp_path, own):
    copy = tmp_path / "own"
    shutil.copytree(folder, copy)
    file = copy / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | own))
    other = QwenCaptioner(str(copy), device_map="cpu")
    answers = [one.describe([clip(56, 56)], "Describe it.", 4) for one in (other, captioner)]
    assert answers[0] == answers[1]


def test_a_tokenizer_of_a_larger_vocabulary_is_one_line(folder, tmp_path):
    copy = tmp_path / "own"
    shutil.copytree(folder, copy)
    known = json.loads((copy / "tokenizer.json").read_text())
    known["model"]["vocab"]["D"] = 400
    (copy / "tokenizer.json").write_text(json.dumps(known))
    with pytest.raises(InputError, match="its tokenizer belongs to another model"):
        QwenCaptioner(str(copy), device_map="cpu").describe([clip(56, 56)], "Describe it.", 4)


def test_an_error_in_an_answer_is_one_line(captioner, monkeypatch):
    def fails(**keywords):
        raise IndexError("index out of range")

    monkeypatch.setattr(captioner.model, "generate", fails)
    with pytest.raises(InputError, match=r"cannot answer \(index out of range"):
        captioner.describe([clip(56, 56)], "Describe it.", 4)


def test_a_caption_comes_out(tmp_path):
    captioner = QwenCaptioner(str(tiny_talkers.write_captioner(tmp_path / "model", TEXT)), device_map="cpu")
    (answer,) = structural_captions(captioner, [clip()], STRUCTURAL)
    assert answer.text == TEXT and not answer.reason
    assert json.loads(answer.caption.as_json()) == GOOD
    captioner.free()
    assert not hasattr(captioner, "model")


class Stub:
    """Gives the answers of a table by clip and attempt, and records what it was asked."""

    def __init__(self, answers):
        self.answers, self.asked = answers, []

    def describe(self, clips, question, tokens, attempt):
        self.asked.append((list(clips), attempt))
        return [self.answers[c][attempt] for c in clips]


def test_only_useless_answers_are_asked_for_again():
    good, cut, none = Reply(TEXT, False), Reply(TEXT[:50], True), Reply("no", False)
    stub = Stub({"a": [good], "b": [cut, good], "c": [none, cut, none], "d": [Reply("so " * 200, False), none, good]})
    answers = structural_captions(stub, ["a", "b", "c", "d"], "?")
    assert [asked for asked, _ in stub.asked] == [["a", "b", "c", "d"], ["b", "c", "d"], ["c", "d"]]
    assert [attempt for _, attempt in stub.asked] == list(range(ATTEMPTS))
    assert [bool(answer.caption) for answer in answers] == [True, True, False, True]
    assert answers[2].reason == "there is no JSON in it" and answers[2].text == "no"


def test_a_refused_clip_is_not_asked_for_again():
    stub = Stub({"a": [Reply("", False, "no cats")], "b": [Reply(TEXT, False)]})
    answers = structural_captions(stub, ["a", "b"], "?")
    assert len(stub.asked) == 1 and [answer.reason for answer in answers] == ["no cats", ""]


# Foreign models


def test_another_kind_of_model_is_refused(tmp_path):
    chat = tiny_talkers.write_chat_model(tmp_path / "chat")
    with pytest.raises(InputError, match=r"--model_id .*chat: must be a Qwen2.5-VL"):
        QwenCaptioner(str(chat), device_map="cpu")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"--model_id .*empty: cannot be loaded"):
        QwenCaptioner(str(tmp_path / "empty"), device_map="cpu")


def test_a_captioner_without_some_of_its_tensors_is_refused(folder, tmp_path, capfd):
    copy = shutil.copytree(folder, tmp_path / "deeper")
    config = json.loads((copy / "config.json").read_text())
    config["vision_config"]["depth"] += 1
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="its files lack 12 of its tensors"):
        QwenCaptioner(str(copy), device_map="cpu")
    assert "MISSING" not in capfd.readouterr().err


def test_no_code_of_a_model_is_run_and_no_kernel_chosen(folder, tmp_path, monkeypatch):
    copy = tmp_path / "own"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    classes = {"AutoConfig": "own.Config", "Qwen2_5_VLForConditionalGeneration": "own.Model"}
    config |= {"auto_map": classes, "_attn_implementation": "someone/kernel"}
    config["text_config"]["_attn_implementation"] = config["vision_config"]["_attn_implementation"] = "someone/kernel"
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "own.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')\nraise OSError")
    monkeypatch.setattr("builtins.input", lambda *question: pytest.fail("asked"))
    found = QwenCaptioner(str(copy), device_map="cpu").model.config
    for part in (found, found.text_config, found.vision_config):
        assert part._attn_implementation in ("sdpa", "eager")
    assert not (tmp_path / "was_run").exists()


def test_a_template_without_a_video_is_refused(folder, tmp_path):
    copy = tmp_path / "text_only"
    shutil.copytree(folder, copy)
    (copy / "chat_template.jinja").write_text("{% for m in messages %}text{% endfor %}")
    with pytest.raises(InputError, match="has 0 places for a video"):
        QwenCaptioner(str(copy), device_map="cpu").tokens_of("Describe it.", 3)


# The question


def test_the_question_names_every_field_and_option():
    for option in (option for options in OPTIONS.values() for option in options):
        assert option in STRUCTURAL
    for name in (*GOOD, *GOOD["subjects"][0]):
        assert f'"{name}"' in STRUCTURAL


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "is empty"), (b"\xff\xfe", "UTF-8"), (b"a <|video_pad|> b", "chat format"), (b"a" * 70_000, "64 KB")],
)
def test_an_instruction_of_ones_own(tmp_path, content, reason):
    (tmp_path / "good.txt").write_text(" Describe it. \n")
    assert read_instruction(tmp_path / "good.txt") == "Describe it."
    (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(InputError, match=f"--instruction .*{reason}"):
        read_instruction(tmp_path / "bad.txt")
