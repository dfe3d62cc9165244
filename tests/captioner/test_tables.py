"""Tables of videos from elsewhere: how much of them is read."""

import os

import pytest

from skyreels_v2_infer.captioner.inputs import rows_of
from skyreels_v2_infer.errors import InputError


@pytest.mark.parametrize("name", ["clips.jsonl", "clips.csv"])
def test_a_line_without_end_is_not_read(tmp_path, name):
    (tmp_path / name).write_text("path\n" if name.endswith("csv") else '{"path": "a.mp4"}\n')
    os.truncate(tmp_path / name, 3 * 2**30)  # takes no space
    with pytest.raises(InputError, match=f"{name}: line .*has more than 1,048,576 characters"):
        rows_of((str(tmp_path / name),), needs_path=True)
