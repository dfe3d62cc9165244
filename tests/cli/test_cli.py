"""Command lines become settings, or one line on stderr and exit code 2, before torch is imported or a file written."""

import dataclasses
import functools
import http.server
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skyreels_v2_infer.cli import arguments as cli
from skyreels_v2_infer.cli.defaults import chosen_by_default
from skyreels_v2_infer.media import images
from skyreels_v2_infer.media.write import VideoWriter

ROOT = Path(cli.__file__).parents[2]
BOTH = pytest.mark.parametrize("parse", [cli.parse_generate, cli.parse_diffusion_forcing])

PUBLISHED = dict(
    outdir=Path("video_out"),
    name=None,
    num_frames=97,
    image=None,
    guidance_scale=6.0,
    shift=8.0,
    inference_steps=30,
    fps=24,
    quality=8,
    fit="crop",
    background="#ffffff",
    seed=None,
    height=544,
    width=960,
    device=None,
    dtype=None,
    teacache=False,
    teacache_thresh=0.2,
    use_ret_steps=False,
    teacache_coefficients=None,
    cache=None,
    magcache_ratios=None,
    dit_path=None,
    vae_path=None,
    text_encoder_path=None,
    image_encoder_path=None,
    weights="stored",
    quantize=None,
    solver="unipc",
    sigmas=None,
    lora=(),
    vae_dtype="float32",
    vae_tiling="auto",
    attention="auto",
    compile="auto",
    use_usp=False,
    cfg_parallel=None,
    ulysses_degree=None,
    ring_degree=None,
    offload=False,
    memory=None,
    prompt_enhancer=False,
    prompt_enhancer_model="Qwen/Qwen2.5-32B-Instruct",
    captioner_model="Skywork/SkyCaptioner-V1",
    fusion_model="Qwen/Qwen2.5-32B-Instruct",
    dry_run=None,
    rate=None,
    resume=False,
    replay=None,
    no_preview=False,
    preview_every=None,
    no_report=False,
    keep_parts=False,
    frames_dir=None,
)
PUBLISHED_DF = dict(
    end_image=None,
    video_path=None,
    keep_rate=False,
    no_audio=False,
    input_color=None,
    story=None,
    prompts=None,
    history="pixel",
    ar_step=0,
    causal_attention=False,
    causal_block_size=1,
    base_num_frames=97,
    overlap_history=None,
    addnoise_condition=0,
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Pictures and videos of 21 frames, lying and standing, and broken ones."""
    inputs = tmp_path_factory.mktemp("inputs")
    for name, height, width in (("wide", 64, 96), ("tall", 96, 64)):
        frames = np.full((21, height, width, 3), 90, np.uint8)
        Image.fromarray(frames[0]).save(inputs / f"{name}.png")
        with VideoWriter(inputs, name, height, width, 24) as writer:
            writer.write(frames)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(np.full((64, 96, 3), 90, np.uint8)).save(inputs / "turned.jpg", exif=turned)
    (inputs / "cut.mp4").write_bytes((inputs / "wide.mp4").read_bytes()[:800])
    (inputs / "text.mp4").write_text("not a video")
    (inputs / "frames").mkdir()
    (inputs / "frames" / "1.png").write_bytes((inputs / "wide.png").read_bytes())
    return inputs


@pytest.fixture
def folder(tmp_path, monkeypatch, inputs):
    """The empty folder where the command runs, beside a folder of inputs."""
    shutil.copytree(inputs, tmp_path / "inputs")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


def contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refusal(parse, argv, capsys) -> str:
    """The one line, without the program's name."""
    with pytest.raises(SystemExit) as stop:
        parse(argv)
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == ""
    assert err.endswith("\n") and err.count("\n") == 1, err
    prog = "generate_video.py" if parse is cli.parse_generate else "generate_video_df.py"
    assert err.startswith(f"{prog}: ")
    return err[len(prog) + 2 : -1]


# ---- what is accepted ------------------------------------------------------------------------------------------------


def test_defaults_are_the_published_ones():
    short, forcing = cli.parse_generate([]), cli.parse_diffusion_forcing([])
    assert short.model_id == "Skywork/SkyReels-V2-T2V-14B-540P"
    assert forcing.model_id == "Skywork/SkyReels-V2-DF-1.3B-540P"
    for settings, defaults in ((short, PUBLISHED), (forcing, PUBLISHED | PUBLISHED_DF)):
        values = dataclasses.asdict(settings)
        for name in ("model_id", "prompt", "negative_prompt"):
            assert values.pop(name).strip()
        assert {"height", "num_frames", "shift", "prompt"} <= set(values.pop("by_default"))
        assert values == defaults


def test_every_flag_reaches_its_setting(folder, monkeypatch):
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 4}.items():  # --use_usp needs them
        monkeypatch.setenv(name, str(value))
    values = dict(model_id="my/model", outdir="out/deep", prompt="fox", negative_prompt="fog", height=64, width=128)
    values |= dict(image="../inputs/wide.png", num_frames=33, inference_steps=7, guidance_scale=1.5, shift=3, fps=16)
    values |= dict(seed=9, device="cuda", dtype="float16", teacache_thresh=0.3)
    values |= dict(teacache_coefficients="-1e3,2,3,4,5.5", ulysses_degree=1, ring_degree=2)
    values |= dict(
        prompt_enhancer_model="some/one", dry_run="json", rate=300, dit_path="my/dit/a.gguf", vae_path="../inputs"
    )
    values |= dict(text_encoder_path="my/text", image_encoder_path="my/image", weights="dequantize", quantize="fp8")
    values |= dict(solver="lcm", vae_dtype="bfloat16", attention="flash", compile="on", name="{seed}")
    values |= dict(memory=7.5, vae_tiling="on", quality=6.5, preview_every=5, fit="pad", background="Red")
    switches = ["--teacache", "--use_ret_steps", "--use_usp", "--cfg_parallel", "--offload", "--prompt_enhancer"]
    switches += ["--resume", "--no_preview", "--no_report", "--keep_parts"]
    switches += ["--lora=../inputs/wide.png:0.5", "--lora=../inputs/tall.png"]
    argv = [*switches, *(f"--{name}={value}" for name, value in values.items())]
    values = dict(end_image="../inputs/tall.png", ar_step=2, causal_block_size=5, base_num_frames=21)
    values |= dict(overlap_history=5, addnoise_condition=20.5, history="latent")
    forcing = [f"--{name}={value}" for name, value in values.items()]
    common = dict(
        model_id="my/model",
        outdir=Path("out/deep"),
        name="{seed}",
        prompt="fox",
        negative_prompt="fog",
        image=Path("../inputs/wide.png"),
        height=64,
        width=128,
        num_frames=33,
        inference_steps=7,
        guidance_scale=1.5,
        shift=3.0,
        fps=16,
        quality=6.5,
        fit="pad",
        background="#ff0000",
        seed=9,
        device="cuda",
        dtype="float16",
        teacache=True,
        teacache_thresh=0.3,
        use_ret_steps=True,
        teacache_coefficients=(-1000, 2, 3, 4, 5.5),
        cache=None,
        magcache_ratios=None,
        dit_path="my/dit/a.gguf",
        vae_path="../inputs",
        text_encoder_path="my/text",
        image_encoder_path="my/image",
        weights="dequantize",
        quantize="fp8",
        solver="lcm",
        sigmas=None,
        lora=tuple(
            {"path": Path(f"../inputs/{name}.png"), "strength": x} for name, x in (("wide", 0.5), ("tall", 1.0))
        ),
        vae_dtype="bfloat16",
        vae_tiling="on",
        attention="flash",
        compile="on",
        use_usp=True,
        cfg_parallel=True,
        ulysses_degree=1,
        ring_degree=2,
        offload=True,
        memory=7.5,
        prompt_enhancer=True,
        prompt_enhancer_model="some/one",
        captioner_model="Skywork/SkyCaptioner-V1",
        fusion_model="Qwen/Qwen2.5-32B-Instruct",
        dry_run="json",
        rate={"value": 300.0, "source": "--rate"},
        resume=True,
        replay=None,
        no_preview=True,
        preview_every=5,
        no_report=True,
        keep_parts=True,
        by_default=(),
        frames_dir=None,
    )
    assert dataclasses.asdict(cli.parse_generate(argv)) == common
    assert dataclasses.asdict(cli.parse_diffusion_forcing(argv + forcing)) == common | dict(
        end_image=Path("../inputs/tall.png"),
        video_path=None,
        keep_rate=False,
        no_audio=False,
        input_color=None,
        story=None,
        prompts=None,
        history="latent",
        ar_step=2,
        causal_attention=False,
        causal_block_size=5,
        base_num_frames=21,
        overlap_history=5,
        addnoise_condition=20.5,
    )
    extension = ["--use_usp", "--video_path", "../inputs/wide.mp4", "--overlap_history", "17", "--causal_attention"]
    settings = cli.parse_diffusion_forcing(extension)
    assert settings.video_path == Path("../inputs/wide.mp4") and settings.causal_attention is True
    assert contents(folder) == []


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        cli.parse_generate([]).seed = 1


@BOTH
def test_limits_are_legal(parse):
    for flag, values in {
        "seed": [0, 2**63 - 1],
        "fps": [1, 12.5, 240],
        "quality": [0, 7.5, 10],
        "num_frames": [1, 5, 97],
        "inference_steps": [1],
        "guidance_scale": [0, 1e3],
        "shift": [1e-3],
        "device": ["cpu", "cuda", "cuda:7", "mps"],
        "dtype": ["float32", "bfloat16", "float16"],
        "teacache_thresh": [0, 5],
        "negative_prompt": ["", "-fog"],
        "prompt": ["- a list item", "白い白鳥"],
    }.items():
        for value in values:
            settings = parse([f"--{flag}", str(value)])
            assert getattr(settings, flag) == value


@BOTH
@pytest.mark.parametrize(
    ("given", "written_out"),
    [
        ("easycache", "easycache:threshold=0.05,retention=0.2"),
        ("easycache:retention=1,threshold=0", "easycache:threshold=0.0,retention=1.0"),
        ("magcache:skips=2", "magcache:threshold=0.12,skips=2,retention=0.2"),
        ("teacache:ret_steps=1", "teacache:threshold=0.2,ret_steps=1"),
    ],
)
def test_a_cache_is_recorded_with_all_its_settings(parse, given, written_out):
    assert parse(["--cache", given]).cache == parse(["--cache", written_out]).cache == written_out


@pytest.mark.parametrize("kind", ["DF", "T2V", "I2V"])
@pytest.mark.parametrize("layout", ["", "-Diffusers"])
def test_published_720p_models_make_720p(kind, layout):
    def size(*argv):
        settings = cli.parse_diffusion_forcing(["--model_id", *argv])
        return settings.height, settings.width

    assert size(f"Skywork/SkyReels-V2-{kind}-14B-720P{layout}") == (720, 1280)
    assert size(f"Skywork/SkyReels-V2-{kind}-14B-720P{layout}", "--resolution", "540P") == (544, 960)
    assert size(f"Skywork/SkyReels-V2-{kind}-14B-540P{layout}") == (544, 960)
    assert size(f"Skywork/SkyReels-V2-{kind}-14B-540P{layout}", "--resolution", "720P") == (720, 1280)
    assert size(f"mine/SkyReels-V2-{kind}-14B-720P{layout}") == (544, 960)


@pytest.mark.parametrize("layout", ["", "-Diffusers"])
def test_the_length_is_that_of_the_models_training(layout):
    for kind in ("DF", "T2V", "I2V"):
        large = cli.parse_diffusion_forcing(["--model_id", f"Skywork/SkyReels-V2-{kind}-14B-720P{layout}"])
        assert (large.num_frames, large.base_num_frames) == (121, 121)
    small = cli.parse_diffusion_forcing(["--model_id", f"Skywork/SkyReels-V2-DF-14B-540P{layout}"])
    assert (small.num_frames, small.base_num_frames) == (97, 97)
    large = "--model_id", f"Skywork/SkyReels-V2-DF-14B-720P{layout}"
    assert cli.parse_diffusion_forcing([*large, "--num_frames", "121"]).overlap_history is None  # a single window
    given = cli.parse_diffusion_forcing([*large, "--num_frames", "97", "--base_num_frames", "97"])
    assert (given.num_frames, given.base_num_frames) == (97, 97)
    assert cli.parse_generate([*large]).num_frames == 121


@pytest.mark.parametrize("size", ["1.3B-540P", "14B-540P", "14B-720P", "14B-720P-Diffusers"])
def test_image_to_video_models_have_the_recommended_guidance_and_shift(size):
    model = "--model_id", f"Skywork/SkyReels-V2-I2V-{size}"
    settings = cli.parse_generate(model)
    assert (settings.guidance_scale, settings.shift) == (5, 5)
    settings = cli.parse_generate([*model, "--guidance_scale", "6", "--shift", "3"])
    assert (settings.guidance_scale, settings.shift) == (6, 3)
    settings = cli.parse_generate(["--model_id", "Skywork/SkyReels-V2-T2V-14B-540P"])
    assert (settings.guidance_scale, settings.shift) == (6, 8)


def test_what_was_chosen_by_default_is_one_line():
    def line(parse, *argv):
        return chosen_by_default(parse(["--model_id", "tiny", *argv]))

    said = line(cli.parse_generate, "--prompt", "fox", "--guidance_scale", "3")
    assert said == "by default: 64x64, 33 frames, 16 fps, 20 steps, shift 3"
    assert line(cli.parse_generate, "--preset", "4steps", "--prompt", "fox") == "by default: 64x64, 33 frames, 16 fps"
    assert 'prompt "A red circle' in line(cli.parse_generate, "--resolution", "540P")
    assert "64" not in line(cli.parse_generate, "--height", "48", "--width", "48")
    several = line(cli.parse_diffusion_forcing, "--num_frames", "65", "--prompt", "fox", "--sigmas", "1,0.5")
    assert several == "by default: 64x64, 16 fps, guidance 2, windows of 33 frames, overlap 17"
    every = ("--height", "48", "--width", "48", "--num_frames", "5", "--fps", "8", "--inference_steps", "4", "--shift")
    assert line(cli.parse_generate, *every, "3", "--guidance_scale", "1", "--prompt", "fox") is None


@pytest.mark.parametrize(
    ("argv", "size"),
    [
        ("--image wide.png", (544, 960)),
        ("--image tall.png", (960, 544)),
        ("--image turned.jpg", (960, 544)),
        ("--image tall.png --resolution 720P", (1280, 720)),
        ("--image tall.png --height 64 --width 96", (64, 96)),
        ("--end_image tall.png", (960, 544)),
        ("--image wide.png --end_image tall.png", (544, 960)),
        ("--video_path tall.mp4 --overlap_history 17", (960, 544)),
        ("--video_path wide.mp4 --overlap_history 17 --end_image tall.png", (544, 960)),
    ],
)
def test_portrait_follows_the_image_or_the_video(folder, argv, size):
    argv = [str(folder.parent / "inputs" / word) if "." in word else word for word in argv.split()]
    settings = cli.parse_diffusion_forcing(argv)
    assert (settings.height, settings.width) == size


def test_frames_added_to_a_video(folder):
    def frames(*argv):
        video = ["--video_path", "../inputs/wide.mp4", "--overlap_history", "17"]
        return cli.parse_diffusion_forcing([*video, *argv]).num_frames

    assert frames() == 97 - 17
    assert frames("--base_num_frames", "41") == 24
    assert frames("--overlap_history", "21") == 76  # all of the video
    assert frames("--num_frames", "120") == 120
    assert frames("--num_frames", "4") == 4


def test_long_video_with_overlap():
    argv = ["--num_frames", "257", "--overlap_history", "17"]
    settings = cli.parse_diffusion_forcing(argv)
    assert (settings.num_frames, settings.overlap_history) == (257, 17)


@pytest.mark.parametrize(("base", "history"), [(33, 17), (21, 17), (17, 13), (5, 1), (1, None)])
def test_the_usual_overlap_has_room_in_every_window(base, history):
    argv = ["--model_id", "tiny", "--num_frames", str(base), "--base_num_frames", str(base)]
    assert cli.parse_diffusion_forcing(argv).overlap_history == history


@pytest.fixture
def address(inputs, monkeypatch):
    """Where a server on this machine has `inputs`."""
    monkeypatch.setenv("no_proxy", "*")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=inputs)
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@BOTH
def test_a_picture_from_an_address_is_kept(parse, folder, address, inputs, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    settings = parse(["--image", f"{address}/tall.png"])
    assert (settings.height, settings.width) == (960, 544)
    assert settings.image.read_bytes() == (inputs / "tall.png").read_bytes()
    again = parse(["--image", f"{address}/tall.png"])
    assert again.image == settings.image and contents(folder / "cache/skyreels_v2_infer") == [settings.image.name]


def test_an_end_image_from_an_address(folder, address, inputs, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    settings = cli.parse_diffusion_forcing(["--end_image", f"{address}/turned.jpg"])
    assert settings.end_image.read_bytes() == (inputs / "turned.jpg").read_bytes()


# ---- what is refused -------------------------------------------------------------------------------------------------

REFUSED_BY_BOTH = [
    ("--num_frames 98", "must be 4n+1, nearest are 97 and 101"),
    ("--num_frames 96", "must be 4n+1, nearest are 93 and 97"),
    ("--num_frames 3", "must be 4n+1, nearest are 1 and 5"),
    ("--num_frames 0", "must be 4n+1, at least 1"),
    ("--num_frames -3", "must be 4n+1, at least 1"),
    ("--num_frames abc", "must be a whole number, at most 1000000"),
    ("--num_frames 97.5", "must be a whole number, at most 1000000"),
    ("--num_frames 400000001", "must be a whole number, at most 1000000"),
    ("--inference_steps 0", "must be a whole number from 1 to 10000"),
    ("--inference_steps -5", "must be a whole number from 1 to 10000"),
    ("--inference_steps 100000000", "must be a whole number from 1 to 10000"),
    ("--guidance_scale -1", "must be a finite number, at least 0 and below 1000000"),
    ("--guidance_scale nan", "must be a finite number, at least 0 and below 1000000"),
    ("--guidance_scale inf", "must be a finite number, at least 0 and below 1000000"),
    ("--guidance_scale 1e38", "must be a finite number, at least 0 and below 1000000"),
    ("--width 16400 --height 16", "must be a multiple of 16, at most 16384"),
    ("--shift 0", "must be a finite number, above 0 and below 1000"),
    ("--shift -inf", "must be a finite number, above 0 and below 1000"),
    ("--shift -1e3", "must be a finite number, above 0 and below 1000"),
    ("--shift 1e999", "must be a finite number, above 0 and below 1000"),
    ("--teacache_thresh nan", "must be a finite number, at least 0"),
    ("--teacache_thresh -1", "must be a finite number, at least 0"),
    ("--teacache_coefficients 1,2,3,4", "must be 5 finite numbers"),
    ("--teacache_coefficients -1,2,x,4,5", "must be 5 finite numbers"),
    ("--cache fast", "must be teacache, easycache, magcache, optionally with :key=value,..."),
    ("--cache easycache:", "easycache takes threshold=, retention=; not ''"),
    ("--cache easycache:skips=3", "easycache takes threshold=, retention=; not 'skips=3'"),
    ("--cache easycache:threshold", "easycache takes threshold=, retention=; not 'threshold'"),
    ("--cache easycache:threshold=-1", "threshold must be a finite number, at least 0"),
    ("--cache easycache:threshold=inf", "threshold must be a finite number, at least 0"),
    ("--cache easycache:retention=1.1", "retention must be a number from 0 to 1"),
    ("--cache easycache:threshold=1,threshold=1", "threshold is given twice"),
    ("--cache magcache:skips=0", "skips must be a whole number, at least 1"),
    ("--cache magcache:skips=1.5", "skips must be a whole number, at least 1"),
    ("--cache teacache:ret_steps=2", "ret_steps must be 0 or 1"),
    ("--magcache_ratios 1,0.9,1", "must be an even number of finite numbers above 0, with commas"),
    ("--magcache_ratios 1,0", "must be an even number of finite numbers above 0, with commas"),
    *((f"--fps {fps}", "must be a rate from 1 to 240: ") for fps in ("0", "241", "240.1", "-24", "1/0", "24/", "nan")),
    *((f"--fps {fps}", "must be a rate from 1 to 240: ") for fps in ("24,5", "1e2", "24fps", "30000/1001/1")),
    ("--preview_every 0", "must be a whole number, at least 1"),
    ("--quality -1", "must be a finite number, at least 0 and at most 10"),
    ("--quality 10.1", "must be a finite number, at least 0 and at most 10"),
    ("--quality best", "must be a finite number, at least 0 and at most 10"),
    ("--seed -1", f"must be a whole number from 0 to {2**63 - 1}"),
    (f"--seed {2**63}", f"must be a whole number from 0 to {2**63 - 1}"),
    ("--resolution 480P", "must be 540P or 720P"),
    ("--dtype int8", "must be float32, bfloat16 or float16"),
    ("--device gpu", "must be cpu, cuda, cuda:N, mps, xpu or xpu:N"),
    ("--height 545 --width 960", "must be a multiple of 16, nearest are 544 and 560"),
    ("--width 950 --height 544", "must be a multiple of 16, nearest are 944 and 960"),
    ("--height 0 --width 960", "must be a whole number, at least 16"),
    ("--height 544", "needs --width as well"),
    ("--width 960", "needs --height as well"),
    ("--resolution 540P --height 544 --width 960", "give either --resolution or --height and --width"),
    ("--image ../inputs/missing.png", "must be an existing file"),
    ("--image ../inputs", "must be a file, not a folder or a device"),
    ("--image ../inputs/text.mp4", "must be a complete picture that Pillow can read"),
    (f"--outdir new/{'a' * 300}/b", "at most 255 bytes"),
    (f"--prompt_enhancer_model {'a' * 5000} --prompt_enhancer", "is neither a folder nor the name of a model"),
    ("--outdir ../inputs/wide.png", "must be a folder"),
    ("--outdir ../inputs/wide.png/deep/er", "must be a folder"),
]
REFUSED_BY_FORCING = [
    ("--num_frames 101", "--overlap_history not given", "above --base_num_frames 97, 17 is recommended"),
    (
        "--video_path ../inputs/wide.mp4",
        "--overlap_history not given",
        "17 is recommended",
    ),
    ("--overlap_history 18", "--overlap_history 18", "must be 4n+1, nearest are 17 and 21"),
    ("--overlap_history 0", "--overlap_history 0", "must be 4n+1, at least 1"),
    ("--overlap_history 97", "--overlap_history 97", "must be below --base_num_frames 97"),
    ("--overlap_history 101", "--overlap_history 101", "must be below --base_num_frames 97"),
    ("--base_num_frames 96", "--base_num_frames 96", "must be 4n+1, nearest are 93 and 97"),
    ("--base_num_frames -1", "--base_num_frames -1", "must be 4n+1, at least 1"),
    ("--ar_step -1", "--ar_step -1", "must be a whole number from 0 to 1000000"),
    ("--causal_block_size 0", "--causal_block_size 0", "must be a whole number from 1 to 1000000"),
    ("--addnoise_condition 1000", "--addnoise_condition 1000", "at least 0 and below 1000"),
    ("--addnoise_condition -1", "--addnoise_condition -1", "at least 0 and below 1000"),
    ("--addnoise_condition nan", "--addnoise_condition nan", "at least 0 and below 1000"),
    ("--end_image ../inputs/text.mp4", "--end_image ../inputs/text.mp4", "must be a complete picture"),
    ("--end_image ../inputs/no.png", "--end_image ../inputs/no.png", "must be an existing file"),
    (
        "--end_image ../inputs/wide.png --causal_attention",
        "--end_image ../inputs/wide.png",
        "not with --causal_attention",
    ),
    (
        "--image ../inputs/wide.png --video_path ../inputs/wide.mp4 --overlap_history 17",
        "--image ../inputs/wide.png",
        "give either --image or --video_path",
    ),
]
REFUSED_EXTENSIONS = [
    ("--num_frames 121", "--num_frames 121", "frames added to a video come in fours, nearest are 120 and 124"),
    ("--num_frames 3", "--num_frames 3", "frames added to a video come in fours, at least 4"),
    ("--num_frames 0", "--num_frames 0", "frames added to a video come in fours, at least 4"),
    ("--video_path ../inputs/missing.mp4", "--video_path ../inputs/missing.mp4", "must be an existing file"),
    ("--video_path ../inputs/cut.mp4", "--video_path ../inputs/cut.mp4", "must be a complete video"),
    ("--video_path ../inputs/text.mp4", "--video_path ../inputs/text.mp4", "must be a complete video"),
    ("--video_path ../inputs", "--video_path ../inputs", "must be a file, or a folder of pictures"),
    ("--video_path ../inputs/%03d.png", "--video_path ../inputs/%03d.png", "matches no file"),
    (
        "--video_path ../inputs/frames --outdir ../inputs/frames/o",
        "--outdir ../inputs/frames/o",
        "must be outside the folder",
    ),
    (
        "--video_path ../inputs/frames --frames_dir ../inputs/frames",
        "--frames_dir ../inputs/frames",
        "must be outside the folder",
    ),
    ("--fit stretch", "--fit stretch", "must be crop or pad"),
    ("--background #12345", "--background #12345", "must be an opaque colour"),
    ("--background #ff000080", "--background #ff000080", "must be an opaque colour"),
    ("--background rgb(300,0,0)", "--background rgb(300,0,0)", "must be an opaque colour"),
    ("--input_color rec709", "--input_color rec709", "must be bt709, bt601, bt2020, p3, hlg, pq"),
    ("--input_color hlg --video_path ../inputs/w*e.png", "--input_color hlg", "is for videos; pictures state"),
]


@BOTH
@pytest.mark.parametrize(
    ("name", "legal"),
    [
        ("none.png", "cannot be downloaded (HTTP Error 404: File not found)"),
        ("text.mp4", "must be a complete picture that Pillow can read (PNG, JPEG, WebP, ...)"),
        ("wide.mp4", "must be a picture of at most 0 MB"),
    ],
)
def test_bad_address(parse, name, legal, folder, address, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    if name == "wide.mp4":
        monkeypatch.setattr(images, "DOWNLOAD_BYTES", 100)
    line = refusal(parse, ["--image", f"{address}/{name}"], capsys)
    assert line.startswith(f"--image {address}/{name}: {legal}")
    assert not [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "argv",
    [
        "--video_path ftp://host/a.mp4",
        "--outdir s3://bucket/a",
        "--replay HTTPS://host/a.mp4",
        "--image ftp://h/a.png",
    ],
)
def test_an_address_where_a_path_belongs_is_named_as_it_is(argv, folder, capsys):
    assert refusal(cli.parse_diffusion_forcing, argv.split(), capsys).startswith(f"{argv}: must be a path")
    assert contents(folder) == []


@pytest.mark.parametrize("url", ["http://", "http://host:port/a.png", "http://host/a b.png"])
def test_an_address_that_is_none(url, capsys):
    assert refusal(cli.parse_generate, ["--image", url], capsys).startswith(f"--image {url}: cannot be downloaded (")


def test_an_address_that_nobody_answers(folder, monkeypatch):
    """Another time it may, which a script sees by the exit code."""
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/a.png"
        with pytest.raises(OSError, match=rf"--image {url}: cannot be downloaded \("):
            cli.parse_generate(["--image", url])
    assert contents(folder) == []


def check_refused(parse, argv, named, legal, folder, capsys):
    before = contents(folder.parent)
    line = refusal(parse, argv, capsys)
    assert line.startswith(f"{named}: ") and legal in line
    assert contents(folder.parent) == before


@BOTH
@pytest.mark.parametrize(("argv", "legal"), REFUSED_BY_BOTH)
def test_bad_value(parse, argv, legal, folder, capsys):
    named = " ".join(argv.split()[:2])
    check_refused(parse, argv.split(), named, legal, folder, capsys)


@pytest.mark.parametrize(("argv", "named", "legal"), REFUSED_BY_FORCING)
def test_bad_value_of_diffusion_forcing(argv, named, legal, folder, capsys):
    check_refused(cli.parse_diffusion_forcing, argv.split(), named, legal, folder, capsys)


@pytest.mark.parametrize(("argv", "named", "legal"), REFUSED_EXTENSIONS)
def test_bad_extension(argv, named, legal, folder, capsys):
    argv = ["--video_path", "../inputs/wide.mp4", "--overlap_history", "17", *argv.split()]
    check_refused(cli.parse_diffusion_forcing, argv, named, legal, folder, capsys)


@BOTH
@pytest.mark.parametrize("value", ["", "  ", "\n\t"])
@pytest.mark.parametrize("flag", ["--prompt", "--model_id", "--outdir", "--image"])
def test_nothing_given(parse, flag, value, folder, capsys):
    check_refused(parse, [flag, value], f"{flag} {value!r}", "must", folder, capsys)


def test_a_folder_with_a_line_break(folder, capsys):
    """As a list with Windows' line ends gives; ffmpeg's own list of files ends lines there."""
    check_refused(
        cli.parse_generate, ["--outdir", "out\r/deep"], r"--outdir out\r/deep", "no line break", folder, capsys
    )


def test_a_prompt_that_is_no_text(folder, capsys):
    check_refused(cli.parse_generate, ["--prompt", "fox \udcff"], r"--prompt fox \udcff", "valid UTF-8", folder, capsys)


@BOTH
@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ("--use_usp", "--use_usp: needs torchrun: torchrun --nproc_per_node=GPUS SCRIPT ... --use_usp"),
        ("--ulysses_degree 2", "--ulysses_degree: has no effect without --use_usp"),
        ("--no-cfg_parallel", "--cfg_parallel: has no effect without --use_usp"),
        ("--cfg_parallel=2", "--cfg_parallel: takes no value"),
        ("--prompt_enhancer_model a/b", "--prompt_enhancer_model a/b: has no effect without --prompt_enhancer"),
        (
            "--prompt_enhancer --prompt_enhancer_model nowhere",
            "--prompt_enhancer_model nowhere: is neither a folder nor the name of a model (owner/name)",
        ),
        ("--use_ret_steps", "--use_ret_steps: has no effect without --teacache"),
        ("--teacache_coefficients 1,2,3,4,5", "--teacache_coefficients: has no effect without --teacache"),
        ("--magcache_ratios 1,1", "--magcache_ratios: has no effect without --cache magcache"),
        ("--cache easycache --magcache_ratios 1,1", "--magcache_ratios: has no effect without --cache magcache"),
        (
            "--cache easycache --teacache_coefficients 1,2,3,4,5",
            "--teacache_coefficients: has no effect without --teacache",
        ),
        *(
            (
                f"--cache easycache:retention=0 {flags}",
                f"--cache easycache:threshold=0.05,retention=0.0: not with {flags.partition(' ')[0]}; TeaCache by this "
                "flag is --cache teacache:threshold=X,ret_steps=0 or 1",
            )
            for flags in ("--teacache", "--teacache_thresh 0.3", "--use_ret_steps")
        ),
        ("--offload=yes", "--offload: takes no value"),
        ("--memory 0", "--memory 0: must be a finite number, above 0 and below 10000"),
        ("--memory all", "--memory all: must be a finite number, above 0 and below 10000"),
        ("--vae_tiling yes", "--vae_tiling yes: must be auto, on or off"),
        ("--seed", "--seed: needs a value"),
        ("--seed --fps 8", "--seed: needs a value"),
        ("--num_frame 97", "--num_frame 97: unknown flag, did you mean --num_frames?"),
        ("--promt=fox", "--promt=fox: unknown flag, did you mean --prompt?"),
        ("--xyzzy", "--xyzzy: unknown flag, --help all lists all"),
        ("--seed 1 fox", "fox: no flag in front of it (a prompt with spaces needs quotes)"),
    ],
)
def test_bad_command(parse, argv, line, folder, capsys):
    assert refusal(parse, argv.split(), capsys) == line
    assert contents(folder) == []


@pytest.mark.parametrize("field", sorted(PUBLISHED_DF.keys() - {"prompts"}))
def test_flags_of_the_other_script_are_pointed_to(field, capsys):
    line = refusal(cli.parse_generate, [f"--{field}", "5"], capsys)
    assert line == f"--{field} 5: only generate_video_df.py has this flag"


def test_what_no_script_has_is_not_pointed_to(capsys):
    assert refusal(cli.parse_generate, ["--video_pth", "5"], capsys).startswith("--video_pth 5: unknown flag, did you")


def test_a_line_break_in_a_value_does_not_break_the_line(capsys):
    assert refusal(cli.parse_generate, ["--seed", "1\n2\x1b"], capsys).startswith(r"--seed 1\n2\x1b: must be")


def test_folder_without_permission(folder, capsys, monkeypatch):
    locked = folder / "locked"
    locked.mkdir()
    access = os.access
    # Permissions do not bind root, so the answer is made up.
    monkeypatch.setattr(
        os, "access", lambda path, mode: (Path(path) != locked or not mode & os.W_OK) and access(path, mode)
    )
    for outdir in (locked, locked / "new" / "er"):
        line = refusal(cli.parse_generate, ["--outdir", str(outdir)], capsys)
        assert line == f"--outdir {outdir}: must be writable, but {locked} is not"
    assert contents(folder) == ["locked"]


def test_dangling_link_is_no_folder(folder, capsys):
    (folder / "link").symlink_to("nowhere")
    assert "must be a folder" in refusal(cli.parse_generate, ["--outdir", "link"], capsys)


# ---- as a process ----------------------------------------------------------------------------------------------------


def run(code: str, *argv: str, cwd: Path) -> tuple[subprocess.CompletedProcess, float]:
    """The finished process and the CPU seconds that it and its children took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code, *argv],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


PARSE = "import sys; from skyreels_v2_infer.cli import arguments as cli; cli.parse_diffusion_forcing(sys.argv[1:])"
HEAVY = "; print([m for m in ('torch', 'transformers', 'diffusers') if m in sys.modules])"


@pytest.mark.parametrize(
    "argv",
    [
        "--help",
        "--num_frames 98",
        "--image ../inputs/text.mp4",
        "--outdir ../inputs/wide.png",
        "--video_path ../inputs/cut.mp4 --overlap_history 17",
    ],
)
def test_help_and_errors_take_less_than_a_second_of_cpu(argv, folder):
    done, seconds = run(PARSE, *argv.split(), cwd=folder)
    assert seconds < 1
    assert contents(folder) == []
    if argv == "--help":
        assert done.returncode == 0 and done.stderr == ""
    else:
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.startswith("generate_video_df.py: --") and done.stderr.count("\n") == 1


def test_parsing_imports_nothing_heavy(folder):
    argv = ["--video_path", "../inputs/wide.mp4", "--overlap_history", "17", "--end_image", "../inputs/wide.png"]
    done, _ = run(PARSE + HEAVY, *argv, cwd=folder)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")


@BOTH
def test_help_explains_every_flag(parse, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["--help", "all"])
    out, err = capsys.readouterr()
    assert stop.value.code == 0 and err == ""
    settings = parse([])
    switches = {
        "use_usp",
        "offload",
        "prompt_enhancer",
        "cfg_parallel",
        "resume",
        "no_preview",
        "no_report",
        "keep_parts",
        "replay",
        "resolution",
    }
    read = {"prompts", "by_default"}  # the former is --prompt, several times
    for name in {field.name for field in dataclasses.fields(settings)} - read | switches:
        assert re.search(f"\n  --{name}[ ,]", out), name
    out = "".join(out.split())  # lines may break at hyphens
    defaults = "97; 720P models: 121", "default: 6;", "default: 8; image-to-video models: 5; tiny: 3", "30;", "24;"
    for word in (*defaults, "4n+1", "video_out", settings.model_id):
        assert word.replace(" ", "") in out, word


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    """No shell expands it in --outdir=~/videos, and a folder called ~ is no pleasure to remove."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.parse_generate(["--outdir=~/videos"]).outdir == tmp_path / "videos"


@BOTH
def test_a_prompt_of_the_captioners(folder, parse):
    given = parse(["--prompt", 'auto:"she turns"', "--image", "../inputs/wide.png", "--fusion_model", "none"])
    assert (given.prompt, given.fusion_model, given.prepares_prompt) == ('auto:"she turns"', None, True)
    given = parse(["--prompt", "auto", "--image", "../inputs/wide.png", "--captioner_model", "a/b"])
    assert (given.captioner_model, given.fusion_model) == ("a/b", "Qwen/Qwen2.5-32B-Instruct")
    assert not parse(["--prompt", "automatic doors"]).prepares_prompt


@BOTH
@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ("--prompt auto", "--prompt auto: needs --image"),
        ("--captioner_model a/b", "--captioner_model a/b: has no effect without --prompt auto"),
        ("--fusion_model none", "--fusion_model none: has no effect without --prompt auto"),
        (
            "--prompt auto --image ../inputs/wide.png --fusion_model nothing",
            "--fusion_model nothing: is neither",
        ),
        (
            "--prompt auto --image ../inputs/wide.png --captioner_model none",
            "--captioner_model none: is neither",
        ),
        ("--prompt auto --image ../inputs/wide.png --prompt_enhancer", "--prompt_enhancer: not with --prompt auto"),
    ],
)
def test_a_prompt_of_the_captioners_that_cannot_be(folder, parse, capsys, argv, line):
    with pytest.raises(SystemExit) as stop:
        parse(argv.split())
    assert stop.value.code == 2
    assert line in capsys.readouterr().err


def test_auto_is_no_prompt_among_others(folder, capsys):
    with pytest.raises(SystemExit):
        cli.parse_diffusion_forcing(["--prompt", "a dog runs", "auto", "--image", "../inputs/wide.png"])
    assert "--prompt auto: stands alone" in capsys.readouterr().err
