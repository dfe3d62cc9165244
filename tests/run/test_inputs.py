"""Images and videos of a run: what is changed about them is said, and belongs to what makes two runs the same."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skyreels_v2_infer.cli.arguments import parse_diffusion_forcing
from skyreels_v2_infer.cli.replay import replayed_flags
from skyreels_v2_infer.run.dry_run import dry_run
from skyreels_v2_infer.run.files import fingerprint
from skyreels_v2_infer.run.inputs import count_video, decode_video, read_images, source_frames

TINY = ["--model_id", "tiny", "--device", "cpu", "--base_num_frames", "17", "--overlap_history", "9"]


@pytest.fixture(autouse=True)
def pictures(tmp_path, monkeypatch):
    """A folder of 20 pictures, in which a line moves, and one that is transparent."""
    monkeypatch.chdir(tmp_path)
    Path("frames").mkdir()
    for number in range(20):
        frame = np.zeros((64, 128, 3), np.uint8)
        frame[:, 32 + 3 * number : 35 + 3 * number] = 255
        Image.fromarray(frame).save(f"frames/{number}.png")
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save("clear.png")


def settings(*argv: str):
    length = "8" if "--video_path" in argv else "9"
    return parse_diffusion_forcing([*TINY, "--num_frames", length, *argv])


def test_a_folder_of_pictures_is_a_video(tmp_path):
    given = settings("--video_path", "frames", "--fit", "pad", "--background", "blue")
    source, newest = decode_video(given, tmp_path, lambda: None)
    assert source.frames == count_video(given).frames == 20
    assert source.changes == ("20 pictures, one for each frame", "padded above and below, 50% of the frame")
    assert newest.shape == (17, 64, 64, 3) and (newest[:, 0] == (0, 0, 255)).all() and (newest[:, 32, 0] == 0).all()
    assert np.array_equal(np.stack(list(source_frames(given)))[3:], newest)


def test_what_is_changed_is_in_the_plan_that_is_printed():
    lines = dry_run(settings("--video_path", "frames", "--end_image", "clear.png", "--dry_run"), 1).splitlines()
    assert "--video_path: 20 pictures, one for each frame; cropped left and right, 50% of its width" in lines
    assert "--end_image: transparency shown on white" in lines
    about = json.loads(dry_run(settings("--image", "frames/0.png", "--dry_run", "json"), 1))
    assert about["changes"] == {"image": ["cropped left and right, 50% of its width"]}


def test_images_are_read_as_the_flags_say():
    image = read_images(settings("--image", "clear.png", "--background", "#010203")).image
    assert (image == (1, 2, 3)).all()


def test_the_fingerprint_of_a_folder_is_that_of_its_pictures():
    before = fingerprint(Path("frames"))
    assert before.startswith("20x") and fingerprint(Path("frames/%d.png")) == before
    Image.new("RGB", (128, 64), (1, 1, 1)).save("frames/7.png")
    assert fingerprint(Path("frames")) != before


def test_manifests_that_do_not_know_these_flags_are_replayed(tmp_path):
    written = {"format": 1, "script": "generate_video_df.py", "settings": {"model_id": "tiny", "image": "clear.png"}}
    Path("old.json").write_text(json.dumps(written))
    given = settings(*replayed_flags(Path("old.json"), "generate_video_df.py", [], trusted=True))
    assert (given.fit, given.background, given.input_color) == ("crop", "#ffffff", None)
    written["settings"] |= {"fit": "pad", "background": "#0000ff"}
    Path("new.json").write_text(json.dumps(written))
    given = settings(*replayed_flags(Path("new.json"), "generate_video_df.py", [], trusted=True))
    assert given.input_options.background == (0, 0, 255) and given.fit == "pad"
