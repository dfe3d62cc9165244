"""A run's folder, from the first piece to the finished video, and whole runs that are interrupted in every way."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from journal_runs import IDENTITY, about, add_piece, begin, finish, frames, resume
from PIL import Image
from script_runs import FORCING, ROOT, Run, contents, environment, read_frames, run, signal_at

from skyreels_v2_infer.cli import arguments as cli
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.media import preview
from skyreels_v2_infer.media.comment import comment_of
from skyreels_v2_infer.media.write import VideoWriter, join_videos
from skyreels_v2_infer.modules.transformer import WanModel
from skyreels_v2_infer.modules.vae import Decoder, WanVAE
from skyreels_v2_infer.plan.plan import make_plan
from skyreels_v2_infer.run import inputs
from skyreels_v2_infer.run import main as conductor
from skyreels_v2_infer.run.identity import asked_for
from skyreels_v2_infer.run.jobs import Job
from skyreels_v2_infer.run.journal import Journal
from skyreels_v2_infer.run.record import DamagedError
from skyreels_v2_infer.run.session import Session
from skyreels_v2_infer.run.video import Video

FILES = ["run.json", "segment-0001.mp4", "ends-0000.png", "history-0002.npy", "latents-0002.npy"]


# The files


def test_pieces_are_joined_frame_after_frame_and_nothing_else_is_left(begun, tmp_path):
    add_piece(begun, 1, 13, history=False)
    path = finish(begun)
    assert path.name == "a-swan_7.mp4"
    assert contents(tmp_path) == ["a-swan_7.json", "a-swan_7.mp4", "a-swan_7.png"]
    assert json.loads(path.with_suffix(".json").read_text()) == {"all": "é=;#\n"}
    assert json.loads(comment_of(path)) == {"lasting": "é=;#\\\n"}
    page = np.array(Image.open(path.with_suffix(".png")).convert("L")).astype(int)
    # First and last frames of the pieces: 0, 4, 5, 12 and 13, which is a piece of its own.
    shown = [page[preview.GAP + preview.LABEL + 16, preview.GAP + 16 + i * (32 + preview.GAP)] for i in range(5)]
    assert np.abs(np.array(shown) - 3 * np.array([0, 4, 5, 12, 13])).max() <= 1
    made = read_frames(path)
    assert len(made) == 14
    assert np.abs(made.astype(int) - frames(14)).max() <= 2


def test_a_piece_that_was_encoded_elsewhere_is_moved_in(tmp_path):
    made = begin(tmp_path)
    with VideoWriter(tmp_path, "elsewhere", 32, 32, 24) as writer:
        writer.write(frames(5))
    path = made.place(writer.path)
    assert path.parent == made.folder and not writer.path.exists()
    made.done(path, np.full(3, 5, np.float32), about(5), preview.pair(frames(1)[0], frames(1, 4)[0]))
    made.close()
    found = resume(tmp_path)
    add_piece(found, 4, 5, history=False)
    assert len(read_frames(finish(found))) == 9


def test_only_a_segment_in_its_place_is_recorded(begun, tmp_path):
    with VideoWriter(tmp_path, "elsewhere", 32, 32, 24) as writer:
        writer.write(frames(5))
    with pytest.raises(ValueError, match="elsewhere"):
        begun.done(writer.path, None, about(5), preview.pair(frames(1)[0], frames(1, 4)[0]))
    assert len(begun.pieces) == 2


def test_segments_are_not_coded_anew_and_their_times_follow_on(tmp_path):
    import imageio_ffmpeg

    paths, start = [], 0
    for count in (1, 32, 5, 2):
        with VideoWriter(tmp_path, f"it's {count}", 64, 48, 24) as writer:
            noise = np.random.default_rng(count).integers(0, 255, (count, 64, 48, 3), np.uint8)
            writer.write(noise)
        paths.append(writer.path)
        start += count
    join_videos(paths, tmp_path / "joined.mp4", 24)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(tmp_path / "joined.mp4")]
    command += ["-c", "copy", "-copyts", "-f", "framecrc", "-"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    rows = [[int(value) for value in line.split(",")[1:4]] for line in lines if not line.startswith("#")]
    decoded, shown, lasts = np.array(rows).T  # in units of the file
    step = lasts[0]
    assert set(lasts) == set(np.diff(decoded)) == {step}
    assert sorted(shown) == [i * step for i in range(start)]
    pieces = np.concatenate([read_frames(path) for path in paths])
    assert np.array_equal(read_frames(tmp_path / "joined.mp4"), pieces)


def test_a_video_that_cannot_be_joined_leaves_nothing(tmp_path):
    (tmp_path / "broken.mp4").write_text("no video")
    with pytest.raises(OSError, match=rf"{tmp_path}: .*joined\.mp4"):
        join_videos([tmp_path / "broken.mp4"], tmp_path / "joined.mp4", 24)
    assert contents(tmp_path) == ["broken.mp4"]


def test_a_name_that_was_only_claimed_is_claimed_again(begun, tmp_path, monkeypatch):
    """On a file system without links a kill can come between claiming a name and giving it."""
    path, replace = tmp_path / "a-swan_7.mp4", os.replace

    def no_links(*names):
        raise OSError("no links here")

    def killed(source, target):
        if Path(target) == path:
            os._exit(9)
        replace(source, target)

    monkeypatch.setattr(os, "link", no_links)
    child = os.fork()
    if not child:
        os.replace = killed
        try:
            finish(begun)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert path.stat().st_size == 0
    begun.close()
    assert finish(resume(tmp_path)) == path
    assert len(read_frames(path)) == 13 and "a-swan_7-2.mp4" not in contents(tmp_path)


def test_a_finished_video_is_named_whatever_was_interrupted_beside_it(tmp_path):
    interrupted = begin(tmp_path, IDENTITY | {"shift": 5.0})
    add_piece(interrupted, 5, 0)
    interrupted.close()
    asked = SimpleNamespace(outdir=tmp_path, prompt="a swan", seed=7, keep_parts=False, name=None)
    job = Job(FORCING, asked, lambda: None)
    with pytest.raises(InputError, match=r"--shift was 5\.0, now is 8\.0"):
        job._find(None, IDENTITY)
    about = {"format": 1, "script": FORCING, "settings": {"seed": 7}, "asked": asked_for(IDENTITY)}
    (tmp_path / "a-swan_7.json").write_text(json.dumps(about))
    (tmp_path / "a-swan_7.mp4").touch()
    assert job._find(None, IDENTITY) == {"path": tmp_path / "a-swan_7.mp4"}


def test_a_run_without_anything_worth_keeping_leaves_nothing(tmp_path):
    made = begin(tmp_path)
    with pytest.raises(ValueError, match="stop"), made.segment(32, 32, 24) as writer:
        writer.write(frames(2))
        raise ValueError("stop")
    made.close()
    assert contents(tmp_path) == []


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", 0.02, 0.5, 0.98])
def test_damage_is_detected_and_named(begun, tmp_path, name, damage):
    begun.keep_latents(np.arange(600, dtype=np.float32))
    begun.close()
    path = begun.folder / name
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    else:
        content[int(damage * len(content))] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=f"--resume: .*{name}"):
        found = resume(tmp_path)
        try:
            found.state()
        finally:
            found.close()


def test_frames_that_are_missing_are_named(tmp_path):
    made = begin(tmp_path, keys=("a", "b"))
    add_piece(made, 5, 0)
    (made.folder / "history-0001.npy").unlink()
    with pytest.raises(DamagedError, match=r"history-0001\.npy"):
        made.state()


def test_what_was_being_written_is_removed(begun, tmp_path):
    begun.close()
    for name in (".history-0003.npy.part", "segment-0002.mp4", "history-0001.npy", "sound.mp4", ".segment-0002.1.part"):
        (begun.folder / name).write_bytes(b"half")
    found = resume(tmp_path)
    assert contents(found.folder) == sorted(
        [
            "ends-0000.png",
            "ends-0001.png",
            "history-0002.npy",
            "lock",
            "run.json",
            "segment-0000.mp4",
            "segment-0001.mp4",
        ]
    )


def test_what_a_file_server_puts_into_the_folder_is_in_nobody_s_way(tmp_path):
    made = begin(tmp_path)
    add_piece(made, 5, 0)
    (made.folder / "@eaDir").mkdir()
    (made.folder / "@eaDir" / "index").touch()
    made.close()
    found = resume(tmp_path)
    add_piece(found, 4, 5, history=False)
    assert len(read_frames(finish(found))) == 9
    assert contents(tmp_path) == ["a-swan_7.json", "a-swan_7.mp4", "a-swan_7.png"]


def test_a_video_that_is_there_is_told_of_also_where_tidying_up_fails(tmp_path, monkeypatch):
    made = begin(tmp_path)
    add_piece(made, 9, 0, history=False)

    def busy(journal):
        raise OSError(16, "Device or resource busy")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "discard", busy)
        path = finish(made)
    assert len(read_frames(path)) == 9
    os.close(made._lock)  # as the end of the process does
    assert finish(resume(tmp_path)) == path
    assert contents(tmp_path) == ["a-swan_7.json", "a-swan_7.mp4", "a-swan_7.png"]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("step", range(24))
def test_it_can_be_killed_between_any_two_steps_of_the_end(tmp_path, monkeypatch, step):
    """Every change of the file system from the last piece on is made or not made; then the run is taken up again."""
    made = begin(tmp_path)
    add_piece(made, 5, 0)
    count = 0
    with monkeypatch.context() as patch:
        for real in (os.replace, os.link, os.unlink):

            def dying(*args, real=real, **kw):
                nonlocal count
                count += 1
                if count > step:
                    raise Killed
                return real(*args, **kw)

            patch.setattr(os, real.__name__, dying)
        patch.setattr(Path, "unlink", lambda path, missing_ok=False: os.unlink(path) if path.exists() else None)
        try:
            add_piece(made, 4, 5, history=False)
            assert finish(made).exists()
            finished = True
        except Killed:
            finished = False
    if not finished:
        if made._lock is not None:
            os.close(made._lock)  # as the end of the process would
        # Only a run that has no video yet is in the way of one with other settings.
        with nullcontext() if (tmp_path / "a-swan_7.mp4").exists() else pytest.raises(InputError, match="interrupted"):
            assert resume(tmp_path, IDENTITY | {"shift": 3.0}) is None
        found = resume(tmp_path)
        if found is not None:
            if len(found.pieces) == 1:
                add_piece(found, 4, 5, history=False)
            finish(found)
    assert contents(tmp_path) == ["a-swan_7.json", "a-swan_7.mp4", "a-swan_7.png"]
    assert len(read_frames(tmp_path / "a-swan_7.mp4")) == 9


def test_a_resumed_run_counts_its_windows_without_the_prefix(begun):
    """Of two pieces one was the video that is continued."""
    settings = {"base_num_frames": 9, "overlap_history": 5, "prefix_frames": 9}
    video = Video(begun, {}, make_plan(8, 1, 5.0, **settings), with_preview=False)
    assert video.pieces == 3 and video.state()[0] == 1 and not video.is_complete


def test_a_picture_of_latents_of_the_interrupted_run_gets_the_name_of_the_video(begun, tmp_path):
    left = begun.folder.with_name(f"{begun.folder.stem}.latents.png")
    left.write_bytes(b"picture")
    path = Video(begun, {"settings": {}}, make_plan(9, 1, 5.0), with_preview=False).finish()
    assert path.with_suffix(".latents.png").read_bytes() == b"picture" and not left.exists()


# Whole runs

LONG = (
    "--model_id",
    "tiny",
    "--num_frames",
    65,
    "--inference_steps",
    4,
    "--seed",
    3,
    "--prompt",
    "a red circle goes up",
)
NAME = "a-red-circle-goes-up_3"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    """The video of a run that nobody stops."""
    result = run(FORCING, *LONG, cwd=tmp_path_factory.mktemp("whole"))
    return result.path.read_bytes()


def signalled(tmp_path: Path, appears: str, number: int = signal.SIGKILL, flags=()) -> Run:
    """A run that gets a signal as soon as a file of that name is there, see `signal_at`."""
    return run(FORCING, *LONG, *flags, "--resume", cwd=tmp_path, **signal_at(appears, number))


def resumed(tmp_path: Path, whole: bytes, flags=()) -> str:
    result = run(FORCING, *LONG, *flags, "--resume", cwd=tmp_path)
    assert result.path.read_bytes() == whole
    made = *(f"{NAME}.{suffix}" for suffix in ("json", "mp4", "png")), "report.html"
    assert contents(tmp_path) == ["video_out", *(f"video_out/{name}" for name in made)]
    return result.err


@pytest.mark.parametrize(
    ("appears", "windows"),
    [
        pytest.param("run.json", {3}, marks=pytest.mark.slow),  # in the first window
        ("latents-0001.npy", {1}),  # in a decode; what is denoised is not denoised again
        pytest.param(".segment-0002.*", {0}, marks=pytest.mark.slow),  # when the last segment is written
    ],
)
def test_a_run_that_is_killed_goes_on_to_the_same_video(tmp_path, whole, appears, windows):
    assert signalled(tmp_path, appears).code == -signal.SIGKILL
    err = resumed(tmp_path, whole)
    assert err.count(" rows, ") in windows


def test_a_video_that_is_finished_is_not_made_again(tmp_path):
    """A process can be killed when all is done; and a batch script that is run again asks for all its videos."""
    flags = ("--num_frames", 33, "--teacache", "--teacache_coefficients", "0,0,0,1,0")
    made = run(FORCING, *LONG, *flags, cwd=tmp_path)
    again = run(FORCING, *LONG, *flags, "--resume", cwd=tmp_path)
    assert again.path == made.path and again.lines == ["--resume: this video is finished"]
    other = run(FORCING, *LONG, "--num_frames", 29, "--resume", cwd=tmp_path)
    assert other.path != made.path and other.lines[0].startswith("--resume: nothing to resume in ")


@pytest.mark.slow
def test_a_killed_run_by_latents_goes_on_to_the_same_video(tmp_path):
    flags = ("--history", "latent")
    whole = run(FORCING, *LONG, *flags, "--outdir", "whole", cwd=tmp_path).path.read_bytes()
    here = tmp_path / "here"
    here.mkdir()
    assert signalled(here, "latents-0002.npy", flags=flags).code == -signal.SIGKILL
    result = run(FORCING, *LONG, *flags, "--resume", cwd=here)
    assert "2 of 3 windows are there" in result.err and result.path.read_bytes() == whole
    made, new = (
        int(number) for number in re.match(r"(\d+) frames \((\d+) of them made now\)", result.lines[-1]).groups()
    )
    assert made == len(read_frames(result.path)) > new > 0
    assert result.path.with_suffix(".json").read_bytes().endswith(b"}\n")


def test_a_run_that_is_killed_while_it_joins_goes_on_to_the_same_video(tmp_path):
    """Its settings are in the file: among them what the model has chosen."""
    import imageio_ffmpeg

    whole = run(FORCING, *LONG, "--teacache", "--outdir", "whole", cwd=tmp_path).path.read_bytes()
    real, stub, here = imageio_ffmpeg.get_ffmpeg_exe(), tmp_path / "ffmpeg", tmp_path / "here"
    stub.write_text(f'#!/bin/sh\ncase "$*" in *joined.mp4*) kill -KILL $PPID;; *) exec "{real}" "$@";; esac\n')
    stub.chmod(0o755)
    here.mkdir()
    killed = run(FORCING, *LONG, "--teacache", "--resume", cwd=here, IMAGEIO_FFMPEG_EXE=str(stub))
    assert killed.code == -signal.SIGKILL
    err = resumed(here, whole, ("--teacache",))
    assert "3 of 3 windows are there" in err and "loaded" not in err


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_an_interrupted_run_says_how_to_go_on(tmp_path, whole, number, code):
    result = signalled(tmp_path, "segment-0000.mp4", number)
    assert result.code == code
    last = result.lines[-1]
    assert last.startswith("generate_video_df.py: interrupted; ")
    kept = r"[0-3] of 3 windows are kept(, and the next one is denoised)?; the same command with --resume continues"
    assert re.search(f"{kept}$", last)
    changed = run(FORCING, *LONG, "--resume", "--shift", 2, cwd=tmp_path)
    assert changed.code == 2
    assert "has other settings: --shift was 3.0, now is 2.0" in changed.lines[-1] and len(changed.lines) == 1
    resumed(tmp_path, whole)


@pytest.mark.parametrize(
    "limit_kib", [pytest.param(4, marks=pytest.mark.slow), 20, pytest.param(60, marks=pytest.mark.slow)]
)
def test_a_disk_that_is_full_ends_in_one_line_and_the_run_goes_on_later(tmp_path, whole, limit_kib):
    """A limit on the size of files stands for the disk; what fails depends on it: latents, history or a segment."""

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write then fails with an error, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_kib * 1024, limit_kib * 1024))

    done = subprocess.run(
        [sys.executable, str(ROOT / FORCING), *map(str, LONG), "--resume"],
        cwd=tmp_path,
        env=environment(PYTHONDONTWRITEBYTECODE="1"),
        capture_output=True,
        text=True,
        preexec_fn=limited,
    )
    assert (done.returncode, done.stdout) == (1, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("generate_video_df.py: failed: ") and "Traceback" not in done.stderr
    assert re.search(rf"video_out/{NAME}-[0-9a-f]+\.parts", last)  # where the disk is full
    resumed(tmp_path, whole)


def test_pieces_that_somebody_has_removed_are_not_promised(begun):
    assert begun.worth_keeping and begun.is_denoised is False
    shutil.rmtree(begun.folder)
    assert not begun.worth_keeping
    begun.close()


def test_a_run_is_there_for_others_while_it_loads_and_leaves_nothing_if_that_fails(tmp_path, monkeypatch, capsys):
    class Failing(Session):
        def load(self):
            assert [path.name for path in (tmp_path / "new/deep").glob("*.parts/run.json")] == ["run.json"]
            raise InputError("model_id", "tiny", "does not load")

    flags = ["--model_id", "tiny", "--seed", "3", "--outdir", str(tmp_path / "new/deep"), "--device", "cpu"]
    assert conductor.main(FORCING, cli.parse_diffusion_forcing, flags, Failing) == 2
    assert capsys.readouterr().err.endswith("--model_id tiny: does not load\n") and list(tmp_path.iterdir()) == []


def test_numbers_that_are_none_are_no_video(tmp_path, monkeypatch, capsys):
    real = WanModel.forward
    monkeypatch.setattr(WanModel, "forward", lambda *given, **more: real(*given, **more) * float("nan"))
    flags = ["--model_id", "tiny", "--seed", "3", "--outdir", str(tmp_path), "--inference_steps", "1"]
    flags += ["--num_frames", "5", "--device", "cpu"]
    assert conductor.main(FORCING, cli.parse_diffusion_forcing, flags) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "window 1: model output contains NaN or Inf; try --dtype float32" in last and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("history", "value"), [("pixel", "nan"), ("latent", "nan"), ("pixel", "-inf")])
def test_decoded_frames_that_are_no_numbers_are_no_video(tmp_path, monkeypatch, capsys, history, value):
    stream, forward, calls = WanVAE.decode_stream, Decoder.forward, []

    def spoil(*given):
        piece = forward(*given)
        if len(calls) == 2:
            piece[0, 0, -1, 0, 0] = float(value)
        return piece

    monkeypatch.setattr(WanVAE, "decode_stream", lambda *given: calls.append(given) or stream(*given))
    monkeypatch.setattr(Decoder, "forward", spoil)
    flags = ["--model_id", "tiny", "--seed", "3", "--outdir", str(tmp_path), "--inference_steps", "1"]
    flags += ["--num_frames", "49", "--device", "cpu", "--history", history]
    assert conductor.main(FORCING, cli.parse_diffusion_forcing, flags) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "window 2: decoded frames contain NaN" in last and "1 of 2 windows" in last
    assert not list(tmp_path.glob("*.mp4")) and len(list(tmp_path.glob("*.parts/*.mp4"))) == 1


def test_a_video_that_changes_meanwhile_is_noticed(tmp_path, monkeypatch, capsys):
    with VideoWriter(tmp_path, "first", 64, 64, 24) as writer:
        writer.write(np.zeros((24, 64, 64, 3), np.uint8))

    real = inputs.decode_prefix

    def changing(*given, **more):
        found = real(*given, **more)
        with writer.path.open("ab") as file:
            file.write(b"more")
        return found

    monkeypatch.setattr(inputs, "decode_prefix", changing)
    flags = ["--model_id", "tiny", "--seed", "3", "--outdir", str(tmp_path / "out"), "--inference_steps", "1"]
    flags += ["--video_path", str(writer.path), "--num_frames", "4", "--base_num_frames", "21", "--device", "cpu"]
    assert conductor.main(FORCING, cli.parse_diffusion_forcing, flags) == 2
    assert f"--video_path {writer.path}: has changed while it was read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_second_signal_ends_what_python_cannot_interrupt():
    code = (
        "import hashlib; from skyreels_v2_infer.run.signals import Interrupts\n"
        "with Interrupts():\n"
        "    print('on', flush=True); hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, env=environment())
    assert process.stdout.readline() == b"on\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGINT)
    try:
        assert process.wait(20) == 143
    finally:
        process.kill()
        process.stdout.close()


def test_nothing_heavy_is_imported():
    code = (
        "import sys; from skyreels_v2_infer.run import resume; assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
