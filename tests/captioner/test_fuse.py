"""Structural captions -> prompts: by rule, and by a language model."""

import json
import re
from dataclasses import replace

import pytest
import tiny_talkers
from captions import TEXT

from skyreels_v2_infer.captioner.answer import parse
from skyreels_v2_infer.captioner.fuse import SHOTS, cleaned, fused, with_fields_dropped
from skyreels_v2_infer.captioner.schema import OPTIONS, Caption, Subject
from skyreels_v2_infer.chat.local import Chat
from skyreels_v2_infer.chat.reply import Reply

CAPTION = parse(TEXT).caption
CAMERA = "The camera moves backwards, tracking."


def test_the_template_for_text_to_video():
    assert fused(CAPTION, "t2v") == (
        "A medium shot at eye level, from the front. Woman: walks along the pier, long black hair, a red coat, calm, "
        "in the centre. Mammal: runs beside her, small and brown, to her left. A wooden pier by the sea. Soft morning "
        f"light. {CAMERA}"
    )


def test_the_template_for_image_to_video_has_motion_only():
    assert fused(CAPTION, "i2v") == f"Woman: walks along the pier, calm. Mammal: runs beside her. {CAMERA}"


def test_every_option_has_words():
    for options in OPTIONS.values():
        assert set(options) <= set(SHOTS)
    assert fused(Caption(shot_type="extreme_close_up"), "t2v") == "An extreme close-up."
    assert fused(Caption(shot_type="other", shot_angle="low_angle"), "t2v") == "A shot from a low angle."
    assert fused(Caption(shot_type="wide shot"), "t2v") == "A wide shot."


def test_a_caption_that_says_nothing_is_no_prompt():
    assert fused(Caption(), "t2v") == fused(Caption(lighting="dim"), "i2v") == ""
    assert fused(Caption(camera_motion="PANS left."), "i2v") == "Pans left."


def test_expressions_are_those_of_faces():
    subjects = [Subject(expression="calm", type=kind, sub_type=sub) for kind, sub in (
        ("Human", "Man"), ("Animal", "Insect"), ("Human", "Accessory"), ("Vehicles", "Ship"), ("", ""))]  # fmt: skip
    found = cleaned(Caption(tuple(subjects)), "t2v").subjects
    assert [s.expression for s in found] == ["calm", "calm", "", "", ""]
    assert len(cleaned(Caption(tuple(subjects)), "i2v").subjects) == 2


class Stub:
    def __init__(self, text="A woman walks.", cut_off=False):
        self.reply, self.asked = Reply(text, cut_off), []

    def say(self, user="", system="", tokens=0, stop=None):
        self.asked.append((user, system, tokens, stop))
        return self.reply


def test_a_model_gets_one_system_turn_without_the_camera():
    stub = Stub()
    assert fused(CAPTION, "t2v", stub) == f"A woman walks. {CAMERA}"
    ((user, system, tokens, stop),) = stub.asked
    assert (user, tokens, stop) == ("", 512, "\n\n")
    given = json.loads(re.search(r"\{.*\}", system, re.DOTALL)[0])
    assert given["num_subjects"] == 2 and given["lighting"] == "soft morning light"
    assert given["subjects"][0] == {
        "name": "Woman",
        "appearance": "long black hair, a red coat",
        "action": "walks along the pier",
        "expression": "calm",
        "position": "in the centre",
    }
    assert "tracking" not in system and "is_main" not in system


def test_for_image_to_video_a_model_gets_actions_and_expressions_only():
    stub = Stub()
    fused(CAPTION, "i2v", stub)
    given = json.loads(re.search(r"\{.*\}", stub.asked[0][1], re.DOTALL)[0])
    assert given == {
        "num_subjects": 2,
        "subjects": [
            {"name": "Woman", "action": "walks along the pier", "expression": "calm"},
            {"name": "Mammal", "action": "runs beside her", "expression": ""},
        ],
    }
    stub = Stub()
    assert fused(Caption(lighting="dim", camera_motion="static"), "i2v", stub) == "Static."
    assert not stub.asked


@pytest.mark.parametrize(
    ("answer", "cut_off", "text"),
    [
        ("A woman walks.", False, "A woman walks."),
        ('"A woman\nwalks."', False, "A woman walks."),
        ("A woman walks.\n\nNote: none.", False, "A woman walks."),
        ("A woman walks. Her dog ru", True, "A woman walks."),
        ("A woman\x1b[2J\x07 walks.", False, "A woman [2J walks."),
    ],
)
def test_the_paragraph_in_an_answer(answer, cut_off, text):
    assert fused(replace(CAPTION, camera_motion=""), "t2v", Stub(answer, cut_off)) == text


@pytest.mark.parametrize("answer", ["", " \n", "-", "1 2 3", "\n\n"])
def test_an_unusable_answer_is_no_prompt(answer):
    assert fused(CAPTION, "t2v", Stub(answer)) == ""


def test_what_the_user_adds_is_part_of_the_prompt():
    assert "Soft morning light. She turns around. The camera" in fused(CAPTION, "t2v", wish="she turns around")
    stub = Stub()
    fused(CAPTION, "i2v", stub, "she turns around")
    assert "she turns around" in stub.asked[0][1]


def test_a_chat_model_writes_the_prompt(tmp_path):
    folder = tiny_talkers.write_chat_model(tmp_path / "chat", "A woman walks along the pier.\n\nThat is all.")
    chat = Chat(str(folder), "fusion_model", "cpu")
    assert fused(CAPTION, "t2v", chat) == f"A woman walks along the pier. {CAMERA}"


def test_fields_of_training_captions_are_dropped_by_seed():
    many = [with_fields_dropped(CAPTION, "t2v", f"7/{i}") for i in range(2000)]
    assert many == [with_fields_dropped(CAPTION, "t2v", f"7/{i}") for i in range(2000)]
    for dropped in (
        sum(not caption.lighting for caption in many),
        sum(not caption.subjects[0].appearance for caption in many),
        sum(not caption.subjects[1].position for caption in many),
    ):
        assert 150 < dropped < 250  # 200, standard deviation 13
    assert all(caption.environment and caption.subjects[0].action for caption in many)
    assert all(with_fields_dropped(CAPTION, "i2v", f"7/{i}").lighting for i in range(100))
