"""--frames_dir: every frame as a PNG file, complete or not there, the same after an interruption."""

import errno
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from script_runs import FORCING, write_clip

from skyreels_v2_infer.cli.arguments import parse_diffusion_forcing
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.media.read import read_video
from skyreels_v2_infer.run.frames import MARK, FrameFolder
from skyreels_v2_infer.run.main import main
from skyreels_v2_infer.run.session import Session

SHORT = ["--model_id", "tiny", "--device", "cpu", "--inference_steps", "1", "--guidance_scale", "1", "--outdir", "out"]
LONG = [*SHORT, "--num_frames", "13", "--base_num_frames", "9", "--overlap_history", "5", "--prompt", "a ball"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def pictures(count: int, first: int = 0) -> np.ndarray:
    return np.stack([np.full((4, 6, 3), first + i, np.uint8) for i in range(count)])


def contents(folder: str | Path) -> dict[str, str]:
    return {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in Path(folder).iterdir()}


def full(_) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def begun(folder: Path, owner: str = "one") -> FrameFolder:
    """Five frames of a finished piece, three of an unfinished one."""
    made = FrameFolder.open(folder, owner, 0)
    made.begin(0)
    made.write(pictures(5))
    made.end()
    made.begin(5)
    made.write(pictures(3, 5))
    return made


def test_frames_are_lossless_and_numbered():
    folder = Path("deep", "frames")
    made = begun(folder)
    made.end()
    made.finish()
    assert sorted(contents(folder)) == [f"{n:06d}.png" for n in range(8)]
    for number in range(8):
        with Image.open(folder / f"{number:06d}.png") as picture:
            assert np.array_equal(np.asarray(picture), pictures(1, number)[0])


def test_an_interrupted_run_goes_on_in_its_folder():
    made = begun(Path("frames"))
    made.give_up()
    made.close(keep=True)
    assert len(contents("frames")) == 5 + 1
    again = FrameFolder.open(Path("frames"), "one", 5)
    again.begin(5)
    again.write(pictures(3, 5))
    again.end()
    again.finish()
    whole = begun(Path("whole"))
    whole.end()
    whole.finish()
    assert contents("frames") == contents("whole")


def test_a_killed_run_leaves_no_half_frame_and_goes_on(monkeypatch):
    made = begun(Path("frames"))
    with monkeypatch.context() as disk, pytest.raises(OSError, match=r"No space left on device: .*frames"):
        disk.setattr(os, "fsync", full)
        made.write(pictures(1))
    assert len(contents("frames")) == 8 + 1 and not list(Path("frames").glob("*.part"))
    os.close(made._lock)  # as when a process is killed
    Path("frames", ".000008.png.part").write_bytes(b"half")
    again = FrameFolder.open(Path("frames"), "one", 0)
    again.begin(0)
    again.write(pictures(8))
    again.end()
    again.finish()
    assert sorted(contents("frames")) == [f"{n:06d}.png" for n in range(8)]


def test_what_is_not_worth_keeping_is_removed():
    begun(Path("deep", "frames")).close(keep=False)
    assert not Path("deep").exists()
    Path("mine").mkdir()
    begun(Path("mine")).close(keep=False)
    assert contents("mine") == {}


def test_a_folder_of_other_files_is_refused():
    Path("mine").mkdir()
    Path("mine", "000000.png").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"--frames_dir mine: must be a new or empty folder, but there is 000000.png"):
        FrameFolder.open(Path("mine"), "one", 0)
    Path("file").touch()
    with pytest.raises(InputError, match="--frames_dir file: must be a folder"):
        FrameFolder.open(Path("file"), "one", 0)
    assert sorted(contents("mine")) == ["000000.png"]


def test_a_folder_of_another_run_is_refused():
    made = begun(Path("frames"))
    with pytest.raises(InputError, match="another process"):
        FrameFolder.open(Path("frames"), "one", 0)
    made.close(keep=True)
    with pytest.raises(InputError, match="another unfinished run"):
        FrameFolder.open(Path("frames"), "two", 0)
    Path("frames", "000003.png").unlink()
    with pytest.raises(InputError, match=r"000003\.png.* is missing"):
        FrameFolder.open(Path("frames"), "one", 5)
    assert Path("frames", MARK).read_text() == "one"


def test_the_frames_of_a_finished_run_are_not_those_of_an_unfinished_one():
    made = begun(Path("frames"), "two")
    made.end()
    made.finish()
    before = contents("frames")
    with pytest.raises(InputError, match="must be a new or empty folder"):
        FrameFolder.open(Path("frames"), "one", 5)
    assert contents("frames") == before
    FrameFolder.open(Path("frames"), "two", 8, complete=True).finish()  # was killed after that, before the video
    assert contents("frames") == before


def test_a_mark_that_is_a_link_is_not_followed():
    Path("frames").mkdir()
    Path("target").write_text("kept")
    Path("frames", MARK).symlink_to(Path("target").absolute())
    with pytest.raises(OSError):
        FrameFolder.open(Path("frames"), "one", 0)
    assert Path("target").read_text() == "kept"


# ---- runs ------------------------------------------------------------------------------------------------------------


class Stopped(Session):
    """Ends at the last window."""

    def execute(self, plan, *given):
        for part in super().execute(plan, *given):
            if part.window == len(plan.windows) - 1:
                raise KeyboardInterrupt
            yield part


def made(*argv: object, kind: type = Session) -> int:
    return main(FORCING, parse_diffusion_forcing, list(map(str, argv)), kind)


@pytest.mark.slow
def test_a_resumed_run_writes_the_frames_of_an_uninterrupted_one(capfd):
    write_clip(Path("clip.mp4"), [np.full((64, 64, 3), 9 * i, np.uint8) for i in range(9)], fps=16)
    extends = [*SHORT, "--video_path", "clip.mp4", "--num_frames", "8", "--base_num_frames", "9", "--seed", "3"]
    extends += ["--overlap_history", "5", "--prompt", "a ball"]
    assert made(*extends, "--frames_dir", "frames", kind=Stopped) == 130
    assert len(contents("frames")) == 9 + 4 + 1
    assert made(*extends, "--frames_dir", "other", "--resume") == 2  # the finished frames are elsewhere
    assert "--frames_dir was" in capfd.readouterr().err
    assert made(*extends, "--frames_dir", "frames", "--resume") == 0
    resumed = capfd.readouterr().out.strip()
    assert made(*extends, "--frames_dir", "whole") == 0
    whole = capfd.readouterr().out.strip()
    assert contents("frames") == contents("whole") and len(contents("frames")) == 17
    assert Path(resumed).read_bytes() == Path(whole).read_bytes()
    encoded = np.stack(list(read_video(whole, 64, 64))).astype(int)
    frames = np.stack([np.asarray(Image.open(path)) for path in sorted(Path("whole").iterdir())])
    assert np.abs(frames - encoded).mean() < 2
    assert np.array_equal(frames[:9], list(read_video("clip.mp4", 64, 64)))
    assert made(*extends, "--frames_dir", "whole") == 2  # never overwritten
    assert "must be a new or empty folder" in capfd.readouterr().err


@pytest.mark.slow
def test_a_replay_writes_the_same_frames(capfd):
    assert made(*LONG, "--seed", "3", "--frames_dir", "first") == 0
    first = capfd.readouterr().out.strip()
    assert made("--replay", first, "--outdir", "again", "--frames_dir", "second") == 0
    assert contents("first") == contents("second")
    assert Path("again", Path(first).name).read_bytes() == Path(first).read_bytes()


@pytest.mark.slow
def test_each_video_of_a_batch_has_its_own_folder(capfd):
    rows = [{"prompt": "a ball", "seed": 1}, {"prompt": "a ball", "seed": 2}]
    Path("jobs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = [*SHORT, "--num_frames", 5, "--frames_dir", "frames", "--jobs", "jobs.jsonl"]
    assert made(*argv) == 0
    assert made(*argv) == 0  # nothing is left to make
    capfd.readouterr()
    assert sorted(path.name for path in Path("frames").iterdir()) == ["a-ball_1", "a-ball_2"]
    assert all(len(contents(folder)) == 5 for folder in Path("frames").iterdir())
    assert contents("frames/a-ball_1") != contents("frames/a-ball_2")
    command = json.loads(Path("out", "summary.jsonl").read_text().splitlines()[0])["command"]
    assert "--frames_dir=frames/a-ball_1" in command
    Path("jobs.jsonl").write_text(json.dumps(rows[0] | {"shift": 2}) + "\n")
    assert made(*argv) == 2  # another video, whose frames would be among those
    assert "jobs.jsonl:1: --frames_dir frames/a-ball_1: must be a new or empty folder" in capfd.readouterr().err


def test_occupied_folders_of_rows_are_found_with_all_other_faults(capfd, monkeypatch):
    monkeypatch.setattr(Session, "load", None)
    rows = [{"prompt": "a ball", "seed": seed} for seed in range(5)] + [{"shfit": 2}]
    Path("jobs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for seed, name in enumerate(("mine.txt", "000000.png", MARK)):
        Path(f"frames/a-ball_{seed}").mkdir(parents=True)
        Path(f"frames/a-ball_{seed}", name).write_text("")
    Path("frames/a-ball_3").write_text("")
    argv = [*SHORT, "--num_frames", 5, "--frames_dir", "frames", "--jobs", "jobs.jsonl"]
    for more in ((), ("--dry_run",)):
        assert made(*argv, *more) == 2
        said = capfd.readouterr().err.splitlines()
        assert [line.split(": ", 2)[1] for line in said] == [f"jobs.jsonl:{row}" for row in (1, 2, 4, 6)]
        assert said[0].endswith("--frames_dir frames/a-ball_0: must be a new or empty folder, but there is mine.txt")
        assert "must be a folder for files" in said[2] and not Path("out").exists()


def test_windows_that_are_kept_have_no_frames_to_reuse(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_diffusion_forcing([*SHORT, "--keep_parts", "--frames_dir", "frames"])
    assert stop.value.code == 2 and "--frames_dir frames: not with --keep_parts" in capsys.readouterr().err
