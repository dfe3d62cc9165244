"""Finding the run to resume, telling runs apart, locks, and pieces of kept runs."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from journal_runs import IDENTITY, SETTLED, add_piece, begin, finish, info, resume
from script_runs import FORCING, ROOT, read_frames

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.run import files
from skyreels_v2_infer.run import resume as resuming
from skyreels_v2_infer.run.folder import published
from skyreels_v2_infer.run.journal import BusyError, Journal
from skyreels_v2_infer.run.record import DamagedError
from skyreels_v2_infer.run.resume import adopt_pieces


def test_a_run_is_found_again_and_goes_on(begun, tmp_path):
    begun.keep_latents(np.arange(6, dtype=np.float32))
    begun.close()
    for wanted in (IDENTITY, IDENTITY | {"seed": None}):
        found = resume(tmp_path, wanted)
        assert (len(found.pieces), found.identity, found.settled) == (2, IDENTITY, SETTLED)
        latents, history = found.state()
        assert latents.tolist() == list(range(6)) and history.tolist() == [13, 13, 13]
        found.close()
    assert resume(tmp_path, IDENTITY | {"prompt": "a goose"}) is None
    assert resume(tmp_path, IDENTITY | {"seed": 8}) is None
    found = resume(tmp_path)
    add_piece(found, 4, 13, history=False)
    assert len(read_frames(finish(found))) == 17


def test_other_settings_are_refused_and_named(begun, tmp_path):
    begun.close()
    with pytest.raises(InputError, match="--resume: ") as caught:
        resume(tmp_path, IDENTITY | {"shift": 3.0, "model_id": {"weights": "13-cd"}})
    assert "--shift was 8.0, now is 3.0; --model_id was {'weights': '12-ab'}" in str(caught.value)


def kept(folder: Path, keys: list[str], seed: int = 7) -> Journal:
    """A run that is finished, one piece for each key, whose folder stays."""
    made = begin(folder, IDENTITY | {"seed": seed}, keys, keep=True)
    for number in range(len(keys)):
        add_piece(made, 5, 5 * number, history=False)
        files.write_array(made._history, np.zeros((1, 3, 9, 2, 2), np.float32))
    finish(made)
    return made


def adopted(folder: Path, keys: list[str], history: tuple[int, ...] = (0, 9, 9)) -> int:
    made = begin(folder, IDENTITY, keys, keep=True)
    count = adopt_pieces(made, history)
    assert len(made.pieces) == count
    made.discard()
    return count


def test_a_kept_run_of_other_settings_is_no_interrupted_one(tmp_path):
    kept(tmp_path, ["a"])
    assert resume(tmp_path, IDENTITY | {"shift": 3.0}) is None


def test_as_many_pieces_are_taken_over_as_are_alike_and_can_be_gone_on_from(tmp_path):
    kept(tmp_path, ["a", "b", "c"])
    kept(tmp_path, ["a", "x"])
    assert adopted(tmp_path, ["a", "b", "c"]) == 3
    assert adopted(tmp_path, ["a", "b", "d"]) == 2
    assert adopted(tmp_path, ["a", "x", "y"]) == 2
    assert adopted(tmp_path, ["a", "b", "d"], history=(0, 9, 10)) == 1  # its history is longer than what was kept
    assert adopted(tmp_path, ["d", "b", "c"]) == 0


@pytest.mark.parametrize("name", ["segment-0001.mp4", "ends-0001.png", "history-0002.npy"])
def test_a_damaged_piece_is_not_taken_over(tmp_path, name):
    made = kept(tmp_path, ["a", "b", "c"])
    path = made.folder / name
    path.write_bytes(path.read_bytes()[:-3] + b"abc")
    assert adopted(tmp_path, ["a", "b", "d"]) == 1
    path.unlink()
    assert adopted(tmp_path, ["a", "b", "d"]) == 1


def test_a_run_of_the_other_script_is_another_run(begun, tmp_path):
    begun.close()
    assert resume(tmp_path, IDENTITY | {"script": "generate_video.py"}) is None


def test_settings_that_only_the_interrupted_run_had_count(tmp_path):
    made = begin(tmp_path, IDENTITY | {"ar_step": 2})
    add_piece(made, 5, 0)
    made.close()
    with pytest.raises(InputError, match="--ar_step was 2, now is None"):
        resume(tmp_path)


def test_a_run_of_a_version_without_some_settings(tmp_path):
    made = begin(tmp_path)
    add_piece(made, 5, 0)
    made.close()
    with pytest.raises(InputError, match=r"a version that did not record --fit, --quality; finish it with that one$"):
        resume(tmp_path, IDENTITY | {"fit": "crop", "quality": 8.0})


def test_of_long_settings_what_differs_is_shown(tmp_path):
    negative = "blurry, out of focus, low resolution, compression artifacts, grain, flicker, ghosting, "
    weights = {f"shard-{i}": "12-ab" for i in range(9)}
    made = begin(tmp_path, IDENTITY | {"negative_prompt": negative + "logo", "model_id": weights})
    add_piece(made, 5, 0)
    made.close()
    changed = {"negative_prompt": negative + "border", "model_id": weights | {"shard-7": "13-cd"}}
    with pytest.raises(InputError) as caught:
        resume(tmp_path, IDENTITY | changed)
    assert "ghosting, logo, now is ..." in str(caught.value) and str(caught.value).endswith("ghosting, border")
    assert "--model_id was {'shard-7': '12-ab'}, now is {'shard-7': '13-cd'}" in str(caught.value)


def test_what_was_interrupted_goes_before_what_was_kept(tmp_path):
    kept(tmp_path, ["a"], seed=1)
    begun = begin(tmp_path, IDENTITY | {"seed": 2})
    add_piece(begun, 5, 0)
    begun.close()
    found = resume(tmp_path, IDENTITY | {"seed": None})
    assert found.identity["seed"] == 2
    found.discard()
    assert resume(tmp_path, IDENTITY | {"seed": None}).identity["seed"] == 1


def test_another_video_under_the_name_of_a_kept_one_is_not_taken_for_it(tmp_path):
    made = kept(tmp_path, ["a"])
    path = tmp_path / "a-swan_7.mp4"
    found = resume(tmp_path)
    assert published(found.folder, found._record) == path
    about = {"format": 1, "script": FORCING, "settings": {}}
    for plan, named in (("a", path), ("b", None)):
        path.with_suffix(".json").write_text(json.dumps(about | {"plan": plan}))
        assert published(found.folder, found._record) == named
    assert finish(found).name == "a-swan_7-2.mp4"
    assert made.folder.exists()


def test_parts_are_kept_from_when_that_is_asked_for(begun, tmp_path):
    begun.close()
    finish(resume(tmp_path, keep=True))
    assert begun.folder.exists()


def test_damage_of_another_seed_s_run_is_of_no_account(begun, tmp_path):
    begun.discard()
    other = begin(tmp_path, IDENTITY | {"seed": 70})
    add_piece(other, 5, 0)
    other.close()
    (other.folder / "run.json").write_text("{")
    assert resume(tmp_path) is None


def test_folders_of_somebody_else_are_passed_over(begun, tmp_path, monkeypatch):
    begun.close()
    theirs = tmp_path / "a-swan_7-0123456789ab.parts"
    theirs.mkdir()

    def take_lock(path):
        if path.parent == theirs:
            raise PermissionError(13, "not yours")
        return files.take_lock(path)

    monkeypatch.setattr(resuming, "take_lock", take_lock)
    assert resume(tmp_path).folder == begun.folder


def test_two_runs_never_touch_each_other(begun, tmp_path):
    other = begin(tmp_path)
    assert other.folder != begun.folder
    with pytest.raises(BusyError):
        resume(tmp_path)
    add_piece(other, 5, 0, history=False)
    add_piece(begun, 1, 13, history=False)
    assert [finish(begun).name, finish(other).name] == ["a-swan_7.mp4", "a-swan_7-2.mp4"]


def test_folders_of_runs_that_did_not_begin_are_tidied_up_and_no_others(tmp_path):
    begun = tmp_path / "a-swan_7-0123456789ab.parts"
    begun.mkdir()
    (begun / "lock").touch()
    for name in ("a-swan_7-0123456789ab-2.parts", "holiday.parts", "a-swan_7-film.parts"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious.txt").touch()
    (tmp_path / "a-swan_7-0123456789cd.parts").touch()  # a file
    assert resume(tmp_path) is None
    assert not begun.exists()
    assert len(list(tmp_path.rglob("precious.txt"))) == 3


def test_runs_that_go_on_are_left_alone_whatever_their_settings(begun, tmp_path):
    assert resume(tmp_path, IDENTITY | {"shift": 3.0}) is None
    free = begin(tmp_path)
    add_piece(free, 5, 0)
    free.close()
    found = resume(tmp_path)  # one of the two is locked
    assert found.folder == free.folder


def test_a_damaged_run_does_not_stand_in_the_way_of_others(begun, tmp_path):
    begun.close()
    other = begin(tmp_path, IDENTITY | {"seed": 8})
    add_piece(other, 5, 0)
    other.close()
    (other.folder / "run.json").write_text("{")
    assert resume(tmp_path).folder == begun.folder
    assert resume(tmp_path, IDENTITY | {"prompt": "a goose"}) is None


def test_a_run_of_which_nothing_is_left_does_not_stand_in_the_way(tmp_path):
    """As after a kill in the first window, for want of memory, say; what follows has smaller settings."""
    begun = begin(tmp_path)
    os.close(begun._lock)
    assert begun.folder.exists() and resume(tmp_path, IDENTITY | {"shift": 3.0}) is None
    (begun.folder / "run.json").write_text("{}")
    assert resume(tmp_path, IDENTITY | {"shift": 3.0}) is None  # its folder's name says that it is another one
    with pytest.raises(DamagedError):
        resume(tmp_path)


def test_what_another_process_makes_is_not_begun_once_more(tmp_path):
    first = begin(tmp_path)
    with pytest.raises(BusyError):
        Journal.begin(tmp_path, info(), alone=True)
    os.close(first._lock)
    second = Journal.begin(tmp_path, info(), alone=True)
    assert second.folder != first.folder


def test_two_processes_do_not_share_a_run(tmp_path):
    begun = begin(tmp_path)
    add_piece(begun, 5, 0)
    code = (
        "import json, sys; from pathlib import Path; from skyreels_v2_infer.run.resume import resume_run\n"
        'resume_run(Path(sys.argv[1]), "a-swan_7", json.loads(sys.argv[2]))'
    )
    command = [sys.executable, "-c", code, str(tmp_path), json.dumps(IDENTITY)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert "BusyError" in done.stderr
    begun.close()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    handle = os.open(begun.folder / "lock", os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the process has let go of it


def test_a_record_that_may_not_be_read_is_somebody_else_s(begun, tmp_path, monkeypatch):
    begun.close()

    def read_record(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(resuming, "read_record", read_record)
    assert resume(tmp_path) is None


# Locks


CALLS = """
import json, sys
from pathlib import Path
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.run.resume import resume_run
identity, wrong = json.loads(sys.argv[2]), []
print("ready", flush=True)
sys.stdin.readline()
for _ in range(100):
    try:
        run = resume_run(Path(sys.argv[1]), "a-swan_7", identity)
        if run is None or run.identity != identity:
            wrong.append(str(run and run.identity))
        if run is not None:
            run.close()
    except InputError as error:
        wrong.append(str(error))
print(json.dumps(wrong))
"""


def test_resumers_with_different_settings_never_refuse_each_other(tmp_path):
    identities = [IDENTITY | {"shift": float(shift)} for shift in range(1, 5)]
    for identity in identities:
        made = begin(tmp_path, identity)
        add_piece(made, 5, 0)
        made.close()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CALLS, str(tmp_path), json.dumps(identity)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for identity in identities
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    assert [json.loads(process.communicate(timeout=100)[0]) for process in processes] == [[]] * 4


def two_runs(folder: Path) -> list[Journal]:
    """Interrupted runs of the same prompt and seed with different settings."""
    made = [begin(folder), begin(folder, IDENTITY | {"shift": 5.0})]
    for run in made:
        add_piece(run, 5, 0)
        run.close()
    return made


def test_only_the_run_that_matches_is_locked(tmp_path, monkeypatch):
    mine, _ = two_runs(tmp_path)
    locked = []
    monkeypatch.setattr(resuming, "take_lock", lambda path: locked.append(path) or files.take_lock(path))
    resume(tmp_path).close()
    assert locked == [mine.folder / "lock"]
    with pytest.raises(InputError):
        resume(tmp_path, IDENTITY | {"shift": 3.0})
    assert locked == [mine.folder / "lock"]


def test_a_process_that_only_looks_is_waited_for(tmp_path):
    mine, _ = two_runs(tmp_path)
    handle = os.open(mine.folder / "lock", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH)
    assert not files.is_locked(mine.folder / "lock")
    timer = threading.Timer(0.1, os.close, [handle])
    timer.start()
    assert resume(tmp_path).folder == mine.folder
    timer.join()


def test_a_run_that_ends_while_it_is_being_locked_is_not_resumed(tmp_path, monkeypatch):
    made = begin(tmp_path)
    add_piece(made, 5, 0)
    made.close()
    handles = []

    def too_late(path):
        handles.append(files.take_lock(path))
        shutil.rmtree(path.parent)
        return handles[-1]

    monkeypatch.setattr(resuming, "take_lock", too_late)
    assert resume(tmp_path) is None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(handles[0])  # the lock is released


def test_a_folder_that_is_tidied_up_while_its_run_begins_is_made_again(tmp_path, monkeypatch):
    """The lock is taken on a file that no longer has its name."""
    real, removed = files.flock, []

    def flock(handle, kind):
        if not removed:
            removed.extend(tmp_path.iterdir())
            shutil.rmtree(removed[0])
        return real(handle, kind)

    monkeypatch.setattr(files, "flock", flock)
    made = begin(tmp_path)
    assert removed and (made.folder / "run.json").exists()


def test_a_run_does_not_begin_in_an_output_folder_that_is_gone(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        begin(tmp_path / "gone")


def test_a_process_that_tidies_up_does_not_refuse_one_that_begins(tmp_path):
    folder = tmp_path / f"{info().folder_stem}.parts"
    folder.mkdir()
    handle = files.take_lock(folder / "lock")
    timer = threading.Timer(0.1, os.close, [handle])
    timer.start()
    Journal.begin(tmp_path, info(), alone=True).discard()
    timer.join()
