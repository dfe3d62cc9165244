"""A run with a local model does not touch the network: no socket but the pair that wakes the signal thread."""

import subprocess
import sys
from pathlib import Path

import pytest
from script_runs import FORCING, GENERATE, ROOT, environment

HERE = Path(__file__).parent
SHORT = ("--device", "cpu", "--inference_steps", 1, "--seed", 3, "--prompt", "a red circle")
NAMES = {"socket.__new__", "socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto", "urllib.Request"}

# As sitecustomize, in the script's process and in Python processes that it starts.
RECORDER = """
import os, socket, sys
def heard(event, arguments):
    if event in {names!r}:
        if event == "socket.__new__" and arguments[1] == socket.AF_UNIX:
            return  # socketpair
        with open(os.environ["SOCKETS"], "a") as file:
            file.write(f"{{event}} {{arguments[1:]!r}}\\n")
sys.addaudithook(heard)
open(os.environ["SOCKETS"], "a").write("listening\\n")
"""


def sockets(folder: Path, *command: object, **more: str) -> tuple[int, list[str]]:
    """Exit code of a command, and what it did with sockets."""
    site = folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(RECORDER.format(names=NAMES))
    words = [*map(str, (sys.executable, *command))]
    env = environment(PYTHONPATH=str(site), SOCKETS=str(folder / "sockets"), **more)
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=180)
    first, *rest = (folder / "sockets").read_text().splitlines()
    assert first == "listening"
    return done.returncode, [line for line in rest if line != "listening"]


PICTURE = ROOT / "docs/images/square_left.png"


@pytest.mark.parametrize(
    "command",
    [
        pytest.param((GENERATE, *SHORT, "--num_frames", 5), id="generate"),
        pytest.param((FORCING, *SHORT, "--num_frames", 49), id="windows"),
        pytest.param((FORCING, *SHORT, "--num_frames", 49, "--dry_run"), id="dry-run"),
        pytest.param(
            (GENERATE, *SHORT, "--num_frames", 5, "--image", ROOT / "docs/images/square_left.png"), id="image"
        ),
    ],
)
def test_a_run_with_the_embedded_model_opens_no_socket(tmp_path, command):
    """Also where the hub could be asked."""
    script, *argv = command
    assert sockets(tmp_path, ROOT / script, *argv, "--model_id", "tiny", HF_HUB_OFFLINE="0") == (0, [])


def test_the_recorder_sees_a_connection(tmp_path):
    """What would be found if there were one."""
    attempt = ("--image", "http://127.0.0.1:9/picture.png", "--dry_run")
    code, seen = sockets(tmp_path, ROOT / FORCING, *SHORT, *attempt, "--model_id", "tiny")
    assert code != 0 and any(line.startswith("socket.connect") and "127.0.0.1" in line for line in seen)
