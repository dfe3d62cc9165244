"""A video that is continued is read by its timestamps: how long it lasts stays, whatever its rate is."""

import dataclasses
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from clips import FPS, clip, ffmpeg, write

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.media.probe import probe_file
from skyreels_v2_infer.media.read import decode_prefix, probe_video, read_video
from skyreels_v2_infer.media.stream_copy import can_follow, copy_stream
from skyreels_v2_infer.media.timing import check_gaps, parse_packets, read_packets
from skyreels_v2_infer.media.write import VideoWriter, join_videos

COUNTING = "color=black:s=64x64,format=rgb24,geq=r=mod(N*8\\,256):g=0:b=0"  # frame N is N * 8 red


def shown(path: Path, rate: float) -> list[int]:
    """The numbers of the frames that are read."""
    return [round(int(frame[32, 32, 0]) / 8) for frame in read_video(path, 64, 64, rate=rate)]


@pytest.mark.parametrize(
    ("stated", "rate", "frames"),
    [("60", 16, 16), ("60", 24, 24), ("30000/1001", 24, 24), ("8", 24, 24), ("24", 24, 24), ("25", 30000 / 1001, 30)],
)
def test_a_second_stays_a_second(tmp_path, stated, rate, frames):
    ffmpeg("-f", "lavfi", "-i", f"testsrc=s=64x64:r={stated}:d=1", "-c:v", "libx264", tmp_path / "x.mp4")
    info = probe_video(tmp_path / "x.mp4", rate=rate)
    decoded = decode_prefix(tmp_path / "x.mp4", 64, 64, 2, rate=rate)
    assert info.read == decoded.read == frames
    every = probe_video(tmp_path / "x.mp4")
    assert (info.frames, info.fps) == (decoded.frames, decoded.fps) == (every.frames, every.fps)
    assert every.read == every.frames == round(Fraction(stated))


def uneven(path: Path) -> Path:
    """Frames 0 to 3 for a quarter of a second each, then 4 to 11 for an eighth each, and 12 for less."""
    pts = "setpts='if(lt(N,4),N*0.25,1+(N-4)*0.125)/TB'"
    ffmpeg("-f", "lavfi", "-i", f"{COUNTING},settb=1/1000,{pts}", "-frames:v", 13, "-fps_mode", "vfr", path)
    return path


def test_frames_are_chosen_by_their_timestamps(tmp_path):
    path = uneven(tmp_path / "uneven.mkv")
    assert [int(frame[32, 32, 0]) for frame in read_video(path, 64, 64)][-1] == pytest.approx(96, abs=4)
    assert shown(path, 8) == [0, 0, 1, 1, 2, 2, 3, 3, *range(4, 12)]
    assert np.abs(np.subtract(shown(path, 4), [0, 1, 2, 3, 4, 6, 8, 10])).max() <= 2  # in between are ties
    packets = read_packets(path, probe_file(path))
    assert not packets.is_even() and len(packets.starts) == 13
    assert read_packets(path, dataclasses.replace(probe_file(path), container="h264")) is None


def test_frames_of_the_same_rate_are_all_read_once(tmp_path):
    frames = clip(9)
    path = write(tmp_path, frames)
    ffmpeg("-i", path, "-c", "copy", tmp_path / "clip.mkv")  # whose timestamps are whole milliseconds
    for same in (path, tmp_path / "clip.mkv"):
        assert np.array_equal(list(read_video(same, 64, 96, rate=FPS)), list(read_video(same, 64, 96)))
        assert read_packets(same, probe_file(same)).is_even()


def test_a_video_that_is_too_short_for_a_frame(tmp_path):
    path = write(tmp_path, clip(1))
    for read in (lambda: probe_video(path, rate=1), lambda: decode_prefix(path, 64, 96, 1, rate=1)):
        with pytest.raises(InputError, match="is shorter than one frame at 1 fps; --keep_rate"):
            read()


def test_a_timestamp_that_is_far_off_is_refused():
    head = b"#tb 0: 1/1000\n"
    rows = b"".join(b"0, %d, %d, 40, 9, 0x1\n" % (at, at) for at in (0, 40, 10**9))
    with pytest.raises(InputError, match=r"shows one frame for 1000000 s.*--keep_rate"):
        check_gaps(parse_packets([head, *rows.splitlines(keepends=True)]), "x.mp4", "video_path", 0.5)
    slow = parse_packets([head, *(b"0, %d, %d, 40, 9, 0x1\n" % (at, at) for at in range(0, 50_000_000, 250_000))])
    check_gaps(slow, "x.mp4", "video_path", 16)
    with pytest.raises(InputError, match=r"200 frames, which become 1194000 by its timestamps.*--keep_rate"):
        check_gaps(slow, "x.mp4", "video_path", 24)
    assert parse_packets([head]) is None
    assert parse_packets([head, b"0, -9223372036854775808, -9223372036854775808, 40, 9, 0x1\n"]) is None


@pytest.mark.parametrize("name", ["x.avi", "x.mpg"])
def test_files_that_say_only_when_frames_are_decoded(tmp_path, name):
    codec = ["-c:v", "mpeg4" if name == "x.avi" else "mpeg2video", "-bf", 2]
    ffmpeg("-f", "lavfi", "-i", "testsrc=s=64x64:r=30:d=1", *codec, tmp_path / name)
    packets = read_packets(tmp_path / name, probe_file(tmp_path / name))
    assert packets.is_even() and len(packets.starts) == 30
    assert decode_prefix(tmp_path / name, 64, 64, 1, rate=16).read == 16


# ---- without encoding again ------------------------------------------------------------------------------------------


def followed(path: Path, folder: Path, fps: float = FPS, quality: float = 8, height: int = 64, width: int = 96) -> bool:
    probe = probe_file(path)
    return can_follow(probe, read_packets(path, probe), height, width, fps, quality, folder)


def test_own_videos_are_copied_and_followed_exactly(tmp_path):
    parts = [write(tmp_path, clip(count), "part") for count in (9, 5)]
    join_videos(parts, tmp_path / "source.mp4", FPS)
    source = tmp_path / "source.mp4"
    assert followed(source, tmp_path)
    assert copy_stream(source, probe_file(source), tmp_path / "copied.mp4")
    join_videos([tmp_path / "copied.mp4", write(tmp_path, clip(4), "new")], tmp_path / "joined.mp4", FPS)
    frames = list(read_video(tmp_path / "joined.mp4", 64, 96))
    assert np.array_equal(frames[:14], list(read_video(source, 64, 96)))
    assert np.array_equal(frames[14:], list(read_video(tmp_path / "new.mp4", 64, 96)))
    packets = read_packets(tmp_path / "joined.mp4", probe_file(tmp_path / "joined.mp4"))
    assert packets.is_even(FPS) and len(packets.starts) == 18


def test_other_streams_are_not_copied(tmp_path):
    own = write(tmp_path, clip(9))
    assert followed(own, tmp_path)
    for other in ({"fps": 25}, {"quality": 7}, {"height": 32, "width": 48}):
        assert not followed(own, tmp_path, **other)
    with VideoWriter(tmp_path, "fine", 64, 96, FPS, 9) as writer:
        writer.write(clip(9))
    assert not followed(writer.path, tmp_path) and followed(writer.path, tmp_path, quality=5)  # the same headers
    encodings = {
        "preset": ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-preset", "ultrafast"],
        "rate": ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", 10, "-vf", "setpts=PTS*1.5", "-fps_mode", "vfr"],
        "turned": ["-c", "copy", "-metadata:s:v:0", "rotate=90"],
    }
    for name, options in encodings.items():
        before = ["-display_rotation:v:0", 90] if name == "turned" else []
        ffmpeg(*before, "-i", own, *options, tmp_path / f"{name}.mp4")
        assert not followed(tmp_path / f"{name}.mp4", tmp_path), name
    ffmpeg("-i", own, "-c", "copy", tmp_path / "other.mkv")
    assert not followed(tmp_path / "other.mkv", tmp_path)
