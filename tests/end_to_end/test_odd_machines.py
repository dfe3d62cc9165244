"""Odd arguments, machines and terminals: one line and the right exit code, and no video is lost."""

import json
import os
import subprocess
import sys
import threading

import pytest
from script_runs import FORCING, GENERATE, ROOT, contents, environment, read_frames, run

from skyreels_v2_infer import console
from skyreels_v2_infer.cli import arguments as cli
from skyreels_v2_infer.media import images
from skyreels_v2_infer.run import main as conductor
from skyreels_v2_infer.weights.download import local_folder

SHORT = ("--model_id", "tiny", "--num_frames", 5, "--inference_steps", 1, "--seed", 3, "--device", "cpu")
DIGITS = "9" * 5000


def refused(argv, capsys, parse=cli.parse_diffusion_forcing) -> str:
    with pytest.raises(SystemExit) as stop:
        parse(argv)
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == "" and err.count("\n") == 1, err
    return err


# ---- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["outdir", "prompt", "image", "seed", "model_id", "dry_run", "offload", "replay"])
def test_two_dashes_are_no_value(flag, capsys):
    assert f"--{flag}: " in refused([f"--{flag}=--"], capsys)
    assert f"--{flag}: " in refused(["--seed", "3", f"--{flag}=--", "--fps", "16"], capsys)


@pytest.mark.parametrize("flag", ["--seed", "--num_frames", "--shift", "--fps", "--device=cuda:"])
def test_a_number_of_5000_digits_is_one_line(flag, capsys):
    argv = [flag + DIGITS] if flag.endswith(":") else [flag, DIGITS]
    assert flag.partition("=")[0] in refused(argv, capsys)


@pytest.mark.parametrize("digits", [DIGITS, DIGITS[:4000]])
def test_a_manifest_with_such_a_number_is_one_line(tmp_path, digits, capsys):
    (tmp_path / "a.json").write_text(f'{{"format": 1, "script": "{FORCING}", "settings": {{"seed": {digits}}}}}')
    refused(["--replay", str(tmp_path / "a.json")], capsys)


def test_a_home_that_nobody_has(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for flag in ("--outdir", "--image", "--video_path", "--replay"):
        assert f"{flag} ~nosuchuser/m: " in refused([flag, "~nosuchuser/m"], capsys)
    (tmp_path / "~nosuchuser").mkdir()
    assert cli.parse_generate(["--outdir", "./~nosuchuser/m"]).outdir.parts == ("~nosuchuser", "m")
    with pytest.raises(ValueError, match="--model_id ~nosuchuser2/m: "):
        local_folder("~nosuchuser2/m")


def test_a_user_without_a_home_can_give_an_address(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: str(path))  # as it is without HOME and without such a user
    with pytest.raises(OSError, match="cannot be downloaded"):
        images.download_image("http://127.0.0.1:9/a.png")


# ---- machines --------------------------------------------------------------------------------------------------------


def test_a_thousand_new_folders(tmp_path):
    deep = tmp_path.joinpath(*["d"] * 1000)
    try:
        made = run(GENERATE, *SHORT, "--outdir", os.path.relpath(deep, tmp_path), cwd=tmp_path)
        assert made.code == 0, made.err
        assert len(read_frames(made.path)) == 5
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "d"])  # pytest's own cleaning up recurses too deep


def test_folders_that_cannot_be_made_are_one_line_and_leave_nothing(tmp_path):
    deep = "/".join(["deep", *["dddd"] * 1000])
    flags = [word for word in SHORT if word not in ("--seed", 3)]
    result = run(GENERATE, *flags, "--outdir", deep, cwd=tmp_path)
    assert result.code == 2 and len(result.lines) == 1 and "--outdir deep/" in result.err
    assert contents(tmp_path) == []


def test_no_more_threads_is_one_line(tmp_path, monkeypatch, capsys):
    def start(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    argv = [*map(str, SHORT), "--outdir", str(tmp_path)]
    assert conductor.main(GENERATE, cli.parse_generate, argv) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "can't start new thread" in err


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("script", [GENERATE, FORCING])
def test_a_signal_during_the_first_imports(tmp_path, script, name, code):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, module, *more):\n"
        f"        if module == 'numpy': os.kill(os.getpid(), signal.{name})\n"
        "sys.meta_path.insert(0, Interrupting())\n"
    )
    result = run(script, "--dry_run", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert result.code == code and len(result.lines) == 1, result.err
    assert result.err.startswith(f"{script}: interrupted")


# ---- terminals -------------------------------------------------------------------------------------------------------


def shell(line: str, folder) -> subprocess.CompletedProcess:
    """Runs a line of bash, in which $RUN makes a short video; the exit code is the script's."""
    command = " ".join(map(str, (sys.executable, ROOT / FORCING, *SHORT)))
    environ = environment(RUN=command)
    words = ["bash", "-c", f"set -o pipefail; {line}"]
    return subprocess.run(words, cwd=folder, env=environ, capture_output=True, text=True, timeout=180)


@pytest.mark.parametrize("where", ["2>/dev/full", "2>&-", "2>&- <&-", "2> >(exit)"])
def test_a_stderr_that_cannot_be_written_loses_no_video(tmp_path, where):
    done = shell(f"$RUN --fps 15 {where}", tmp_path)
    assert done.returncode == 0
    assert len(read_frames(tmp_path / done.stdout.removesuffix("\n"))) == 5


def test_a_reader_that_has_ended_loses_no_video(tmp_path):
    done = shell("$RUN 2>&1 | head -1", tmp_path)
    assert done.returncode == 1 and done.stdout.count("\n") == 1  # the path could not be printed
    (video,) = (tmp_path / "video_out").glob("*.mp4")
    assert len(read_frames(video)) == 5 and json.loads(video.with_suffix(".json").read_text())


@pytest.mark.parametrize("where", ["2>/dev/full", "2>&-"])
def test_exit_codes_do_not_depend_on_stderr(tmp_path, where):
    assert shell(f"$RUN --seed=x {where}", tmp_path).returncode == 2
    assert shell(f"$RUN --story none.json {where}", tmp_path).returncode == 2
    assert shell(f"$RUN --model_id none/here --offload {where}", tmp_path).returncode in (1, 2)


def test_messages_and_progress_bars_are_dropped_where_they_cannot_be_written(monkeypatch):
    from tqdm import tqdm

    reading, writing = os.pipe()
    with os.fdopen(writing, "w", buffering=1) as stream:
        os.close(reading)
        monkeypatch.setattr(sys, "stderr", console.Lenient(stream))
        for _ in tqdm(range(3), mininterval=0):
            console.say("a message")
        monkeypatch.setattr(sys, "stderr", stream)
        console.say("another")
