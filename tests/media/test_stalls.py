"""Nothing waits for ever: an ffmpeg that is stopped, writes nothing or reads nothing is ended after a stated time."""

import os
import signal
import subprocess
import threading
import time

import imageio_ffmpeg
import pytest
from clips import clip, stub_ffmpeg, write

from skyreels_v2_infer.media import ffmpeg
from skyreels_v2_infer.media.comment import comment_of
from skyreels_v2_infer.media.read import decode_prefix, probe_video, read_video, video_header
from skyreels_v2_infer.media.write import VideoWriter, join_videos
from skyreels_v2_infer.run.worker import Worker

PATIENCE = 2.0
READERS = [
    pytest.param(lambda path: video_header(path), id="header"),
    pytest.param(lambda path: probe_video(path), id="probe"),
    pytest.param(lambda path: list(read_video(path, 64, 96)), id="frames"),
    pytest.param(lambda path: decode_prefix(path, 64, 96, 1), id="prefix"),
    pytest.param(lambda path: comment_of(path), id="comment"),
]
SLEEPS = "sleep 100"  # a child that keeps the pipes open when the shell is gone
STOPS = "kill -STOP $$"
# Some frames, though what it was asked for has more.
FRAMES = "-f lavfi -i testsrc=s=96x64:r=24:d=1 -frames:v 3 -c:v ppm -f image2pipe -"
STALLS = f'"{imageio_ffmpeg.get_ffmpeg_exe()}" -v error {FRAMES}'


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(ffmpeg, "READING_PATIENCE", PATIENCE)
    monkeypatch.setattr(ffmpeg, "WRITING_PATIENCE", PATIENCE)


@pytest.fixture
def use(tmp_path, monkeypatch):
    """Makes the program use an ffmpeg that does `what` where its command line contains `pattern`."""

    def use(what: str, pattern: str = "") -> None:
        path = stub_ffmpeg(tmp_path / "stub", f"*{pattern}*) {what};;")
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(path))

    return use


@pytest.fixture
def quick():
    """The test ends soon after the patience has."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < 10 * PATIENCE


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("what", [SLEEPS, STOPS])
def test_a_decoder_that_writes_nothing(tmp_path, use, quick, read, what):
    path = write(tmp_path, clip(3))
    use(what)
    with pytest.raises(OSError) as error:
        read(path)
    line = str(error.value)
    assert str(path) in line and "no progress for 2 s" in line and "\n" not in line and "--video_path" not in line


@pytest.mark.parametrize("then", [SLEEPS, STOPS])
def test_a_decoder_that_stalls_within_a_video(tmp_path, use, quick, then):
    path = write(tmp_path, clip(3))
    use(f"{STALLS}; {then}", "ppm")
    frames = read_video(path, 64, 96)
    assert next(frames).shape == (64, 96, 3)
    with pytest.raises(OSError) as error:
        list(frames)
    assert str(path) in str(error.value) and "no progress" in str(error.value)


def test_a_decoder_that_closes_its_output_and_stays(tmp_path, use, quick):
    path = write(tmp_path, clip(3))
    use("exec >&-; sleep 100")
    with pytest.raises(OSError, match="no progress"):
        probe_video(path)


def test_a_decoder_that_is_slow_is_waited_for(tmp_path, use):
    """Each output within the patience, all together beyond it."""
    path = write(tmp_path, clip(3))
    use(f"for i in 1 2 3; do {STALLS}; sleep 0.8; done", "ppm")
    assert len(list(read_video(path, 64, 96))) == 3 * 3 + 3  # the clip's own come last


@pytest.mark.parametrize("what", [SLEEPS, STOPS, f"head -c 100000 > /dev/null; {SLEEPS}"])
def test_an_encoder_that_reads_nothing(tmp_path, use, quick, what):
    use(what)
    with pytest.raises(OSError) as error, VideoWriter(tmp_path, "kept", 64, 96, 24) as writer:
        for _ in range(100):
            writer.write(clip(3))
    line = str(error.value)
    assert str(tmp_path) in line and "kept.mp4" in line and "no progress for 2 s" in line and "\n" not in line
    assert [path.name for path in tmp_path.iterdir()] == ["stub"]


def test_an_encoder_that_never_ends(tmp_path, use, quick):
    use("cat > /dev/null; sleep 100")
    with pytest.raises(OSError, match="no progress"), VideoWriter(tmp_path, "kept", 64, 96, 24) as writer:
        writer.write(clip(3))
    assert [path.name for path in tmp_path.iterdir()] == ["stub"]


def test_an_encoder_whose_file_grows_is_waited_for(tmp_path, use):
    """The end of a long video on a slow disk takes longer than the patience."""
    slow = 'cat > /dev/null; for i in 1 2 3 4; do sleep 0.8; for last; do :; done; echo >> "${last#file:}"; done'
    use(f"{slow}; exit 0")
    with VideoWriter(tmp_path, "kept", 64, 96, 24) as writer:
        writer.write(clip(1))
    assert writer.path.stat().st_size == 4


@pytest.mark.parametrize("what", [SLEEPS, STOPS, "cat > /dev/null; sleep 100"])
def test_a_join_that_stalls(tmp_path, use, quick, what):
    path = write(tmp_path, clip(3))
    use(what, "concat")
    with pytest.raises(OSError, match="no progress for 2 s"):
        join_videos([path] * 2000, tmp_path / "joined.mp4", 24)
    assert not list(tmp_path.glob("*joined*")) and not list(tmp_path.glob(".*joined*"))


def test_the_check_before_a_run_does_not_wait_either(use, quick):
    use(SLEEPS)
    with pytest.raises(OSError, match="no progress"):
        ffmpeg.check_ffmpeg()


def test_stopped_while_it_encodes_and_continued_in_time(tmp_path):
    with VideoWriter(tmp_path, "kept", 64, 96, 24) as writer:
        writer.write(clip(3))
        pid = writer._ffmpeg.process.pid
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(0.5 * PATIENCE, os.kill, (pid, signal.SIGCONT)).start()
        for _ in range(100):
            writer.write(clip(3))
    assert probe_video(writer.path).frames == 303


def test_what_a_script_in_place_of_ffmpeg_started_is_ended_too(tmp_path, use):
    use(f"sleep 100 & echo $! > '{tmp_path}/child'; wait")
    with pytest.raises(OSError, match="no progress"):
        ffmpeg.check_ffmpeg()
    child = int((tmp_path / "child").read_text())
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(child)], capture_output=True, text=True).stdout.strip()
    assert state[:1] in ("", "Z")


def test_a_worker_is_closed_though_its_encoder_is_stuck(tmp_path, use, monkeypatch):
    """As on Ctrl-C: without waiting for the patience."""
    monkeypatch.setattr(ffmpeg, "WRITING_PATIENCE", 60.0)
    use(STOPS)
    worker = Worker()
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path, "kept", 64, 96, 24) as writer:
        worker.put(lambda: [writer.write(clip(3)) for _ in range(100)])
        time.sleep(0.5)
        began = time.monotonic()
        worker.close(writer.give_up)
        assert time.monotonic() - began < 5 and isinstance(worker.error, OSError)
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["stub"]
