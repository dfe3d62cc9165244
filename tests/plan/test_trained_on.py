"""Words and sizes that a model was not trained on are named before a run."""

import json
import re

import pytest

from skyreels_v2_infer import embedded
from skyreels_v2_infer.cli import arguments as cli
from skyreels_v2_infer.cli.defaults import TINY
from skyreels_v2_infer.cli.planning import plan_without_model
from skyreels_v2_infer.plan.trained_on import FILE, outside
from skyreels_v2_infer.run.dry_run import described
from training import export, grammar, world

FOLDERS = [embedded.folder(image_to_video=kind) for kind in (False, True)]


def remarks(*argv: object) -> list[str]:
    """What --dry_run says of the model's limits."""
    settings = cli.parse_diffusion_forcing(["--model_id", "tiny", *map(str, argv)])
    return [line for line in described(settings)["remarks"] if "trained on" in line]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("A white swan glides across a still lake at dawn", ["swan", "across", "lake", "dawn"]),
        ("a cat", ["cat"]),
        ("a pink circle", ["pink"]),
        ("ein roter Kreis", ["ein", "roter", "Kreis"]),
        ("красный круг", ["красный", "круг"]),
        ("3 circles", ["3", "circles"]),
        ("a star’s 🚀 👩\u200d🚀.", ["star's", "🚀", "👩\u200d🚀"]),
        ("लाल वृत्त", ["लाल", "वृत्त"]),
        ("...", ["..."]),
        ("A red circle on a White background", ["white background"]),
        ("a ball. the background is yellow", ["background is yellow"]),
        ("a black square", ["black square"]),
        ("a red circle, blue background", ["blue background"]),
    ],
)
def test_unknown_words_are_named_in_one_line(prompt, words):
    (line,) = remarks("--prompt", prompt)
    assert re.findall('"(.+?)"', line) == words and line.startswith("--prompt: ") and "docs/world.md" in line


def test_many_unknown_words_are_counted():
    (line,) = remarks("--prompt", " ".join(f"word{i}" for i in range(20)))
    assert line.count('"') == 16 and "and 12 more" in line


def test_all_texts_are_read():
    story = json.dumps([{"start": 0, "prompt": "a red circle"}, {"start": 33, "prompt": "a red kite"}])
    (line,) = remarks("--story", story, "--num_frames", 65, "--negative_prompt", "blurry")
    assert line.startswith("--story, --negative_prompt: ") and re.findall('"(.+?)"', line) == ["kite", "blurry"]
    assert (
        remarks("--prompt", "a red circle", "--guidance_scale", 1, "--negative_prompt", "blurry") == []
    )  # not encoded


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--resolution", "540P"], "544x960: "),
        (["--height", 64, "--width", 128], "64x128: "),
    ],
)
def test_other_sizes_are_named_in_one_line(argv, named):
    (line,) = remarks(*argv)
    assert line.startswith(named) and "64x64" in line


def test_nothing_is_said_of_what_a_model_knows():
    assert remarks("--num_frames", 257) == []
    mix = world.Mix(bounce=0.1, star=0.2, diagonal=0.3, spin=0.2, growth=0.2, camera=0.1, pair=0.1)
    assert remarks("--prompt", "a white ball on a navy blue background. the background is navy blue") == []
    assert remarks("--prompt", "white ball, background black") == remarks("--prompt", "background black, square") == []
    for split in ("train", "test"):
        drawn = " ".join(world.sample_clip(3, index, 17, mix, split).prompt for index in range(150))
        assert remarks("--prompt", drawn) == []


def test_the_files_say_what_the_model_was_trained_on(tmp_path):
    export.write_trained_on(tmp_path)
    expected = json.loads((tmp_path / FILE).read_text())
    assert [json.loads((folder / FILE).read_text()) for folder in FOLDERS] == [expected, expected]
    assert (expected["height"], expected["width"]) == (TINY.height, TINY.width)
    assert set(TINY.prompt.lower().split()) <= set(grammar.vocabulary())


def test_a_file_of_words_only_is_enough(tmp_path):
    plan = plan_without_model(cli.parse_diffusion_forcing(["--model_id", "tiny", "--prompt", "a cat"]), 0)
    (tmp_path / FILE).write_text(json.dumps({"words": ["a"], "see": "its page", "height": 64, "width": 64}))
    (line,) = outside(plan, tmp_path)
    assert re.findall('"(.+?)"', line) == ["cat"] and "its page has its words" in line


@pytest.mark.parametrize("text", ["[", "{}", '{"words": 1}', '{"words": [], "see": "", "height": "x"}'])
def test_a_file_that_is_unusable_says_nothing(tmp_path, text):
    plan_of_tiny = cli.parse_diffusion_forcing(["--model_id", "tiny", "--prompt", "a cat"])
    (tmp_path / FILE).write_text(text)
    plan = plan_without_model(plan_of_tiny, 0)
    assert outside(plan, tmp_path) == [] and len(outside(plan, FOLDERS[0])) == 1
    assert outside(plan, tmp_path / "none") == []
