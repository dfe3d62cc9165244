"""A structural caption -> a prompt, in the order in which the video models' training captions are written.

For t2v (text to video): shot, subjects with action, appearance, expression and position, environment, lighting. For i2v
(image to video, whose picture shows the rest): actions and expressions only. The camera motion stands at the end in
both, and never passes through a language model.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace

from skyreels_v2_infer.captioner.schema import OTHER, Caption, Subject
from skyreels_v2_infer.captioner.validation import CONTROL
from skyreels_v2_infer.chat.reply import Talker

TASKS = ("t2v", "i2v")
WITH_A_FACE = ("human", "animal")
WITHOUT_A_FACE = "accessory"  # a sub_type of Human
TEMPLATE = "none"  # in place of a chat model's name
MOST_TOKENS = 512
STOP = "\n\n"
DROPPED = 0.1  # chance of each field in training captions

SHOTS = {
    "long_shot": "long shot",
    "full_shot": "full shot",
    "medium_shot": "medium shot",
    "close_up": "close-up",
    "extreme_close_up": "extreme close-up",
    "eye_level": "at eye level",
    "high_angle": "from a high angle",
    "low_angle": "from a low angle",
    "front_view": "from the front",
    "back_view": "from behind",
    "side_view": "from the side",
    "over_the_shoulder": "over the shoulder",
    "overhead_view": "from overhead",
    "point_of_view": "from a point of view",
    "aerial_view": "from the air",
    "overlooking_view": "overlooking the scene",
    OTHER: "",
}

ORDERS = {
    "t2v": """\
- First the type of shot with its angle and position, then what happens, without the place.
- Then each subject's action, appearance, expression and position, main things first.
- Then the environment, then the lighting.
- Where a subject's action already names it by a pronoun, use that in place of its name.""",
    "i2v": """\
- Only what the subjects do and how their expressions change; no clothes, no colours, no place.
- Where an action names clothes or the place, leave these words out.""",
}

SYSTEM = """\
You write one fluent English paragraph from a structured description of a video clip.

The description:
{description}

Rules:
- Keep its meaning; add nothing, and skip fields that are empty.
{order}
{wish}- Answer with the paragraph alone: no title, no list, no remarks, no blank line."""


def fused(caption: Caption, task: str, chat: Talker | None = None, wish: str = "") -> str:
    """A prompt; "" if the caption has nothing to say for the task, or the model gives no usable answer.

    Args:
        task: one of `TASKS`.
        chat: None: the sentences of `written`.
        wish: a text whose content the prompt has as well.
    """
    content = cleaned(caption, task)
    if chat is None:
        return written(content, task, wish)
    text = ""
    if content.subjects or (task == "t2v" and content != Caption(camera_motion=content.camera_motion)) or wish:
        text = paragraph_of(chat.say(system=asked(content, task, wish), tokens=MOST_TOKENS, stop=STOP))
        if not text:
            return ""
    return joined(text, content.camera_motion)


def cleaned(caption: Caption, task: str) -> Caption:
    """The caption with what the task's prompt says: expressions of people and animals; for i2v what moves."""
    subjects = []
    for subject in caption.subjects:
        has_face = subject.type.lower() in WITH_A_FACE and subject.sub_type.lower() != WITHOUT_A_FACE
        kept = subject if has_face else replace(subject, expression="")
        if task == "i2v":
            kept = replace(kept, appearance="", position="")
        if task == "t2v" or kept.action or kept.expression:
            subjects.append(kept)
    if task == "i2v":
        return Caption(tuple(subjects), camera_motion=caption.camera_motion)
    return replace(caption, subjects=tuple(subjects))


def with_fields_dropped(caption: Caption, task: str, seed: str) -> Caption:
    """For training data: without each appearance, position and (t2v) lighting with a chance of `DROPPED`.

    Args:
        seed: the same seed drops the same fields.
    """
    draw = random.Random(seed)

    def kept(text: str) -> str:
        return "" if draw.random() < DROPPED else text

    subjects = tuple(replace(s, appearance=kept(s.appearance), position=kept(s.position)) for s in caption.subjects)
    lighting = kept(caption.lighting) if task == "t2v" else caption.lighting
    return replace(caption, subjects=subjects, lighting=lighting)


# By a language model


def asked(content: Caption, task: str, wish: str = "") -> str:
    """The system turn for a caption after `cleaned`."""
    fields = {name: value for name, value in content.as_dict().items() if name not in ("subjects", "camera_motion")}
    if task == "i2v":
        fields = {}
    texts = ("action", "expression") if task == "i2v" else ("appearance", "action", "expression", "position")
    subjects = [
        {"name": subject.sub_type, **{text: getattr(subject, text) for text in texts}} for subject in content.subjects
    ]
    description = {"num_subjects": len(subjects), "subjects": subjects, **fields}
    wished = f"- Besides, what is to happen in the clip, to be told in it: {wish}\n" if wish else ""
    shown = json.dumps(description, ensure_ascii=False, indent=4)
    return SYSTEM.format(description=shown, order=ORDERS[task], wish=wished)


def paragraph_of(reply) -> str:
    """The paragraph in a reply, in whole sentences where it was cut off; "" if it has no words."""
    text = CONTROL.sub(" ", reply.text.split(STOP)[0]) if reply.text.strip() else ""
    text = " ".join(text.split()).strip("\"'`* ")
    if reply.cut_off:
        ends = [match.end() for match in re.finditer(r"[.!?](?=\s)", text)]
        text = text[: ends[-1]] if ends else text
    return text if re.search(r"[^\W\d_]{2}", text) else ""


# By rule


def written(content: Caption, task: str, wish: str = "") -> str:
    """A caption after `cleaned` in sentences: no language model is needed, and the same caption is the same text."""
    sentences = []
    if task == "t2v":
        sentences.append(shot_sentence(content))
    sentences += [subject_sentence(subject) for subject in content.subjects]
    sentences += [sentence(content.environment), sentence(content.lighting), sentence(wish)]
    return joined(" ".join(part for part in sentences if part), content.camera_motion)


def shot_sentence(caption: Caption) -> str:
    """A medium shot at eye level, from the front."""
    kind, angle, position = (
        SHOTS.get(option, option) for option in (caption.shot_type, caption.shot_angle, caption.shot_position)
    )
    if not (kind or angle or position):
        return ""
    kind = kind or "shot"
    article = "an" if kind[0].lower() in "aeiou" else "a"
    start = " ".join(part for part in (article, kind, angle) if part)
    return sentence(f"{start}, {position}" if position else start)


def subject_sentence(subject: Subject) -> str:
    """Woman: walks along the pier, long black hair, calm, in the centre."""
    name = subject.sub_type or subject.type
    parts = [clause(text) for text in (subject.action, subject.appearance, subject.expression, subject.position)]
    said = ", ".join(part for part in parts if part)
    return sentence(": ".join(part for part in (name, said) if part))


def clause(text: str) -> str:
    return text.strip(" .,;")


def sentence(text: str) -> str:
    """With a capital and a full stop; "" stays empty."""
    text = text.strip(" ,;")
    if not text:
        return ""
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?。！？" else ".")


def joined(text: str, camera_motion: str) -> str:
    """The camera motion behind a text, as published: its first letter a capital, the rest small, and a full stop."""
    return " ".join(part for part in (text, sentence(camera_motion.strip().capitalize())) if part)
