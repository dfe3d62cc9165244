"""A video that is continued keeps its time and its sound, also where the run was interrupted."""

import json
import re
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from script_runs import FORCING, read_frames

from skyreels_v2_infer.cli.arguments import parse_diffusion_forcing
from skyreels_v2_infer.run.inputs import decode_video, place_sound
from skyreels_v2_infer.run.main import main
from skyreels_v2_infer.run.session import Session

EXTEND = ["--model_id", "tiny", "--device", "cpu", "--inference_steps", "1", "--guidance_scale", "1", "--seed", "3"]
EXTEND += ["--num_frames", "8", "--base_num_frames", "9", "--overlap_history", "5", "--prompt", "a ball", "--no_report"]


class Stopped(Session):
    """Ends at the last window."""

    def execute(self, plan, *given):
        for part in super().execute(plan, *given):
            if part.window == len(plan.windows) - 1:
                raise KeyboardInterrupt
            yield part


@pytest.fixture
def make(tmp_path, monkeypatch, capfd):
    """Extends a video in this process -> (exit code, path, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(source: Path | str, *argv: object, kind: type = Session) -> tuple[int, Path, str]:
        capfd.readouterr()
        words = [*EXTEND, "--video_path", source, *argv]
        try:
            code = main(FORCING, parse_diffusion_forcing, list(map(str, words)), kind)
        except SystemExit as stop:
            code = stop.code
        out, err = capfd.readouterr()
        return code, Path(out.strip()), err

    return call


def ffmpeg_of(*arguments: object) -> subprocess.CompletedProcess:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, errors="replace")


def streams(path: Path) -> dict[str, int]:
    """Frames and packets of sound."""
    counts = {}
    for kind in ("v", "a"):
        found = ffmpeg_of("-v", "error", "-i", path, "-map", f"0:{kind}", "-c", "copy", "-f", "framecrc", "-")
        counts[kind] = sum(not line.startswith("#") for line in found.stdout.splitlines())
    return counts


def source_of(path: Path) -> dict:
    return json.loads(path.with_suffix(".json").read_text())["source"]


def recorded(name: str, *more: object) -> Path:
    """A second at 60 fps, upright by rotation, with sound, as phones record it."""
    pictures = ["-f", "lavfi", "-i", "testsrc=s=96x64:r=60:d=1", "-f", "lavfi", "-i", "sine=d=1"]
    ffmpeg_of("-y", *pictures, "-c:v", "libx264", "-pix_fmt", "yuv420p", "-c:a", "aac", *more, "flat.mov")
    ffmpeg_of("-y", "-display_rotation:v:0", 90, "-i", "flat.mov", "-c", "copy", name)
    return Path(name)


def test_a_second_of_a_phone_stays_a_second_with_its_sound(make):
    phone = recorded("phone.mov")
    code, path, err = make(phone, "--outdir", "whole", "--frames_dir", "frames")
    assert code == 0 and "60 fps read at 16; sound kept (aac)" in err
    assert streams(path)["v"] == 16 + 8 and streams(path)["a"] in range(43, 46)  # of 1024 samples at 44.1 kHz
    about = source_of(path)
    assert (about["frames"], about["fps"], about["read_frames"], about["sound"]) == (60, 60, 16, "aac")
    assert "60 fps read at 16" in about["changes"]
    described = ffmpeg_of("-i", path).stderr
    assert "Duration: 00:00:01.50, start: 0.000000" in described
    assert make(phone, "--outdir", "parts", "--frames_dir", "again", kind=Stopped)[0] == 130
    code, resumed, _ = make(phone, "--outdir", "parts", "--frames_dir", "again", "--resume")
    assert code == 0 and resumed.read_bytes() == path.read_bytes() and source_of(resumed) == about
    frames = [sorted((one.name, one.read_bytes()) for one in Path(folder).iterdir()) for folder in ("frames", "again")]
    assert frames[0] == frames[1] and len(frames[0]) == 24
    code, dry, _ = make(phone, "--dry_run")
    assert code == 0 and "16 + 8 frames" in str(dry) and "60 fps read at 16; sound kept (aac)" in str(dry)


@pytest.mark.slow
def test_own_videos_are_not_encoded_again_and_keep_their_sound(make):
    _, first, _ = make(recorded("phone.mov"), "--outdir", "first")
    code, second, err = make(first, "--outdir", "second")
    assert code == 0 and "fps" not in err.partition("--video_path")[2].splitlines()[0]
    assert np.array_equal(read_frames(second)[:24], read_frames(first))
    assert streams(second) == {"v": 32, "a": streams(first)["a"]}
    code, replayed, _ = make(first, "--replay", second, "--trust_replay", "--outdir", "replayed")
    assert code == 0 and replayed.read_bytes() == second.read_bytes()
    code, silent, err = make(first, "--outdir", "silent", "--no_audio")
    assert code == 0 and streams(silent) == {"v": 32, "a": 0} and "sound left out (--no_audio)" in err
    assert np.array_equal(read_frames(silent), read_frames(second))


@pytest.mark.slow
def test_frame_for_frame(make):
    code, path, err = make(recorded("phone.mov"), "--outdir", "kept", "--keep_rate")
    assert code == 0 and streams(path) == {"v": 60 + 8, "a": 0}
    assert "60 fps kept frame for frame, plays at 16; sound left out" in err
    assert source_of(path)["read_by"] == "number"
    code, path, err = make("phone.mov", "--outdir", "same", "--keep_rate", "--fps", 60)
    assert code == 0 and streams(path)["v"] == 68 and streams(path)["a"] > 40


@pytest.mark.parametrize("kind", ["sound", "nothing", "cover"])
def test_files_without_pictures_are_refused_in_one_line(make, kind):
    Path("x.mp4").write_bytes(b"")
    if kind != "nothing":
        ffmpeg_of("-y", "-f", "lavfi", "-i", "sine=d=1", "-c:a", "aac", "x.mp4")
    if kind == "cover":
        ffmpeg_of("-y", "-f", "lavfi", "-i", "color=red:s=64x64:d=0.04:r=25", "-frames:v", 1, "cover.jpg")
        both = ["-i", "x.mp4", "-i", "cover.jpg", "-map", 0, "-map", 1, "-c", "copy"]
        ffmpeg_of("-y", *both, "-disposition:v:0", "attached_pic", "y.mp4")
        Path("y.mp4").rename("x.mp4")
    code, _, err = make("x.mp4", "--outdir", "out")
    assert code == 2 and err.count("\n") == 1 and re.search(r"--video_path x\.mp4: ", err)


def test_flags_of_a_video_need_one(capsys):
    for flag in ("--keep_rate", "--no_audio"):
        with pytest.raises(SystemExit):
            parse_diffusion_forcing([flag])
        assert f"{flag}: has no effect without --video_path" in capsys.readouterr().err


def test_the_sound_of_a_cut_stream_begins_with_its_first_whole_picture(tmp_path):
    """A beep while the pictures are white, at 1.5 to 1.7 s; the first pictures cannot be decoded."""
    beep = "aevalsrc='0.5*sin(880*2*PI*t)*between(t,1.5,1.7)':s=44100:d=3"
    light = "color=black:s=64x64:r=16:d=3,geq=lum='255*between(T,1.5,1.69)':cb=128:cr=128"
    codec = ["-c:v", "libx264", "-g", 16, "-keyint_min", 16, "-sc_threshold", 0, "-bf", 3, "-c:a", "aac"]
    codec += ["-x264-params", "open-gop=1:b-adapt=0"]  # frames in front of a key frame need the one before it
    pictures = tmp_path / "whole.ts"
    ffmpeg_of("-y", "-f", "lavfi", "-i", light, "-f", "lavfi", "-i", beep, *codec, "-muxdelay", 0, pictures)
    cut = tmp_path / "cut.ts"
    content = pictures.read_bytes()
    cut.write_bytes(content[188 * (len(content) // 188 // 8) :])
    settings = parse_diffusion_forcing([*EXTEND, "--video_path", str(cut), "--outdir", str(tmp_path)])
    source, _ = decode_video(settings, tmp_path, lambda: None)
    path, _ = place_sound(settings, source, tmp_path)
    frames = read_frames(source.segment)
    assert source.frames < 40 and "left out" in source.changes[0]
    lit = np.flatnonzero(frames.mean((1, 2, 3)) > 128) / 16
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-copyts", "-i", path, "-ac", "1", "-ar", "8000"]
    command += ["-af", "atrim=start=0,aresample=async=1:first_pts=0", "-f", "f32le", "-"]
    samples = np.frombuffer(subprocess.run(list(map(str, command)), capture_output=True).stdout, np.float32)
    loud = np.flatnonzero(np.abs(samples) > 0.1) / 8000
    assert abs(loud[0] - lit[0]) < 0.05 and abs(loud[-1] - lit[-1] - 1 / 16) < 0.1
