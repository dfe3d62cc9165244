"""--prompt auto with small models: the image or the video is captioned, and the caption becomes the prompt."""

import gc
import json
import weakref

import numpy as np
import pytest
import tiny_talkers
from captions import TEXT
from PIL import Image
from script_runs import FORCING, GENERATE, run, scene, write_clip

from skyreels_v2_infer.captioner import qwen
from skyreels_v2_infer.chat import local
from skyreels_v2_infer.cli.arguments import parse_diffusion_forcing
from skyreels_v2_infer.plan.auto_prompt import wish_in
from skyreels_v2_infer.run.auto_prompt import shown_first
from skyreels_v2_infer.run.main import main

MOTION = "Woman: walks along the pier, calm. Mammal: runs beside her."
CAMERA = "The camera moves backwards, tracking."


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tiny_talkers.write_captioner(folder / "captioner", TEXT)
    tiny_talkers.write_captioner(folder / "mute", "There is a woman.")
    tiny_talkers.write_chat_model(folder / "chat", "A woman walks along the pier.\n\nThe end.")
    return folder


@pytest.fixture
def given(tmp_path):
    """A picture and a video of 30 frames that becomes brighter."""
    Image.fromarray(scene(48, 64)).save(tmp_path / "image.png")
    write_clip(tmp_path / "video.mp4", [np.full((64, 64, 3), 20 + 6 * t, np.uint8) for t in range(30)])
    return tmp_path


def flags(models, captioner="captioner", fusion="none"):
    fusion = fusion if fusion == "none" else models / fusion
    common = ("--model_id", "tiny", "--inference_steps", 2, "--seed", 1, "--device", "cpu", "--no_preview")
    return (*common, "--captioner_model", models / captioner, "--fusion_model", fusion)


def prompt_in(result) -> str:
    return json.loads(result.path.with_suffix(".json").read_text())["settings"]["prompt"]


def test_the_image_becomes_the_prompt(models, given):
    more = ("--image", "image.png", "--num_frames", 5)
    result = run(GENERATE, "--prompt", "auto", *more, *flags(models), cwd=given)
    assert result.path.name == "auto_1.mp4"
    assert f"prompt: {MOTION} {CAMERA}" in result.lines
    assert prompt_in(result) == f"{MOTION} {CAMERA}"
    # the video is the one of that prompt
    words = ("--prompt", f"{MOTION} {CAMERA}", "--outdir", "same")
    own = run(GENERATE, *words, *more, *flags(models)[:9], cwd=given)
    assert np.array_equal(own.frames, result.frames)


def test_the_end_of_a_video_becomes_the_prompt(models, given):
    more = ("--video_path", "video.mp4", "--num_frames", 4, "--base_num_frames", 9, "--overlap_history", 5)
    result = run(FORCING, "--prompt", "auto:'she turns'", *more, *flags(models, fusion="chat"), cwd=given)
    assert prompt_in(result) == f"A woman walks along the pier. {CAMERA}"


@pytest.mark.slow
def test_without_a_caption_the_users_text_is_the_prompt(models, given):
    more = ("--image", "image.png", "--num_frames", 5)
    result = run(GENERATE, "--prompt", 'auto:"she turns"', *more, *flags(models, "mute"), cwd=given)
    assert prompt_in(result) == "she turns"
    said = "--prompt auto: the captioner gave no caption: there is no JSON in it"
    assert f"{said}; the prompt is your text: she turns" in result.lines
    result = run(GENERATE, "--prompt", "auto", *more, *flags(models, "mute"), "--outdir", "none", cwd=given)
    assert result.code == 1
    assert f"{said}; no video was written" in result.lines[-1]


def test_both_models_are_gone_before_the_video_model_is_loaded(models, given, monkeypatch):
    monkeypatch.chdir(given)
    alive = []
    for kind in (qwen.QwenCaptioner, local.Chat):
        begin = kind.__init__

        def remembered(self, *args, begin=begin, **more):
            gc.collect()
            assert all(model() is None for model in alive), "two language models at a time"
            begin(self, *args, **more)
            alive.append(weakref.ref(self.model))

        monkeypatch.setattr(kind, "__init__", remembered)

    def open_session(*args, **more):
        gc.collect()
        assert len(alive) == 2 and all(model() is None for model in alive)
        raise OSError("far enough")

    argv = ("--prompt", "auto", "--image", "image.png", "--num_frames", 5, *flags(models, fusion="chat"))
    assert main(FORCING, parse_diffusion_forcing, [*map(str, argv)], open_session) == 1


def test_what_the_captioner_sees(given, monkeypatch):
    monkeypatch.chdir(given)
    common = ["--model_id", "tiny", "--prompt", "auto", "--captioner_model", "a/b"]
    image = shown_first(parse_diffusion_forcing([*common, "--image", "image.png"]))
    assert image.shape == (16, 420, 360, 3) and (image == image[0]).all()
    last = [
        "--video_path",
        "video.mp4",
        "--num_frames",
        "4",
        "--base_num_frames",
        "17",
        "--overlap_history",
        "5",
        "--keep_rate",
    ]
    frames = shown_first(parse_diffusion_forcing([*common, *last]))
    levels = [round((float(frame.mean()) - 20) / 6) for frame in frames]
    assert levels == list(range(13, 29))  # the last 17 without the last one, by the published rule


@pytest.mark.parametrize(
    ("prompt", "wish"),
    [
        ("auto", ""),
        (" auto ", ""),
        ("auto:", ""),
        ("auto:she turns", "she turns"),
        ('auto:"she turns"', "she turns"),
        ("auto: she\nturns ", "she\nturns"),
        ("automatic doors", None),
        ("an auto", None),
        (None, None),
    ],
)
def test_the_words_behind_auto(prompt, wish):
    assert wish_in(prompt) == wish
