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


def test_files_that_a_pattern_matches_may_have_the_characters_of_patterns(tmp_path):
    names = ["a*b.mp4", "c[1].mp4", "d?.mp4"]
    (tmp_path / "clips [1]").mkdir()
    for name in names:
        (tmp_path / "clips [1]" / name).write_bytes(b"")
    (tmp_path / "clips [1]" / "gone.mp4").symlink_to("nowhere")
    wanted = [str(tmp_path / "clips [1]" / name) for name in names]
    for given in ("clips [1]", "clips [[]1]", "clips*", "clips*/*[*]*"):
        assert [row["path"] for row in rows_of((str(tmp_path / given),))] == (
            wanted if "*]" not in given else wanted[:1]
        )
    assert [row["path"] for row in rows_of((wanted[1],))] == wanted[1:2]
    with pytest.raises(InputError, match="must be an existing file"):
        rows_of((str(tmp_path / "clips*" / "g*"),))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("path,title,title\na.mp4,1,2\n", "line 1: the column title is there twice"),
        ("path;title\na.mp4;1\n", "line 1: no column path among path;title"),
        ("path\n", "has no rows"),
    ],
)
def test_a_table_from_which_something_would_be_lost(tmp_path, content, reason):
    (tmp_path / "in.csv").write_text(content)
    with pytest.raises(InputError, match=reason):
        rows_of((str(tmp_path / "in.csv"),))
