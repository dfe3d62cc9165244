"""The fuzzer finds nothing in about two minutes, and would find what it looks for."""

import subprocess
import sys
from pathlib import Path
from random import Random

import cases
import mutate
import oracle
import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
def test_nothing_is_found_in_two_minutes(tmp_path):
    command = [sys.executable, HERE / "fuzz.py", "--seconds", 120, "--seed", 22, "--failures", tmp_path / "failures"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.splitlines()[-1].endswith(" 0 failed")


@pytest.fixture
def template(tmp_path):
    """A template without checkpoints."""
    inputs = tmp_path / "template" / "inputs"
    inputs.mkdir(parents=True)
    (inputs / "story.json").write_text('[{"start": 0, "prompt": "a"}]')
    (inputs / "story.yaml").write_text(cases.YAML)
    return tmp_path / "template"


@pytest.mark.parametrize("kind", ["argv", "stories"])
def test_a_case_follows_from_its_seed(template, tmp_path, kind):
    first, second = ([made_of(kind, n, template, tmp_path / f"{run}-{n}") for n in range(20)] for run in "ab")
    assert first == second and len(set(first)) > 10


def made_of(kind: str, number: int, template: Path, box: Path) -> str:
    """The command of a case, and its files."""
    case = cases.make(kind, 5, number, template, box)
    files = sorted(path for path in (box / "inputs").iterdir() if path.is_file() and not path.is_symlink())
    return repr((case, [(path.name, path.read_bytes()) for path in files]))


def test_damage_changes_what_it_is_given():
    data = bytes(range(256)) * 8
    assert sum(mutate.damage(Random(n), data) != data for n in range(100)) > 90
    value = {"a": [1, 2, {"b": "c"}], "d": 1.5}
    assert sum(mutate.change(Random(n), value) != value for n in range(100)) > 90


def outcome(monkeypatch, template, tmp_path, act, argv=()) -> list[str]:
    """What is wrong with a command that does `act`."""
    box = tmp_path / "box"
    cases.lay_out(template, box)
    monkeypatch.setattr(oracle, "_call", lambda case: act())
    return oracle.run(cases.Case("parse_generate", [*argv]), box).wrong


def say(*lines: str) -> int:
    for line in lines:
        print(line, file=sys.stderr)
    return 2


def write(name: str) -> int:
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text("x")
    return 0


def hold(size: int) -> int:
    return len(b"x" * size) * 0


FAULTS = [
    pytest.param(lambda: say("one", "two"), "2 lines", id="lines"),
    pytest.param(lambda: say(), "without a word", id="no line"),
    pytest.param(lambda: 1 // 0, "traceback", id="traceback"),
    pytest.param(lambda: 3, "exit code 3", id="code"),
    pytest.param(lambda: write("elsewhere"), "wrote work/elsewhere", id="work"),
    pytest.param(lambda: write("../inputs/story.json"), "wrote inputs/story.json", id="inputs"),
    pytest.param(lambda: write("../home/file"), "wrote home/file", id="home"),
    pytest.param(lambda: subprocess.Popen(["sleep", "100"]) and 0, "left processes", id="processes"),
    pytest.param(lambda: subprocess.run(["sleep", "100"]), "hung", id="hung"),
    pytest.param(lambda: hold(5 * 2**29), "GiB", id="memory"),
]


@pytest.mark.parametrize(("act", "named"), FAULTS)
def test_a_fault_is_found(monkeypatch, template, tmp_path, act, named):
    monkeypatch.setattr(oracle, "patience", lambda: 6.0)
    assert any(named in wrong for wrong in outcome(monkeypatch, template, tmp_path, act))


def test_memory_is_counted_from_what_is_in_use(monkeypatch, template, tmp_path):
    """Not from the peak, which an earlier case may have raised."""
    hold(3 * 2**29)
    assert any("GiB" in wrong for wrong in outcome(monkeypatch, template, tmp_path, lambda: hold(5 * 2**29)))


@pytest.mark.parametrize(
    "act", [lambda: 0, lambda: say("one"), lambda: write("video_out/x.mp4"), lambda: write("../home/.cache/x")]
)
def test_what_is_allowed_is_no_fault(monkeypatch, template, tmp_path, act):
    assert outcome(monkeypatch, template, tmp_path, act) == []


@pytest.mark.parametrize(
    ("env", "argv", "lines", "wrong"),
    [
        ({"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}, [], 0, False),  # the first rank says it
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, [], 0, True),
        ({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}, [], 0, True),
        ({}, [], 3, True),
    ],
)
def test_how_many_lines_a_refusal_has(env, argv, lines, wrong):
    case = cases.Case("parse_generate", argv, env)
    assert any(oracle.judge(2, "a line\n" * lines, case)) == wrong


def test_an_output_folder_that_is_asked_for_may_be_written(monkeypatch, template, tmp_path):
    act = lambda: write("../home/videos/x")  # noqa: E731
    assert outcome(monkeypatch, template, tmp_path, act, ["--outdir", "~/videos"]) == []


def test_the_flags_of_both_scripts_are_known():
    generate, forcing = cases.FLAGS["parse_generate"], cases.FLAGS["parse_diffusion_forcing"]
    assert generate.keys() < forcing.keys() and forcing["--story"]["takes"] and not forcing["--resume"]["takes"]
    assert generate["--resolution"]["choices"] == ["540P", "720P"]
    assert cases.FLAGS["parse_captions"]["--task"]["choices"] == ["struct", "t2v", "i2v"]
