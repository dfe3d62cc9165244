"""Inputs as people have them, whole and damaged: the right frames, or one line about what is wrong."""

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sources import COUNT, apart, as_hdr, encode, patches, tagged

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.media.damage import check_damage
from skyreels_v2_infer.media.images import read_image
from skyreels_v2_infer.media.picture_video import as_video, is_pictures
from skyreels_v2_infer.media.probe import probe_file
from skyreels_v2_infer.media.read import decode_prefix, probe_video, read_video

SIZE = 48, 72
X264 = ["-c:v", "libx264", "-crf", "2"]
HD = "scale=288:192:flags=neighbor,scale=out_color_matrix=bt709:out_range=tv"
# Name -> arguments of ffmpeg; all show `patches`, in limited BT.601 where nothing is said.
VIDEOS = {
    "h264.mp4": [*X264, "-pix_fmt", "yuv420p"],
    "h264.mov": [*X264, "-pix_fmt", "yuv444p"],
    "h264.mkv": [*X264, "-pix_fmt", "yuv420p", "-bf", "3", "-g", "4"],
    "fragmented.mp4": [*X264, "-pix_fmt", "yuv420p", "-movflags", "frag_keyframe+empty_moov"],
    "index_first.mp4": [*X264, "-pix_fmt", "yuv420p", "-movflags", "+faststart"],
    "hevc.mp4": ["-c:v", "libx265", "-crf", "4", "-x265-params", "log-level=0", "-pix_fmt", "yuv420p10le"],
    "av1.mp4": ["-c:v", "libsvtav1", "-crf", "5", "-preset", "12", "-pix_fmt", "yuv420p"],
    "vp9.webm": ["-c:v", "libvpx-vp9", "-crf", "2", "-b:v", "0", "-pix_fmt", "yuv420p"],
    "vp8.webm": ["-c:v", "libvpx", "-crf", "4", "-b:v", "8M", "-pix_fmt", "yuv420p"],
    "mpeg4.avi": ["-c:v", "mpeg4", "-q:v", "1"],
    "mpeg2.mpg": ["-c:v", "mpeg2video", "-q:v", "1", "-r", "24", "-f", "mpeg"],
    "mpeg2.ts": ["-c:v", "mpeg2video", "-q:v", "1", "-r", "24"],
    "h264.ts": [*X264, "-pix_fmt", "yuv420p", "-x264-params", "repeat-headers=1"],
    "mjpeg.avi": ["-c:v", "mjpeg", "-q:v", "1"],
    "prores.mov": ["-c:v", "prores_ks"],
    "dnxhr.mov": ["-c:v", "dnxhd", "-profile:v", "dnxhr_444", "-pix_fmt", "yuv444p10le", "-vf", HD],
    "ffv1.mkv": ["-c:v", "ffv1", "-pix_fmt", "gbrp10le"],
    "huffyuv.avi": ["-c:v", "huffyuv", "-pix_fmt", "yuv422p"],
    "animation.mov": ["-c:v", "qtrle"],
    "png.mov": ["-c:v", "png"],
    "theora.ogv": ["-c:v", "libtheora", "-q:v", "10"],
    "wmv.wmv": ["-c:v", "wmv2", "-q:v", "1"],
    "flv.flv": ["-c:v", "flv1", "-q:v", "1"],
    "raw.y4m": ["-pix_fmt", "yuv444p", "-strict", "-1"],
    "clip.gif": ["-filter_complex", "split[a][b];[a]palettegen[p];[b][p]paletteuse=dither=none"],
    "odd.mkv": [
        "-vf",
        "scale=143:95:flags=neighbor,scale=out_color_matrix=bt601",
        "-c:v",
        "ffv1",
        "-pix_fmt",
        "yuv420p",
    ],
    "wide_pixels.mp4": ["-vf", "scale=36:48:flags=neighbor,setsar=2", *X264, "-pix_fmt", "yuv444p"],
    "fields.mkv": ["-vf", "setfield=tff", "-c:v", "ffv1", "-pix_fmt", "yuv422p", "-field_order", "tt"],
}
EVERY_SECOND = ("mpeg2.mpg", "mpeg2.ts")  # have no rate of 12: every frame twice
TOLERANCE = {"clip.gif": 12, "vp8.webm": 7, "theora.ogv": 10, "av1.mp4": 7, "odd.mkv": 6, "wmv.wmv": 6, "flv.flv": 6}


def made(folder: Path) -> dict[str, Path]:
    """All readable inputs by name."""
    found = {name: encode(folder / name, patches(), *words) for name, words in VIDEOS.items()}
    hdr = tagged("bt2020nc", "bt2020", "smpte2084", to="yuv420p10le")
    found["pq.mkv"] = encode(folder / "pq.mkv", as_hdr(patches(), "smpte2084"), *hdr)
    pictures = [Image.fromarray(frame) for frame in patches()]
    for kind in ("webp", "png", "avif"):
        found[f"a.{kind}"] = folder / f"a.{kind}"
        more = {"lossless": True} if kind == "webp" else {}
        pictures[0].save(folder / f"a.{kind}", save_all=True, append_images=pictures[1:], duration=100, **more)
    for kind in ("png", "jpg", "tif"):
        (folder / kind).mkdir()
        for number, picture in enumerate(pictures):
            picture.save(
                folder / kind / f"{number}.{kind}", **({"quality": 98, "subsampling": 0} if kind == "jpg" else {})
            )
        found[f"folder of {kind}"] = folder / kind
    found["pattern"] = folder / "png" / "%d.png"
    found["glob"] = folder / "jpg" / "*.jpg"
    return found


def frames_of(path: Path, folder: Path) -> list[np.ndarray]:
    if is_pictures(path):
        as_video(path, *SIZE, 10, folder / "made.mkv")
        path = folder / "made.mkv"
    return list(read_video(path, *SIZE))


@pytest.mark.slow
def test_inputs_of_many_kinds(tmp_path):
    for name, path in made(tmp_path).items():
        frames = frames_of(path, tmp_path)
        if name in EVERY_SECOND:
            frames = frames[::2]
        assert len(frames) == COUNT, name
        limit = 8 if name == "pq.mkv" else TOLERANCE.get(name, 5)
        for t in (0, COUNT // 2, COUNT - 1):
            assert apart(frames[t], patches()[t]) <= limit, (name, t)


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Bytes changed, left out or cut off at random places."""
    content = bytearray(content)
    how = draw.choice(("flip", "flip many", "cut", "hole"))
    if how == "cut":
        return bytes(content[: draw.randrange(len(content))])
    if how == "hole":
        at = draw.randrange(len(content))
        return bytes(content[:at] + content[at + draw.randrange(1, 400) :])
    for _ in range(3 if how == "flip" else 60):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_damaged_inputs_end_in_one_line_or_in_frames(tmp_path, seed):
    """Never in a traceback or a hang. Thirty files a seed."""
    draw = random.Random(seed)
    whole = {name: path for name, path in made(tmp_path).items() if path.is_file()}
    outcomes = set()
    for name in draw.sample(sorted(whole), 30):
        path = tmp_path / f"damaged {name}"
        path.write_bytes(damaged(whole[name].read_bytes(), draw))
        try:
            frames = frames_of(path, tmp_path)
            outcomes.add("read")
            assert all(frame.shape == (*SIZE, 3) for frame in frames), name
        except InputError as error:
            outcomes.add("refused")
            assert str(error).startswith(f"--video_path {path}: ") and "\n" not in str(error), name
            assert len(str(error)) < 500 + len(str(path)), name
        if path.suffix in (".png", ".webp", ".avif", ".gif"):
            try:
                read_image(path, *SIZE)
            except InputError as error:
                assert "\n" not in str(error), name
    assert outcomes == {"read", "refused"}


# ---- transport streams -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    """50 frames, a key frame every 10."""
    frames = np.stack([np.roll(patches(frames=1)[0], t, 1) for t in range(50)])
    noise = np.random.default_rng(0).integers(-20, 20, frames.shape)
    frames = np.clip(frames + noise, 0, 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("stream") / "a.ts"
    return encode(path, frames, "-c:v", "libx264", "-g", "10", "-pix_fmt", "yuv420p", "-crf", "20")


def test_a_stream_that_begins_in_the_middle(stream, tmp_path):
    packets = stream.read_bytes()
    assert probe_video(stream).damage == "" and probe_video(stream).frames == 50
    (tmp_path / "cut.ts").write_bytes(packets[len(packets) // 4 // 188 * 188 + 55 :])
    found = decode_prefix(tmp_path / "cut.ts", *SIZE, 5)
    whole = decode_prefix(stream, *SIZE, 5)
    assert 30 <= found.frames < 45 and "pictures left out, which cannot be decoded" in found.damage
    assert np.array_equal(found.newest, whole.newest)


def test_a_stream_with_lost_packets(stream, tmp_path):
    packets = [stream.read_bytes()[at : at + 188] for at in range(0, stream.stat().st_size, 188)]
    filled = [i for i, packet in enumerate(packets) if packet[1] & 0x1F == 1 and packet[2] == 0][30:]
    lost = set(filled[len(filled) // 2 :][:2])
    (tmp_path / "lost.ts").write_bytes(b"".join(p for i, p in enumerate(packets) if i not in lost))
    found = probe_video(tmp_path / "lost.ts")
    assert found.frames >= 45 and "damaged" in found.damage
    draw = random.Random(1)
    kept = [packet for packet in packets[:40]] + [p for p in packets[40:] if draw.random() < 0.4]
    (tmp_path / "rest.ts").write_bytes(b"".join(kept))
    with pytest.raises(InputError, match="at most 50% of its pictures"):
        probe_video(tmp_path / "rest.ts")


def test_shares_of_damage(stream):
    probe = probe_file(stream)
    counts = (
        "[in#0/mpegts @ 0x1] [verbose]   Input stream #0:0 (video): {} packets read (5 bytes); {} frames decoded; 0"
    )
    corrupt = ["[warning] corrupt decoded frame"]
    assert check_damage([counts.format(50, 50)], probe, "a.ts", "video_path") == ""
    said = check_damage([counts.format(50, 40), *corrupt * 5], probe, "a.ts", "video_path")
    assert said == "10 of 50 pictures left out, which cannot be decoded; 5 of 50 pictures are damaged or follow a gap"
    with pytest.raises(InputError, match="20 of 50 cannot be decoded and 6 are damaged"):
        check_damage([counts.format(50, 30), *corrupt * 6], probe, "a.ts", "video_path")


def test_other_containers_are_not_cut(tmp_path):
    path = encode(tmp_path / "a.mkv", patches(frames=30), *X264, "-pix_fmt", "yuv420p")
    (tmp_path / "cut.mkv").write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="complete video"):
        probe_video(tmp_path / "cut.mkv")
