"""The sound of a video that is continued: there from the beginning, as long as the video, in step with it."""

import subprocess
from fractions import Fraction
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from clips import FPS, clip, ffmpeg, ffmpeg_says, packets, write

from skyreels_v2_infer.media.probe import probe_file
from skyreels_v2_infer.media.sound import Sound, extract_sound, sound_of
from skyreels_v2_infer.media.timing import read_packets
from skyreels_v2_infer.media.write import join_videos

RATE = 8000
SECONDS = Fraction(24, FPS)  # of pictures


def heard(path: Path) -> np.ndarray:
    """The sound of a video from its beginning, as a player would hear it, float ``[samples]`` at `RATE`."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", path, "-map", "0:a:0", "-ac", 1, "-ar", RATE]
    command += ["-af", "aresample=async=1:first_pts=0", "-f", "f32le", "-"]
    return np.frombuffer(subprocess.run(list(map(str, command)), check=True, capture_output=True).stdout, np.float32)


def source(folder: Path, name: str, *codec: str, late: float = 0, early: float = 0, sound: float = 1) -> Path:
    """A video of a second whose sound is silent but for a beep from 0.5 to 0.6 s of the pictures."""
    beep = f"aevalsrc='0.5*sin(880*2*PI*t)*between(t,{0.5 - late + early},{0.6 - late + early})':s=44100"
    inputs = ["-itsoffset", early, "-i", write(folder, clip(24), "pictures")]
    inputs += ["-itsoffset", late, "-f", "lavfi", "-t", sound - late + early, "-i", beep]
    ffmpeg(*inputs, "-map", 0, "-map", 1, "-c:v", "copy", *codec, folder / name)
    return folder / name


def extended(path: Path, folder: Path) -> tuple[Path, Sound]:
    """The video, and 12 more frames, with its sound."""
    probe = probe_file(path)
    sound = extract_sound(path, sound_of(probe, read_packets(path, probe).start, SECONDS), folder / "sound.mp4")
    join_videos([write(folder, clip(36), "longer")], folder / "joined.mp4", FPS, sound=folder / "sound.mp4")
    return folder / "joined.mp4", sound


CASES = {
    "aac.mp4": (["-c:a", "aac"], True),
    "mp3.mp4": (["-c:a", "libmp3lame"], True),
    "ac3.mkv": (["-c:a", "ac3"], True),
    "opus.mkv": (["-c:a", "libopus"], True),
    "alac.mov": (["-c:a", "alac"], True),
    "flac.mkv": (["-c:a", "flac"], True),
    "mp3.avi": (["-c:a", "libmp3lame"], True),
    "pcm.mov": (["-c:a", "pcm_s16le"], False),
    "vorbis.mkv": (["-c:a", "libvorbis"], False),
    "aac.ts": (["-c:a", "aac"], True),
}


SHIFTED = [
    ("aac.mp4", {"late": 0.3}),
    ("aac.mp4", {"sound": 2}),
    ("opus.mkv", {"early": 0.3}),
    ("pcm.mov", {"early": 0.3}),
    ("aac.ts", {"early": 0.3}),
    ("aac.ts", {"late": 0.3}),
    ("mp3.avi", {}),
    ("mp3.avi", {"sound": 2}),
]


QUICK = [("aac.mp4", {}), ("pcm.mov", {}), ("aac.ts", {"early": 0.3}), ("aac.mp4", {"sound": 2})]


@pytest.mark.parametrize(
    ("name", "shift"),
    [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
        for case in (*((name, {}) for name in CASES), *SHIFTED)
    ],
)
def test_sound_stays_in_step(tmp_path, name, shift):
    codec, copied = CASES[name]
    path, sound = extended(source(tmp_path, name, *codec, **shift), tmp_path)
    assert sound.copied is copied
    about = ffmpeg_says("-i", path)
    assert f"Audio: {sound.codec if copied else 'aac'}" in about and ", start: 0.000000" in about
    samples = heard(path)
    loud = np.flatnonzero(np.abs(samples) > 0.1) / RATE
    assert abs(loud[0] - 0.5) < 0.03 and abs(loud[-1] - 0.6) < 0.03
    assert abs(len(samples) / RATE - 1) < (0.1 if sound.codec in ("alac", "flac") else 0.05)
    tick, rows = packets(path)
    assert len(rows) == 36 and min(row[1] for row in rows) == 0 and rows[1][0] - rows[0][0] == 1 / (FPS * tick)


def test_a_sound_that_cannot_be_copied_is_encoded(tmp_path):
    """mp4 has no place for an MP3 of 8 kHz."""
    path, sound = extended(source(tmp_path, "x.mkv", "-c:a", "libmp3lame", "-ar", "8000"), tmp_path)
    assert not sound.copied and "Audio: aac" in ffmpeg_says("-i", path)


def test_a_sound_that_cannot_be_read_is_none(tmp_path):
    sound = Sound(7, "aac", True, Fraction(0), SECONDS)
    assert extract_sound(write(tmp_path, clip(1)), sound, tmp_path / "sound.mp4") is None
    assert not (tmp_path / "sound.mp4").exists()


def test_without_sound_files_are_as_before(tmp_path):
    path = write(tmp_path, clip(24))
    assert sound_of(probe_file(path), Fraction(0), SECONDS) is None
    for name in ("one", "other"):
        join_videos([path], tmp_path / f"{name}.mp4", FPS)
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "other.mp4").read_bytes()
    assert "Audio" not in ffmpeg_says("-i", tmp_path / "one.mp4")
