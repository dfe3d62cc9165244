"""A hub that cannot be reached: every entry point says so within seconds, once, in one line."""

import socket
import time
from contextlib import contextmanager

import pytest
from loopback import server
from script_runs import FORCING, GENERATE, run

from skyreels_v2_infer import hub
from skyreels_v2_infer.chat.local import Chat
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.pipelines import prompt_enhancer
from skyreels_v2_infer.run import calibrate
from skyreels_v2_infer.weights import convert
from skyreels_v2_infer.weights.download import download_model


@contextmanager
def address(kind: str):
    """Of a port where nobody listens, or of one where nobody answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if kind == "silent":
            listening.listen(50)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture(params=["refused", "silent"])
def endpoint(request, monkeypatch, tmp_path, asked_hub):
    hub.silence.cache_clear()
    monkeypatch.setattr(hub, "PATIENCE", 0.3)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with address(request.param) as found:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", found)
        yield found


def test_what_does_not_answer(endpoint):
    began = time.monotonic()
    assert hub.silence(endpoint) and hub.silence(endpoint)
    assert time.monotonic() - began < 3


def test_any_answer_is_one(asked_hub):
    """Also that there is no such page, as for a method that the server here does not have."""
    with server(b"") as (url, _):
        assert hub.silence(url) is None


def test_a_model(endpoint):
    with pytest.raises(
        OSError, match=r"^--model_id some/body: no such folder, and the Hugging Face hub cannot be reached \("
    ):
        download_model("some/body")


def test_a_chat_model(endpoint):
    began = time.monotonic()
    with pytest.raises(hub.UnreachableError, match=r"^--flag some/body: no such folder, .* cannot be reached \("):
        Chat("some/body", "flag")
    assert time.monotonic() - began < 10


def test_a_chat_model_that_was_downloaded_before(endpoint, tmp_path, monkeypatch):
    place = tmp_path / "models--some--body" / "snapshots" / "0"
    place.mkdir(parents=True)
    (place / "config.json").write_text("{}")
    (tmp_path / "models--some--body" / "refs").mkdir()
    (tmp_path / "models--some--body" / "refs" / "main").write_text("0")
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    assert hub.only_local("some/body", "flag")
    with pytest.raises(InputError, match="--flag some/body: "):  # not the hub's silence
        Chat("some/body", "flag")


@pytest.mark.parametrize(
    ("tool", "argv"),
    [
        (prompt_enhancer.main, ["--prompt", "fox"]),
        (calibrate.main, ["--model_id", "some/body"]),
        (convert.main, ["some/body", "out.safetensors", "--to", "file"]),
    ],
)
def test_tools(endpoint, tool, argv, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["tool", *argv])
    try:
        code = tool() if tool is prompt_enhancer.main else tool(argv)
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("downloading ")]
    assert (code, out, len(lines)) == (1, "", 1) and lines[0].count("cannot be reached") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "argv"),
    [
        (GENERATE, ["--model_id", "some/body"]),
        (FORCING, ["--model_id", "tiny", "--prompt_enhancer"]),
        ("caption_video.py", ["--input", "clip.mp4"]),
    ],
)
def test_scripts(script, argv, tmp_path):
    (tmp_path / "clip.mp4").touch()
    with address("silent") as found:
        began = time.monotonic()
        made = run(script, *argv, cwd=tmp_path, HF_HUB_OFFLINE="0", HF_ENDPOINT=found, HF_HOME=str(tmp_path / "hub"))
    assert made.code == 1 and time.monotonic() - began < 30
    assert sum("cannot be reached" in line for line in made.lines) == 1 and "Traceback" not in made.err
