"""Which frames of a clip the captioner sees, and what reaches the vision part."""

import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import scene
from script_runs import write_clip

from skyreels_v2_infer.captioner.frames import (
    COUNT,
    HEIGHT,
    WIDTH,
    clip_frames,
    even_indices,
    faithful_indices,
    sampling_of,
    size_with_aspect,
)
from skyreels_v2_infer.captioner.pixels import MEAN, STD, grid_of, patches_of, tokens_of
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.media.read import VideoInfo, pick_frames, probe_video, read_video


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.integers(1, 10_000))
def test_sixteen_frames_by_the_published_rule(frames):
    picked = faithful_indices(frames)
    rule = np.minimum(np.round(np.arange(COUNT) * ((frames - 1) / 16)), frames - 1).astype(int)
    assert picked == tuple(rule)
    assert picked[0] == 0 and list(picked) == sorted(picked)
    assert (picked[-1] < frames - 1) == (frames >= 10)
    assert (len(set(picked)) == COUNT) == (frames >= 17)
    even = even_indices(frames)
    assert (len(even), even[0], even[-1]) == (COUNT, 0, frames - 1) and list(even) == sorted(even)


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (1, [0] * 16),
        (17, list(range(16))),
        (33, list(range(0, 32, 2))),
        (9, [0, 0, 1, 2, 2, 2, 3, 4, 4, 4, 5, 6, 6, 6, 7, 8]),
    ],
)
def test_examples_of_the_rule(frames, expected):
    assert list(faithful_indices(frames)) == expected


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 8000), st.integers(1, 8000))
def test_the_size_with_the_aspect_kept(height, width):
    tall, wide = size_with_aspect(height, width)
    assert tall % 28 == wide % 28 == 0 and 0 < tall * wide <= HEIGHT * WIDTH
    if 1 / 2 <= height / width <= 2:
        assert abs(np.log(tall / wide * width / height)) < 0.2


def test_a_shot_is_sampled_from_its_own_frames():
    info = VideoInfo(480, 640, 200, 24.0)
    assert sampling_of(info, "faithful", 100, 117).indices == tuple(range(100, 116))
    better = sampling_of(info, "better", 100, 200)
    assert better.indices[0] == 100 and better.indices[-1] == 199
    assert (better.height, better.width) == (336, 448)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """40 frames of 64x96, each of its own brightness."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    write_clip(path, [np.full((64, 96, 3), 20 + 5 * i, np.uint8) for i in range(40)])
    return path


def ffmpeg(*arguments: object) -> None:
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)], check=True)


def levels(frames: np.ndarray) -> list[int]:
    return [round((float(frame.mean()) - 20) / 5) for frame in frames]


def test_the_picked_frames_of_a_file_are_those(clip):
    frames = clip_frames(clip)
    assert (frames.shape, frames.dtype) == ((16, HEIGHT, WIDTH, 3), np.uint8)
    assert levels(frames) == list(faithful_indices(40))
    assert levels(clip_frames(clip, "better")) == list(even_indices(40))


def test_variable_rates_change_nothing(clip, tmp_path):
    """Frames are counted, whatever their timestamps are."""
    slow = "setpts='if(lt(N,10),N,10+(N-10)*7)/24/TB'"
    ffmpeg("-i", clip, "-vf", slow, "-fps_mode", "passthrough", "-c:v", "libx264", "-crf", "10", tmp_path / "slow.mp4")
    assert probe_video(tmp_path / "slow.mp4").frames == 40
    assert levels(clip_frames(tmp_path / "slow.mp4")) == list(faithful_indices(40))


def test_a_rotated_video_is_seen_upright(tmp_path):
    write_clip(tmp_path / "flat.mp4", [scene(64, 96, t) for t in range(20)])
    ffmpeg("-display_rotation", "90", "-i", tmp_path / "flat.mp4", "-c", "copy", tmp_path / "turned.mp4")
    info = probe_video(tmp_path / "turned.mp4")
    assert (info.height, info.width) == (96, 64)
    flat, turned = (pick_frames(tmp_path / f"{name}.mp4", [3], 64, 64)[0].astype(int) for name in ("flat", "turned"))
    assert np.abs(np.rot90(flat) - turned).mean() < 3
    assert np.abs(flat - turned).mean() > 10


def test_the_picture_is_squashed_and_not_cropped(tmp_path):
    write_clip(tmp_path / "a.mp4", [scene(64, 128, 0)] * 2)
    (frame,) = pick_frames(tmp_path / "a.mp4", [1], HEIGHT, WIDTH)
    whole = next(read_video(tmp_path / "a.mp4", 64, 128)).astype(float)
    blocks = frame[: 64 * 6].astype(float)  # compared by means of large blocks of each
    ours = frame.astype(float).reshape(4, HEIGHT // 4, 4, WIDTH // 4, 3).mean((1, 3))
    assert np.abs(ours - whole.reshape(4, 16, 4, 32, 3).mean((1, 3))).max() < 3
    assert blocks.std() > 10


def test_one_frame_is_enough(tmp_path):
    write_clip(tmp_path / "one.mp4", [scene(64, 96)])
    frames = clip_frames(tmp_path / "one.mp4")
    assert (frames == frames[0]).all()


def test_a_broken_video_is_an_input_error(clip, tmp_path):
    whole = clip.read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.mp4").write_text("no video")
    for name in ("half", "text", "missing"):
        with pytest.raises(InputError, match="--input "):
            clip_frames(tmp_path / f"{name}.mp4")
    with pytest.raises(InputError, match="has no frame 40"):
        pick_frames(clip, [0, 40], 28, 28)


# Patches


def pictures(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def test_a_clip_has_1560_tokens():
    grid = grid_of(COUNT, HEIGHT, WIDTH)
    assert grid == (8, 30, 26) and tokens_of(grid) == 1560
    patches, found = patches_of(pictures(COUNT, HEIGHT, WIDTH))
    assert (patches.shape, patches.dtype, found) == ((6240, 1176), np.float32, grid)


def test_patches_equal_those_of_the_librarys_processor():
    """transformers' processor for pictures, with Pillow, repeats each one over the two frames of a patch: compared with
    videos whose frames come in equal pairs. (Its processor for videos needs torchvision.)"""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    frames = pictures(3, HEIGHT, WIDTH)
    theirs = Qwen2VLImageProcessorPil()(list(frames), return_tensors="np")
    assert theirs["image_grid_thw"].tolist() == [[1, 30, 26]] * 3
    patches, _ = patches_of(np.repeat(frames, 2, axis=0))
    np.testing.assert_allclose(patches, theirs["pixel_values"], atol=2e-6)


def test_patches_element_by_element():
    """Two different frames a patch: written out for every number, from the description of the layout."""
    frames = pictures(5, 56, 84)  # of whole tokens: no resizing
    patches, grid = patches_of(frames)
    assert grid == (3, 4, 6)
    frames = np.concatenate([frames, frames[-1:]])  # filled up
    expected = np.empty_like(patches)
    row = 0
    for t in range(3):
        for token_y in range(2):
            for token_x in range(3):
                for patch_y in range(2):
                    for patch_x in range(2):
                        y, x = (2 * token_y + patch_y) * 14, (2 * token_x + patch_x) * 14
                        column = 0
                        for channel in range(3):
                            for frame in (2 * t, 2 * t + 1):
                                block = frames[frame, y : y + 14, x : x + 14, channel].astype(np.float64)
                                block = (block / 255 - MEAN[channel]) / STD[channel]
                                expected[row, column : column + 196] = block.ravel()
                                column += 196
                        row += 1
    np.testing.assert_allclose(patches, expected, atol=1e-5)
