"""--dry_run and what it promises: the plan that is shown is the plan that runs."""

import itertools
import json
import weakref
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import small_checkpoints
import torch
from PIL import Image
from script_runs import FORCING, GENERATE, contents, read_frames, run
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from skyreels_v2_infer import DiffusionForcingPipeline, Text2VideoPipeline
from skyreels_v2_infer.cli import arguments as cli
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.media.write import VideoWriter
from skyreels_v2_infer.modules import dense
from skyreels_v2_infer.modules.transformer import WanModel
from skyreels_v2_infer.modules.vae import WanVAE
from skyreels_v2_infer.pipelines.base import frames_of
from skyreels_v2_infer.pipelines.hooks import Hooks
from skyreels_v2_infer.plan import cost, models
from skyreels_v2_infer.plan.plan import make_plan
from skyreels_v2_infer.plan.show import table
from skyreels_v2_infer.progress import VideoProgress
from skyreels_v2_infer.run import machine
from skyreels_v2_infer.run.dry_run import described

DF_14B = "Skywork/SkyReels-V2-DF-14B-540P"
PROMPT = "A graceful white swan with a curved neck"
LONG = ("--num_frames", 257, "--overlap_history", 17, "--seed", 42, "--prompt", PROMPT)


def test_the_table(tmp_path):
    result = run(FORCING, "--dry_run", "--model_id", DF_14B, *LONG, cwd=tmp_path)
    assert result.code == 0, result.err
    assert result.out.splitlines() == [
        f"{DF_14B}   544x960, 257 frames (10.7 s at 24 fps), seed 42, synchronous",
        "window   frames    new   history   latents   rows   prompt",
        f"1        0-96      97    -         25        30     {PROMPT}",
        '2        97-176    80    17        25        30     "',
        '3        177-256   80    17        25        30     "',
        "90 rows, 180 forwards, 607 PFLOP; peak memory about 37.9 GiB in bfloat16 "
        "(texts 37.9, denoising 33.4, decoding 36.6); "
        "GPUs 1, 2, 3, 4, 5, 6, 8",
        "about 17.7 minutes of denoising on one GPU at 570 TFLOP/s (measured with the 14B on an H200); "
        "--rate for another one",
        "downloads about 69 GB",
        "this machine: cpu, float32; the estimates are for a GPU, in bfloat16 (--device cpu: for this machine)",
        "by default: 544x960, 24 fps, 30 steps, guidance 6, shift 8, windows of 97 frames",
        "-> video_out/a-graceful-white-swan-with-a-curved-neck_42.mp4",
    ]
    assert contents(tmp_path) == []


def test_the_json(tmp_path):
    result = run(FORCING, "--dry_run", "json", "--model_id", DF_14B, *LONG, "--ar_step", 5, cwd=tmp_path)
    about = json.loads(result.out)
    assert about["mode"] == "asynchronous"
    assert [w["rows"] for w in about["windows"]] == [30 + 5 * 24, 30 + 5 * 19, 30 + 5 * 19]
    assert about["forwards"] == 2 * about["rows"] == 2 * sum(w["rows"] for w in about["windows"])
    assert about["tokens"] == 25 * 2040
    assert [w["first_frame"] for w in about["windows"]] == [0, 97, 177]
    assert all(w["prompt"] == PROMPT for w in about["windows"])
    assert 8 in about["gpus"] and 64 not in about["gpus"]


def test_it_takes_a_second_and_no_torch_for_a_minute_at_720p(tmp_path):
    flags = ("--model_id", "Skywork/SkyReels-V2-DF-14B-720P", "--num_frames", 1457, "--overlap_history", 17)
    result = run(FORCING, "--dry_run", *flags, "--ar_step", 5, "--causal_block_size", 5, cwd=tmp_path)
    assert result.code == 0 and "720x1280, 1457 frames" in result.out
    assert result.cpu < 2  # of a second that is promised; twice that on a busy machine
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch is asked for')")
    assert run(FORCING, "--dry_run", *flags, cwd=tmp_path, PYTHONPATH=str(tmp_path)).code == 0


def test_models_in_folders_and_models_that_nobody_knows(tmp_path):
    small_checkpoints.write_original(tmp_path / "model", "t2v")
    result = run(GENERATE, "--dry_run", "--model_id", "model", "--height", 64, "--width", 64, cwd=tmp_path)
    assert "PFLOP" in result.out and "seed drawn by the run" in result.out and "_SEED.mp4" in result.out
    result = run(GENERATE, "--dry_run", "--model_id", "some/body", cwd=tmp_path)
    assert "30 rows, 60 forwards; the model is not known here, so neither is the cost" in result.out
    result = run(GENERATE, "--dry_run", "--model_id", "tiny", cwd=tmp_path)
    assert result.out.startswith("tiny   64x64, 33 frames")
    for flags in (("--num_frames", 98), ("--model_id", "Skywork/SkyReels-V2-I2V-14B-540P"), ("--dry_run=yes",)):
        result = run(GENERATE, "--dry_run", *flags, cwd=tmp_path)
        assert (result.code, result.out) == (2, "") and len(result.lines) == 1


def test_images_and_ends_are_shown(tmp_path):
    Image.new("RGB", (96, 64)).save(tmp_path / "picture.png")
    pictures = ("--image", tmp_path / "picture.png", "--end_image", tmp_path / "picture.png")
    argv = ("--model_id", DF_14B, *pictures, "--num_frames", 25, "--base_num_frames", 25)
    about = described(cli.parse_diffusion_forcing([*map(str, argv)]))
    assert table(about).splitlines()[2].split()[:6] == ["1", "0-24", "25", "image", "7+end", "30"]
    assert about["windows"][0]["latents"] == 8


def test_the_time_is_arithmetic_over_a_rate(monkeypatch):
    def about(*flags):
        return described(cli.parse_generate(["--model_id", DF_14B, "--dry_run", *flags]))

    usual, half, named = about(), about("--rate", "285"), about("--rate", "rtx-4090")
    assert usual["seconds"] == pytest.approx(1000 * usual["pflop"] / 570) and usual["tflop_per_second"] == 570
    assert half["seconds"] == pytest.approx(2 * usual["seconds"])
    assert named["tflop_per_second"] == 95 and "RTX 4090" in table(named)
    assert about("--device", "cpu")["seconds"] is None and "denoising on" not in table(about("--device", "cpu"))
    assert about("--device", "cpu", "--rate", "1")["seconds"] == pytest.approx(1000 * usual["pflop"])
    gpu = machine.Machine("cuda", "bfloat16", "NVIDIA A100-SXM4-80GB", 79.0)
    monkeypatch.setattr(machine, "torch_is_for_cpu", lambda: False)
    monkeypatch.setattr(machine, "gpu_here", lambda index: gpu)
    here = about()
    assert (
        here["tflop_per_second"] == 180
        and here["machine"] == "this machine: cuda (NVIDIA A100-SXM4-80GB, 79 GiB), bfloat16"
    )
    old = machine.Machine("cuda", "float16", "Tesla T4", 15.0)
    monkeypatch.setattr(machine, "gpu_here", lambda index: old)
    assert (about()["dtype"], about()["seconds"]) == ("float16", None)


def test_device_and_precision_of_this_machine():
    def line(*flags):
        return described(cli.parse_generate(["--prompt", "fox", *flags]))["machine"]

    large, small = line("--model_id", DF_14B), line("--model_id", "tiny")
    assert small == "this machine: cpu, float32" and large.startswith(
        f"{small}; the estimates are for a GPU, in bfloat16"
    )
    assert described(cli.parse_generate(["--model_id", "tiny"]))["dtype"] == "float32"
    assert line("--model_id", "tiny", "--dtype", "bfloat16") == "this machine: cpu, bfloat16"


def test_the_download_counts_what_is_here_and_what_comes_from_elsewhere(tmp_path, monkeypatch):
    def line(model, *flags):
        return described(cli.parse_generate(["--model_id", model, *flags]))["download"]

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert line(DF_14B) == "downloads about 69 GB"
    assert line(DF_14B, "--text_encoder_path", "some/body") == "downloads about 58 GB"
    assert line("tiny") is line("some/body") is None
    blobs = tmp_path / "models--Skywork--SkyReels-V2-DF-14B-540P" / "blobs"
    blobs.mkdir(parents=True)
    for size, said in (
        (20, "downloads about 69 GB, of which 20 GB are here"),
        (69, "nothing to download: the model is here"),
    ):
        with (blobs / "a").open("wb") as file:
            file.truncate(size * 10**9)
        assert line(DF_14B) == said


def test_the_name_is_the_one_that_the_run_will_use(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = "--model_id", "tiny", "--prompt", "a fox", "--seed", "3", "--outdir", "out"

    def name(*more):
        return described(cli.parse_generate([*argv, *more]))["output"]

    assert name() == "out/a-fox_3.mp4"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a-fox_3.mp4").touch()
    (tmp_path / "out" / "a-fox_3-2.json").touch()
    assert name() == "out/a-fox_3-3.mp4" and name("--name", "b") == "out/b.mp4"


@pytest.mark.parametrize("value", ["0", "-3", "nan", "1e6", "GTX 1"])
def test_no_rate(value, capsys):
    with pytest.raises(SystemExit):
        cli.parse_generate([f"--rate={value}", "--dry_run"])
    assert f"--rate {value}: must be TFLOP/s" in capsys.readouterr().err


def test_what_a_cpu_does_not_offload_is_there():
    def weights(*flags):
        return described(cli.parse_generate(["--model_id", DF_14B, *flags]))["weights_gib"]

    assert weights("--device", "cpu", "--offload") == weights("--device", "cpu") > weights() > weights("--offload")
    assert described(cli.parse_generate(["--model_id", DF_14B, "--device", "cpu"]))["dtype"] == "float32"


def test_encoders_are_not_on_a_gpu_while_it_samples():
    about = described(cli.parse_generate(["--model_id", DF_14B.replace("14B", "1.3B")]))
    transformer = about["weights_gib"] - cost.TEXT_ENCODER * 2 / cost.GIB
    assert 2.5 < transformer < 3.5 and about["activations_gib"] < 0.5  # of encoding: sampling takes less
    large = described(cli.parse_generate(["--model_id", DF_14B, "--height", "1088", "--width", "1920"]))
    assert 26 < large["weights_gib"] < 28 and large["activations_gib"] > 12


def test_with_offload_text_steps_and_frames_are_not_on_the_device_at_the_same_time():
    about = described(cli.parse_generate(["--model_id", DF_14B, "--offload"]))
    encoders, decoder = cost.TEXT_ENCODER * 2 / cost.GIB, about["height"] * about["width"] * cost.VAE_FRAMES
    decoder *= cost.VAE_CHANNELS * 4 / cost.GIB
    peak = about["weights_gib"] + about["activations_gib"]
    assert max(encoders, decoder) - 0.1 < peak < encoders + decoder


# Arithmetic and memory


@pytest.mark.parametrize(
    ("model", "frames", "tokens", "pflop"),
    [
        ("DF-14B-540P", 25, 2040, 3.37),
        ("T2V-14B-720P", 31, 3600, 12.9),
        ("DF-1.3B-540P", 25, 2040, 0.61),
        ("I2V-1.3B-540P", 31, 3600, 2.59),
    ],
)
def test_arithmetic_of_a_forward(model, frames, tokens, pflop):
    config = models.architecture(f"Skywork/SkyReels-V2-{model}")
    assert cost.forward_flop(config, frames, tokens) / 1e15 == pytest.approx(pflop, rel=0.005)


@pytest.mark.parametrize(
    ("model", "count"),
    [
        ("DF-1.3B-540P", 1_435_525_696),
        ("T2V-14B-540P", 14_288_491_584),
        ("I2V-1.3B-540P", 1_564_428_608),
        ("I2V-14B-720P-Diffusers", 16_394_878_784),
    ],
)
def test_parameters_are_the_published_ones(model, count):
    assert cost.parameters(models.architecture(f"Skywork/SkyReels-V2-{model}")) == count


def test_parameters_and_arithmetic_of_a_small_model_are_those_that_torch_counts(monkeypatch):
    monkeypatch.setattr(dense, "is_amd", lambda: False)  # oneDNN's products are not counted
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    for task in ("t2v", "df", "i2v"):
        config = small_checkpoints.transformer_config(task)
        with torch.device("meta"):
            model = WanModel(**config)
        assert cost.parameters(config) == sum(p.numel() for p in model.parameters())
    config = small_checkpoints.transformer_config("t2v")
    model = WanModel(**config)
    context = model.prepare_context(torch.zeros(1, 512, config["text_dim"]))
    for block in (None, 2):
        # The CPU's own attention kernel is not counted, plain products are.
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            model(torch.zeros(1, 16, 5, 8, 8), torch.zeros(1, 5), context, causal_block_size=block)
        counted = counter.get_total_flops()
        assert cost.forward_flop(config, 5, 16, block) == pytest.approx(counted, rel=0.05)  # patches, time and head
    assert models.architecture("Skywork/SkyReels-V2-DF-5B-540P") is None


# The plan is what runs


class StubTransformer(torch.nn.Module):
    """Predicts nothing; counts what it is asked."""

    model_type, inject_sample_info, text_len, num_heads, causal_block_size = "t2v", False, 8, 2, None
    patch_size, dim = (1, 2, 2), 2**20  # large enough for each pass of guidance to be a call of its own
    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.calls: list[int] = []

    def prepare_context(self, context, clip_fea=None, at_work=None):
        return context

    def forward(self, x, t, context, **_):
        self.calls.append(x.shape[2])
        return torch.zeros_like(x)


class StubVAE(torch.nn.Module):
    z_dim = 16

    def encode(self, video):
        b, _, t, h, w = video.shape
        return torch.zeros(b, 16, (t - 1) // 4 + 1, h // 8, w // 8)

    def decode_stream(self, latents, memory=None):
        b, _, f, h, w = latents.shape
        for i in range(f):
            yield torch.zeros(b, 3, 4 if i else 1, 8 * h, 8 * w)


def sweep():
    """Settings of diffusion forcing, as flags: frames, base, overlap, block, ar_step, prefix, end image."""
    count = 0
    for frames, (base, overlap), block, ar_step in itertools.product(
        (1, 5, 17, 33, 41, 97), ((17, 5), (33, 17), (97, 17), (21, 1)), (1, 2, 5), (0, 2)
    ):
        for prefix, end in ((0, False), (0, True), (22, False)):
            count += 1
            if count % 2 or frames > 33:
                yield frames + (3 if prefix else 0), base, overlap, block, ar_step, prefix, end


def test_the_plan_is_what_runs():
    combinations = list(sweep())
    assert len(combinations) >= 200
    embeds = {"prompt_embeds": torch.zeros(1, 2, 4), "negative_prompt_embeds": torch.zeros(1, 2, 4)}
    picture = np.zeros((16, 16, 3), np.uint8)
    for number, (frames, base, overlap, block, ar_step, prefix, end) in enumerate(combinations):
        argv = ["--model_id", "some/body", "--inference_steps", 3, "--base_num_frames", base, "--ar_step", ar_step]
        argv += ["--overlap_history", overlap, "--causal_block_size", block, "--guidance_scale", 1 + number % 2]
        settings = cli.parse_diffusion_forcing([*map(str, argv), "--num_frames", "5"])
        # No files are needed for a plan.
        settings = replace(settings, num_frames=frames, end_image="an end" if end else None)
        about = described(settings, prefix)
        transformer = StubTransformer()
        found: list[int] = []

        class Counting(VideoProgress):
            seen = found

            def rows(self, window):
                self.seen.append(len(self.work[window].rows))
                return nullcontext(lambda: None)

        hooks = Hooks(progress=Counting)
        pipeline = DiffusionForcingPipeline.from_parts(transformer, StubVAE(), hooks=hooks)
        made = pipeline(
            height=16,
            width=16,
            num_frames=frames,
            num_inference_steps=3,
            shift=settings.shift,
            seed=1,
            guidance_scale=settings.guidance_scale,
            overlap_history=overlap,
            base_num_frames=base,
            ar_step=ar_step,
            causal_block_size=block,
            end_image=picture if end else None,
            prefix_video=np.zeros((prefix, 16, 16, 3), np.uint8) if prefix else None,
            **embeds,
        )[0]
        assert len(made) == about["num_frames"] + prefix == frames + prefix
        assert found == [window["rows"] for window in about["windows"]]
        assert len(transformer.calls) == about["forwards"]
        expected = [w["latents"] for w in about["windows"] for _ in range(w["rows"])]
        assert transformer.calls[:: 1 if settings.guidance_scale == 1 else 2] == expected
        last = about["windows"][-1]
        assert last["last_frame"] + 1 == frames + prefix


def test_arithmetic_counts_what_causal_attention_leaves_out():
    transformer = StubTransformer()
    pipeline = DiffusionForcingPipeline.from_parts(transformer, StubVAE())
    settings = {"ar_step": 2, "causal_block_size": 3, "base_num_frames": 29, "overlap_history": 9, "num_frames": 49}
    given = {"prompt_embeds": torch.zeros(1, 2, 4), "guidance_scale": 1.0, "height": 16, "width": 16, "shift": 5.0}
    pipeline(**settings, **given, num_inference_steps=4, causal_attention=True, seed=1)
    plan = make_plan(num_inference_steps=4, shift=5.0, height=16, width=16, causal_attention=True, **settings)
    spent = cost.cost_of(plan, config := models.architecture(DF_14B), weight_bytes=2)
    counted = sum(cost.forward_flop(config, frames, 1, 3) for frames in transformer.calls)
    assert spent.pflop == pytest.approx(counted / 1e15) and len(set(transformer.calls)) == 3


def test_1457_frames_asked_are_1457_frames_written(tmp_path):
    pipeline = DiffusionForcingPipeline.from_parts(StubTransformer(), StubVAE())
    finished = pipeline.generate(
        height=16,
        width=16,
        num_frames=1457,
        num_inference_steps=1,
        overlap_history=17,
        ar_step=0,
        seed=1,
        guidance_scale=1,
        prompt_embeds=torch.zeros(1, 2, 4),
    )
    with VideoWriter(tmp_path, "long", 16, 16, 24) as writer:
        for piece in frames_of(finished):
            writer.write(piece)
    assert len(read_frames(writer.path)) == 1457


def test_text_to_video_runs_its_plan():
    settings = cli.parse_generate(["--model_id", "some/body", "--num_frames", "9", "--inference_steps", "4"])
    about, transformer = described(settings), StubTransformer()
    made = Text2VideoPipeline.from_parts(transformer, StubVAE())(
        height=16,
        width=16,
        num_frames=9,
        num_inference_steps=4,
        prompt_embeds=torch.zeros(1, 2, 4),
        negative_prompt_embeds=torch.zeros(1, 2, 4),
    )[0]
    assert transformer.calls == [3] * about["forwards"] and len(made) == about["num_frames"]


def test_a_model_of_the_other_kind_is_refused():
    settings = cli.parse_diffusion_forcing(["--model_id", "Skywork/SkyReels-V2-I2V-14B-540P"])
    with pytest.raises(InputError, match=r"^--model_id .* is an image-to-video model"):
        described(settings)


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of the tensors that live at once, those of `constant` left out."""

    def __init__(self, constant):
        super().__init__()
        self.constant = {tensor.untyped_storage()._cdata for tensor in constant}
        self.holders, self.live, self.peak = Counter(), 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if not isinstance(tensor, torch.Tensor) or (key := tensor.untyped_storage()._cdata) in self.constant:
                continue
            size = tensor.untyped_storage().nbytes()
            self.live += size * (not self.holders[key])
            self.holders[key] += 1
            weakref.finalize(tensor, self.release, key, size)
        self.peak = max(self.peak, self.live)
        return made

    def release(self, key, size):
        self.holders[key] -= 1
        self.live -= size * (not self.holders[key])


def test_the_memory_of_the_published_vae_is_what_lives_at_once():
    with torch.device("meta"):
        vae = WanVAE().requires_grad_(False)
    with LiveTensors([*vae.parameters(), *vae.buffers()]) as tensors:
        for frames in vae.decode_stream(torch.zeros(1, 16, 4, 12, 20, device="meta"), {}):
            del frames
    estimate = cost.VAE_FRAMES * (8 * 12) * (8 * 20) * cost.VAE_CHANNELS * 4
    assert estimate == pytest.approx(tensors.peak, rel=0.02)
