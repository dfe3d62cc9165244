"""FoPP against brute force: every sequence that never falls, written out."""

import itertools
from collections import Counter

import numpy as np
import pytest

from skyreels_v2_infer.scheduler.sigmas import FIRST_SIGMA, flow_sigmas
from training import timesteps


def rising(frames: int, levels: int) -> list[tuple[int, ...]]:
    return [s for s in itertools.product(range(levels), repeat=frames) if list(s) == sorted(s)]


@pytest.mark.parametrize(("frames", "levels"), [(1, 3), (2, 2), (3, 4), (5, 3), (4, 6)])
def test_counts_are_those_of_brute_force(frames, levels):
    counts = timesteps.sequences_from(frames, levels)
    for n in range(frames):
        for j in range(levels):
            assert counts[n, j] == sum(s[0] == j for s in rising(n + 1, levels))
            assert counts[n, levels - 1 - j] == sum(s[-1] == j for s in rising(n + 1, levels))


def test_a_sequence_is_drawn_evenly_among_those_through_a_frame_and_its_rung():
    frames, levels, draws = 3, 4, 40_000
    sequences = rising(frames, levels)
    through = Counter((i, s[i]) for s in sequences for i in range(frames))
    expected = {s: sum(1 / (frames * levels * through[i, s[i]]) for i in range(frames)) for s in sequences}
    assert sum(expected.values()) == pytest.approx(1)
    rng = np.random.default_rng(0)
    seen = Counter(tuple(timesteps.fopp(rng, frames, levels).tolist()) for _ in range(draws))
    assert set(seen) == set(sequences)
    for sequence, share in expected.items():
        assert abs(seen[sequence] / draws - share) < 5 * np.sqrt(share * (1 - share) / draws), sequence


def test_every_frame_meets_every_level():
    """Sorted independent draws would leave the first frame almost no noise and the last almost nothing else."""
    rng = np.random.default_rng(1)
    levels = np.array([timesteps.fopp_levels(rng, 9, shift=1.0) for _ in range(4000)])
    assert (np.diff(levels, axis=1) >= 0).all()
    assert (levels >= 0).all() and (levels < 1).all()
    for frame in (0, 4, 8):
        shares = np.histogram(levels[:, frame], bins=4, range=(0, 1))[0] / len(levels)
        assert shares.min() > 0.02, (frame, shares)


def test_staircases_are_rows_of_the_schedule():
    """What the schedule shows is among what training draws: done, on the way and not begun, in one clip."""
    rng = np.random.default_rng(2)
    rows = [timesteps.staircase(rng, 9, 3.0, 1 + i % 3) for i in range(500)]
    assert all((np.diff(row) >= 0).all() and row.max() > 0 for row in rows)
    full = timesteps.shifted(FIRST_SIGMA, 3.0)
    mixed = [row for row in rows if row[0] == 0 and row[-1] == full and ((row > 0) & (row < full)).any()]
    assert len(mixed) > 50


def test_blocks_are_counted_from_the_first_of_all_frames():
    """As inference counts them: after an image blocks of 5 are frames 1 to 4 and 5 to 8."""
    rng = np.random.default_rng(3)
    rows = np.array([timesteps.staircase(rng, 8, 3.0, 5, given=1) for _ in range(200)])
    assert (rows[:, :4] == rows[:, :1]).all() and (rows[:, 4:] == rows[:, 4:5]).all()
    assert (rows[:, 3] < rows[:, 4]).mean() > 0.5


def test_shift_is_that_of_inference():
    even = np.linspace(FIRST_SIGMA, 0, 11)
    np.testing.assert_allclose(timesteps.shifted(even, 3.0), flow_sigmas(10, 3.0), rtol=1e-6)


def test_logit_normal_levels():
    levels = timesteps.logit_normal(np.random.default_rng(0), 20_000, shift=1.0)
    assert (levels > 0).all() and (levels < 1).all()
    logits = np.log(levels / (1 - levels))
    assert abs(logits.mean()) < 0.05
    assert abs(logits.std() - 1) < 0.05
