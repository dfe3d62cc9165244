"""The measure of agreement between captions."""

from dataclasses import replace

import pytest
from captions import TEXT

from skyreels_v2_infer.captioner.answer import parse
from skyreels_v2_infer.captioner.schema import Caption, Subject
from skyreels_v2_infer.captioner.score import FIELDS, accuracies, agreement, paired, shown

CAPTION = parse(TEXT).caption


@pytest.mark.parametrize(
    ("one", "other", "score"),
    [
        ("", "", 1.0),
        ("the", "", 1.0),  # nothing but frequent words
        ("a red coat", "", 0.0),
        ("a red coat", "The RED coat.", 1.0),
        ("red coat", "red hat", 0.5),
        ("red red coat", "red coat", 0.8),  # 2 common, of 3 and of 2
    ],
)
def test_texts_are_compared_by_their_words(one, other, score):
    assert agreement(one, other) == agreement(other, one) == pytest.approx(score)


def test_subjects_are_paired_by_what_they_are():
    man, dog = Subject(action="walks", type="Human"), Subject(action="runs", type="Animal")
    assert paired([man, dog], [dog, man]) == [man, dog]
    assert paired([man, dog], [dog]) == [None, dog]
    assert paired([man], []) == [None]
    assert paired([], [dog]) == []


def test_a_field_that_is_wrong_lowers_its_own_score_only():
    other = replace(CAPTION, shot_type="close_up", subjects=tuple(reversed(CAPTION.subjects)))
    table = accuracies([(CAPTION, CAPTION), (CAPTION, other)])
    assert table["shot_type"] == (50.0, 2)
    assert all(table[name][0] == 100 for name in FIELDS if name != "shot_type")
    assert table["subject action"] == (100.0, 4)
    assert table["mean"] == (pytest.approx(100 - 50 / len(FIELDS)), 2)


def test_a_missing_caption_and_a_missing_subject_are_wrong():
    assert {percent for percent, _ in accuracies([(CAPTION, None)]).values()} == {0.0}
    table = accuracies([(CAPTION, replace(CAPTION, subjects=CAPTION.subjects[:1]))])
    assert table["subject type"] == (50.0, 2) and table["lighting"] == (100.0, 1)


def test_an_option_that_the_reference_does_not_state_is_not_compared():
    partly = replace(CAPTION, shot_angle="")
    table = accuracies([(partly, CAPTION), (CAPTION, CAPTION), (partly, None)])
    assert table["shot_angle"] == (100.0, 1) and table["shot_type"][1] == 3


def test_nothing_to_compare_is_no_percentage():
    table = accuracies([(Caption(), Caption())])
    assert table["subject type"] == (None, 0) and table["mean"] == (100.0, 1)
    assert "subject type                 -       0" in shown(table)
