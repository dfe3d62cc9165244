"""YAML of users: what it may hold, and that no short text takes long or becomes endless."""

import time

import pytest

from skyreels_v2_infer.plan.yaml_text import read_yaml

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
MERGED = "- &a0 {x: 1}\n" + "".join(f"- &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 30))


def test_what_a_configuration_may_hold():
    text = "a: 1\nb: [x, 0.5, true, null]\nc: {d: 'e: f'}\ng: 2020-01-02\nh: 0x10\n1: 2\n"
    assert str(read_yaml(text)["g"]) == "2020-01-02" and read_yaml(text)["h"] == 16
    assert read_yaml("") is None and read_yaml("just words") == "just words"


def test_aliases_and_merged_keys_are_written_out():
    assert read_yaml("a: &x [1, {b: 2}]\nc: *x") == {"a": [1, {"b": 2}], "c": [1, {"b": 2}]}
    assert read_yaml("- &x {a: 1, b: 2}\n- {<<: *x, b: 3}") == [{"a": 1, "b": 2}, {"a": 1, "b": 3}]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (LAUGHS, "aliases stand for too much"),
        (MERGED, "aliases stand for too much"),
        ("a: &a " + "x" * 9999 + "\nb: [" + "*a," * 9999 + "]", "aliases stand for too much"),
        ("a: &a [*a]", "line 1: it contains itself"),
        ("[" * 99 + "]" * 99, "nested too deeply"),
        ("[" * 100_000, "nesting"),
        ("a:\n" + "".join(" " * i + "- \n" for i in range(1, 400)), "nested too deeply"),
        ("a: 1\nb: 2\na: 3", "line 3: a is given twice"),
        ("x: {a: 1, a: 1}", "line 1: a is given twice"),
        ("a: " + "9" * 5000, "line 1: a number of 5000 characters"),
        ("a: 0x" + "f" * 100_000, "line 1: a number of 100002 characters"),
        ("a: 1" + ":1" * 100_000, "line 1: a number of"),
        ("a: 1\nb: !!python/object/apply:os.system [true]", "line 2: could not determine a constructor"),
        ("a: !!bool x", "not of the kind that its tag says"),
        ("a: !!timestamp x", "not of the kind that its tag says"),
        ("a: 1\n\tb: 2", "line 2: found a tab"),
        ("a: 1\nb: [1,\nc: 2", "line 3: "),
        ("a: 1\n---\nb: 2", "line 2: but found another document"),
        ("a: \x07", "control characters"),
        ("a: 2020-13-45", "month must be in 1..12"),
        ("a: *b", "line 1: found undefined alias"),
        ("? [a]\n: 1", "line 1: found unhashable key"),
    ],
)
def test_everything_else_is_refused_at_once(text, why):
    began = time.process_time()
    with pytest.raises(ValueError, match=why) as error:
        read_yaml(text)
    assert time.process_time() - began < 1 and "\n" not in str(error.value)
