"""Every command in the documents works, and the videos that they make show what their prompts say."""

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from documents import Block, blocks
from script_runs import FORCING, GENERATE, ROOT, environment, read_frames, write_clip

from skyreels_v2_infer.cli.arguments import parse_diffusion_forcing, parse_generate
from skyreels_v2_infer.run.captions import CaptionWork
from skyreels_v2_infer.run.dry_run import dry_run
from skyreels_v2_infer.run.main import main
from skyreels_v2_infer.run.signals import Interrupts
from training import grammar, judge, scores

FOUND = blocks()
WHERE = {block.place: block for block in FOUND}


def of(kind: str):
    return pytest.mark.parametrize("block", [block for block in FOUND if block.kind == kind], ids=lambda b: b.place)


def commands(block: Block) -> list[list[str]]:
    """The words of each line that starts Python or torchrun, comments removed."""
    found = []
    for line in block.text.replace("\\\n", " ").splitlines():
        words = [] if "$" in line else shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # environment variables
            del words[0]
        if words and words[0] in ("python", "torchrun"):
            found.append(words)
    return found


def test_every_command_is_tested_somehow():
    assert [block.place for block in FOUND if block.kind is None] == [] and len(FOUND) > 50
    assert all(commands(block) for block in FOUND if block.kind in ("dry", "refused"))


@of("dry")
def test_commands_for_gpus_have_a_plan(block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").mkdir()
    frames = [np.full((64, 96, 3), 3 * i, np.uint8) for i in range(20)]
    write_clip(tmp_path / "clips" / "a.mp4", frames)
    (tmp_path / "captions.csv").write_text('path,structural_caption\nclips/a.mp4,"{""description"": ""a pier""}"\n')
    from PIL import Image

    Image.fromarray(frames[0]).save(tmp_path / "harbour.jpg")
    for words in commands(block):
        script, argv = words[1], [*words[2:], *(["--dry_run"] * ("--dry_run" not in words))]
        if "/" in script:  # asks no model without one
            continue
        if script == "caption_video.py":
            with Interrupts() as interrupts:
                shown = CaptionWork(argv).run(interrupts)
        else:
            shown = dry_run((parse_diffusion_forcing if script == FORCING else parse_generate)(argv), 1)
        assert isinstance(shown, str) and "-> " in shown


@of("parsed")
def test_what_long_commands_name_exists(block):
    """Files and modules; their arguments are checked by --help, which names every flag."""
    for words in commands(block):
        named = [word for word in words if re.fullmatch(r"(benchmarks|tests|training|skyreels_v2_infer)/\S+", word)]
        assert all((ROOT / name.split("::")[0]).exists() for name in named), words
        if words[1] == "-m" and words[2].split(".")[0] in ("benchmarks", "training", "skyreels_v2_infer"):
            path = ROOT / words[2].replace(".", "/")
            assert path.is_dir() or path.with_suffix(".py").is_file(), words


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
@of("refused")
def test_commands_that_need_a_gpu_are_refused_in_one_line(block):
    for words in commands(block):
        if words[1].startswith("generate"):
            continue
        done = subprocess.run(
            [sys.executable, *words[1:]], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120
        )
        said = done.stderr.strip().splitlines()
        assert done.returncode == 2 and len(said) == 1 and re.search("GPU|cuda", said[0]), done.stderr


# ---- commands for a CPU ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with what the repository has, where commands may write; all have run in it, one after another."""
    made = tmp_path_factory.mktemp("documents")
    for name in ("generate_video.py", FORCING, "caption_video.py", "skyreels_v2_infer", "benchmarks", "training"):
        (made / name).symlink_to(ROOT / name)
    (made / "docs").symlink_to(ROOT / "docs")
    (made / "tests").symlink_to(ROOT / "tests")
    binaries = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environ = environment(PATH=binaries, CUDA_VISIBLE_DEVICES="", PYTHONPATH=str(ROOT))
    failed = {}
    for block in (block for block in FOUND if block.kind == "run"):
        if is_plain(block):
            code, said = here(commands(block), made)
        else:
            done = subprocess.run(
                ["bash", "-e", "-c", block.text], cwd=made, env=environ, capture_output=True, text=True, timeout=600
            )
            code, said = done.returncode, done.stderr[-2000:]
        if code:
            failed[block.place] = said
    assert not failed, failed
    return made


def is_plain(block: Block) -> bool:
    """Whether a block only starts scripts, so that they can be started in this process, where torch is loaded."""
    found = commands(block)
    only = all(words[0] == "python" and words[1] in (GENERATE, FORCING) for words in found)
    return only and len(found) == len(block.text.strip().splitlines()) and not re.search(r"[|&$<>;]", block.text)


def here(found: list[list[str]], folder: Path) -> tuple[int, str]:
    """The exit code of the first of these commands that fails, and all messages."""
    before, said = os.getcwd(), io.StringIO()
    os.chdir(folder)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            for _, script, *argv in found:
                argv += ["--device", "cpu"] if torch.cuda.is_available() else []
                code = main(script, parse_diffusion_forcing if script == FORCING else parse_generate, argv)
                if code:
                    return code, said.getvalue()
    finally:
        os.chdir(before)
    return 0, said.getvalue()


def named_in(prompt: str) -> dict[str, str]:
    """What a documented prompt says of colour, shape, motion and speed."""
    words, found = f" {prompt.lower()} ", {}
    tables = {"colour": grammar.COLOUR_WORDS, "shape": grammar.SHAPE_WORDS, "speed": grammar.SPEED_WORDS}
    for name, table in tables.items():
        for value, forms in table.items():
            if value and any(f" {form} " in words.replace(",", " ") for form in forms):
                found[name] = value
    for value in ("left", "right", "up", "down"):
        if any(f" {form}" in words for form in grammar.DIRECTION_WORDS[value]):
            found["motion"] = value
    if "still" in words:
        found["motion"] = "still"
    return found


def parts(settings: dict, frames: np.ndarray, first: int) -> list[tuple[str, np.ndarray]]:
    """The prompts of a video with the frames that show each, without those in which a change takes place.

    Args:
        first: frame with which the video that it continues ends.
    """
    if "story" not in settings:
        return [(settings["prompt"], frames[max(0, first - 17) :][:33])]
    scenes = json.loads(settings["story"])
    return [(scenes[0]["prompt"], frames[:33]), (scenes[1]["prompt"], frames[42:])]


@pytest.mark.slow
def test_documented_videos_show_what_they_say(folder):
    wrong, seen = [], 0
    for path in sorted(folder.glob("*/*.mp4")):
        if not path.with_suffix(".json").exists():
            continue
        about = json.loads(path.with_suffix(".json").read_text())
        if about["settings"]["seed"] > 999:  # drawn anew each time
            continue
        frames = read_frames(path)
        first = len(frames) - about["settings"]["num_frames"] if "video_path" in about["settings"] else 0
        for prompt, shown in parts(about["settings"], frames, first):
            named = named_in(prompt)
            assert {"colour", "shape"} <= set(named), prompt
            found = scores.score(judge.judge(shown), named)
            seen += 1
            if not (found.core and found.clean):
                wrong.append((path.name, prompt, found.attributes, found.clean))
    assert not wrong, wrong
    assert seen >= 15
