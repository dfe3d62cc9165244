"""What becomes of a model's answers: the table in captions.py, and properties for all captions and all texts."""

import json
import time

import pytest
from captions import ANSWERS, GOOD, TEXT
from hypothesis import given, settings
from hypothesis import strategies as st

from skyreels_v2_infer.captioner import answer as answer_module
from skyreels_v2_infer.captioner.answer import is_repetitive, parse
from skyreels_v2_infer.captioner.schema import OPTIONS, Caption, Subject


def at(caption: Caption, path: str):
    for part in path.split("."):
        caption = caption[int(part)] if part.isdigit() else getattr(caption, part)
    return caption


def test_the_table_is_long_enough():
    assert len(ANSWERS) >= 80
    assert len({name for name, *_ in ANSWERS}) == len(ANSWERS)


@pytest.mark.parametrize(("text", "outcome", "fields"), [row[1:] for row in ANSWERS], ids=[row[0] for row in ANSWERS])
def test_an_answer_is_parsed_repaired_or_reported(text, outcome, fields):
    found = parse(text)
    assert found.text == text
    if outcome in ("parsed", "repaired", "doubtful"):
        assert found.caption is not None, found.reason
        assert (found.reason, found.retry) == ("", False)
        assert bool(found.doubtful) == (outcome == "doubtful"), found.doubtful
        if outcome != "doubtful":
            assert bool(found.repaired) == (outcome == "repaired"), found.repaired
        for path, value in fields.items():
            assert at(found.caption, path) == value
        again = parse(found.caption.as_json())
        assert again.caption == found.caption
    else:
        assert found.caption is None and found.retry
        assert found.reason.startswith(outcome)


def test_a_caption_has_the_published_form():
    caption = parse(TEXT).caption
    assert json.loads(caption.as_json()) == GOOD
    assert list(json.loads(caption.as_json())) == list(GOOD)
    assert "海" in Caption(environment="海").as_json()


def test_an_answer_that_was_cut_off_is_reported_even_where_it_could_be_closed():
    assert parse(TEXT, cut_off=True).reason == "it was cut off at the limit on tokens"


def test_what_has_no_place_in_a_caption_is_in_a_note():
    assert parse(json.dumps(GOOD | {"subjects": [GOOD["subjects"][0], "a dog"]})).doubtful == (
        'subject 2 is no object: "a dog"',
    )
    assert parse(json.dumps(GOOD | {"subjects": "a woman"})).doubtful == ('subjects is no list: "a woman"',)


def test_without_json_repair_damaged_json_is_reported(monkeypatch):
    monkeypatch.setattr(answer_module, "find_spec", lambda name: None)
    assert parse(TEXT).caption is not None
    assert "pip install json-repair" in parse(TEXT[:-1] + ",}").reason


def test_a_text_that_only_resembles_repetition_is_none():
    assert not is_repetitive(TEXT)
    assert not is_repetitive(" ".join(f"a man in shirt {i} walks" for i in range(100)))
    assert is_repetitive("So it begins. " + "It goes on. " * 25)


WORDS = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=60).map(lambda text: " ".join(text.split()))
# What means "nothing" is read as nothing; see NOTHING.
TEXTS = WORDS.filter(lambda text: text.lower().strip("_-/ .") not in ("none", "null", "n/a", "na"))
SUBJECTS = st.builds(
    Subject, appearance=TEXTS, action=TEXTS, expression=TEXTS, position=TEXTS, type=TEXTS, sub_type=TEXTS
)
CAPTIONS = st.builds(
    Caption,
    subjects=st.lists(SUBJECTS, max_size=4, unique=True).map(tuple),
    camera_motion=TEXTS,
    environment=TEXTS,
    lighting=TEXTS,
    **{name: st.sampled_from(("", *options)) for name, options in OPTIONS.items()},
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(CAPTIONS)
def test_a_caption_survives_being_written_and_read(caption):
    found = parse(caption.as_json())
    assert found.caption == caption
    assert not found.repaired and not found.doubtful


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["subjects", "TYPES", "type", "shot_type", "lighting", "x"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(JSON)
def test_any_json_is_a_caption_or_has_a_reason(data):
    found = parse(json.dumps(data))
    assert (found.caption is None) == bool(found.reason)
    if found.caption is not None:
        assert parse(found.caption.as_json()).caption == found.caption


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data())
def test_a_damaged_answer_never_raises(data):
    """Pieces left out, doubled or replaced anywhere."""
    text = TEXT
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 30)))
        text = text[:start] + data.draw(st.text("{}[]\",:\\'` ab", max_size=5)) + text[end:]
    found = parse(text)
    assert (found.caption is None) == bool(found.reason)


@pytest.mark.parametrize(
    "text", ["{" * 40_000, '{"a":' * 9_000, "[1," * 15_000, '{"' * 20_000, "{'\\" * 16_000, "[] {" * 12_000]
)
def test_hostile_answers_end_soon(text):
    began = time.process_time()
    assert parse(text).caption is None
    assert time.process_time() - began < 10
