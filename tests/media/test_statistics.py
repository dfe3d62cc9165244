"""How frames look: brightness, saturation, and lines about videos that drift or jump."""

import time

import numpy as np
import pytest
from clips import clip

from skyreels_v2_infer.media import preview
from skyreels_v2_infer.media.statistics import LUMA, SAMPLES, Look, drift, sampled


def exactly(frames: np.ndarray) -> dict[str, float]:
    """Over all pixels, as the definition has it."""
    values = frames.astype(np.float64) / 255
    saturation = (values.max(axis=-1) - values.min(axis=-1)).mean()
    return {"brightness": round(float((values @ LUMA).mean()), 4), "saturation": round(float(saturation), 4)}


def test_brightness_and_saturation_of_a_piece():
    look = Look()
    frames = np.zeros((4, 8, 8, 3), np.uint8)
    frames[:2] = (255, 255, 255)
    frames[2:] = (255, 0, 0)
    look.add(frames[:3])
    look.add(frames[3:])
    assert look.figures() == {"brightness": round((2 + 2 * 0.2126) / 4, 4), "saturation": 0.5}
    assert look.frames == 4
    assert np.array_equal(look.first, frames[0]) and np.array_equal(look.last, frames[3])
    assert preview.difference(preview.thumbnail(frames[0]), preview.thumbnail(frames[3])) == pytest.approx(2 / 3)


def test_first_and_last_frame_do_not_change_with_the_array_they_came_in():
    look, frames = Look(), clip(2)
    look.add(frames)
    before = frames.copy()
    frames[:] = 0
    assert np.array_equal(look.first, before[0]) and np.array_equal(look.last, before[1])


@pytest.mark.parametrize(("height", "width"), [(64, 64), (1, 1), (5, 64), (64, 3)])
def test_small_frames_are_measured_exactly(height, width):
    frames = np.random.default_rng(height).integers(0, 256, (5, height, width, 3), np.uint8)
    frames[..., 0] //= 2
    look = Look()
    look.add(frames)
    assert look.figures() == exactly(frames)


def test_large_frames_are_measured_on_a_grid():
    frames = clip(2, 544, 960)
    look = Look()
    look.add(frames)
    for name, value in exactly(frames).items():
        assert look.figures()[name] == pytest.approx(value, abs=2e-3)  # a line is printed from 0.1 on
    for height, width in ((544, 960), (720, 1280), (16, 16384), (16384, 16), (130, 130)):
        shape = sampled(np.broadcast_to(np.uint8(0), (1, height, width, 3))).shape
        assert SAMPLES / 5 < shape[1] * shape[2] < 1.4 * SAMPLES, (height, width)


def test_measuring_costs_little():
    """In float64 over all pixels it took 33 ms a frame, as long as decoding it; the limit here is 5 ms."""
    frames, look = np.zeros((4, 544, 960, 3), np.uint8), Look()
    look.add(frames)
    began = time.process_time()
    for _ in range(5):
        look.add(frames)
    assert time.process_time() - began < 20 * 0.005


def test_drift_and_jumps_are_worth_a_line():
    still = {"brightness": 0.5, "saturation": 0.3, "seam": 0.01}
    assert drift([still, still]) is None
    assert "brightness moved from 0.50 to 0.62" in drift([still, still | {"brightness": 0.62}])
    assert "saturation moved" in drift([still, still | {"saturation": 0.15}])
    assert "jumps where window 2 begins" in drift([still, still | {"seam": 0.3}])
    # A video before the windows may look otherwise, but the windows should not jump where they follow on it.
    dark = still | {"brightness": 0.1}
    assert drift([dark, still, still], 1) is None
    assert "jumps where window 1 begins" in drift([dark, still | {"seam": 0.3}, still], 1)
