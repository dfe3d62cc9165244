"""Names of output files."""

import pytest

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.plan.naming import check_pattern, fields_in, named, output_stem


@pytest.mark.parametrize(
    ("prompt", "stem"),
    [
        ("A graceful white swan with a curved neck", "a-graceful-white-swan-with-a-curved-neck_42"),
        ("A graceful white swan with a curved neck, on a lake", "a-graceful-white-swan--neck-on-a-lake_42"),
        ("A graceful white swan with a curved neck, on a pond", "a-graceful-white-swan--neck-on-a-pond_42"),
        ("a swan and a " + "y" * 60, f"a-swan-and-a--{'y' * 16}_42"),
        ("The swan's nest / ..\\..\\ <b>?*|", "the-swans-nest-b_42"),
        ("Crème brûlée—on fire", "creme-brulee-on-fire_42"),
        ("一只白天鹅在湖面上游动", "video-096396d5_42"),
        ("一只黑天鹅在湖面上游动", "video-8abf71d6_42"),
        ("12:30 …", "video-391596c0_42"),
        ("CON", "con_42"),
        ("...", "video-1a43b61b_42"),
        ("x" * 300, "x" * 40 + "_42"),
        ("x" * 300 + " and y", "x" * 33 + "--and-y_42"),
    ],
)
def test_names_are_short_and_safe(prompt, stem):
    assert output_stem(prompt, 42) == stem


def test_the_longest_name_fits_everywhere():
    stem = output_stem("word " * 100, 2**63 - 1)
    assert len(stem) <= 60 and stem.endswith("_9223372036854775807")


def test_fields_of_a_name_are_written_by_their_kind():
    values = {"prompt": "A red  Ball!", "seed": 7, "guidance_scale": 6.0, "teacache": True, "sigmas": None}
    assert named("{prompt:.5}_{seed:03}_{guidance_scale}_{teacache}_{sigmas}", values) == "a-red_007_6_on_none"
    assert set(fields_in("x{prompt:.5}_{seed}")) == {"prompt", "seed"}


@pytest.mark.parametrize(
    ("pattern", "values"),
    [
        ("{nothing}", {"seed": 1}),
        ("{prompt:03}", {"prompt": "a"}),
        ("{seed:.2}", {"seed": 1}),
        ("{seed}.", {"seed": 1}),
        ("con", {}),
        (".{seed}", {"seed": 1}),
        ("a" * 300, {}),
    ],
)
def test_names_that_are_none_are_refused(pattern, values):
    with pytest.raises(InputError, match="--name"):
        check_pattern(pattern)
        named(pattern, values)


@pytest.mark.parametrize("pattern", ["", "  ", "a/b", "{seed!r}", "{seed.real}", "a\n"])
def test_patterns_that_are_none(pattern):
    with pytest.raises(ValueError):
        check_pattern(pattern)
