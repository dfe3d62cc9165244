"""Frame rates: broadcast rates are exact, whatever way they are written."""

import itertools
from fractions import Fraction

import pytest
from clips import clip, packets

from skyreels_v2_infer.media.rates import exact, rate_text, read_rate
from skyreels_v2_infer.media.write import VideoWriter, join_videos


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("24", "24"),
        ("24.0", "24"),
        ("25", "25"),
        ("12.5", "25/2"),
        ("23.976", "24000/1001"),
        ("23.98", "24000/1001"),
        ("24000/1001", "24000/1001"),
        ("29.97", "30000/1001"),
        ("30000/1001", "30000/1001"),
        ("60000/2002", "30000/1001"),
        ("59.94", "60000/1001"),
        ("119.88", "120000/1001"),
        ("16.6667", "50/3"),
        ("240", "240"),
    ],
)
def test_rates_are_exact(text, rate):
    read = read_rate(text)
    assert exact(read) == Fraction(rate) and rate_text(read) == rate
    assert isinstance(read, int) == (Fraction(rate).denominator == 1)
    assert read_rate(str(read)) == read  # as a manifest holds it


@pytest.mark.parametrize("text", ["29.97", "50/3"])
def test_timestamps_of_a_joined_video_are_exact(tmp_path, text):
    rate = read_rate(text)
    parts = []
    for number, count in enumerate((9, 1, 5)):
        with VideoWriter(tmp_path, f"{number}", 32, 48, rate) as writer:
            writer.write(clip(count, 32, 48))
        parts.append(writer.path)
    join_videos(parts, tmp_path / "joined.mp4", rate)
    tick, rows = packets(tmp_path / "joined.mp4")
    for starts in ([row[0] for row in rows], sorted(row[1] for row in rows)):  # decoding, presentation
        assert {(after - before) * tick for before, after in itertools.pairwise(starts)} == {1 / exact(rate)}
    assert min(row[1] for row in rows) == 0 and len(rows) == 15
