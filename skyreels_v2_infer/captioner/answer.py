"""A model's answer -> a structural caption: finds the JSON, repairs it, and detects repetition and cut-offs."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib.util import find_spec
from typing import NamedTuple

from skyreels_v2_infer.captioner.schema import Caption
from skyreels_v2_infer.captioner.validation import FIELDS, Notes, caption_of, fields_in

MOST_ANSWER = 50_000  # characters; 2048 tokens are about 10,000
REPEATED = 240  # characters at a text's end that repeat themselves
TIMES = 4  # how often, at least
DAMAGED = "damaged JSON"
DEPTH = 100  # nested brackets; json-repair recurses
MOST_STARTS = 200  # brackets at which JSON is looked for


@dataclass(frozen=True)
class Answer:
    """What became of an answer.

    Attributes:
        text: the answer itself.
        caption: None if there is none in it.
        repaired, doubtful: see `Notes`.
        reason: why there is no caption, or none that can be trusted; "" if all is well.
        final: whether another answer would be the same.
        retry: whether another answer may be better: this one repeats itself, was cut off, or has no caption.
    """

    text: str
    caption: Caption | None = None
    repaired: tuple[str, ...] = ()
    doubtful: tuple[str, ...] = ()
    reason: str = ""
    final: bool = False

    @property
    def retry(self) -> bool:
        return bool(self.reason) and not self.final


def parse(text: str, cut_off: bool = False) -> Answer:
    """The caption in a model's answer. Never raises.

    Args:
        cut_off: whether the model stopped because of the limit on tokens.
    """
    if is_repetitive(text):
        return Answer(text, reason="it repeats itself")
    if len(text) > MOST_ANSWER:
        return Answer(text, reason=f"it has more than {MOST_ANSWER} characters")
    if cut_off:
        return Answer(text, reason="it was cut off at the limit on tokens")
    if re.search(r"[{\[]", text) is None:
        return Answer(text, reason="there is no JSON in it")
    notes = Notes()
    try:
        caption = caption_of(json_in(text, notes), notes)
        if DAMAGED in notes.repaired:
            check_repaired(text, notes)
    except ValueError as error:
        return Answer(text, reason=str(error))
    repeated = [field for field in texts_in(caption) if is_repetitive(field)]
    if repeated:
        return Answer(text, reason="a field of it repeats itself")
    return Answer(text, caption, tuple(notes.repaired), tuple(notes.doubtful))


class Value(NamedTuple):
    """Whole JSON within a text. start, end: where it stands."""

    data: object
    start: int
    end: int


def json_in(text: str, notes: Notes) -> object:
    """The JSON of a caption in a text that has a bracket in it: whole values are preferred to one to be repaired.

    Raises:
        ValueError: there is none that can be repaired (why).
    """
    whole, damaged = values_in(text)
    best = max(whole, key=lambda value: fields_in(value.data), default=None)
    if best is None or not worth_more(best, damaged):
        data = repaired(text[damaged:], notes)
        start, end = damaged, len(text)
    else:
        data, start, end = best
        if any(fields_in(other.data) and other.data != data for other in whole):
            notes.doubtful.append("another caption beside it")
    for place, found in (("before", text[:start]), ("after", text[end:])):
        if found.strip():
            notes.repaired.append(f"text {place} the JSON left out")
    return data


def values_in(text: str) -> tuple[list[Value], int | None]:
    """Whole JSON values in a text, none within another, and where a bracket stands that begins none (None: nowhere)."""
    whole: list[Value] = []
    damaged, place = None, 0
    for _ in range(MOST_STARTS):
        bracket = re.compile(r"[{\[]").search(text, place)
        if bracket is None:
            break
        start = bracket.start()
        try:
            data, place = json.JSONDecoder().raw_decode(text, start)
        except (ValueError, RecursionError):
            damaged, place = start if damaged is None else damaged, start + 1
        else:
            whole.append(Value(data, start, place))
    return whole, damaged


def worth_more(best: Value, damaged: int | None) -> bool:
    """Whether a whole value is taken, rather than damaged JSON from `damaged` on, of which it may be a part."""
    count = fields_in(best.data)
    return damaged is None or count == len(FIELDS) or (count > 0 and best.start < damaged)


def repaired(text: str, notes: Notes) -> object:
    """The JSON at the beginning of `text`, which is damaged, as json-repair understands it.

    Raises:
        ValueError: it cannot be repaired (why).
    """
    if nesting(text) > DEPTH:
        raise ValueError("its JSON is damaged")
    if find_spec("json_repair") is None:
        raise ValueError("its JSON is damaged (pip install json-repair repairs some of it)")
    import json_repair

    try:
        data = json_repair.loads(text)
    except (ValueError, RecursionError, TypeError, IndexError, KeyError) as error:
        raise ValueError(f"its JSON is damaged ({type(error).__name__})") from None
    if data in ("", [], {}):
        raise ValueError("its JSON is damaged")
    if isinstance(data, list):  # text behind the object reads as further values
        objects = [item for item in data if isinstance(item, dict)]
        data = objects[0] if len(objects) == 1 else data
    notes.repaired.append(DAMAGED)
    return data


def nesting(text: str) -> int:
    """How deep brackets are nested, at most, counting those in strings as well."""
    deepest = depth = 0
    for character in text:
        depth += (character in "{[") - (character in "}]")
        deepest = max(deepest, depth)
    return deepest


def check_repaired(text: str, notes: Notes) -> None:
    """Raises a ValueError if a damaged answer is not the whole caption: a repair may have put fields in other places.

    Args:
        notes: on its caption.
    """
    missing = any(line.endswith(" is missing") for line in notes.doubtful)
    within_value = re.search(r'["}\]][\s`]*$', text) is None and re.search(r"[}\]]", text.rsplit('"', 1)[-1]) is None
    if within_value or (missing and text.count("{") > text.count("}")):
        raise ValueError("it ends within the JSON")
    if missing:
        raise ValueError(f"its JSON is damaged: {', '.join(line for line in notes.doubtful if 'missing' in line)}")


def is_repetitive(text: str) -> bool:
    """Whether a text ends in the same few words, or the same lines, again and again."""
    text = text.rstrip()
    longest = min(REPEATED, len(text) // TIMES)
    for period in range(1, longest + 1):
        length = max(REPEATED, period * TIMES)
        if length <= len(text) and text[-length:-period] == text[period - length :]:
            return True
    return False


def texts_in(caption: Caption) -> list[str]:
    own = [caption.camera_motion, caption.environment, caption.lighting]
    for subject in caption.subjects:
        own += [subject.appearance, subject.action, subject.expression, subject.position]
    return own
