"""What is found out about ffmpeg before a run: whether it has all that the run will use."""

import os
import signal
import subprocess
import tempfile
import threading
import time

import pytest
from clips import clip, stub_ffmpeg, write

from skyreels_v2_infer.media import ffmpeg
from skyreels_v2_infer.media.read import decode_prefix, probe_video, read_video, video_header

# What a run uses: (when it is needed, a pattern in the command line, the message of an ffmpeg without it).
WRITING = [
    ("libx264", "Unknown encoder 'libx264'"),
    ("setparams=", "[AVFilterGraph @ 0x1] No such filter: 'setparams'"),
    ("-f mp4", "[NULL @ 0x1] Requested output format 'mp4' is not a suitable output format"),
    ("-f concat", "Unknown input format: 'concat'"),
    ("-f ffmetadata", "Unknown input format: 'ffmetadata'"),
    ("setts=", "Unknown bitstream filter setts"),
]
READING = [
    ("-fps_mode", "Unrecognized option 'fps_mode'."),
    ("framecrc", "[NULL @ 0x1] Requested output format 'framecrc' is not a suitable output format"),
    ("wrapped_avframe", "Unknown encoder 'wrapped_avframe'"),
    ("showinfo", "[AVFilterGraph @ 0x1] No such filter: 'showinfo'"),
    ("iw\\*sar", "[AVFilterGraph @ 0x1] No such filter: 'scale'"),
]
PIXELS_ONLY = [
    ("fps=24", "No such filter: 'fps'"),
    ("ppm", "Unknown encoder 'ppm'"),
    ("image2pipe", "Requested output format 'image2pipe' is not known."),
]


@pytest.fixture
def reduced(tmp_path, monkeypatch):
    """Makes the program use an ffmpeg that fails where its command line contains a pattern, as real ones do."""

    def use(pattern: str, message: str) -> str:
        fails = f"""*{pattern.replace(" ", "' '")}*) echo "{message}" >&2; echo "Conversion failed!" >&2; exit 1;;"""
        path = stub_ffmpeg(tmp_path / "reduced", fails)
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(path))
        return str(path)

    return use


def test_the_shipped_ffmpeg_has_all(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ffmpeg.check_ffmpeg(reading=False)
    ffmpeg.check_ffmpeg(reading=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("reading", "pattern", "message"),
    [(False, *row) for row in WRITING] + [(True, *row) for row in READING + PIXELS_ONLY],
)
def test_a_reduced_ffmpeg_is_refused_before_the_run(reduced, reading, pattern, message):
    path = reduced(pattern, message)
    with pytest.raises(OSError) as error:
        ffmpeg.check_ffmpeg(reading=reading)
    line = str(error.value)
    missing = message.partition("] ")[2] or message
    assert missing in line and path in line and "\n" not in line and len(line) < 200 + len(path)


@pytest.mark.parametrize(("pattern", "message"), READING)
def test_what_only_reading_needs_may_lack_where_nothing_is_read(reduced, pattern, message):
    reduced(pattern, message)
    ffmpeg.check_ffmpeg(reading=False)


@pytest.mark.parametrize(("pattern", "message"), READING)
def test_a_reduced_ffmpeg_is_not_blamed_on_the_video(tmp_path, reduced, pattern, message):
    path = write(tmp_path, clip(2))
    where = reduced(pattern, message)
    reads = [lambda: video_header(path), lambda: probe_video(path), lambda: decode_prefix(path, 64, 96, 1)]
    if pattern not in ("framecrc", "wrapped_avframe"):
        reads.append(lambda: next(read_video(path, 64, 96)))
    for read in reads:
        with pytest.raises(OSError) as error:
            read()
        assert where in str(error.value) and "video_path" not in str(error.value)


def test_an_old_ffmpeg_is_named_with_its_version(tmp_path, monkeypatch):
    fails = """*-fps_mode*) echo "Unrecognized option 'fps_mode'." >&2; exit 1;;"""
    version = '*" -version "*) echo "ffmpeg version 4.2.2-static https://example.org/ffmpeg/"; exit 0;;'
    path = stub_ffmpeg(tmp_path / "old", f"{fails} {version}")
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(path))
    ffmpeg.check_ffmpeg(reading=False)
    with pytest.raises(OSError, match=r"'fps_mode'.*needed: 5\.1 or newer, with libx264; this one: 4\.2\.2-static, /"):
        ffmpeg.check_ffmpeg(reading=True)


def test_ffmpeg_does_not_find_the_converters_of_the_c_library(tmp_path, monkeypatch):
    """With them the static ffmpeg 7.0.2 crashes on every transport stream."""
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(stub_ffmpeg(tmp_path / "env", '*) echo "$GCONV_PATH"; exit 0;;')))
    with ffmpeg.Ffmpeg([], stdout=subprocess.PIPE) as running:
        where = running.output.read().decode().strip()
    assert where and not os.path.isdir(where)


def test_a_missing_ffmpeg_is_not_blamed_on_the_video(tmp_path, monkeypatch):
    path = write(tmp_path, clip(2))
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "none"))
    for use in (ffmpeg.check_ffmpeg, lambda: video_header(path), lambda: probe_video(path)):
        with pytest.raises(OSError) as error:
            use()
        assert str(tmp_path / "none") in str(error.value) and "video_path" not in str(error.value)


def test_an_interrupt_while_ffmpeg_starts_leaves_no_process(monkeypatch):
    ffmpeg.executable()  # imageio-ffmpeg tries it once
    real, started = subprocess.Popen, []

    def start(command, **pipes):
        started.append(real(command, **pipes))
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            ffmpeg.Ffmpeg(["-f", "lavfi", "-i", "testsrc", "-f", "null", "-"])
    finally:
        signal.signal(signal.SIGINT, before)
    assert [process.poll() for process in started] == [-signal.SIGKILL]


def test_an_interrupt_before_the_start_is_known_leaves_no_process(monkeypatch):
    """The executor does not wait for a thread whose `start` was interrupted."""
    ffmpeg.executable()
    real, begin, started, threads = subprocess.Popen, threading.Thread.start, [], []

    def late(command, **pipes):
        started.append(real(command, **pipes))
        time.sleep(0.3)
        return started[-1]

    def interrupted(thread):
        begin(thread)
        threads.append(thread)
        while not started:
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", late)
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ffmpeg.Ffmpeg(["-f", "lavfi", "-i", "testsrc", "-f", "null", "-"])
    for thread in threads:
        thread.join(5)
    assert [process.poll() for process in started] == [-signal.SIGKILL]
