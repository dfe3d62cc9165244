"""Videos that are pictures: folders, patterns of names, animated pictures."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sources import COUNT, apart, patches

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.media import picture_video
from skyreels_v2_infer.media.input_options import InputOptions
from skyreels_v2_infer.media.picture_video import as_video, is_pictures, list_pictures
from skyreels_v2_infer.media.read import probe_video, read_video, video_header

SIZE = 48, 72


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "frames").mkdir()
    for number, frame in enumerate(patches(), 7):
        Image.fromarray(frame).save(tmp_path / "frames" / f"{number}.png")
        Image.fromarray(frame).save(tmp_path / f"p{number:04d}.png")
    return tmp_path


@pytest.mark.parametrize("name", ["frames", "frames/%d.png", "p%04d.png", "p*.png", "frames/[0-9]*.png"])
def test_sequences_in_order_one_picture_a_frame(folder, name):
    path = folder / name
    assert is_pictures(path) and video_header(path) == (*SIZE, 0.0)
    notes = as_video(path, *SIZE, 16, folder / "made.mkv")
    assert notes == [f"{COUNT} pictures, one for each frame"]
    assert probe_video(folder / "made.mkv")[:4] == (*SIZE, COUNT, 16)
    assert np.array_equal(np.stack(list(read_video(folder / "made.mkv", *SIZE))), patches())


@pytest.mark.parametrize("kind", ["png", "webp", "avif"])
def test_animations_by_their_durations(tmp_path, kind):
    frames = [Image.fromarray(frame) for frame in patches(frames=4)]
    durations = [100, 500, 100, 300]
    how = {"quality": 100} | ({"lossless": True} if kind == "webp" else {})
    frames[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=frames[1:], duration=durations, **how)
    path = tmp_path / f"a.{kind}"
    assert is_pictures(path) and video_header(path)[:2] == SIZE
    notes = as_video(path, *SIZE, 20, tmp_path / "made.mkv")
    assert notes == ["animation of 4 frames in 1 s read at 20 fps"]
    found = list(read_video(tmp_path / "made.mkv", *SIZE))
    assert len(found) == 20
    for frame, wanted in zip(found, [0] * 2 + [1] * 10 + [2] * 2 + [3] * 6, strict=True):
        assert apart(frame, patches()[wanted]) <= 5


def test_a_transparent_animation_is_on_the_background(tmp_path):
    clear = np.dstack([patches(frames=1)[0], np.full(SIZE, 255, np.uint8)])
    clear[:24, 24:48, 3] = 0
    frames = [Image.fromarray(clear), Image.fromarray(np.ascontiguousarray(clear[::-1]))]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], duration=100, lossless=True)
    as_video(tmp_path / "a.webp", *SIZE, 10, tmp_path / "made.mkv", InputOptions((0, 0, 255)))
    wanted = patches()[0]
    wanted[:24, 24:48] = 0, 0, 255
    assert apart(next(read_video(tmp_path / "made.mkv", *SIZE)), wanted) <= 1


def test_names_are_sorted_by_their_numbers(tmp_path):
    for name in ("a10.png", "a9.png", "a1.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    assert [path.name for path in list_pictures(tmp_path)] == ["a1.png", "a9.png", "a10.png", "b.png"]
    Image.new("RGB", (8, 8)).save(tmp_path / "a9²9.png")  # a digit that is no number
    assert [path.name for path in list_pictures(tmp_path)][1:3] == ["a9.png", "a9²9.png"]


def refused(path: Path, match: str) -> None:
    with pytest.raises(InputError, match=match) as error:
        as_video(path, *SIZE, 16, path.parent / "made.mkv")
    assert str(error.value).startswith("--video_path ") and "\n" not in str(error.value)


def test_what_cannot_be_a_sequence(folder):
    (folder / "frames" / "9.png").unlink()
    refused(folder / "frames" / "%d.png", "number 9 is missing")
    (folder / "frames" / "notes.txt").write_text("")
    refused(folder / "frames", r"has notes\.txt")
    (folder / "empty").mkdir()
    refused(folder / "empty", "is empty")
    refused(folder / "q%04d.png", "matches no file")
    refused(folder / "q*.png", "matches no file")
    (folder / "p0010.png").write_bytes((folder / "p0010.png").read_bytes()[:60])
    refused(folder / "p%04d.png", r"p0010\.png")
    Image.new("RGB", (8, 8)).save(folder / "still.webp")
    refused(folder / "still.webp", "one frame only")


def test_an_animation_without_end(tmp_path, monkeypatch):
    frames = [Image.fromarray(frame) for frame in patches(frames=2)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:], duration=60000)
    monkeypatch.setattr(picture_video, "MOST_FRAMES", 100)
    refused(tmp_path / "a.png", "longer than 100 frames")


def test_files_of_videos_are_no_pictures(tmp_path):
    (tmp_path / "a %d [x].mp4").write_bytes(b"\0\0\0\x20ftypisom")
    (tmp_path / "a.gif").write_bytes(b"GIF89a")
    assert not is_pictures(tmp_path / "a %d [x].mp4") and not is_pictures(tmp_path / "a.gif")
    assert not is_pictures(tmp_path / "none.mp4")
