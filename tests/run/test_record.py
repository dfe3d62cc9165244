"""Run folders that somebody else has prepared: refused, and nothing outside of them is touched."""

import json
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from journal_runs import IDENTITY, add_piece, begin, info, resume

from skyreels_v2_infer.run import record
from skyreels_v2_infer.run.record import DamagedError, Record
from skyreels_v2_infer.run.resume import adopt_pieces


@pytest.fixture
def outside(tmp_path) -> Path:
    """A folder with files of somebody else, beside the output folder."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "x.mp4").write_bytes(b"\0\0\0\x20ftypisom private")
    (folder / "empty.mp4").touch()
    return folder


@pytest.fixture
def outdir(tmp_path, outside) -> Path:
    (tmp_path / "deep").mkdir()
    folder = tmp_path / "deep/out"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """The folder of a run with two pieces."""
    made = begin(tmp_path_factory.mktemp("template"), keep=True)
    add_piece(made, 5, 0)
    add_piece(made, 8, 5)
    made.keep_latents(np.zeros(4, np.float32))
    made.close()
    return made.folder


@pytest.fixture
def crafted(outdir, template) -> Path:
    """The same in the output folder; a test changes it by hand."""
    return shutil.copytree(template, outdir / template.name)


def everything(folder: Path) -> dict[Path, bytes | None]:
    """Files and links below a folder, with content and without following links; the time tells a rewritten one."""
    return {
        path: (
            os.readlink(path) if path.is_symlink() else path.read_bytes(),
            path.lstat().st_mtime_ns,
            path.lstat().st_nlink,
        )
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def rewrite(folder: Path, change: Callable[[dict], object]) -> None:
    """Changes a run.json by hand and makes its checksum right again."""
    content = json.loads((folder / "run.json").read_text())
    change(content)
    content.pop("checksum", None)
    checksum = zlib.crc32(json.dumps(content, sort_keys=True).encode())
    (folder / "run.json").write_text(json.dumps({"checksum": checksum, **content}))


def set_to(*path_and_value) -> Callable[[dict], None]:
    *path, last, value = path_and_value

    def change(content: dict) -> None:
        for key in path:
            content = content[key]
        content[last] = value

    return change


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


CHANGES = {
    "piece above": set_to("pieces", 0, "name", "../../../outside/x.mp4"),
    "piece absolute": set_to("pieces", 0, "name", "/etc/passwd"),
    "piece of another number": set_to("pieces", 0, "name", "segment-0001.mp4"),
    "piece number": set_to("pieces", 0, "name", 5),
    "piece in a list": set_to("pieces", 0, "name", ["segment-0000.mp4"]),
    "output above": set_to("output", "../../outside/x.mp4"),
    "output empty above": set_to("output", "../../outside/empty.mp4"),
    "output absolute": set_to("output", "/etc/passwd"),
    "output of another": set_to("output", "holiday.mp4"),
    "output below": set_to("output", "a-swan_7/../x.mp4"),
    "output number": set_to("output", 5),
    "output line": set_to("output", "a-swan_7.mp4\n"),
    "stem above": set_to("stem", "../../outside/x"),
    "stem of another": set_to("stem", "holiday"),
    "stem none": set_to("stem", None),
    "identity of another": set_to("identity", "shift", 7.0),
    "identity list": set_to("identity", []),
    "identity nested": set_to("identity", "shift", nested(40)),
    "seed text": set_to("identity", "seed", "7"),
    "seed huge": set_to("identity", "seed", 10**30),
    "settled list": set_to("settled", []),
    "settled prompt": set_to("settled", "prompt", 5),
    "settled dtype": set_to("settled", "dtype", "float33"),
    "fps expression": set_to("fps", "24+random(0)"),
    "fps zero": set_to("fps", 0),
    "fps infinite": set_to("fps", float("inf")),
    "fps true": set_to("fps", True),
    "keys none": set_to("keys", []),
    "keys number": set_to("keys", 0, 5),
    "keys fewer than pieces": set_to("keys", ["a"]),
    "keep": set_to("keep", "yes"),
    "pieces object": set_to("pieces", {}),
    "piece none": set_to("pieces", 0, None),
    "frames negative": set_to("pieces", 0, "frames", -1),
    "frames huge": set_to("pieces", 0, "frames", 10**15),
    "frames none": lambda content: content["pieces"][0].pop("frames"),
    "seconds list": set_to("pieces", 0, "seconds", [1.0]),
    "seconds text": set_to("pieces", 0, "seconds", {"sampling": "long"}),
    "brightness text": set_to("pieces", 0, "brightness", "0.5"),
    "seam infinite": set_to("pieces", 0, "seam", float("inf")),
    "checksum text": set_to("pieces", 0, "checksum", "5"),
    "more": set_to("more", 1),
    "less": lambda content: content.pop("settled"),
    "format": set_to("format", 10**5),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_record_is_refused(crafted, outdir, outside, name):
    rewrite(crafted, CHANGES[name])
    refused(crafted, outdir, outside)


TEXTS = {
    "nested": b"[" * 100_000,
    "nested object": b'{"format":' * 100_000,
    "huge number": b'{"format": 1' + b"0" * 5000 + b"}",
    "huge exponent": b'{"format": 1e400}',
    "no object": b"null",
    "no text": b"\xff\xfe",
    "nothing": b"",
}


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_no_record_is_refused(crafted, outdir, outside, name):
    (crafted / "run.json").write_bytes(TEXTS[name])
    refused(crafted, outdir, outside)


def test_a_huge_record_is_refused_unread(crafted, outdir, outside, monkeypatch):
    monkeypatch.setattr(record, "MOST_BYTES", 100)
    refused(crafted, outdir, outside)


def refused(crafted: Path, outdir: Path, outside: Path) -> None:
    """Neither resumed nor taken pieces from; all files stay as they are."""
    before = everything(outdir), everything(outside)
    with pytest.raises(DamagedError, match=r"run\.json"):
        resume(outdir)
    assert (everything(outdir), everything(outside)) == before
    if (crafted / "run.json").stat().st_size < 2**20:
        new = begin(outdir, IDENTITY | {"shift": 1.0})
        assert adopt_pieces(new, (0, 0, 0)) == 0
        new.discard()
    assert (everything(outdir), everything(outside)) == before


LINKED = ["segment-0000.mp4", "ends-0001.png", "history-0002.npy", "latents-0002.npy", "run.json", "lock"]
LINKED += [".run.json.part", "joined.mp4", "metadata.txt", ".metadata.txt.part", "whatever"]


@pytest.mark.parametrize("name", LINKED)
def test_a_link_in_the_folder_is_refused(crafted, outdir, outside, name):
    path = crafted / name
    target = outside / name.lstrip(".")
    if path.exists():
        target.write_bytes(path.read_bytes())  # with the right checksum
        path.unlink()
    path.symlink_to(target)
    before = everything(outdir), everything(outside)
    with pytest.raises(DamagedError, match=name):
        resume(outdir)
    assert (everything(outdir), everything(outside)) == before
    new = begin(outdir, IDENTITY | {"shift": 1.0})
    assert adopt_pieces(new, (0, 0, 0)) == 0
    new.discard()
    assert (everything(outdir), everything(outside)) == before


def test_a_folder_that_is_a_link_is_none_of_ours(crafted, outdir, outside):
    moved = outside / crafted.name
    crafted.rename(moved)
    crafted.symlink_to(moved)
    (outdir / f"{info(IDENTITY | {'shift': 5.0}).folder_stem}.parts").symlink_to(outside)
    (outside / "lock").touch()
    before = everything(outside)
    assert resume(outdir) is None
    assert everything(outside) == before


@pytest.mark.parametrize("name", ["run.json", "segment-0000.mp4", "ends-0001.png", "history-0002.npy"])
def test_a_pipe_in_the_folder_is_refused_and_not_waited_for(crafted, outdir, name):
    path = crafted / name
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DamagedError, match=name):
        found = resume(outdir)
        try:
            found.state()
        finally:
            found.close()


def test_a_playlist_is_no_segment(crafted, outdir, outside):
    """ffmpeg would open the files that it names."""
    text = f"#EXTM3U\n#EXTINF:1,\nfile:{outside / 'x.mp4'}\n#EXT-X-ENDLIST\n".encode()
    (crafted / "segment-0000.mp4").write_bytes(text)
    rewrite(crafted, set_to("pieces", 0, "checksum", zlib.crc32(text)))
    with pytest.raises(DamagedError, match=r"segment-0000\.mp4"):
        resume(outdir)


@pytest.mark.parametrize("content", [b"no picture", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_ends_that_are_no_png_are_refused(crafted, outdir, content):
    (crafted / "ends-0001.png").write_bytes(content)
    rewrite(crafted, set_to("pieces", 1, "ends_checksum", zlib.crc32(content)))
    found = resume(outdir)
    with pytest.raises(DamagedError, match=r"ends-0001\.png"):
        found.ends(1)
    found.close()


def test_an_empty_file_beside_the_video_s_name_stays(crafted, outdir):
    """Only a name that the run itself has claimed is given back."""
    (outdir / "a-swan_7-holiday.mp4").touch()
    rewrite(crafted, set_to("output", "a-swan_7-holiday.mp4"))
    (crafted / "joined.mp4").touch()
    with pytest.raises(DamagedError):
        resume(outdir)
    assert (outdir / "a-swan_7-holiday.mp4").exists()


@pytest.mark.parametrize("value", [float("nan"), 10**30, nested(40)])
def test_what_would_not_be_read_again_is_not_written(tmp_path, value):
    folder = tmp_path / f"{info().folder_stem}.parts"
    folder.mkdir()
    piece = {"name": "segment-0000.mp4", "checksum": 0, "ends_checksum": 0, "frames": 1, "seconds": {}}
    piece |= {"brightness": 0.5, "saturation": 0.5, "seam": value}
    with pytest.raises(ValueError, match=r"number|nested"):
        record.write_record(folder, Record(info(), [piece]))
    assert list(folder.iterdir()) == []
