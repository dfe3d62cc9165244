"""What the captioner is asked. These texts are our own; see docs/captioning.md about the one used in training."""

from __future__ import annotations

from pathlib import Path

from skyreels_v2_infer.captioner.schema import OPTIONS
from skyreels_v2_infer.errors import InputError, first_line
from skyreels_v2_infer.media.files import read_small

MOST_INSTRUCTION = 2**16  # bytes of a file

STRUCTURAL = f"""\
Watch the video and describe it in detail as one JSON object with exactly these fields:
{{
  "subjects": [
    {{
      "appearance": "what it looks like: age, clothes, colours, material",
      "action": "what it does, in order",
      "expression": "of a face; empty unless it is a person or an animal",
      "position": "where it is in the picture, or relative to other subjects",
      "TYPES": {{"type": "such as Human, Animal, Plant, Vehicles, Scenery", "sub_type": "such as Woman, Mammal, Ship"}},
      "is_main_subject": true
    }}
  ],
  "shot_type": "one of: {", ".join(OPTIONS["shot_type"])}",
  "shot_angle": "one of: {", ".join(OPTIONS["shot_angle"])}",
  "shot_position": "one of: {", ".join(OPTIONS["shot_position"])}",
  "camera_motion": "how the camera moves; empty if it does not",
  "environment": "the place and what surrounds the subjects",
  "lighting": "where light comes from, its strength and colour"
}}
List every subject that matters. Answer with the JSON object alone."""


def read_instruction(path: Path | None) -> str:
    """The text in a file, in place of `STRUCTURAL`; None: that.

    Raises:
        InputError: for --instruction: the file cannot be read, or has a token of the chat format in it.
    """
    if path is None:
        return STRUCTURAL
    try:
        text = read_small(path, MOST_INSTRUCTION).decode().strip()
    except (OSError, ValueError) as error:
        raise InputError("instruction", path, f"must be a text file in UTF-8 ({first_line(error)})") from None
    if not text or "<|" in text:
        legal = "has tokens of the chat format (<|...|>) in it" if text else "is empty"
        raise InputError("instruction", path, legal)
    return text
