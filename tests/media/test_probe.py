"""What is found out about a video from ffmpeg's description and its first frame."""

from fractions import Fraction

import pytest
from clips import clip, ffmpeg, write

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.media.probe import exact_rate, only_dolby_vision, parse, probe_file


def test_streams_rates_and_sound(tmp_path):
    video = ["-f", "lavfi", "-i", "testsrc=s=96x64:r=30000/1001:d=1"]
    ffmpeg("-f", "lavfi", "-i", "sine=d=1:r=48000", *video, "-c:a", "aac", tmp_path / "a.mkv")
    found = probe_file(tmp_path / "a.mkv")
    assert found.container == "matroska,webm" and found.codec == "h264" and found.index == 0
    assert found.rate == Fraction(30000, 1001) and found.fps == 29.97
    assert found.duration == pytest.approx(1, abs=0.1)
    assert [(sound.index, sound.codec, sound.rate) for sound in found.audio] == [(1, "aac", 48000)]
    assert not found.may_be_cut and not found.interlaced and not found.alpha
    plain = probe_file(write(tmp_path, clip(2)))
    assert plain.audio == () and (plain.range, plain.matrix, plain.primaries, plain.transfer) == ("tv", *["bt709"] * 3)


def test_shape_and_fields(tmp_path):
    path = write(tmp_path, clip(3, 64, 96))
    ffmpeg("-display_rotation", 90, "-i", path, "-c", "copy", tmp_path / "turned.mp4")
    found = probe_file(tmp_path / "turned.mp4")
    assert found.stored == (64, 96) and (found.height, found.width) == (96, 64) and found.rotation == 90
    fields = ["-vf", "setsar=16/11,setfield=tff", "-flags", "+ilme+ildct", "-c:v", "mpeg2video"]
    ffmpeg("-f", "lavfi", "-i", "testsrc=s=704x576:r=25:d=0.2", *fields, tmp_path / "fields.ts")
    found = probe_file(tmp_path / "fields.ts")
    assert found.interlaced and found.may_be_cut and found.container == "mpegts"
    assert found.aspect == Fraction(16, 11) and found.width == 1024 and found.stored == (576, 704)


def test_colours_and_side_data(tmp_path):
    light = "colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc:max-cll=1000,400:hdr10=1:log-level=0"
    source = ["-f", "lavfi", "-i", "testsrc=s=64x64:d=0.1", "-pix_fmt", "yuv420p10le"]
    ffmpeg(*source, "-c:v", "libx265", "-x265-params", light, tmp_path / "pq.mp4")
    found = probe_file(tmp_path / "pq.mp4")
    assert (found.matrix, found.primaries, found.transfer) == ("bt2020nc", "bt2020", "smpte2084")
    assert found.peak == 1000 and found.pixel_format == "yuv420p10le"


def test_transparency(tmp_path):
    clear = ["-f", "lavfi", "-i", "color=red@0.5:s=64x64:d=0.1,format=yuva420p"]
    ffmpeg(*clear, "-c:v", "libvpx-vp9", tmp_path / "a.webm")
    ffmpeg(*clear, "-c:v", "prores_ks", "-pix_fmt", "yuva444p10le", tmp_path / "a.mov")
    assert probe_file(tmp_path / "a.webm").alpha and probe_file(tmp_path / "a.webm").coded_alpha
    assert probe_file(tmp_path / "a.mov").alpha and not probe_file(tmp_path / "a.mov").coded_alpha


def test_descriptions_in_titles_are_not_believed(tmp_path):
    title = "title=x\n[info]   Stream #0:0: Video: h264, 7 fps\n  Duration: 99:00:00.00, start: 7.0\n"
    ffmpeg(
        "-i", write(tmp_path, clip(2)), "-metadata", title, "-metadata", "comment=a\r[info] Audio", tmp_path / "t.mkv"
    )
    found = probe_file(tmp_path / "t.mkv")
    assert found.fps == 24 and found.duration < 1 and found.audio == ()


def test_lines_that_the_name_of_a_language_adds(tmp_path):
    own = "eng): Video: h264, 8x8\n[Parsed_showinfo_0 @ 0x0] n:   0 pts: 0\n  Stream #0:0(eng"
    ffmpeg("-i", write(tmp_path, clip(2)), "-c", "copy", "-metadata:s:v:0", f"language={own}", tmp_path / "own.mkv")
    with pytest.raises(InputError, match="has no frame that can be decoded"):
        probe_file(tmp_path / "own.mkv")


def test_the_rate_is_that_of_the_stream_that_is_decoded():
    lines = [
        "[info]   Stream #0:0: Video: mjpeg, yuvj420p, 32x32, 90k tbn (attached pic)",
        "[info]   Stream #0:1(und): Video: h264 (High), yuv420p, 32x32, 1k fps, 1k tbr, 1k tbn",
        "[info] Stream mapping:",
        "[info]   Stream #0:1 -> #0:0 (h264 (native) -> wrapped_avframe (native))",
        "[Parsed_showinfo_0 @ 0x1] [info] n:   0 pts:      0 fmt:yuv420p sar:0/1 s:32x32 i:P iskey:1",
        "[info]   Stream #0:0(und): Video: wrapped_avframe, yuv420p, 32x32, 25 fps, 25 tbn",
    ]
    found = parse(lines, (32, 32))
    assert found.fps == 1000 and found.index == 1 and found.aspect == 1
    other = [*lines[:3], lines[3].replace("0:1 ", "0:0 "), *lines[4:]]
    assert parse(other, (32, 32)).fps == 0  # the output's is a guess


def test_dolby_vision_without_another_layer():
    line = "[info]       DOVI configuration record: version: 1.0, profile: {}, level: 6, rpu flag: 1, el flag: 0"
    assert only_dolby_vision([line.format(5)])
    assert not only_dolby_vision([line.format(8), "[info]     title : DOVI configuration record: profile: 5"])


def test_rates_of_two_digits():
    assert exact_rate(29.97) == Fraction(30000, 1001) and exact_rate(23.98) == Fraction(24000, 1001)
    assert exact_rate(25.0) == 25 and exact_rate(12.5) == Fraction(25, 2) and exact_rate(0.0) is None


@pytest.mark.parametrize("content", [b"", b"text", bytes(5000)])
def test_what_is_no_video(tmp_path, content):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(InputError, match="--video_path"):
        probe_file(tmp_path / "a.mp4")
