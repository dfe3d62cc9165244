"""Both scripts from end to end, as a user starts them: on small random checkpoints in both layouts, with a
photograph-like image and with real mp4 files.

A run costs about four seconds, most of them for importing torch and transformers, so runs are shared: `scripts` runs
the same command only once.
"""

import fcntl
import io
import json
import os
import pty
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import SimpleNamespace

import imageio_ffmpeg
import numpy as np
import pytest
import small_checkpoints as small
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from script_runs import (
    FORCING,
    GENERATE,
    ROOT,
    Run,
    Scripts,
    contents,
    environment,
    fitted,
    psnr,
    read_frames,
    run,
    scene,
    write_clip,
)

from skyreels_v2_infer.cli import arguments as cli
from skyreels_v2_infer.cli.planning import plan_of
from skyreels_v2_infer.modules import get_vae
from skyreels_v2_infer.run import main as conductor
from skyreels_v2_infer.run.jobs import Job
from skyreels_v2_infer.run.video import Video

HEIGHT, WIDTH = 48, 80
SMALL = ("--height", HEIGHT, "--width", WIDTH, "--inference_steps", 3)
CJK = "清晨薄霧籠罩著平靜的湖面一隻白天鵝緩緩滑過水波在牠身後泛起金色的漣漪遠山如黛" * 4
PROMPT = ("--prompt", CJK[:100])

# Windows of 25 frames are 7 latent frames: blocks of 2 and of 5 both leave a short one at the end.
WINDOWS = ("--num_frames", 57, "--base_num_frames", 25, "--overlap_history", 9)
CLIP_FRAMES, OVERLAP, ADDED = 23, 17, 8


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[tuple[str, str], Path]:
    """Folders by (task, layout); the same task has the same weights in both layouts."""
    folder = tmp_path_factory.mktemp("models")
    made = {}
    for task in ("t2v", "i2v", "df"):
        made[task, "original"] = small.write_original(folder / f"{task}-original", task)
        made[task, "diffusers"] = small.write_diffusers(folder / f"{task}-diffusers", task)
    return made


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """Pictures and clips, whole and broken, in a folder whose name has a space and no plain letter."""
    folder = tmp_path_factory.mktemp("inputs") / "мои files"
    folder.mkdir()
    for name, dusk in (("day", False), ("dusk", True)):
        Image.fromarray(scene(270, 480, dusk=dusk)).save(folder / f"{name}.jpg", quality=92)
    for name, height, width in (("wide", 180, 320), ("tall", 320, 180)):
        write_clip(folder / f"{name}.mp4", [scene(height, width, time) for time in range(CLIP_FRAMES)])
    (folder / "cut.jpg").write_bytes((folder / "day.jpg").read_bytes()[:3000])
    (folder / "cut.mp4").write_bytes((folder / "wide.mp4").read_bytes()[:3000])
    (folder / "note.txt").write_text("neither a picture nor a video")
    return folder


@pytest.fixture(scope="module")
def scripts(tmp_path_factory) -> Scripts:
    return Scripts(tmp_path_factory.mktemp("runs"))


def checked(made: Run, frames: int, size: tuple[int, int], windows: int, seed: int, fps: int = 24, remarks: int = 0):
    """What holds of every run that ends well -> its frames."""
    assert made.frames.shape == (frames, *size, 3)
    assert made.meta["source_size"] == size[::-1] and made.meta["fps"] == fps
    # The file, what tells about it, its folder and nothing else: no part file, no log.
    files = [f"video_out/{made.path.stem}.{suffix}" for suffix in ("json", "mp4", "png")]
    pieces = json.loads(made.path.with_suffix(".json").read_text())["pieces"]
    page = ["video_out/report.html"] * (len(pieces) > 1)
    assert contents(made.folder) == ["video_out", *sorted(files + page)]
    for word in ("Traceback", "Warning", "warn", "Error", "\r"):
        assert word not in made.err, made.err
    shown = [line for line in made.lines if line.startswith("window ")]
    assert [line.split(":")[0] for line in shown] == [f"window {n + 1}/{windows}" for n in range(windows)]
    # Libraries have nothing to say here: what is loaded, perhaps a remark, the windows, and last the seed.
    assert re.fullmatch(r"loaded .+ on cpu in \w+, \S+ s", made.lines[0])
    assert made.lines[-1].startswith(f"{frames} frames, seed {seed}, ")
    # A random model's windows do not fit together, which is said.
    drifts = [line for line in made.lines if " jumps where window " in line or " moved from " in line]
    chosen = [line for line in made.lines if line.startswith("by default: ")]
    assert len(drifts) <= 1 and len(chosen) <= 1
    inputs = [line for line in made.lines if re.match(r"--(image|end_image|video_path) .+: cropped ", line)]
    assert len(made.lines) - len(drifts) - len(chosen) - len(inputs) == windows + 2 + remarks, made.err
    return made.frames


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Equal but for roundings: one value that is off by 1 of 255 grows to a few in x264."""
    return one.shape == other.shape and psnr(one, other) > 50


def differ(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and psnr(one, other) < 45


# ---- text to video ---------------------------------------------------------------------------------------------------


def t2v(models, *more, layout="original") -> tuple:
    return (GENERATE, "--model_id", models["t2v", layout], *SMALL, *PROMPT, "--num_frames", 9, *more)


def test_text_to_video(scripts, models):
    made = scripts(*t2v(models, "--seed", 5, "--fps", 16))
    frames = checked(made, 9, (HEIGHT, WIDTH), windows=1, seed=5, fps=16)
    assert frames.std() > 5, "a picture, not one color"


def test_both_layouts_give_the_same_text_to_video(scripts, models):
    original = scripts(*t2v(models, "--seed", 5, "--fps", 16))
    diffusers = scripts(*t2v(models, "--seed", 5, "--fps", 16, layout="diffusers"))
    assert same(original.frames, diffusers.frames)


def test_file_names_are_short_and_plain_even_for_100_cjk_characters(scripts, models):
    """Published: the file name exceeds 255 bytes, which comes out after the generation."""
    name = scripts(*t2v(models, "--seed", 5, "--fps", 16)).path.name
    assert re.fullmatch(r"[a-z0-9_-]{1,60}\.mp4", name) and "5" in name


def test_a_second_run_repeats_the_video_and_overwrites_nothing(scripts, models):
    first = scripts(*t2v(models, "--seed", 5, "--fps", 16))
    before = first.path.read_bytes()
    second = scripts(*t2v(models, "--seed", 5, "--fps", 16), again=True)
    try:
        assert second.path == first.path.with_stem(f"{first.path.stem}-2")
        assert first.path.read_bytes() == before
        assert np.array_equal(read_frames(second.path), first.frames)
    finally:
        second.path.unlink()  # other tests look at this folder too


def test_a_seed_that_was_drawn_is_said_and_replays_the_video(scripts, models):
    drawn = scripts(*t2v(models))
    (seed,) = set(re.findall(r"seed (\d+)", drawn.err))
    assert seed in drawn.path.stem
    replayed = scripts(*t2v(models, "--seed", seed))
    assert np.array_equal(drawn.frames, replayed.frames)
    assert replayed.path.name == drawn.path.name
    # and another seed gives another video
    assert int(seed) != 5 and differ(drawn.frames, scripts(*t2v(models, "--seed", 5, "--fps", 16)).frames)


def test_bfloat16_at_a_terminal(scripts, models, tmp_path):
    """The same video but for rounding; and where somebody watches, there is a bar as well."""
    argv = t2v(models, "--seed", 5, "--fps", 16, "--dtype", "bfloat16", "--outdir", "deep/er")
    keyboard, screen = pty.openpty()
    fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # as any window has
    process = subprocess.Popen(
        [sys.executable, ROOT / argv[0], *map(str, argv[1:])],
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=screen,
    )
    os.close(screen)
    shown = b""
    try:
        while piece := os.read(keyboard, 4096):
            shown += piece
    except OSError:
        pass  # how Linux says that the other end was closed
    os.close(keyboard)
    out, _ = process.communicate(timeout=60)
    shown = shown.decode()
    assert process.returncode == 0, shown
    assert re.search(r"\r(starting|loading \S+): \d+ s\x1b\[J", shown) and "window 1/1: 3 rows, " in shown
    (path,) = (tmp_path / "deep" / "er").glob("*.mp4")
    assert out.decode() == f"{path.relative_to(tmp_path)}\n"
    exact = scripts(*t2v(models, "--seed", 5, "--fps", 16)).frames
    rounded = read_frames(path)
    assert not np.array_equal(rounded, exact), "--dtype had no effect"
    assert psnr(rounded, exact) > 25, "another video"


# ---- image to video --------------------------------------------------------------------------------------------------


def i2v(models, image: Path, layout="original") -> tuple:
    return (
        *(GENERATE, "--model_id", models["i2v", layout], *SMALL, "--image", image, "--num_frames", 9),
        *("--prompt", "a valley at noon", "--seed", 6, "--guidance_scale", 5, "--shift", 3),
    )


def test_image_to_video(scripts, models, inputs):
    day = scripts(*i2v(models, inputs / "day.jpg"))
    checked(day, 9, (HEIGHT, WIDTH), windows=1, seed=6)
    assert day.path.name == "a-valley-at-noon_6.mp4"
    dusk = scripts(*i2v(models, inputs / "dusk.jpg"))
    assert differ(day.frames, dusk.frames), "the image has no effect"


def test_both_layouts_give_the_same_image_to_video(scripts, models, inputs):
    original = scripts(*i2v(models, inputs / "day.jpg"))
    diffusers = scripts(*i2v(models, inputs / "day.jpg", layout="diffusers"))
    assert same(original.frames, diffusers.frames)


# ---- diffusion forcing, one window -----------------------------------------------------------------------------------


def df(models, *more, layout="original", frames=("--num_frames", 25)) -> tuple:
    prompt = ("--prompt", "hills", "--seed", 7)
    return (FORCING, "--model_id", models["df", layout], *SMALL, *prompt, *frames, *more)


def reconstruction(models, image: Path) -> np.ndarray:
    """The image as the VAE gives it back: all that a frame which is held can look like. Halved, see there."""
    vae = get_vae(models["df", "original"], "cpu")
    with Image.open(image) as picture:
        pixels = fitted(np.array(picture)[None], HEIGHT, WIDTH)
    video = torch.from_numpy(pixels).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    with torch.no_grad():
        decoded = vae.decode(vae.encode(video))
    return halved(((decoded[0, :, 0].permute(1, 2, 0) + 1) * 127.5).numpy())


def halved(frame: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels ``[H/2, W/2, 3]``: an mp4 stores colors at half the size, and noise has many."""
    return frame.reshape(HEIGHT // 2, 2, WIDTH // 2, 2, 3).mean((1, 3))


def test_diffusion_forcing_from_text(scripts, models):
    frames = checked(scripts(*df(models)), 25, (HEIGHT, WIDTH), windows=1, seed=7)
    assert frames.std() > 5


def test_both_layouts_give_the_same_diffusion_forcing(scripts, models):
    assert same(scripts(*df(models)).frames, scripts(*df(models, layout="diffusers")).frames)


@pytest.mark.parametrize("mode", [(), ("--ar_step", 1, "--causal_block_size", 5)], ids=["together", "blocks of 5"])
def test_a_video_begins_with_its_image(scripts, models, inputs, mode):
    """Published: with blocks of 5 the image is not held, 1 // 5 = 0, but denoised like noise."""
    frames = checked(scripts(*df(models, "--image", inputs / "day.jpg", *mode)), 25, (HEIGHT, WIDTH), windows=1, seed=7)
    day, dusk = (reconstruction(models, inputs / f"{name}.jpg") for name in ("day", "dusk"))
    assert psnr(halved(frames[0]), day) > 32
    assert psnr(halved(frames[0]), dusk) < 25 and psnr(halved(frames[8]), day) < 25  # 32 is not for everybody


def test_a_video_runs_towards_its_end_image(scripts, models, inputs):
    """Published: beside an image, and with blocks of more than one frame, the end image is never seen by the model."""
    mode = ("--image", inputs / "day.jpg", "--ar_step", 1, "--causal_block_size", 2)
    towards = {name: scripts(*df(models, *mode, "--end_image", inputs / f"{name}.jpg")) for name in ("day", "dusk")}
    day = reconstruction(models, inputs / "day.jpg")
    for made in towards.values():
        # The end image itself is no frame: published, it decodes to 4 more.
        frames = checked(made, 25, (HEIGHT, WIDTH), windows=1, seed=7)
        assert psnr(halved(frames[0]), day) > 32
    assert differ(towards["day"].frames[1:], towards["dusk"].frames[1:])


# ---- long videos -----------------------------------------------------------------------------------------------------


def long(models, *more, layout="original") -> tuple:
    return df(models, *more, layout=layout, frames=WINDOWS)


ASYNCHRONOUS = ("--ar_step", 1, "--causal_block_size", 2, "--addnoise_condition", 20)


def test_long_video_of_three_windows(scripts, models):
    frames = checked(scripts(*long(models)), 57, (HEIGHT, WIDTH), windows=3, seed=7)
    assert not same(frames[25:41], frames[41:57]), "windows repeat each other"


def test_both_layouts_give_the_same_long_video(scripts, models):
    assert same(scripts(*long(models)).frames, scripts(*long(models, layout="diffusers")).frames)


def test_frames_of_a_short_last_block_are_denoised_too(scripts, models):
    """Published: frames are floored to a multiple of the block, so the tail of every window stays noise.

    Denoised together and with full attention, blocks make no difference: any frame left out would show.
    """
    assert np.array_equal(scripts(*long(models, "--causal_block_size", 5)).frames, scripts(*long(models)).frames)


def test_long_video_with_end_image_has_no_extra_frames(scripts, models, inputs):
    """Published: an inner loop reuses the window's counter, so the end image is not cut off and adds 4 frames."""
    plain = scripts(*long(models)).frames
    towards = checked(
        scripts(*long(models, "--end_image", inputs / "dusk.jpg")), 57, (HEIGHT, WIDTH), windows=3, seed=7
    )
    assert same(towards[:41], plain[:41]), "only the last window runs towards the end image"
    assert differ(towards[41:], plain[41:])


def test_long_video_asynchronous(scripts, models):
    made = scripts(*long(models, *ASYNCHRONOUS))
    frames = checked(made, 57, (HEIGHT, WIDTH), windows=3, seed=7)
    assert differ(frames, scripts(*long(models)).frames)
    # 7 latent frames in blocks of 2 are 4 blocks, the last 3 each a step later; of a later window's 7 the first 3 are
    # history, so that 3 blocks remain: one that is half given, one whole and the short one.
    rows = [int(re.search(r"(\d+) rows", line)[1]) for line in made.lines if line.startswith("window")]
    assert rows == [3 + 3, 3 + 2, 3 + 2]


def test_addnoise_follows_the_seed(scripts, models):
    """Published: the noise on the history comes from a generator that was never seeded."""
    first = scripts(*long(models, *ASYNCHRONOUS))
    again = scripts(*long(models, *ASYNCHRONOUS), again=True)
    frames = read_frames(again.path)
    again.path.unlink()
    assert np.array_equal(first.frames, frames)


def test_long_video_asynchronous_with_causal_attention(scripts, models):
    """Published: a dense mask is passed to a kernel that accepts none, and the run crashes."""
    made = scripts(*long(models, *ASYNCHRONOUS, "--causal_attention"))
    frames = checked(made, 57, (HEIGHT, WIDTH), windows=3, seed=7)
    assert differ(frames, scripts(*long(models, *ASYNCHRONOUS)).frames), "--causal_attention has no effect"


# ---- extension -------------------------------------------------------------------------------------------------------


def extension(models, clip: Path, height: int, width: int) -> tuple:
    return (
        *(FORCING, "--model_id", models["df", "original"], "--height", height, "--width", width, "--seed", 8),
        *("--inference_steps", 2, "--prompt", "on it goes", "--video_path", clip, "--num_frames", ADDED),
        *("--overlap_history", OVERLAP, "--base_num_frames", 25),
    )


@pytest.mark.parametrize(("clip", "height", "width"), [("wide", 48, 112), ("tall", 112, 48)])
def test_extension_of_a_video(scripts, models, inputs, clip, height, width):
    """Published: a portrait video is stretched to a square; and a few frames more, as here, are none at all."""
    source = inputs / f"{clip}.mp4"
    made = scripts(*extension(models, source, height, width))
    frames = checked(made, CLIP_FRAMES + ADDED, (height, width), windows=1, seed=8)
    prefix = frames[:CLIP_FRAMES]
    # Sizes of another shape than the clip's, so that cropping and stretching differ. Each frame for itself: one that
    # is doubled or missing would shift all later ones, and the sun moves.
    theirs = read_frames(source)
    cropped = fitted(theirs, height, width)
    assert min(psnr(ours, frame) for ours, frame in zip(prefix, cropped, strict=True)) > 32
    stretched = [np.array(Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS)) for frame in theirs]
    assert psnr(prefix, np.stack(stretched)) < 28
    assert psnr(frames[-1], cropped[-1]) < 28, "the new frames are new"


def test_both_layouts_extend_alike_at_a_rate_the_model_does_not_know(scripts, models, inputs):
    """Published: any rate but 16 silently counts as 24."""
    argv = [*extension(models, inputs / "wide.mp4", 48, 112), "--fps", 10, "--keep_rate"]
    argv[2] = models["df", "diffusers"]
    made = scripts(*argv)
    frames = checked(made, CLIP_FRAMES + ADDED, (48, 112), windows=1, seed=8, fps=10, remarks=1)
    assert any("wide.mp4: " in line and "24 fps kept frame for frame" in line for line in made.lines)
    assert any(line.startswith("--fps 10: ") and "gets 24" in line for line in made.lines)
    # How hard x264 presses depends on the rate, so here frames are alike and not equal.
    assert psnr(frames, scripts(*extension(models, inputs / "wide.mp4", 48, 112)).frames) > 35


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broken_models(models, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("broken")

    def copy(name: str, task: str = "t2v") -> Path:
        return Path(shutil.copytree(models[task, "original"], folder / name))

    weights = copy("cut") / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    (copy("unweighted") / "model.safetensors").unlink()
    config = copy("wider") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dim": 2 * small.DIM}))
    weights = copy("other") / "model.safetensors"
    tensors = load_file(weights)
    tensors["head.head.weight"] = tensors["head.head.weight"][:-4].clone()
    tensors["blocks.0.surplus"] = tensors.pop("blocks.0.modulation")
    save_file(tensors, weights)
    (folder / "empty").mkdir()
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def no_torch(tmp_path_factory) -> str:
    """A folder for PYTHONPATH in which torch and its friends cannot be imported."""
    folder = tmp_path_factory.mktemp("no_torch")
    for name in ("torch", "transformers", "diffusers"):
        (folder / f"{name}.py").write_text(f"raise SystemExit('{name} was imported')\n")
    return str(folder)


def refused(made: Run, script: str, *named: str) -> str:
    """Exit code 2, one line with all of these words in it, nothing written -> the line."""
    assert (made.code, made.out) == (2, ""), made
    assert made.err.startswith(f"{script}: ") and made.err.endswith("\n") and made.err.count("\n") == 1, made.err
    for words in named:
        assert words in made.err, made.err
    assert contents(made.folder) == []
    return made.err


# The command, and what its line must hold: flag, value, and what is wrong or legal. {in}: the inputs, {name}: a model.
BAD_FOR_BOTH = [
    ("--num_frames 98", "--num_frames 98: ", "97 and 101"),
    ("--inference_steps 0", "--inference_steps 0: ", "from 1 to 10000"),
    ("--inference_steps -4", "--inference_steps -4: ", "from 1 to 10000"),
    ("--height 50 --width 80", "--height 50: ", "multiple of 16", "48 and 64"),
    ("--seed -1", "--seed -1: ", "from 0 to"),
    (f"--seed {2**64}", f"--seed {2**64}: ", "from 0 to"),
    ("--prompt=", "--prompt '': ", "empty"),
    ("--image {in}/no.jpg", "--image {in}/no.jpg: ", "existing"),
    ("--image {in}/cut.jpg", "--image {in}/cut.jpg: ", "complete picture"),
    ("--image {in}/note.txt", "--image {in}/note.txt: ", "picture"),
    ("--outdir {in}/note.txt", "--outdir {in}/note.txt: ", "folder"),
    ("--outdir {in}/note.txt/below", "--outdir {in}/note.txt/below: ", "folder"),
    ("--model_id nowhere", "--model_id nowhere: ", "no such folder"),
    ("--model_id {empty}", "--model_id {empty}: ", "config.json"),
    ("--model_id {cut}", "--model_id {cut}: ", "model.safetensors", "interrupted download"),
    ("--model_id {unweighted}", "--model_id {unweighted}: ", "transformer", "safetensors"),
    ("--use_usp", "--use_usp", "torchrun"),
    ("--teacache", "--teacache: ", "no coefficients", "T2V and DF 1.3B", "I2V at 720P"),
    ("--prompt_enhancer --prompt_enhancer_model no/where/at/all", "--prompt_enhancer_model no/where/at/all", "folder"),
]
BAD_FOR_GENERATE = [
    ("--model_id {i2v}", "--image", "{i2v}", "image-to-video"),
    ("--model_id {t2v} --image {in}/day.jpg", "--image {in}/day.jpg: ", "{t2v}", "image-to-video"),
    ("--video_path {in}/wide.mp4", "--video_path {in}/wide.mp4: ", FORCING),
]
BAD_FOR_FORCING = [
    ("--overlap_history 16", "--overlap_history 16: ", "13 and 17"),
    ("--overlap_history 25 --base_num_frames 25", "--overlap_history 25: ", "below --base_num_frames 25"),
    ("--num_frames 57 --base_num_frames 25", "--overlap_history", "not given", "--num_frames 57"),
    ("--end_image {in}/cut.jpg", "--end_image {in}/cut.jpg: ", "complete picture"),
    # Published: a mistyped path turns into plain text-to-video, a missing overlap and a lone end image into tracebacks.
    ("--video_path {in}/no.mp4 --overlap_history 17", "--video_path {in}/no.mp4: ", "existing"),
    ("--video_path {in}/cut.mp4 --overlap_history 17", "--video_path {in}/cut.mp4: ", "complete video"),
    ("--video_path {in}/wide.mp4 --overlap_history 25", "--overlap_history 25: ", str(CLIP_FRAMES)),
    ("--video_path {in}/wide.mp4", "--overlap_history", "not given"),
    ("--video_path {in}/wide.mp4 --overlap_history 17 --num_frames 98", "--num_frames 98: ", "96 and 100"),
    # Published: ignored.
    ("--image {in}/day.jpg --video_path {in}/wide.mp4 --overlap_history 17", "--image {in}/day.jpg: ", "--video_path"),
    ("--model_id {i2v}", "--model_id {i2v}: ", GENERATE),
]
BAD = [(script, *case) for case in BAD_FOR_BOTH for script in (GENERATE, FORCING)]
BAD += [(GENERATE, *case) for case in BAD_FOR_GENERATE] + [(FORCING, *case) for case in BAD_FOR_FORCING]


@pytest.mark.parametrize(("script", "command", "named"), [(s, c, n) for s, c, *n in BAD])
def test_bad_input_is_refused_at_once(script, command, named, models, broken_models, inputs, no_torch, tmp_path):
    places = {"in": inputs} | broken_models | {task: models[task, "diffusers"] for task in ("t2v", "i2v")}
    argv = [word.format_map(places) for word in command.split(" ")]
    if "--model_id" not in argv:
        # A good one, so that nothing else is wrong.
        argv += ["--model_id", models["df" if script == FORCING else "t2v", "original"]]
    if "--height" not in argv:
        argv += ["--height", HEIGHT, "--width", WIDTH]
    made = run(script, *argv, cwd=tmp_path, PYTHONPATH=no_torch)
    refused(made, script, *(words.format_map(places) for words in named))
    assert made.cpu < 1


@pytest.mark.parametrize("script", [GENERATE, FORCING])
def test_help_comes_at_once(script, no_torch, tmp_path):
    made = run(script, "--help", cwd=tmp_path, PYTHONPATH=no_torch)
    assert (made.code, made.err) == (0, "") and contents(tmp_path) == []
    assert made.out.startswith("usage: ") and "--guidance_scale" in made.out
    assert made.cpu < 1


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("wider", ["blocks.0.cross_attn.k.bias is [64], must be [128]"]),
        ("other", ["missing (blocks.0.modulation)", "unexpected (blocks.0.surplus)", "head.head.weight is [60, 64]"]),
    ],
)
def test_a_checkpoint_of_another_shape_is_refused(model, named, broken_models, tmp_path):
    """Published: weights are loaded with strict=False, and what does not fit stays random."""
    argv = (*SMALL, "--num_frames", 5, "--model_id", broken_models[model])
    made = run(GENERATE, *argv, cwd=tmp_path)
    refused(made, GENERATE, f"--model_id {broken_models[model]}: ", "transformer", *named)


# ---- what fails, and who interrupts ----------------------------------------------------------------------------------


def gave_up(made: Run, script: str, kept: str | None = None) -> None:
    """One last line after those of the finished windows; left is what it says: `kept` ("1 of 2") pieces or nothing."""
    *before, last = made.lines
    assert made.out == "" and "Traceback" not in made.err
    left = "no video was written"
    if kept is not None:
        left = f"{kept} windows are kept(, and the next one is denoised)?; the same command with --resume continues"
    assert last.startswith(f"{script}: ") and re.search(f"{left}$", last)
    assert all(line.startswith(("loaded ", "window ", "by default: ")) for line in before), made.err
    folders = list((made.folder / "video_out").iterdir()) if kept is not None else list(made.folder.iterdir())
    assert [folder.suffix for folder in folders] == ([] if kept is None else [".parts"])
    assert not list(made.folder.glob("**/*.part*.mp4"))


def test_a_writer_that_dies_fails_the_run(models, tmp_path):
    """As on a full disk: ffmpeg takes some of the frames and ends."""
    ffmpeg = tmp_path / "ffmpeg"
    # What the run tries at its start, with other files, goes well.
    starts = f'#!/bin/sh\ncase "$*" in *segment-*) ;; *) exec "{imageio_ffmpeg.get_ffmpeg_exe()}" "$@";; esac\n'
    ends = 'head -c 20000 > /dev/null\necho "av_interleaved: No space left on device" >&2\nexit 1\n'
    ffmpeg.write_text(starts + ends)
    ffmpeg.chmod(0o755)
    (tmp_path / "here").mkdir()
    script, *argv = t2v(models, "--seed", 5)
    made = run(script, *argv, cwd=tmp_path / "here", IMAGEIO_FFMPEG_EXE=str(ffmpeg))
    assert made.code == 1
    gave_up(made, script, kept="0 of 1")
    assert "the next one is denoised" in made.lines[-1] and "No space left on device" in made.lines[-1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is a thing of Linux")
def test_a_video_whose_name_cannot_be_said_is_not_denied(models, tmp_path):
    """stdout may lead to a full disk or into a closed pipe; by then the video is there, and must not be made again."""
    script, *argv = t2v(models, "--seed", 5)
    made = run(script, *argv, cwd=tmp_path, stdout_to=Path("/dev/full"))
    assert made.code == 1
    (path,) = (tmp_path / "video_out").glob("*.mp4")
    assert "Traceback" not in made.err and "no video was written" not in made.err
    assert path.name in made.lines[-1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_while_a_long_video_is_looked_through(models, inputs, no_torch, tmp_path, number, code):
    """Arguments are checked before anything heavy is imported, but --video_path is decoded to its end for that."""
    ffmpeg, here = tmp_path / "ffmpeg", tmp_path / "here"
    ffmpeg.write_text(f'#!/bin/sh\ntouch "{tmp_path}/started"\nexec sleep 60\n')
    ffmpeg.chmod(0o755)
    here.mkdir()

    def stop(err: Path) -> int | None:
        return number if (tmp_path / "started").exists() else None

    script, *argv = extension(models, inputs / "wide.mp4", 48, 112)
    made = run(script, *argv, cwd=here, stop=stop, PYTHONPATH=no_torch, IMAGEIO_FFMPEG_EXE=str(ffmpeg))
    assert made.code == code, made.err
    assert made.lines == [f"{script}: interrupted; no video was written"]
    assert contents(here) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_while_denoising(models, tmp_path, number, code):
    part_seen = []

    def stop(err: Path) -> int | None:
        # The run's folder is there from before that; an interrupt has to tidy it away. What is first done then is to
        # import things for the prompt, see the next test; some time later the loop is running.
        if not part_seen and "loaded" in err.read_text():
            assert list(tmp_path.glob("video_out/*.parts"))
            part_seen.append(time.monotonic())
        return number if part_seen and time.monotonic() > part_seen[0] + 1.5 else None

    script, *argv = t2v(models, "--seed", 5, "--inference_steps", 10_000)
    made = run(script, *argv, cwd=tmp_path, stop=stop)
    assert made.code == code, made.err
    gave_up(made, script)
    assert "interrupted" in made.lines[-1] and "window" not in made.err


STUBBORN = """
import os, signal, sys, time
from skyreels_v2_infer.run.signals import Interrupts

with Interrupts():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    except KeyboardInterrupt:
        print("tidies up", flush=True)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    finally:
        print("has tidied up", flush=True)
"""


def test_a_second_signal_ends_at_once_whatever_is_being_done():
    command = [sys.executable, "-c", STUBBORN]
    made = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=50)
    assert (made.returncode, made.stdout, made.stderr) == (143, "tidies up\n", "")


def test_a_folder_whose_name_is_no_utf8(models, tmp_path):
    said = tmp_path / "said"
    argv = t2v(models, "--outdir", os.fsdecode(b"caf\xe9"), "--dry_run")
    made = run(*argv, cwd=tmp_path, stdout_to=said, PYTHONUTF8="1")
    assert (made.code, made.err) == (0, "")
    assert said.read_bytes().splitlines()[-1].startswith(b"-> caf\xe9/")


def test_a_stdout_that_takes_ascii_only(models, tmp_path):
    argv = t2v(models, "--outdir", "鶴", "--dry_run")
    made = run(*argv, cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert (made.code, made.err) == (0, "") and made.out.splitlines()[-1].startswith("-> 鶴/")


@pytest.mark.parametrize("closed", ["1", "2"])
def test_a_stream_that_is_closed(models, tmp_path, closed):
    """What would have gone there goes nowhere else."""
    words = [sys.executable, str(ROOT / GENERATE), *map(str, t2v(models)[1:])]
    command = f"{shlex.join(words)} {closed}>&-"
    made = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    (video,) = tmp_path.glob("video_out/*.mp4")
    if closed == "1":
        assert made.returncode == 1
        complete = f"the video is complete: {video.relative_to(tmp_path)}"
        assert made.stderr.splitlines()[-1] == f"{GENERATE}: stdout cannot be written (it is closed), but {complete}"
    else:
        assert (made.returncode, made.stdout, made.stderr) == (0, f"{video.relative_to(tmp_path)}\n", "")
        refused = f"{shlex.join([*words, '--num_frames', '2'])} 2>&-"
        made = subprocess.run(["sh", "-c", refused], cwd=tmp_path, env=environment(), capture_output=True, text=True)
        assert (made.returncode, made.stdout) == (2, "")


def test_a_stdout_that_is_a_notebook_s(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert conductor.tell(GENERATE, Path("video_out/a.mp4")) == 0 and sys.stdout.getvalue() == "video_out/a.mp4\n"


def test_a_prompt_beyond_the_locale_s_letters(monkeypatch):
    def fsencode(text):
        return text.encode("ascii", "surrogateescape")

    monkeypatch.setattr(conductor.os, "fsencode", fsencode)
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    assert conductor.as_bytes("caf\udce9 swan\n") == b"caf\xe9 swan\n"
    assert conductor.as_bytes("白鳥\n") == rb"\u767d\u9ce5" + b"\n"


def test_a_machine_without_ffmpeg_says_so_before_anything_is_computed(models, tmp_path):
    made = run(*t2v(models), cwd=tmp_path, IMAGEIO_FFMPEG_EXE=str(tmp_path / "none"))
    assert made.code == 1 and "none" in made.lines[-1] and "loaded" not in made.err
    assert contents(tmp_path) == []


def test_every_setting_reaches_the_plan():
    words = "--prompt fox --negative_prompt fog --height 64 --width 96 --num_frames 33 --inference_steps 7 --seed 9"
    words += " --guidance_scale 1.5 --shift 3 --fps 16"
    forcing = " --ar_step 2 --causal_attention --causal_block_size 5 --base_num_frames 21 --overlap_history 5"
    forcing += " --addnoise_condition 20.5 --history latent"
    for parse, more in ((cli.parse_generate, ""), (cli.parse_diffusion_forcing, forcing)):
        plan = plan_of(parse((words + more).split()), None)
        for window in plan.windows:
            assert (window.prompt, window.negative_prompt, window.guidance_scale) == ("fox", "fog", 1.5)
        assert (plan.height, plan.width, plan.num_frames, plan.num_inference_steps) == (64, 96, 33, 7)
        assert (plan.seed, plan.shift, plan.fps, len(plan.sigmas)) == (9, 3, 16, 8)
        if more:
            assert (plan.ar_step, plan.causal_block_size, plan.overlap_history) == (2, 5, 5)
            assert (plan.addnoise, plan.history, plan.windows[0].window.frames) == (20.5, "latent", 21)


def test_an_interrupt_after_the_last_frame_does_not_deny_the_video(tmp_path):
    settings = cli.parse_generate(["--model_id", "some/one"])
    job = Job(GENERATE, settings, lambda: None)
    assert job.left() == "no video was written"
    journal = SimpleNamespace(worth_keeping=False)
    job.video = Video(journal, {}, plan_of(settings, None), with_preview=False)
    assert job.left() == "no video was written"
    job.video.path = Path("video_out/a.mp4")
    assert job.left() == "the video is complete: video_out/a.mp4"


SWALLOW = """
import os, sys, time

class Unlucky:
    def __del__(self):
        os.kill(os.getpid(), {number})
        for _ in range(100):
            time.sleep(0.001)

def on(event, arguments):
    if event == "import" and arguments[0] == "ftfy":
        Unlucky()

sys.addaudithook(on)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_that_falls_into_a_finalizer_is_not_lost(models, tmp_path, number, code):
    """Python drops what is raised in a __del__. The regex library, imported for the prompt, has some that are busy for
    milliseconds: there one Ctrl-C in twenty went unheard, and the run went on for hours."""
    (tmp_path / "sitecustomize.py").write_text(SWALLOW.format(number=int(number)))
    here = tmp_path / "here"
    here.mkdir()
    script, *argv = t2v(models, "--seed", 5)
    made = run(script, *argv, cwd=here, PYTHONPATH=str(tmp_path))
    assert "Exception ignored in" in made.err, "nothing was swallowed, so that nothing was tried"
    assert made.code == code, made.err
    assert made.lines[-1] == f"{script}: interrupted; no video was written" and "window" not in made.err


def test_interrupted_in_the_middle_of_a_long_video(models, tmp_path):
    """Windows that are done are kept."""

    def stop(err: Path) -> int | None:
        return signal.SIGTERM if "window 2/" in err.read_text() else None

    frames = ("--num_frames", 25 + 16 * 1000, "--base_num_frames", 25, "--overlap_history", 9)
    script, *argv = df(models, frames=frames)
    made = run(script, *argv, cwd=tmp_path, stop=stop)
    assert made.code == 143, made.err
    windows = sum(line.startswith("window ") for line in made.lines)
    pieces = int(made.lines[-1].split("interrupted; ")[1].split(" of ")[0])
    assert pieces in (windows, windows - 1) and pieces >= 1
    gave_up(made, script, kept=f"{pieces} of 1001")
