"""Videos in, finished videos out."""

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image
from scenes import psnr, scene

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.media import images, video_io

FPS = 24


def clip(frames: int, height: int = 64, width: int = 96) -> np.ndarray:
    return np.stack([scene(height, width, t) for t in range(frames)])


def write(folder: Path, frames: np.ndarray, stem: str = "clip") -> Path:
    with video_io.VideoWriter(folder, stem, *frames.shape[1:3], FPS) as writer:
        writer.write(frames)
    return writer.path


def ffmpeg(*arguments: object) -> None:
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)], check=True)


# ---- videos ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("frames", "height", "width", "fps"), [(13, 64, 96, 24), (5, 96, 64, 16), (1, 64, 64, 30)])
def test_what_is_written_is_read_back(tmp_path, frames, height, width, fps):
    video = clip(frames, height, width)
    with video_io.VideoWriter(tmp_path, "clip", height, width, fps) as writer:
        writer.write(video[:1])
        writer.write(video[1:])
    assert writer.path == tmp_path / "clip.mp4"
    info = video_io.probe_video(writer.path)
    assert info[:3] == (height, width, frames) and info.fps == pytest.approx(fps, rel=1e-3)
    got = list(video_io.read_video(writer.path, height, width))
    assert len(got) == frames and all(frame.shape == (height, width, 3) for frame in got)
    for before, after in zip(video, got, strict=True):
        assert psnr(before, after) > 38


def test_colours_do_not_drift_when_a_video_is_extended_again_and_again(tmp_path):
    video = clip(4)
    again = video
    for _ in range(3):
        again = np.stack(list(video_io.read_video(write(tmp_path, again), 64, 96)))
    drift = (again.astype(float) - video).mean((0, 1, 2))
    assert np.abs(drift).max() < 0.5  # ffmpeg's default conversion darkens by 3 levels


def test_file_says_which_colours_it_holds(tmp_path):
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(write(tmp_path, clip(2)))]
    log = subprocess.run(command, stderr=subprocess.PIPE, text=True).stderr
    assert "h264" in log and "yuv420p(tv, bt709, progressive)" in log


def test_frames_are_fitted_like_pictures(tmp_path):
    path = write(tmp_path, clip(2))
    whole = next(video_io.read_video(path, 64, 96))
    Image.fromarray(whole).save(tmp_path / "frame.png")
    for height, width in ((64, 64), (96, 32), (32, 48)):
        frame = next(video_io.read_video(path, height, width))
        np.testing.assert_array_equal(frame, images.read_image(tmp_path / "frame.png", height, width))


def test_rotated_video_is_read_upright(tmp_path):
    path = write(tmp_path, clip(3, 64, 96))
    ffmpeg("-display_rotation", 90, "-i", path, "-c", "copy", tmp_path / "turned.mp4")
    info = video_io.probe_video(tmp_path / "turned.mp4")
    assert info[:3] == (96, 64, 3)
    first = next(video_io.read_video(tmp_path / "turned.mp4", 96, 64))
    assert psnr(first, np.rot90(clip(1, 64, 96)[0])) > 35


def test_wide_pixels_are_made_square(tmp_path):
    ffmpeg("-i", write(tmp_path, clip(3, 64, 96)), "-vf", "setsar=2", tmp_path / "wide.mp4")
    assert video_io.probe_video(tmp_path / "wide.mp4")[:3] == (64, 192, 3)
    assert next(video_io.read_video(tmp_path / "wide.mp4", 64, 192)).shape == (64, 192, 3)


def test_every_frame_of_an_uneven_rate_is_seen_once(tmp_path):
    path = write(tmp_path, clip(24))
    ffmpeg("-i", path, "-vf", r"select=not(mod(n\,5))+eq(n\,1)", "-fps_mode", "vfr", tmp_path / "uneven.mp4")
    info = video_io.probe_video(tmp_path / "uneven.mp4")
    assert info.frames == 6 and len(list(video_io.read_video(tmp_path / "uneven.mp4", 64, 96))) == 6
    assert info.fps == pytest.approx(5 * 24 / 20)


def test_a_name_with_odd_characters_is_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pipe:1").mkdir()
    path = write(Path("pipe:1"), clip(2), "a%03d 'b'")
    assert path.name == "a%03d 'b'.mp4"
    for name in ("concat:c.mp4", "-d.mp4"):
        path = path.rename(name)
        assert video_io.probe_video(path).frames == 2
        assert len(list(video_io.read_video(path, 64, 96))) == 2


def broken_videos(folder: Path) -> dict[str, Path]:
    """Files that are no complete video, by what is wrong with them."""
    rng = np.random.default_rng(0)
    noisy = np.clip(clip(16) + rng.integers(-9, 9, (16, 64, 96, 3)), 0, 255).astype(np.uint8)
    whole = write(folder, noisy, "whole")
    ffmpeg("-i", whole, "-c", "copy", "-movflags", "+faststart", folder / "index_first.mp4")
    data, index_first = whole.read_bytes(), (folder / "index_first.mp4").read_bytes()
    damaged = bytearray(index_first)
    damaged[len(damaged) // 2 : len(damaged) // 2 + 400] = rng.bytes(400)
    contents = {
        "no_index": data[: len(data) // 2],
        "breaks_off": index_first[: len(index_first) * 3 // 4],
        "damaged": bytes(damaged),
        "text": b"not a video",
        "random": rng.bytes(5000),
        "empty": b"",
    }
    for name, content in contents.items():
        (folder / f"{name}.mp4").write_bytes(content)
    ffmpeg("-f", "lavfi", "-i", "sine=d=0.2", folder / "sound.mp4")
    Image.new("RGB", (32, 32)).save(folder / "cover.png")
    cover = ["-map", 0, "-map", 1, "-c:v", "png", "-disposition:v:0", "attached_pic"]
    ffmpeg("-i", folder / "sound.mp4", "-i", folder / "cover.png", *cover, folder / "sound_with_cover.mp4")
    (folder / "folder.mp4").mkdir()
    names = [*contents, "sound", "sound_with_cover", "folder", "missing"]
    broken = {name: folder / f"{name}.mp4" for name in names}
    for kind in ("mkv", "gif"):  # to ffmpeg a shorter video, of which it says so
        ffmpeg("-i", whole, folder / f"whole.{kind}")
        data = (folder / f"whole.{kind}").read_bytes()
        broken[f"short_{kind}"] = folder / f"short.{kind}"
        broken[f"short_{kind}"].write_bytes(data[: len(data) // 2])
        assert video_io.probe_video(folder / f"whole.{kind}").frames == 16
    return broken


def test_broken_videos_are_named_in_one_line(tmp_path):
    for name, path in broken_videos(tmp_path).items():
        messages = []
        with pytest.raises(InputError) as error:
            video_io.probe_video(path)
        messages.append(str(error.value))
        with pytest.raises(InputError) as error:
            list(video_io.read_video(path, 64, 96))
        messages.append(str(error.value))
        for message in messages:
            assert message.startswith(f"--video_path {path}: must be ") and "\n" not in message, name
            assert ("no video stream" in message) == name.startswith("sound"), name


def test_closing_the_reader_early_ends_ffmpeg(tmp_path, monkeypatch):
    started = []
    start = video_io._start_ffmpeg
    monkeypatch.setattr(video_io, "_start_ffmpeg", lambda *a, **k: started.append(start(*a, **k)) or started[-1])
    # Far more than a pipe holds, so that ffmpeg cannot have ended by itself.
    frames = video_io.read_video(write(tmp_path, clip(60, 128, 128)), 64, 64)
    started.clear()
    next(frames)
    assert len(started) == 1 and started[0].poll() is None
    frames.close()
    assert started[0].poll() is not None and started[0].stdout.closed


# ---- writing ---------------------------------------------------------------------------------------------------------


def test_file_appears_only_when_it_is_complete(tmp_path):
    with video_io.VideoWriter(tmp_path, "clip", 64, 96, FPS) as writer:
        writer.write(clip(3))
        assert writer.path is None
        assert os.getpgid(writer._ffmpeg.pid) != os.getpgrp()  # Ctrl-C must not end ffmpeg before we decide
        assert all(path.name.startswith(".clip.") and path.name.endswith(".part.mp4") for path in tmp_path.iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
    assert writer.close() == tmp_path / "clip.mp4"


def test_finished_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "usual").touch()
    assert write(tmp_path, clip(1)).stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_existing_files_are_never_overwritten(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"mine")
    assert write(tmp_path, clip(1)).name == "clip-2.mp4"
    assert write(tmp_path, clip(2)).name == "clip-3.mp4"
    assert (tmp_path / "clip.mp4").read_bytes() == b"mine"
    assert video_io.probe_video(tmp_path / "clip-2.mp4").frames == 1


def test_writers_of_one_name_at_the_same_time_get_a_file_each(tmp_path):
    writers = [video_io.VideoWriter(tmp_path, "clip", 64, 96, FPS) for _ in range(6)]
    for count, writer in enumerate(writers, start=1):
        writer.write(clip(count))
    barrier = threading.Barrier(len(writers))

    def finish(writer):
        barrier.wait()
        writer.close()

    threads = [threading.Thread(target=finish, args=(writer,)) for writer in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = ["clip.mp4", *(f"clip-{n}.mp4" for n in range(2, 7))]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert [video_io.probe_video(writer.path).frames for writer in writers] == [1, 2, 3, 4, 5, 6]


def test_claiming_a_name_does_not_trust_an_earlier_look(tmp_path, monkeypatch):
    """Another process takes the name between any look at the folder and the claim."""
    part = tmp_path / "part"
    part.write_bytes(b"ours")
    monkeypatch.setattr(os.path, "lexists", lambda path: False)
    (tmp_path / "clip.mp4").write_bytes(b"theirs")
    assert video_io.publish(part, tmp_path, "clip").name == "clip-2.mp4"
    assert (tmp_path / "clip.mp4").read_bytes() == b"theirs"


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_leaving_by_an_exception_leaves_nothing(tmp_path, kind):
    with pytest.raises(kind), video_io.VideoWriter(tmp_path, "clip", 64, 96, FPS) as writer:
        writer.write(clip(3))
        process = writer._ffmpeg
        raise kind
    assert list(tmp_path.iterdir()) == [] and writer.path is None
    assert process.poll() is not None
    with pytest.raises(ValueError, match="closed"):
        writer.write(clip(1))


def test_interrupt_while_the_file_is_finished_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, clip(1))
    assert list(tmp_path.iterdir()) == []


def test_a_video_without_frames_is_an_error(tmp_path):
    with (
        pytest.raises(ValueError, match="at least one frame"),
        video_io.VideoWriter(tmp_path, "clip", 64, 96, FPS) as writer,
    ):
        writer.write(clip(1)[:0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "frames",
    [np.zeros((1, 64, 95, 3), np.uint8), np.zeros((64, 96), np.uint8), np.zeros((1, 64, 96, 3), np.float32)],
)
def test_frames_of_another_kind_are_refused(tmp_path, frames):
    with (
        pytest.raises(ValueError, match=r"must be uint8 \[t, 64, 96, 3\]"),
        video_io.VideoWriter(tmp_path, "clip", 64, 96, FPS) as writer,
    ):
        writer.write(frames)
    assert list(tmp_path.iterdir()) == []


FULL_DISK = """#!/bin/sh
for last; do :; done
head -c 1000 > "${last#file:}"
echo '[out#0/mp4 @ 0x1] Error writing trailer: No space left on device' >&2
exit 228
"""


@pytest.mark.parametrize("frames", [1, 200])  # noticed when finishing, and in the middle of writing
def test_full_disk_is_told_in_one_line_and_leaves_nothing(tmp_path, monkeypatch, frames):
    fake = tmp_path / "ffmpeg"
    fake.write_text(FULL_DISK)
    fake.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(fake))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(OSError) as error, video_io.VideoWriter(out, "clip", 64, 96, FPS) as writer:
        for _ in range(frames):
            writer.write(clip(1))
    message = str(error.value)
    assert message == f"{out / 'clip'}.mp4 could not be written: Error writing trailer: No space left on device"
    assert list(out.iterdir()) == []


def test_killed_ffmpeg_is_an_error(tmp_path):
    with (
        pytest.raises(OSError, match="ended by signal 9"),
        video_io.VideoWriter(tmp_path, "clip", 64, 96, FPS) as writer,
    ):
        writer.write(clip(1))
        writer._ffmpeg.kill()
        for _ in range(100):
            writer.write(clip(1))
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_written_comes_out_before_the_first_frame(tmp_path):
    with pytest.raises(OSError):
        video_io.VideoWriter(tmp_path / "missing", "clip", 64, 96, FPS)


def test_an_interrupt_while_ffmpeg_starts_leaves_neither_a_process_nor_a_file(tmp_path, monkeypatch):
    real, started = subprocess.Popen, []

    def start(command, **pipes):
        process = real(command, **pipes)
        if "rawvideo" in command:
            started.append(process)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
        return process

    monkeypatch.setattr(subprocess, "Popen", start)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what a script runs beside itself ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            video_io.VideoWriter(tmp_path, "cut", 16, 16, 8)
    finally:
        signal.signal(signal.SIGINT, before)
    assert [process.poll() for process in started] == [-signal.SIGKILL]
    assert list(tmp_path.iterdir()) == []
