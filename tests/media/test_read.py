"""Reads videos: the header, all frames, the newest frames of a video that is continued."""

import subprocess
import tracemalloc
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from clips import FPS, clip, ffmpeg, write
from PIL import Image
from scenes import psnr

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.media import images
from skyreels_v2_infer.media.comment import comment_of
from skyreels_v2_infer.media.ffmpeg import Ffmpeg
from skyreels_v2_infer.media.read import decode_prefix, probe_video, read_video, video_header
from skyreels_v2_infer.media.statistics import Look
from skyreels_v2_infer.media.write import VideoWriter, join_videos


@pytest.mark.parametrize(("frames", "height", "width", "fps"), [(13, 64, 96, 24), (5, 96, 64, 16), (1, 64, 64, 30)])
def test_what_is_written_is_read_back(tmp_path, frames, height, width, fps):
    video = clip(frames, height, width)
    with VideoWriter(tmp_path, "clip", height, width, fps) as writer:
        writer.write(video[:1])
        writer.write(video[1:])
    assert writer.path == tmp_path / "clip.mp4"
    info = probe_video(writer.path)
    assert info[:3] == (height, width, frames) and info.fps == pytest.approx(fps, rel=1e-3)
    got = list(read_video(writer.path, height, width))
    assert len(got) == frames and all(frame.shape == (height, width, 3) for frame in got)
    for before, after in zip(video, got, strict=True):
        assert psnr(before, after) > 38


def test_colours_do_not_drift_when_a_video_is_extended_again_and_again(tmp_path):
    video = clip(4)
    again = video
    for _ in range(3):
        again = np.stack(list(read_video(write(tmp_path, again), 64, 96)))
    drift = (again.astype(float) - video).mean((0, 1, 2))
    assert np.abs(drift).max() < 0.5  # ffmpeg's default conversion darkens by 3 levels


def test_file_says_which_colours_it_holds(tmp_path):
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(write(tmp_path, clip(2)))]
    log = subprocess.run(command, stderr=subprocess.PIPE, text=True).stderr
    assert "h264" in log and "yuv420p(tv, bt709, progressive)" in log


def test_frames_are_fitted_like_pictures(tmp_path):
    path = write(tmp_path, clip(2))
    whole = next(read_video(path, 64, 96))
    Image.fromarray(whole).save(tmp_path / "frame.png")
    for height, width in ((64, 64), (96, 32), (32, 48)):
        frame = next(read_video(path, height, width))
        np.testing.assert_array_equal(frame, images.read_image(tmp_path / "frame.png", height, width))


def test_rotated_video_is_read_upright(tmp_path):
    path = write(tmp_path, clip(3, 64, 96))
    ffmpeg("-display_rotation", 90, "-i", path, "-c", "copy", tmp_path / "turned.mp4")
    info = probe_video(tmp_path / "turned.mp4")
    assert info[:3] == (96, 64, 3)
    first = next(read_video(tmp_path / "turned.mp4", 96, 64))
    assert psnr(first, np.rot90(clip(1, 64, 96)[0])) > 35


def test_wide_pixels_are_made_square(tmp_path):
    ffmpeg("-i", write(tmp_path, clip(3, 64, 96)), "-vf", "setsar=2", tmp_path / "wide.mp4")
    assert probe_video(tmp_path / "wide.mp4")[:3] == (64, 192, 3)
    assert next(read_video(tmp_path / "wide.mp4", 64, 192)).shape == (64, 192, 3)


def test_every_frame_of_an_uneven_rate_is_seen_once(tmp_path):
    path = write(tmp_path, clip(24))
    ffmpeg("-i", path, "-vf", r"select=not(mod(n\,5))+eq(n\,1)", "-fps_mode", "vfr", tmp_path / "uneven.mp4")
    info = probe_video(tmp_path / "uneven.mp4")
    assert info.frames == 6 and len(list(read_video(tmp_path / "uneven.mp4", 64, 96))) == 6
    assert info.fps == pytest.approx(5 * 24 / 20)


def test_a_name_with_odd_characters_is_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pipe:1").mkdir()
    path = write(Path("pipe:1"), clip(2), "a%03d 'b'")
    assert path.name == "a%03d 'b'.mp4"
    for name in ("concat:c.mp4", "-d.mp4"):
        path = path.rename(name)
        assert probe_video(path).frames == 2
        assert len(list(read_video(path, 64, 96))) == 2


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
        assert probe_video(folder / f"whole.{kind}").frames == 16
    return broken


def refused(read, path: Path, name: str) -> None:
    with pytest.raises(InputError) as error:
        read(path)
    message = str(error.value)
    assert message.startswith(f"--video_path {path}: ") and "\n" not in message, name
    assert ("no video stream" in message) == name.startswith("sound"), name


def test_broken_videos_are_named_in_one_line(tmp_path):
    for name, path in broken_videos(tmp_path).items():
        refused(probe_video, path, name)
        refused(lambda path: list(read_video(path, 64, 96)), path, name)
        refused(lambda path: decode_prefix(path, 64, 96, 5), path, name)


def test_a_header_is_refused_where_there_is_no_video(tmp_path):
    broken = broken_videos(tmp_path)
    for name in ("no_index", "text", "random", "empty", "sound", "sound_with_cover", "folder", "missing"):
        refused(video_header, broken[name], name)


def test_only_formats_of_video_are_opened(tmp_path):
    """ffmpeg draws text as a video, and follows playlists and scripts to other files."""
    video = write(tmp_path, clip(4), "other")
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:{video}\n#EXT-X-ENDLIST\n"
    contents = {
        "notes.txt": "A line of text.\n" * 60,
        "notes.mp4": "A line of text.\n" * 60,
        "drawn.ans": "\x1b[31mA line of text.\n" * 60,
        "list.m3u8": playlist,
        "script.mp4": f"ffconcat version 1.0\nfile '{video}'\n",
        "script.y4m": f"ffconcat version 1.0\nfile '{video}'\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
        for read in (video_header, probe_video, lambda path: list(read_video(path, 64, 96))):
            refused(read, tmp_path / name, name)
    with pytest.raises(ValueError, match="no comment"):
        comment_of(tmp_path / "script.mp4")


def test_a_list_of_pieces_reaches_no_other_formats(tmp_path):
    ffmpeg("-i", write(tmp_path, clip(4), "other"), "-c", "copy", tmp_path / "other.mkv")
    (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\nfile:{tmp_path / 'other.mkv'}\n#EXT-X-ENDLIST\n")
    for name in ("other.mkv", "list.mp4"):
        with pytest.raises(OSError, match="cannot write"):
            join_videos([tmp_path / name], tmp_path / "joined.mp4", FPS)
        assert not (tmp_path / "joined.mp4").exists()


def test_closing_the_reader_early_ends_ffmpeg(tmp_path, monkeypatch):
    real, started = subprocess.Popen, []
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(real(*a, **k)) or started[-1])
    # Far more than a pipe holds, so that ffmpeg cannot have ended by itself.
    frames = read_video(write(tmp_path, clip(60, 128, 128)), 64, 64)
    started.clear()
    next(frames)
    assert len(started) == 2 and started[1].poll() is None  # the first has read the header
    frames.close()
    assert started[1].poll() is not None and started[1].stdout.closed


# ---- headers ---------------------------------------------------------------------------------------------------------


def videos_of_many_kinds(folder: Path) -> list[Path]:
    path = write(folder, clip(13), "plain")
    ffmpeg("-display_rotation", 90, "-i", path, "-c", "copy", folder / "turned.mp4")
    ffmpeg("-i", path, "-vf", "setsar=2", folder / "wide.mp4")
    uneven = ["-vf", r"select=not(mod(n\,5))+eq(n\,1)", "-fps_mode", "vfr"]
    ffmpeg("-f", "lavfi", "-i", "testsrc=s=64x96:r=24:d=10", *uneven, folder / "uneven.mp4")
    ffmpeg("-f", "lavfi", "-i", "sine=d=0.2", "-i", path, folder / "second.mkv")  # the video is the second stream
    ffmpeg("-i", path, "-r", "30000/1001", folder / "ntsc.mov")
    ffmpeg("-i", path, folder / "whole.gif")
    ffmpeg("-i", path, "-frames:v", 1, folder / "one.mp4")
    return sorted(path for path in folder.iterdir() if path.is_file())


def test_a_header_says_what_decoding_finds(tmp_path):
    for path in videos_of_many_kinds(tmp_path):
        header, info = video_header(path), probe_video(path)
        assert header[:2] == info[:2], path
        # Of uneven frames (GIF counts hundredths of a second) the header only has an estimate.
        assert header.fps == pytest.approx(info.fps, rel=0.1 if path.stem in ("uneven", "whole") else 0.001), path


def test_a_header_costs_no_decoding(tmp_path):
    """Damage behind the first frames, which decoding would find, does not matter."""
    ffmpeg("-f", "lavfi", "-i", "testsrc=s=64x64:d=20", "-movflags", "+faststart", tmp_path / "long.mp4")
    path = tmp_path / "long.mp4"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    assert video_header(path) == (64, 64, 25.0)
    refused(probe_video, path, "cut")


def test_the_rate_is_that_of_the_stream_that_is_decoded(tmp_path):
    title = "title=x\n  Stream #0:0: Video: h264, 7 fps"  # not a description of a stream
    ffmpeg("-i", write(tmp_path, clip(2)), "-metadata", title, tmp_path / "title.mkv")
    assert video_header(tmp_path / "title.mkv").fps == FPS


# ---- a video that is continued ---------------------------------------------------------------------------------------


def test_one_decoding_finds_what_several_did(tmp_path):
    for path in videos_of_many_kinds(tmp_path):
        info, frames = probe_video(path), np.stack(list(read_video(path, 48, 64)))
        look, expected = Look(), Look()
        with VideoWriter(tmp_path, f"{path.stem}-spool", 48, 64, FPS) as spool:
            decoded = decode_prefix(path, 48, 64, 5, spool, look)
        assert (decoded.frames, decoded.fps) == (info.frames, info.fps) == (len(frames), info.fps), path
        assert decoded.newest.dtype == np.uint8 and np.array_equal(decoded.newest, frames[-5:]), path
        expected.add(frames)
        assert look.figures() == expected.figures() and look.frames == len(frames)
        assert np.array_equal(look.first, frames[0]) and np.array_equal(look.last, frames[-1])
        assert spool.path.read_bytes() == write(tmp_path, frames, "expected").read_bytes()


def test_frames_whose_size_changes_are_fitted_each(tmp_path):
    parts = [write(tmp_path, clip(3, *size), "part") for size in ((64, 96), (96, 64))]
    for number, part in enumerate(parts):
        ffmpeg("-i", part, "-q:v", 2, tmp_path / f"{number}.mjpeg")
    path = tmp_path / "both.mjpeg"
    path.write_bytes((tmp_path / "0.mjpeg").read_bytes() + (tmp_path / "1.mjpeg").read_bytes())
    frames = list(read_video(path, 48, 48))
    decoded = decode_prefix(path, 48, 48, 10)
    assert decoded.frames == len(frames) == 6 and np.array_equal(decoded.newest, np.stack(frames))


def test_a_video_is_decoded_once_in_little_memory(tmp_path, monkeypatch):
    path = write(tmp_path, clip(60, 64, 64))
    real, started = subprocess.Popen, []
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(a) or real(*a, **k))
    decode_prefix(path, 64, 64, 1)  # imports what it uses
    started.clear()
    tracemalloc.start()
    try:
        decoded = decode_prefix(path, 256, 256, 3)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # One reads the header, with a frame.
    assert len(started) == 2 and decoded.newest.shape == (3, 256, 256, 3)
    assert peak < 10 * 256 * 256 * 3  # of 60


def test_fewer_frames_than_are_to_be_kept(tmp_path):
    path = write(tmp_path, clip(3))
    assert decode_prefix(path, 64, 96, 5).newest.shape == (3, 64, 96, 3)
    assert decode_prefix(path, 64, 96, 0).newest.shape == (0, 64, 96, 3)


def test_what_check_raises_ends_ffmpeg_and_discards_the_spool(tmp_path, monkeypatch):
    path = write(tmp_path, clip(60, 128, 128))
    real, started, calls = Ffmpeg.__init__, [], []

    def check():
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Ffmpeg, "__init__", lambda self, *a, **k: started.append(self) or real(self, *a, **k))
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path, "spool", 64, 64, FPS) as spool:
        decode_prefix(path, 64, 64, 5, spool, check=check)
    assert len(calls) == 2 and len(started) == 3  # encoder, header, decoder
    assert all(one.process.poll() is not None for one in started)
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
