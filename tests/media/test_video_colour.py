"""Colours of videos: tags, ranges, HDR, wide gamut, transparency, pixel formats."""

import numpy as np
import pytest
from sources import COUNT, apart, as_hdr, as_wide, encode, patches, tagged

from skyreels_v2_infer.media import colour
from skyreels_v2_infer.media.input_options import InputOptions
from skyreels_v2_infer.media.probe import probe_file
from skyreels_v2_infer.media.read import read_video
from skyreels_v2_infer.media.video_filters import changes, check_color

SIZE = 48, 72
TAGS = [
    ("bt709", "bt709", "bt709", "tv"),
    ("bt709", "bt709", "bt709", "pc"),
    ("smpte170m", "smpte170m", "smpte170m", "tv"),
    ("bt470bg", "bt470bg", "bt709", "pc"),
]
ALPHA = {
    "vp9.webm": ["-c:v", "libvpx-vp9", "-pix_fmt", "yuva420p", "-crf", "4", "-b:v", "0"],
    "vp8.webm": ["-c:v", "libvpx", "-pix_fmt", "yuva420p", "-crf", "4", "-b:v", "8M", "-auto-alt-ref", "0"],
    "prores.mov": ["-c:v", "prores_ks", "-pix_fmt", "yuva444p10le"],
    "animation.mov": ["-c:v", "qtrle"],
    "png.mov": ["-c:v", "png"],
    "ffv1.mkv": ["-c:v", "ffv1", "-pix_fmt", "yuva444p"],
}
PIXELS = {
    "yuv420p": ["-c:v", "libx264", "-crf", "1"],
    "yuv422p": ["-c:v", "libx264", "-crf", "1"],
    "yuv444p": ["-c:v", "libx264", "-crf", "1"],
    "yuv420p10le": ["-c:v", "libx264", "-crf", "1"],
    "yuv422p12le": ["-c:v", "ffv1"],
    "yuvj420p": ["-c:v", "mjpeg", "-q:v", "1"],
    "gbrp": ["-c:v", "ffv1"],
    "gbrp16le": ["-c:v", "ffv1"],
    "bgr0": ["-c:v", "ffv1"],
    "rgb555le": ["-c:v", "rawvideo"],
}


def first(path, options=None, size=SIZE):
    return next(read_video(path, *size, options=options or InputOptions()))


@pytest.mark.parametrize(("matrix", "primaries", "transfer", "span"), TAGS)
def test_tags_of_matrix_and_range(tmp_path, matrix, primaries, transfer, span):
    path = encode(tmp_path / "a.mkv", patches(frames=1), *tagged(matrix, primaries, transfer, span))
    assert apart(first(path), patches()[0]) <= 2
    assert changes(probe_file(path)) == []


@pytest.mark.parametrize(("size", "matrix"), [((48, 72), "smpte170m"), ((720, 1280), "bt709"), ((48, 1296), "bt709")])
def test_untagged_videos_by_size(tmp_path, size, matrix):
    size = size[0], size[1] // 3 * 3
    frames = patches(*size, frames=1)
    by = {"smpte170m": "bt601"}.get(matrix, matrix)
    convert = f"scale=out_color_matrix={by}:out_range=tv:flags=accurate_rnd+full_chroma_int,format=yuv444p"
    convert += ",setparams=colorspace=unknown"
    path = encode(tmp_path / "a.y4m", frames, "-vf", convert, "-strict", "-1")
    assert probe_file(path).matrix == ""
    assert apart(first(path, size=size), frames[0]) <= 2


@pytest.mark.parametrize("transfer", ["arib-std-b67", "smpte2084"])
def test_hdr_becomes_sdr(tmp_path, transfer):
    frames = as_hdr(patches(frames=1), transfer)
    path = encode(tmp_path / "a.mkv", frames, *tagged("bt2020nc", "bt2020", transfer, to="yuv444p10le"))
    assert apart(first(path), patches()[0]) <= 6
    assert changes(probe_file(path)) == [f"HDR ({colour.HDR[transfer]}) converted to SDR"]


@pytest.mark.parametrize("primaries", ["bt2020", "smpte432"])
def test_wide_gamut_becomes_bt709(tmp_path, primaries):
    matrix = "bt2020nc" if primaries == "bt2020" else "bt709"
    frames = as_wide(patches(frames=1), primaries)
    path = encode(tmp_path / "a.mkv", frames, *tagged(matrix, primaries, "bt709", to="yuv444p10le"))
    assert apart(first(path), patches()[0]) <= 4
    assert "wide gamut" in changes(probe_file(path))[0]


def test_colours_by_flag_override_tags(tmp_path):
    path = encode(tmp_path / "a.mkv", patches(frames=1), *tagged("bt709", "bt709", "bt709"))
    assert apart(first(path, InputOptions(color="bt601")), patches()[0]) > 8
    # Tagged as limited BT.709 though it is full BT.601.
    wrong = tagged("smpte170m", span="pc")
    wrong[1] += ",setparams=colorspace=bt709:range=tv"
    path = encode(tmp_path / "wrong.mkv", patches(frames=1), *wrong)
    assert apart(first(path), patches()[0]) > 8
    assert apart(first(path, InputOptions(color="bt601:full")), patches()[0]) <= 2
    hdr = as_hdr(patches(frames=1), "arib-std-b67")
    path = encode(tmp_path / "untagged.mkv", hdr, *tagged("bt2020nc", to="yuv444p10le"))
    assert apart(first(path, InputOptions(color="hlg")), patches()[0]) <= 6
    for text in ("bt709", "pq:full", "limited"):
        assert check_color(text) == text
    for text in ("", "bt709:", "srgb", "bt709:wide", "full:full"):
        with pytest.raises(ValueError, match="must be"):
            check_color(text)


@pytest.mark.parametrize("name", ALPHA)
def test_transparency_is_on_the_background(tmp_path, name):
    frames = np.dstack([patches(frames=1)[0], np.full(SIZE, 255, np.uint8)])
    frames[:24, 24:48, 3] = 0
    frames[24:, 24:48, 3] = 128
    path = encode(tmp_path / name, frames[None].repeat(2, 0), *ALPHA[name])
    white, blue = patches()[0], patches()[0]
    white[:24, 24:48] = 255
    white[24:, 24:48] = 252
    blue[:24, 24:48] = 0, 0, 255
    blue[24:, 24:48] = 125, 125, 252
    assert apart(first(path), white) <= 5
    assert apart(first(path, InputOptions((0, 0, 255))), blue) <= 5
    assert changes(probe_file(path)) == ["what is transparent is shown on white"]


@pytest.mark.parametrize("pixels", PIXELS)
def test_pixel_formats(tmp_path, pixels):
    suffix = {"libx264": "mp4", "mjpeg": "avi", "rawvideo": "avi"}.get(PIXELS[pixels][1], "mkv")
    frames = patches(frames=2)
    path = encode(tmp_path / f"a.{suffix}", frames, *PIXELS[pixels], "-pix_fmt", pixels)
    assert apart(first(path), frames[0]) <= (9 if pixels == "rgb555le" else 4)


def test_grey_videos(tmp_path):
    path = encode(tmp_path / "a.mkv", patches(frames=1), "-c:v", "ffv1", "-pix_fmt", "gray")
    found = first(path).astype(int)
    assert np.abs(found - found.mean(-1, keepdims=True)).max() <= 1 and abs(found[36, 12, 0] - 128) <= 2


def test_highlights_are_compressed_and_greys_are_kept():
    level = np.linspace(0, 1000, 400)[:, None].repeat(3, 1) / colour.SDR_WHITE
    found = colour.compressed(level, 1000 / colour.SDR_WHITE)[:, 0]
    assert (np.diff(found) > 0).all() and found[-1] == pytest.approx(1)
    low = level[:, 0] <= colour.KNEE
    assert np.allclose(found[low], level[low, 0])
    white = colour.encoded(colour.compressed(np.ones((1, 3)), 1000 / colour.SDR_WHITE), colour.HLG)
    assert 246 <= 255 * white.max() <= 255
    assert colour.compressed(np.full((1, 3), 3.0), 1.0).max() == 1  # content that says it has no highlights


def test_values_of_the_standards():
    assert colour.pq_light(np.array([0.0, 0.508078, 0.580689, 1.0])) == pytest.approx([0, 100, 203, 10000], abs=0.05)
    assert colour.hlg_display(colour.hlg_scene(np.full((1, 3), 0.75)))[0, 0] == pytest.approx(203, abs=0.5)
    assert colour.hlg_scene(np.array([0.5, 1.0])) == pytest.approx([1 / 12, 1], abs=1e-6)
    wanted = [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]  # ITU-R BT.2407
    assert colour.to_bt709("bt2020") == pytest.approx(np.array(wanted), abs=2e-4)


def test_frames_come_in_order_and_number(tmp_path):
    frames = as_hdr(patches(), "arib-std-b67")
    path = encode(tmp_path / "a.mkv", frames, *tagged("bt2020nc", "bt2020", "arib-std-b67", to="yuv420p10le"))
    found = list(read_video(path, *SIZE))
    assert len(found) == COUNT
    for one, wanted in zip(found, patches(), strict=True):
        assert apart(one, wanted) <= 8
