"""Writes videos: complete or not there, never over another file, and errors that name the folder."""

import errno
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from clips import FPS, clip, ffmpeg_says, write
from scenes import psnr

from skyreels_v2_infer.media.ffmpeg import crf_of, encode_arguments
from skyreels_v2_infer.media.read import probe_video, read_video
from skyreels_v2_infer.media.write import VideoWriter, join_videos, publish


def test_file_appears_only_when_it_is_complete(tmp_path):
    with VideoWriter(tmp_path, "clip", 64, 96, FPS) as writer:
        writer.write(clip(3))
        assert writer.path is None
        assert os.getpgid(writer._ffmpeg.process.pid) != os.getpgrp()  # Ctrl-C must not end ffmpeg before we decide
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
    assert probe_video(tmp_path / "clip-2.mp4").frames == 1


def test_writers_of_one_name_at_the_same_time_get_a_file_each(tmp_path):
    writers = [VideoWriter(tmp_path, "clip", 64, 96, FPS) for _ in range(6)]
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
    assert [probe_video(writer.path).frames for writer in writers] == [1, 2, 3, 4, 5, 6]


def test_claiming_a_name_does_not_trust_an_earlier_look(tmp_path, monkeypatch):
    """Another process takes the name between any look at the folder and the claim."""
    part = tmp_path / "part"
    part.write_bytes(b"ours")
    monkeypatch.setattr(os.path, "lexists", lambda path: False)
    (tmp_path / "clip.mp4").write_bytes(b"theirs")
    assert publish(part, tmp_path, "clip").name == "clip-2.mp4"
    assert (tmp_path / "clip.mp4").read_bytes() == b"theirs"


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_leaving_by_an_exception_leaves_nothing(tmp_path, kind):
    with pytest.raises(kind), VideoWriter(tmp_path, "clip", 64, 96, FPS) as writer:
        writer.write(clip(3))
        process = writer._ffmpeg.process
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
        VideoWriter(tmp_path, "clip", 64, 96, FPS) as writer,
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
        VideoWriter(tmp_path, "clip", 64, 96, FPS) as writer,
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
def test_a_full_disk_is_one_line_with_the_folder_and_leaves_nothing(tmp_path, monkeypatch, frames):
    fake = tmp_path / "ffmpeg"
    fake.write_text(FULL_DISK)
    fake.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(fake))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(OSError) as error, VideoWriter(out, "clip", 64, 96, FPS) as writer:
        for _ in range(frames):
            writer.write(clip(1))
    message = str(error.value)
    assert str(out) in message and "clip.mp4" in message and "\n" not in message
    assert message.index(str(out)) < message.index("No space left on device") < message.index("clip.mp4")
    assert list(out.iterdir()) == []


def full(*_) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as of fsync: without the name of a file


def test_a_disk_that_is_full_when_a_file_is_synced_is_named(tmp_path, monkeypatch):
    """Relative folders are named in full."""
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    part = write(tmp_path, clip(1), "part")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as error:
        write(Path("out"), clip(1))
    assert str(tmp_path / "out") in str(error.value) and "No space left" in str(error.value)
    with pytest.raises(OSError) as error:
        join_videos([part], Path("out/joined.mp4"), FPS)
    assert str(tmp_path / "out") in str(error.value) and "No space left" in str(error.value)
    assert list(Path("out").iterdir()) == []


def test_killed_ffmpeg_is_an_error(tmp_path):
    with (
        pytest.raises(OSError, match="ended by signal 9"),
        VideoWriter(tmp_path, "clip", 64, 96, FPS) as writer,
    ):
        writer.write(clip(1))
        writer._ffmpeg.process.kill()
        for _ in range(100):
            writer.write(clip(1))
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_written_comes_out_before_the_first_frame(tmp_path):
    with pytest.raises(OSError) as error:
        VideoWriter(tmp_path / "missing", "clip", 64, 96, FPS)
    assert str(tmp_path / "missing") in str(error.value)


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
            VideoWriter(tmp_path, "cut", 16, 16, 8)
    finally:
        signal.signal(signal.SIGINT, before)
    assert [process.poll() for process in started] == [-signal.SIGKILL]
    assert list(tmp_path.iterdir()) == []


# ---- what is written -------------------------------------------------------------------------------------------------


def test_files_are_tagged_as_bt709_in_full(tmp_path):
    """In the container, where some players look, and in the stream, where others do."""
    parts = [write(tmp_path, clip(count), "part") for count in (3, 1)]
    join_videos(parts, tmp_path / "joined.mp4", FPS)
    for path in (parts[0], tmp_path / "joined.mp4"):
        content = path.read_bytes()
        # Primaries, transfer, matrix, and the bit of full range.
        assert content[content.index(b"colrnclx") :][8:15] == bytes([0, 1, 0, 1, 0, 1, 0])
        headers = ffmpeg_says("-i", path, "-c", "copy", "-bsf:v", "trace_headers", "-f", "null", "-")
        fields = ("colour_primaries", "transfer_characteristics", "matrix_coefficients", "video_full_range_flag")
        assert [re.search(rf" {field} +[01]+ = ([0-9]+)", headers)[1] for field in fields] == ["1", "1", "1", "0"]


def test_quality_is_that_of_the_encoder(tmp_path):
    assert [crf_of(quality) for quality in (0, 5, 6, 7.5, 8, 9, 10)] == [51, 25, 20, 12, 10, 5, 1]
    made = {}
    for quality in (2, 8, 10):
        with VideoWriter(tmp_path, f"{quality}", 64, 96, FPS, quality) as writer:
            writer.write(clip(5))
        assert f"crf={crf_of(quality)}.0".encode() in writer.path.read_bytes()
        made[quality] = psnr(np.stack(list(read_video(writer.path, 64, 96))), clip(5))
    assert made[2] < 35 < made[8] < made[10]
    assert encode_arguments(64, 96, FPS, tmp_path / "x") == encode_arguments(64, 96, FPS, tmp_path / "x", 8)


def test_videos_of_two_qualities_are_joined_without_damage(tmp_path):
    """A joined video has one set of headers."""
    paths = []
    for quality, least in ((1, 0), (9, 0), (1, 8)):
        with VideoWriter(tmp_path, f"{quality}", 64, 96, FPS, quality, least) as writer:
            writer.write(clip(5))
        paths.append(writer.path)
    join_videos(paths, tmp_path / "joined.mp4", FPS)
    apart = [frame for path in paths for frame in read_video(path, 64, 96)]
    assert b"crf=10.0" in paths[2].read_bytes()  # better than its own
    assert np.array_equal(apart, list(read_video(tmp_path / "joined.mp4", 64, 96)))
