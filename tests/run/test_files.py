"""Files that are complete or absent, checksums and locks."""

import errno
import fcntl
import os
import re
import stat
import zlib
from pathlib import Path

import numpy as np
import pytest
from journal_runs import about, add_piece, begin
from PIL import Image
from script_runs import contents

from skyreels_v2_infer.run import files
from skyreels_v2_infer.run.resume import adopt_pieces


def test_without_locks_on_a_file_system_a_run_begins_all_the_same(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    made = begin(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [made.folder.name]
    made.close()


def test_a_fingerprint_sees_a_change_anywhere(tmp_path):
    path, content = tmp_path / "weights", bytearray(8 * 2**20)
    path.write_bytes(content)
    before = files.fingerprint(path)
    content[len(content) // 2 : len(content) // 2 + 2**15] = b"x" * 2**15
    path.write_bytes(content)
    assert files.fingerprint(path) != before
    (tmp_path / "empty").touch()
    assert files.fingerprint(tmp_path / "empty") == "0-00000000"


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "file"
    files.write_whole(path, lambda file: file.write(b"first"))

    def breaks_off(file):
        file.write(b"sec")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_whole(path, breaks_off)
    assert path.read_bytes() == b"first" and list(tmp_path.iterdir()) == [path]


def test_a_link_under_the_temporary_name_is_not_written_through(tmp_path):
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    (tmp_path / ".file.part").symlink_to(precious)
    files.write_whole(tmp_path / "file", lambda file: file.write(b"new"))
    assert precious.read_bytes() == b"precious" and not (tmp_path / "file").is_symlink()


@pytest.fixture
def log(monkeypatch) -> list[tuple[str, str]]:
    """Names that are synced, given and removed, in this order: files as they are called then."""
    log: list[tuple[str, str]] = []
    sync = os.fsync

    def fsync(handle):
        log.append(("sync", os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))))
        sync(handle)

    def logged(name, real):
        def call(*paths, **kw):
            log.append((name, os.path.basename(paths[1] if name in ("replace", "link") else paths[0])))
            return real(*paths, **kw)

        return call

    monkeypatch.setattr(os, "fsync", fsync)
    for name in ("replace", "link", "unlink", "mkdir"):
        monkeypatch.setattr(os, name, logged(name, getattr(os, name)))
    return log


def test_content_is_synced_before_a_name_is_given_and_the_folder_after_it(tmp_path, log):
    files.write_whole(tmp_path / "file", lambda file: file.write(b"content"))
    assert [entry for entry in log if entry[0] != "unlink"] == [
        ("sync", ".file.part"),
        ("replace", "file"),
        ("sync", tmp_path.name),
    ]


def test_the_folder_of_a_new_run_is_synced(tmp_path, log):
    made = begin(tmp_path)
    synced = log.index(("sync", tmp_path.name))
    assert log.index(("mkdir", made.folder.name)) < synced


def test_files_are_synced_before_the_record_that_names_them(tmp_path, log):
    made = begin(tmp_path)
    log.clear()
    add_piece(made, 5, 0)
    recorded = log.index(("replace", "run.json"))
    for name in ("ends-0000.png", "history-0001.npy"):
        assert ("sync", made.folder.name) in log[log.index(("replace", name)) : recorded]
    assert ("sync", made.folder.name) in log[log.index(("link", "segment-0000.mp4")) : recorded]
    removed = log.index(("unlink", "latents-0000.npy"))
    assert ("sync", made.folder.name) in log[recorded:removed]


def test_the_video_s_name_is_synced_before_its_pieces_are_removed(tmp_path, log):
    made = begin(tmp_path)
    add_piece(made, 5, 0, history=False)
    log.clear()
    made.finish({}, {}, None)
    named, removed = log.index(("link", "a-swan_7.mp4")), log.index(("unlink", "segment-0000.mp4"))
    assert ("sync", tmp_path.name) in log[named:removed]


def test_pieces_of_another_run_are_synced_before_they_are_recorded(tmp_path, log):
    other = begin(tmp_path, keep=True)
    add_piece(other, 5, 0)
    made = begin(tmp_path)
    log.clear()
    assert adopt_pieces(made, (0, 0, 0)) == 1
    linked, recorded = log.index(("link", "segment-0000.mp4")), log.index(("replace", "run.json"))
    assert ("sync", made.folder.name) in log[linked:recorded]


def test_a_file_system_that_cannot_sync_folders_is_put_up_with(tmp_path, monkeypatch):
    real = os.fsync

    def fsync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    files.write_whole(tmp_path / "file", lambda file: file.write(b"content"))
    assert (tmp_path / "file").read_bytes() == b"content"


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


ACTIONS = {
    "file": lambda run: files.write_whole(run.folder / "file", lambda file: file.write(b"1")),
    "array": lambda run: files.write_array(run.folder / "array.npy", np.zeros(9)),
    "latents": lambda run: run.keep_latents(np.zeros(9)),
    "piece": lambda run: run.done(run.folder / "segment-0001.mp4", None, about(5), Image.new("RGB", (4, 2))),
    "moved": lambda run: run.place(run.folder.parent / "elsewhere.mp4"),
    "beginning": lambda run: begin(run.folder.parent),
}


@pytest.mark.parametrize("action", ACTIONS)
def test_a_full_disk_is_reported_with_its_folder(tmp_path, monkeypatch, action):
    made = begin(tmp_path)
    add_piece(made, 5, 0)
    for path in (made.folder / "segment-0001.mp4", tmp_path / "elsewhere.mp4"):
        path.write_bytes(b"video")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=re.escape(str(made.folder.with_suffix("")))) as caught:
        ACTIONS[action](made)
    assert caught.value.errno == errno.ENOSPC and "No space left" in str(caught.value)
    assert len(made.pieces) == 1


@pytest.mark.parametrize("error", [OSError(errno.EDQUOT, "Disk quota exceeded"), OSError("encoder error -2")])
def test_an_error_while_writing_is_reported_with_its_folder(tmp_path, error):
    def write(file):
        raise error

    with pytest.raises(OSError, match=re.escape(str(tmp_path))) as caught:
        files.write_whole(tmp_path / "file", write)
    assert str(error.args[-1]) in str(caught.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_file_is_moved_also_from_another_file_system(tmp_path, monkeypatch, log, elsewhere):
    source, target, real = tmp_path / "here" / "source", tmp_path / "there" / "target", os.replace
    for path in (source, target):
        path.parent.mkdir()
        path.write_bytes(path.name.encode())

    def replace(one, other):
        if Path(one).parent != Path(other).parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        real(one, other)

    if elsewhere:
        monkeypatch.setattr(os, "replace", replace)
    log.clear()
    files.move_whole(source, target)
    assert target.read_bytes() == b"source" and contents(tmp_path) == ["here", "there", "there/target"]
    named = log.index(("replace", "target"))
    assert log[named - 1] == ("sync", ".target.part" if elsewhere else "source")
    assert log[named + 1] == ("sync", "there")


@pytest.mark.parametrize("array", [np.arange(6.0), np.zeros((2, 3, 0)), np.arange(24).reshape(4, 6).T, np.float32(5)])
def test_arrays_come_back(tmp_path, array):
    files.write_array(tmp_path / "array.npy", array)
    found = files.read_array(tmp_path / "array.npy")
    assert found.dtype == array.dtype and np.array_equal(found, array)


HEADERS = {
    "huge": b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000,), }",
    "negative": b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -2), }",
    "objects": b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
    "nested": b"(" * 5000,
    "nothing": b"",
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_does_not_fit_the_file_is_refused(tmp_path, name):
    header = HEADERS[name] + b" " * 10 + b"\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 8
    (tmp_path / "array.npy").write_bytes(content + zlib.crc32(content).to_bytes(4, "big"))
    with pytest.raises(ValueError):
        files.read_array(tmp_path / "array.npy")


def test_a_lock_is_not_made_through_a_link(tmp_path):
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="lock"):
        files.take_lock(tmp_path / "lock")
    assert not (tmp_path / "elsewhere").exists()


def test_looking_at_a_lock_makes_no_file(tmp_path):
    assert not files.is_locked(tmp_path / "lock") and list(tmp_path.iterdir()) == []
    handle = files.take_lock(tmp_path / "lock")
    assert files.is_locked(tmp_path / "lock") and files.take_lock(tmp_path / "lock") is None
    os.close(handle)
    assert not files.is_locked(tmp_path / "lock")
