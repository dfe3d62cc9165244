"""Windows: exactly the frames asked for, from history that exists, at lengths the model knows."""

import itertools

import pytest

from skyreels_v2_infer.scheduler.windows import latent_length, plan_windows


def test_the_documented_example():
    windows = plan_windows(257, 97, 17)
    assert [(w.first_frame, w.new_frames, w.history_frames, w.latents) for w in windows] == [
        (0, 97, 0, 25),
        (97, 80, 17, 25),
        (177, 80, 17, 25),
    ]


def test_a_short_last_window_keeps_its_length_and_takes_more_history():
    """289 frames leave 32 for the last window; the published code makes one of 13 latent frames."""
    last = plan_windows(289, 97, 17)[-1]
    assert (last.new_frames, last.history_frames, last.latents, last.history_latents) == (32, 65, 25, 17)


def test_extension_by_one_window():
    """120 frames asked, 120 added (published: 100)."""
    windows = plan_windows(120, 97, 17, prefix_frames=200)
    assert [(w.first_frame, w.new_frames, w.history_frames) for w in windows] == [(200, 80, 17), (280, 40, 57)]


@pytest.mark.parametrize(("new", "prefix", "history"), [(4, 200, 93), (16, 200, 81), (4, 17, 17), (4, 20, 17)])
def test_a_small_extension_adds_its_frames(new, prefix, history):
    """Published: 17 frames or fewer add none. It takes as much history as a window holds and the video has."""
    (window,) = plan_windows(new, 97, 17, prefix_frames=prefix)
    assert (window.new_frames, window.history_frames) == (new, history)


def test_sweep():
    cases = 0
    for base, overlap, prefix in itertools.product([5, 9, 25, 97, 121], [1, 5, 17, 37], [0, 1, 17, 40, 300]):
        if overlap >= base or (prefix and prefix < overlap):
            continue
        for n in [1, 2, 3, 7, 24, 25, 26, 64, 364]:
            frames = 4 * n if prefix else 4 * n + 1
            windows = plan_windows(frames, base, overlap, prefix)
            at = prefix
            for window in windows:
                assert window.first_frame == at
                assert window.history_frames <= at
                assert window.frames % 4 == 1
                assert window.frames <= base
                assert window.latents == latent_length(window.frames)
                if at:
                    assert window.history_frames >= overlap
                    assert window.frames == base or at < base
                at += window.new_frames
            assert at == prefix + frames
            cases += 1
    assert cases > 400


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((98, 97, 17), "num_frames 98: must be 4n.1, nearest are 97 and 101"),
        ((0, 97, 17), "num_frames 0"),
        ((-3, 97, 17), "num_frames -3"),
        ((97, 96, 17), "base_num_frames 96: must be 4n.1, nearest are 93 and 97"),
        ((257, 97, 16), "overlap_history 16: must be 4n.1, nearest are 13 and 17"),
        ((257, 97, 97), "overlap_history 97: must be below --base_num_frames 97"),
        ((257, 97, None), "overlap_history not given: needed .* 17 is recommended"),
        ((33, 13, 13), "overlap_history 13: must be below --base_num_frames 13, 9 is recommended"),
        ((33, 1, None), "overlap_history not given: .*and --base_num_frames must then be at least 5"),
        ((97, 97, 17, 40), "num_frames 97: frames added to a video come in fours, nearest are 96 and 100"),
        ((80, 97, None, 40), "overlap_history not given"),
        ((80, 97, 17, 9), "overlap_history 17: the video has only 9 frames"),
    ],
)
def test_bad_lengths_are_named_with_the_nearest_legal(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan_windows(*arguments)
