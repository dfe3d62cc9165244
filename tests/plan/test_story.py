"""Stories: read, checked, put onto windows, and told to the model."""

import json
from dataclasses import replace

import pytest
import small_checkpoints
import torch
from script_runs import FORCING, run
from test_dry_run import StubTransformer, StubVAE

from skyreels_v2_infer import DiffusionForcingPipeline
from skyreels_v2_infer.cli import arguments as cli
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.plan.story import Scene, of_prompts, read_story, scenes_of
from skyreels_v2_infer.run.dry_run import described
from skyreels_v2_infer.scheduler.windows import plan_windows

SCENES = [
    {"start": 0, "prompt": "a red circle moves slowly up"},
    {"start": "2s", "prompt": "a red circle stands still"},
]
TINY = ("--model_id", "tiny", "--num_frames", 65, "--inference_steps", 3, "--seed", 3)


def test_a_story_is_read_from_a_file_or_from_its_text(tmp_path):
    full = [*SCENES, {"start": 50, "prompt": "c", "negative_prompt": "", "guidance_scale": 1, "seed": 0}]
    expected = (Scene(0, SCENES[0]["prompt"]), Scene(32, SCENES[1]["prompt"]), Scene(50, "c", "", 1.0, 0))
    (tmp_path / "story.json").write_text(json.dumps(full))
    (tmp_path / "story.yaml").write_text(
        f"- {{start: 0, prompt: {SCENES[0]['prompt']}}}\n- {{start: 2s, prompt: {SCENES[1]['prompt']}}}\n"
        '- {start: 50, prompt: c, negative_prompt: "", guidance_scale: 1, seed: 0}\n'
    )
    for text in (str(tmp_path / "story.json"), str(tmp_path / "story.yaml"), json.dumps(full)):
        assert read_story(text, fps=16) == expected


@pytest.mark.parametrize(
    ("story", "wrong"),
    [
        ("no.json", "cannot be read"),
        ("[{]", "cannot be read"),
        ("[]", "must be a list of scenes"),
        ('[{"start": 0}]', "scene 1: prompt must be text"),
        ('[{"start": 0, "prompt": " "}]', "scene 1: prompt must be text"),
        ('[{"start": 0, "prompt": "auto"}]', "scene 1: prompt auto is for --prompt"),
        ('[{"start": 0, "prompt": "auto: at night"}]', "scene 1: prompt auto is for --prompt"),
        ('["a swan"]', "scene 1: must be a mapping"),
        ('[{"start": 4, "prompt": "a"}]', "scene 1: start must be 0"),
        ('[{"start": 0, "prompt": "a"}, {"start": 0, "prompt": "b"}]', "scene 2: start must be after"),
        ('[{"start": -1, "prompt": "a"}]', "scene 1: start must be a frame"),
        ('[{"start": "soon", "prompt": "a"}]', "scene 1: start must be a frame"),
        ('[{"start": "1e999s", "prompt": "a"}]', "scene 1: start must be a frame"),
        (f'[{{"start": {"9" * 4000}, "prompt": "a"}}]', "scene 1: start must be a frame"),
        (f'[{{"start": {"9" * 5000}, "prompt": "a"}}]', "cannot be read"),
        ('[{"start": true, "prompt": "a"}]', "scene 1: start must be a frame"),
        ('[{"start": 0, "prompt": "a", "promt": "b"}]', "scene 1: promt is none of start, prompt, negative_prompt"),
        ('[{"start": 0, "prompt": "a", "guidance_scale": -1}]', "scene 1: guidance_scale must be"),
        ('[{"start": 0, "prompt": "a", "seed": 1.5}]', "scene 1: seed must be"),
        ('[{"start": 0, "prompt": "\\udcff"}]', "scene 1: its text must be valid UTF-8"),
        ('[{"start": 0, "prompt": "a", "negative_prompt": 3}]', "scene 1: negative_prompt must be text"),
    ],
)
def test_what_is_wrong_is_named(story, wrong):
    with pytest.raises(InputError, match="--story ") as caught:
        read_story(story, fps=24)
    assert wrong in str(caught.value)


@pytest.mark.parametrize(
    ("story", "wrong"),
    [
        (f"- {{start: {'9' * 5000}, prompt: a}}", "is not valid YAML (line 1: a number of 5000 characters)"),
        (f"- start: 0\n  prompt: a\n  seed: 0x{'f' * 5000}", "is not valid YAML (line 3: a number of 5002 characters)"),
        (f"- start: 0\n  prompt: a\n  ? 0x{'f' * 5000}\n  : 1\n", "is not valid YAML (line 3: a number of"),
        (f"- {{start: 0, prompt: a, seed: {'9' * 90}}}", "scene 1: seed must be"),
        (f"- {{start: 0, prompt: a, guidance_scale: {'9' * 90}}}", "scene 1: guidance_scale must be"),
        (f"- start: 0\n  prompt: a\n  ? {'9' * 90}\n  : 1\n", "scene 1: a key that is no text"),
        ("[" * 10_000, "is not valid YAML"),
    ],
)
def test_long_numbers_are_one_line(story, wrong, tmp_path):
    (tmp_path / "story.yaml").write_text(story)
    with pytest.raises(InputError, match="--story ") as caught:
        read_story(str(tmp_path / "story.yaml"), fps=24)
    assert wrong in str(caught.value) and len(str(caught.value)) < 500


def test_scenes_begin_where_windows_begin():
    windows = plan_windows(65, 33, 17)
    assert [window.first_frame for window in windows] == [0, 33, 49]
    a, b = Scene(0, "a"), Scene(20, "b")
    assert scenes_of([a, b], windows) == [a, b, b]
    assert scenes_of([a, replace(b, start=33)], windows)[1].prompt == "b"
    assert [scene.prompt for scene in scenes_of([a, replace(b, start=34)], windows)] == ["a", "a", "b"]
    for story, never in (([a, replace(b, start=50)], 50), ([a, Scene(10, "c"), replace(b, start=32)], 10)):
        with pytest.raises(InputError, match=rf"frame {never} on would never begin; windows begin at frames 0, 33, 49"):
            scenes_of(story, windows)


def test_behind_a_video_frames_are_counted_from_its_beginning():
    windows = plan_windows(32, 33, 17, prefix_frames=33)
    assert scenes_of([Scene(0, "a"), Scene(40, "b")], windows)[1].prompt == "b"
    with pytest.raises(InputError, match="from frame 0 on would never begin; windows begin at frames 33, 49"):
        scenes_of([Scene(0, "a"), Scene(16, "b")], windows)


def test_a_prompt_for_each_window():
    windows = plan_windows(65, 33, 17)
    assert of_prompts(["a", "b"], windows) == (Scene(0, "a"), Scene(33, "b"))
    with pytest.raises(InputError, match="--prompt: 4 prompts for 3 windows; at most one each"):
        of_prompts(list("abcd"), windows)


class Listening(StubTransformer):
    """Notes which prompt's embedding each call reads."""

    def forward(self, x, t, context, **kw):
        self.heard.append(float(context[0, 0, 0]))
        return super().forward(x, t, context, **kw)


class Letters(torch.nn.Module):
    """Encodes a prompt as the number of its first letter."""

    def encode(self, prompts, text_len):
        prompts = [prompts] if isinstance(prompts, str) else prompts
        return torch.stack([torch.full((1, 4), float(ord(p[0]) if p else 0)) for p in prompts])


def told(story, **settings) -> tuple[list[str], torch.Tensor]:
    transformer = Listening()
    transformer.heard = []
    pipeline = DiffusionForcingPipeline.from_parts(transformer, StubVAE(), Letters())
    latents = pipeline(
        "z", "n", height=16, width=16, num_frames=65, num_inference_steps=1, base_num_frames=33, overlap_history=17,
        ar_step=0, seed=1, story=story, output_type="latent", **settings,
    )  # fmt: skip
    return [chr(int(value)) for value in transformer.heard], latents


def test_each_window_hears_its_scene():
    story = [Scene(0, "a"), Scene(33, "b", negative_prompt="m"), Scene(49, "c", guidance_scale=1)]
    assert told(story)[0] == ["a", "n", "b", "m", "c"]
    assert told(None)[0] == ["z", "n"] * 3


def test_a_scene_s_seed_changes_its_windows_only():
    plain = told([Scene(0, "a"), Scene(33, "b")])[1]
    seeded = told([Scene(0, "a"), Scene(33, "b", seed=9)])[1]
    assert torch.equal(plain[:, :, :9], seeded[:, :, :9])
    assert not torch.equal(plain[:, :, 9:], seeded[:, :, 9:])


def test_the_plan_shows_where_scenes_begin():
    argv = ["--model_id", "tiny", "--num_frames", "65", "--fps", "16", "--story", json.dumps(SCENES)]
    settings = cli.parse_diffusion_forcing(argv)
    assert settings.prompt == SCENES[0]["prompt"]
    about = described(settings)
    assert [window["prompt"] for window in about["windows"]] == [s["prompt"] for s in (SCENES[0], SCENES[1], SCENES[1])]
    alone = [*argv[:-1], json.dumps([SCENES[0], SCENES[1] | {"guidance_scale": 1}])]
    assert described(cli.parse_diffusion_forcing(alone))["forwards"] == about["forwards"] - 2 * 20


@pytest.mark.slow
def test_a_story_is_told_replayed_and_resumed(tmp_path):
    (tmp_path / "story.json").write_text(json.dumps(SCENES))
    told = run(FORCING, *TINY, "--story", "story.json", cwd=tmp_path)
    prompts = [scene["prompt"] for scene in SCENES]
    same = run(FORCING, *TINY, "--prompt", *prompts, "--outdir", "same", cwd=tmp_path)
    assert (told.frames == same.frames).all()
    other = run(FORCING, *TINY, "--prompt", prompts[0], "--outdir", "other", cwd=tmp_path)
    assert (other.frames[:33] == told.frames[:33]).all() and (other.frames[33:] != told.frames[33:]).any()
    (tmp_path / "story.json").unlink()
    again = run(FORCING, "--replay", told.path, "--outdir", "again", cwd=tmp_path)
    assert again.path.read_bytes() == told.path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("history", ["pixel", "latent"])
def test_after_a_change_only_windows_from_there_on_are_made(tmp_path, history):
    def tell(*prompts, frames=65, outdir="kept", keep=("--keep_parts",)):
        argv = ("--num_frames", frames, "--prompt", *prompts, "--outdir", outdir, "--history", history, *keep)
        return run(FORCING, *TINY[:2], *TINY[4:], *argv, cwd=tmp_path)

    a, b, c = (f"a red circle {does}" for does in ("moves up", "stays still", "moves down"))
    first = tell(a, a, b)
    assert first.err.count(" rows, ") == 3
    assert tell(a, a, b, outdir="plain", keep=()).path.read_bytes() == first.path.read_bytes()
    changed = tell(a, a, c)
    assert "--keep_parts: 2 of 3 windows " in changed.err
    assert changed.err.count(" rows, ") == 1
    assert changed.path.read_bytes() == tell(a, a, c, outdir="plain", keep=()).path.read_bytes()
    longer = tell(a, a, b, b, frames=81)
    assert "3 of 4 windows" in longer.err and longer.err.count(" rows, ") == 1
    assert longer.path.read_bytes() == tell(a, a, b, b, frames=81, outdir="plain", keep=()).path.read_bytes()
    short, grown = tell(a, frames=33, outdir="grown"), tell(a, frames=49, outdir="grown")
    assert len(short.frames) == 33 and "1 of 2 windows" in grown.err
    again = tell(a, a, b)
    assert "loaded" not in again.err and again.path.read_bytes() == first.path.read_bytes()
    assert len({run.path for run in (first, changed, longer, again)}) == 4
    assert "of 3 windows" not in tell(b, a).err  # the first window is another
    suffixes = {path.suffix for path in (tmp_path / "kept").iterdir()}
    assert suffixes == {".mp4", ".json", ".png", ".parts", ".html"}
    assert {path.suffix for path in (tmp_path / "plain").iterdir()} == {".mp4", ".json", ".png", ".html"}


def test_what_a_model_cannot_do_is_refused_before_parts_are_kept(tmp_path):
    small_checkpoints.write_original(tmp_path / "model", "df")
    result = run(FORCING, "--model_id", "model", "--keep_parts", "--teacache", "--device", "cpu", cwd=tmp_path)
    assert result.code == 2 and "--teacache" in result.lines[-1] and len(result.lines) == 1
    assert not (tmp_path / "video_out").exists()


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--story", "s", "--prompt", "a"), "--story s: give either --prompt or --story"),
        (("--prompt", "a fox", "a hen", "--num_frames", 33), "--prompt: 2 prompts for 1 window; "),
        (
            ("--prompt", "a", "swan", "--num_frames", 97),
            "--prompt a swan: one word each: a prompt with spaces needs quotes",
        ),
        (("--prompt",), "--prompt: needs a value"),
        (("--story", "[1]"), "--story [1]: scene 1: must be a mapping"),
    ],
)
def test_bad_stories_end_in_one_line(tmp_path, flags, line):
    result = run(FORCING, "--model_id", "tiny", *flags, cwd=tmp_path)
    assert result.code == 2 and len(result.lines) == 1
    assert result.err.startswith(f"generate_video_df.py: {line}")
