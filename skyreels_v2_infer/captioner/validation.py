"""Decoded JSON -> `Caption`: what is unambiguous is repaired, the rest is kept as it is and reported."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field

from skyreels_v2_infer.captioner.schema import OPTIONS, SUBJECT_TEXTS, TEXTS, Caption, Subject

MOST_SUBJECTS = 50
MOST_CHARACTERS = 10_000  # of one text
MOST_BRIEF = 200  # characters of what is noted
MOST_NESTED = 4  # lists and objects around a caption

FIELDS = ("subjects", *OPTIONS, *TEXTS)
SUBJECT_FIELDS = (*SUBJECT_TEXTS, "TYPES", "is_main_subject")
# Other names that models give to the fields, after `plain`.
SYNONYMS = {
    "subject": "subjects",
    "shot_size": "shot_type",
    "camera_angle": "shot_angle",
    "camera_position": "shot_position",
    "camera_movement": "camera_motion",
    "light": "lighting",
}
OPTION_SYNONYMS = {"pov": "point_of_view"}
SUBJECT_SYNONYMS = {"actions": "action", "types": "TYPES", "is_main": "is_main_subject", "subtype": "sub_type"}
TRUE, FALSE = ("true", "yes", "1"), ("false", "no", "0", "")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
NOTHING = ("none", "null", "n_a", "na")  # written out


@dataclass
class Notes:
    """What was found wrong.

    Attributes:
        repaired: there was one way to understand it.
        doubtful: there was not; what the model wrote is kept.
    """

    repaired: list[str] = field(default_factory=list)
    doubtful: list[str] = field(default_factory=list)


def caption_of(data: object, notes: Notes) -> Caption:
    """The caption in decoded JSON; deviations are added to `notes`.

    Raises:
        ValueError: it is no caption (why).
    """
    found = renamed(lifted(unwrapped(data, notes), notes), FIELDS, SYNONYMS, "", notes)
    if not any(name in found for name in FIELDS):
        raise ValueError(f"it has none of the fields {', '.join(FIELDS)}")
    for name in FIELDS:
        if name not in found:
            notes.doubtful.append(f"{name} is missing")
    values = {name: option_of(found.get(name), name, notes) for name in OPTIONS}
    values |= {name: text_of(found.get(name), name, notes) for name in TEXTS}
    return Caption(subjects=subjects_of(found.get("subjects"), notes), **values)


def is_field(name: object) -> bool:
    return plain(name) in {*FIELDS, *SYNONYMS}


def fields_in(data: object) -> int:
    """How many of `FIELDS` decoded JSON has, 0 if it is no caption."""
    try:
        found = lifted(unwrapped(data, Notes()), Notes())
    except ValueError:
        return 0
    return len({SYNONYMS.get(plain(name), plain(name)) for name in found if is_field(name)})


def lifted(data: dict, notes: Notes) -> dict:
    """Fields that stand together in an object within the caption, out of it: {"shot": {"shot_type": ...}, ...}."""
    found: dict = {}
    for name, value in data.items():
        inner = value if isinstance(value, dict) and not is_field(name) else {}
        fields = {key: item for key, item in inner.items() if is_field(key)}
        if fields and not {plain(key) for key in fields} & {plain(key) for key in (*data, *found)}:
            notes.repaired.append(f"{str(name)[:40]}: its fields taken")
            found |= fields
        else:
            found[name] = value
    return found


def unwrapped(data: object, notes: Notes) -> dict:
    """The object itself where it is the only one in a list or in an object, or is JSON in a string."""
    for _ in range(MOST_NESTED):
        if isinstance(data, list) and len(data) == 1:
            (data,) = data
        elif isinstance(data, str):
            try:
                data = json.loads(data)
            except (ValueError, RecursionError):
                break
        elif isinstance(data, dict) and len(data) == 1 and not is_field(next(iter(data))):
            (data,) = data.values()
        else:
            break
        notes.repaired.append("unwrapped")
    if isinstance(data, list):
        raise ValueError(f"it is a list of {len(data)}, not one object")
    if not isinstance(data, dict):
        raise ValueError("it is not an object")
    return data


def plain(name: object) -> str:
    """Lower case, with underscores for everything that is neither a letter nor a digit; shotType is shot_type."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", str(name))
    return re.sub(r"[^\w]+|_+", "_", apart.lower()).strip("_")


def renamed(data: dict, fields: tuple[str, ...], synonyms: dict[str, str], where: str, notes: Notes) -> dict:
    """The fields under their own names; others are left out."""
    own = {plain(name): name for name in fields} | synonyms
    found: dict = {}
    for name, value in data.items():
        known = own.get(plain(name))
        if known is None:
            notes.repaired.append(f"{where}{str(name)[:40]} left out")
        elif known not in found or name == known:
            found[known] = value
            if name != known:
                notes.repaired.append(f"{where}{name} -> {known}")
        else:
            notes.repaired.append(f"{where}{name} left out")
    return found


def text_of(value: object, name: str, notes: Notes) -> str:
    """A text field: numbers and lists of texts become text; objects and true are kept as JSON."""
    if value is None:
        return ""
    if value is False or (isinstance(value, float) and not math.isfinite(value)):
        notes.repaired.append(f"{name}: {value} means none")
        return ""
    if isinstance(value, list) and all(is_word(item) or item is None for item in value):
        notes.repaired.append(f"{name}: a list joined")
        value = ", ".join(str(item) for item in value if item is not None)
    elif not isinstance(value, str) and is_word(value):
        notes.repaired.append(f"{name}: a number as text")
        value = str(value)
    elif not isinstance(value, str):
        notes.doubtful.append(f"{name} is no text")
        value = json.dumps(value, ensure_ascii=False)
    value = CONTROL.sub(" ", value)
    text = " ".join(value.encode("utf-8", "replace").decode().split())  # JSON may have halves of characters
    if plain(text) in NOTHING:
        notes.repaired.append(f"{name}: {text} means none")
        return ""
    if len(text) > MOST_CHARACTERS:
        notes.doubtful.append(f"{name} has {len(text)} characters")
        text = text[:MOST_CHARACTERS].rstrip()
    return text


def is_word(value: object) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def option_of(value: object, name: str, notes: Notes) -> str:
    """A field with options: case, spaces and a missing last word do not matter."""
    if isinstance(value, dict) and len(value) == 1:
        notes.repaired.append(f"{name}: out of its object")
        (value,) = value.values()
    text = text_of(value, name, notes)
    options = OPTIONS[name]
    if text in options or not text:
        return text
    word = OPTION_SYNONYMS.get(plain(text), plain(text))
    fitting = [option for option in options if word == option or without_end(word) == without_end(option)]
    if len(fitting) == 1:
        notes.repaired.append(f"{name}: {text} -> {fitting[0]}")
        return fitting[0]
    notes.doubtful.append(f"{name}: {text[:60]!r} is none of {', '.join(options)}")
    return text


def without_end(word: str) -> str:
    """medium_shot -> medium, closeup -> close_up."""
    return re.sub("_(shot|view|angle|level)$", "", word).replace("closeup", "close_up")


def subjects_of(value: object, notes: Notes) -> tuple[Subject, ...]:
    if value is None or value == "":
        return ()
    if isinstance(value, list) and any(isinstance(item, list) for item in value):
        notes.repaired.append("subjects: lists within the list")
        value = [item for some in value for item in (some if isinstance(some, list) else [some])]
    if isinstance(value, dict):
        named = value and all(isinstance(item, dict) and plain(key) != "types" for key, item in value.items())
        notes.repaired.append(f"subjects: {'each under a name' if named else 'one'}, in a list")
        value = list(value.values()) if named else [value]
    if not isinstance(value, list):
        notes.doubtful.append(f"subjects is no list: {brief(value)}")
        return ()
    found: list[Subject] = []
    for number, item in enumerate(value):
        if not isinstance(item, dict):
            notes.doubtful.append(f"subject {number + 1} is no object: {brief(item)}")
            continue
        subject = subject_of(item, f"subject {number + 1}: ", notes)
        if subject in found:
            notes.repaired.append(f"subject {number + 1}: a repetition left out")
        elif len(found) == MOST_SUBJECTS:
            notes.doubtful.append(f"more than {MOST_SUBJECTS} subjects")
            break
        else:
            found.append(subject)
    return tuple(found)


def brief(value: object) -> str:
    """A value that has no place in a caption, for a note."""
    return CONTROL.sub(" ", json.dumps(value, ensure_ascii=False))[:MOST_BRIEF]


def subject_of(item: dict, where: str, notes: Notes) -> Subject:
    found = renamed(item, (*SUBJECT_FIELDS, "type", "sub_type"), SUBJECT_SYNONYMS, where, notes)
    if "TYPES" not in found and "type" in found:
        notes.repaired.append(f"{where}type -> TYPES")
        found["TYPES"] = {name: found[name] for name in ("type", "sub_type") if name in found}
    kind = types_of(found.get("TYPES"), f"{where}TYPES", notes)
    texts = {name: text_of(found.get(name), where + name, notes) for name in SUBJECT_TEXTS}
    return Subject(**texts, **kind, is_main=truth_of(found.get("is_main_subject"), f"{where}is_main_subject", notes))


def types_of(value: object, name: str, notes: Notes) -> dict[str, str]:
    """type and sub_type, which may also be a list of the two, or one text."""
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        merged = {key: item for part in value for key, item in part.items()}
        if len(merged) == sum(map(len, value)):
            notes.repaired.append(f"{name}: out of its list")
            value = merged
    if isinstance(value, str) or (isinstance(value, list) and len(value) in (1, 2)):
        notes.repaired.append(f"{name}: {'a text' if isinstance(value, str) else 'a list'} as an object")
        pair = [value] if isinstance(value, str) else value
        value = dict(zip(("type", "sub_type"), pair, strict=False))
    if value is None:
        value = {}
    if not isinstance(value, dict):
        notes.doubtful.append(f"{name} is no object: {brief(value)}")
        value = {}
    found = renamed(value, ("type", "sub_type"), {"subtype": "sub_type"}, f"{name}: ", notes)
    return {part: text_of(found.get(part), f"{name}: {part}", notes) for part in ("type", "sub_type")}


def truth_of(value: object, name: str, notes: Notes) -> bool:
    if isinstance(value, bool):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return False
    word = plain(int(value) if value in (0.0, 1.0) else value)
    if word not in TRUE + FALSE:
        notes.doubtful.append(f"{name}: {str(value)[:40]!r} is neither true nor false")
        return False
    notes.repaired.append(f"{name}: {value!r} as a truth value"[:100])
    return word in TRUE
