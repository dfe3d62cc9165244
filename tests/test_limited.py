"""Processes of their own: what they print, and the limits that end them."""

import pytest

from skyreels_v2_infer.limited import LimitError, Limits, ProgramError, run_limited

LIMITS = Limits(seconds=0, patience=60, gib=1)


def test_what_a_program_prints():
    program = "sys.stdout.write(json.dumps([sys.stdin.read(), sys.argv[1:]]))"
    assert run_limited("import json", program, LIMITS, b"sent", ["a"]) == b'["sent", ["a"]]'


@pytest.mark.parametrize(
    ("program", "limits", "error", "why"),
    [
        ("while True: pass", LIMITS, LimitError, "more than 0 s or 1 GiB"),
        ("x = bytearray(2 << 30)", LIMITS, LimitError, "more than 0 s or 1 GiB"),
        ("import time; time.sleep(60)", Limits(1, 1, 1), LimitError, "more than 1 s altogether"),
        ("import os; os.abort()", LIMITS, LimitError, "more than"),
        ("raise ValueError('a\\nb')", LIMITS, ProgramError, "^b$"),
        ("sys.exit('no')", LIMITS, ProgramError, "^no$"),
    ],
)
def test_what_ends_it(program, limits, error, why):
    with pytest.raises(error, match=why):
        run_limited("", program, limits, b"")
