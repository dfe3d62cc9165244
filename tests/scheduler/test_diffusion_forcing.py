"""The adaptive-difference schedule: against diffusers' where theirs is right, against the rule itself everywhere."""

import itertools

import numpy as np
import pytest
import torch
from diffusers import SkyReelsV2DiffusionForcingPipeline

from skyreels_v2_infer.scheduler import ad_schedule, flow_sigmas, flow_timesteps


def timesteps(steps: int) -> np.ndarray:
    return flow_timesteps(flow_sigmas(steps, 8.0))


def peer(frames: int, steps: np.ndarray, ar_step: int, held: int, block: int):
    """diffusers' matrix: timesteps, counts (0 not started, k at step k - 1, N + 1 done) and updates."""
    made = SkyReelsV2DiffusionForcingPipeline.generate_timestep_matrix(
        None, frames, torch.from_numpy(steps), frames, ar_step, held, block
    )
    return [part.numpy() for part in made[:3]]


WHOLE = [
    (frames, steps, ar_step, held, block)
    for frames, steps, ar_step, block in itertools.product([5, 6, 10, 25, 30], [1, 4, 30], [0, 1, 5, 7, 40], [1, 2, 5])
    for held in (0, block, 2 * block)
    if frames % block == 0 and held < frames
]


def test_equals_diffusers_on_whole_blocks():
    assert len(WHOLE) > 400
    for frames, steps, ar_step, held, block in WHOLE:
        given = timesteps(steps)
        rows = ad_schedule(frames, given, ar_step, held, block)
        shown, counts, update = peer(frames, given, ar_step, held, block)
        case = (frames, steps, ar_step, held, block)
        assert np.array_equal(rows.timesteps, shown), case
        assert np.array_equal(rows.update, update), case
        assert np.array_equal(rows.steps[update], counts[update] - 1), case


def by_rule(frames: int, steps: np.ndarray, ar_step: int, held: np.ndarray, block: int):
    """The rule as the paper tells it, one block and one row after the other."""
    blocks = [range(i, min(i + block, frames)) for i in range(0, frames, block)]
    waiting = [[f for f in block if not held[f]] for block in blocks]
    waiting = [block for block in waiting if block]
    done = [0] * len(waiting)  # steps that each block has taken
    rows = []
    while any(count < len(steps) for count in done):
        before = list(done)
        shown, taken = [0] * frames, [None] * frames
        for i, members in enumerate(waiting):
            finished_before = i == 0 or before[i - 1] >= len(steps)
            goes = before[i] < len(steps) and (finished_before or done[i - 1] - before[i] > ar_step)
            done[i] = before[i] + goes
            for f in members:
                if goes:
                    shown[f], taken[f] = steps[before[i]], before[i]
                else:
                    shown[f] = 999 if before[i] == 0 else 0
        rows.append((shown, taken))
    return rows


CASES = [
    (31, 30, 5, np.zeros(31, bool), 5, "121 frames with block 5: the last block is one frame"),
    (25, 30, 5, np.arange(25) < 1, 5, "an image with block 5: four frames of its block are denoised"),
    (25, 30, 5, np.arange(25) < 4, 5, "a prefix that ends inside a block"),
    (13, 30, 5, np.arange(13) < 5, 5, "a last window of 13 latent frames"),
    (26, 30, 5, np.isin(np.arange(26), [0, 25]), 5, "image and end image"),
    (8, 4, 9, np.zeros(8, bool), 3, "a distance longer than the run"),
    (9, 1, 2, np.arange(9) < 2, 4, "one step"),
    (7, 6, 2, np.array([0, 1, 1, 0, 0, 1, 0], bool), 2, "held frames anywhere"),
    (6, 5, 1, np.array([0, 0, 1, 1, 0, 0], bool), 2, "a whole block held in the middle"),
    (1, 3, 0, np.zeros(1, bool), 1, "one frame"),
]


@pytest.mark.parametrize(("frames", "steps", "ar_step", "held", "block", "why"), CASES)
def test_equals_the_rule(frames, steps, ar_step, held, block, why):
    given = timesteps(steps)
    rows = ad_schedule(frames, given, ar_step, held, block)
    expected = by_rule(frames, given, ar_step, held, block)
    assert len(rows) == len(expected)
    for row, (shown, taken) in enumerate(expected):
        assert rows.timesteps[row].tolist() == [int(t) for t in shown]
        assert [int(s) if u else None for s, u in zip(rows.steps[row], rows.update[row], strict=True)] == taken


@pytest.mark.parametrize("ar_step", [0, 1, 3, 30])
@pytest.mark.parametrize("block", [1, 2, 3, 5, 40])
def test_every_frame_that_is_not_held_takes_every_step_once_in_order(block, ar_step):
    steps = timesteps(8)
    for frames, leading, end in itertools.product(range(1, 32, 3), (0, 1, 5), (0, 1)):
        held = np.arange(frames) < leading
        held[frames - end :] = True
        rows = ad_schedule(frames, steps, ar_step, held, block)
        for f in range(frames):
            taken = rows.steps[rows.update[:, f], f].tolist()
            assert taken == ([] if held[f] else list(range(8)))
            if held[f]:
                assert not rows.timesteps[:, f].any()


def test_rows_of_the_published_example():
    """97 frames in 25 latent frames: 30 rows together, 50 in blocks of 5 that are 5 steps apart."""
    assert len(ad_schedule(25, timesteps(30))) == 30
    assert len(ad_schedule(25, timesteps(30), ar_step=5, causal_block_size=5)) == 50


def test_all_held_is_no_row():
    assert len(ad_schedule(3, timesteps(4), held=3)) == 0


def test_what_a_row_has_to_compute():
    schedule = ad_schedule(7, timesteps(4), ar_step=2, held=1, causal_block_size=3)
    assert schedule.reach(None).tolist() == [7] * len(schedule)
    assert schedule.reach(3).tolist() == [3, 3, 6, 6, 7, 7, 7, 7]
    assert ad_schedule(3, timesteps(4), held=3).reach(1).tolist() == []  # no row


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_frames": 0}, "num_frames 0"),
        ({"ar_step": -1}, "ar_step -1"),
        ({"causal_block_size": 0}, "causal_block_size 0"),
        ({"held": 6}, "held 6"),
        ({"held": np.zeros(4, bool)}, "held"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ad_schedule(**({"num_frames": 5, "timesteps": timesteps(4)} | arguments))
