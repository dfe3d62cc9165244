"""Benchmarks refuse to write what does not fit, on disks and in memory."""

import pytest

from benchmarks import measure
from skyreels_v2_infer.errors import InputError


def test_a_folder_in_memory_has_no_more_room_than_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "free_memory", lambda: 2.0**30)
    monkeypatch.setattr(measure, "is_in_memory", lambda folder: False)
    measure.check_space(tmp_path, 1.0625)
    monkeypatch.setattr(measure, "is_in_memory", lambda folder: True)
    with pytest.raises(InputError, match=r"has 1.0 GiB free, 1.1 are needed"):
        measure.check_space(tmp_path, 1.0625)


def test_where_a_file_system_is_in_memory(tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\ntmpfs {tmp_path}/shm tmpfs rw 0 0\n")
    assert measure.is_in_memory(tmp_path / "shm" / "a", mounts) and not measure.is_in_memory(tmp_path / "b", mounts)
    assert not measure.is_in_memory(tmp_path, tmp_path / "none")


def test_memory_is_the_machine_s_or_the_container_s(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    2048 kB\n")
    assert measure.free_memory(tmp_path / "meminfo", tmp_path) == 2**21
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert measure.free_memory(tmp_path / "meminfo", tmp_path) == 2**21
    (tmp_path / "memory.max").write_text("5000\n")
    assert measure.free_memory(tmp_path / "meminfo", tmp_path) == 4000
    assert measure.free_memory(tmp_path / "no", tmp_path / "no") == float("inf")
