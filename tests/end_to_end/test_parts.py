"""Weights from elsewhere, LoRAs, solvers and presets, as a user gives them: the scripts on the embedded model."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from script_runs import FORCING, GENERATE, Run, psnr, run

from skyreels_v2_infer import DiffusionForcingPipeline, embedded
from skyreels_v2_infer.cli.arguments import parse_diffusion_forcing
from skyreels_v2_infer.cli.planning import plan_of
from skyreels_v2_infer.pipelines.base import collect
from skyreels_v2_infer.plan.inputs import Inputs
from skyreels_v2_infer.plan.plan import LoraPlan, make_plan
from skyreels_v2_infer.run import manifest
from skyreels_v2_infer.run.identity import identity_of
from skyreels_v2_infer.weights import key_tables
from skyreels_v2_infer.weights.loading import get_transformer
from skyreels_v2_infer.weights.locate import Checkpoint

SHORT = ("--model_id", "tiny", "--inference_steps", 4, "--seed", 3, "--prompt", "a red circle", "--device", "cpu")
FRAMES = ("--num_frames", 17)
LONG = ("--num_frames", 49)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A ComfyUI-style file of the embedded transformer, a scaled float8 one, and a LoRA for it."""
    folder = tmp_path_factory.mktemp("parts")
    stored = load_file(embedded.FOLDER / "df/transformer/diffusion_pytorch_model.safetensors")
    model = get_transformer(embedded.FOLDER / "df", "cpu", torch.float32)
    ours = {f"model.diffusion_model.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    assert len(stored) == len(ours) and key_tables.DIFFUSERS_TRANSFORMER
    # The heads are no multiple of 128 wide, so the file needs the config of the model it replaces.
    save_file(ours, folder / "comfy.safetensors")
    draw = torch.Generator().manual_seed(0)
    lora = {}
    for name in ("blocks.0.self_attn.q", "blocks.3.ffn.0"):
        rows, columns = model.get_submodule(name).weight.shape
        lora[f"diffusion_model.{name}.lora_A.weight"] = torch.randn(4, columns, generator=draw) / columns**0.5
        lora[f"diffusion_model.{name}.lora_B.weight"] = torch.randn(rows, 4, generator=draw) / 2
    save_file(lora, folder / "style.safetensors")
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Run:
    return run(FORCING, *SHORT, *FRAMES, cwd=tmp_path_factory.mktemp("plain"))


@pytest.mark.slow
def test_a_transformer_in_one_file_makes_the_same_video(folder, plain, tmp_path):
    made = run(FORCING, *SHORT, *FRAMES, "--dit_path", folder / "comfy.safetensors", cwd=tmp_path)
    assert np.array_equal(made.frames, plain.frames)
    again = run(FORCING, "--replay", made.path, "--trust_replay", "--outdir", "again", cwd=tmp_path)
    assert again.path.read_bytes() == made.path.read_bytes()


def test_parts_can_replace_a_model_wholly(folder, plain, tmp_path):
    """The model that is named is not looked at: there is no network here."""
    df = embedded.FOLDER / "df"
    parts = ("--dit_path", df, "--vae_path", df, "--text_encoder_path", df)
    tiny = ("--height", 64, "--width", 64, "--guidance_scale", 2, "--shift", 3, "--fps", 16, "--negative_prompt", "")
    tiny += ("--addnoise_condition", 20, "--base_num_frames", 33)
    made = run(FORCING, "--model_id", "some/one", *SHORT[2:], *FRAMES, *tiny, *parts, cwd=tmp_path)
    assert made.code == 0, made.err
    assert np.array_equal(made.frames, plain.frames)


def test_a_lora_loaded_from_python(folder):
    pipeline = DiffusionForcingPipeline(embedded.folder(False), device="cpu")
    settings = {"height": 64, "width": 64, "num_frames": 5, "num_inference_steps": 1, "ar_step": 0, "seed": 1}

    def made() -> torch.Tensor:
        return pipeline("a red circle", output_type="latent", **settings)

    plain = made()
    report = pipeline.load_lora(folder / "style.safetensors", 0.5)
    assert report.applied and not torch.equal(made(), plain)
    pipeline.load_lora(folder / "style.safetensors", -0.5)
    assert (made() - plain).abs().max() < 1e-4, "strengths add up"
    pipeline.loras.remove()
    assert torch.equal(made(), plain)


def test_parts_that_are_not_there_are_refused(folder, tmp_path):
    for flag in ("--dit_path", "--vae_path", "--text_encoder_path"):
        made = run(FORCING, *SHORT, *FRAMES, flag, "nowhere.safetensors", cwd=tmp_path)
        assert made.code == 2 and len(made.lines) == 1 and f"{flag} nowhere.safetensors: " in made.err
    made = run(FORCING, *SHORT, *FRAMES, "--dit_path", folder / "style.safetensors", cwd=tmp_path)
    assert made.code == 2 and len(made.lines) == 1 and "--dit_path" in made.err


@pytest.mark.slow
def test_a_lora_changes_the_video_by_its_strength(folder, plain, tmp_path):
    style = folder / "style.safetensors"
    made = run(FORCING, *SHORT, *FRAMES, "--lora", style, cwd=tmp_path)
    assert made.code == 0 and psnr(made.frames, plain.frames) < 45
    about = json.loads(made.path.with_suffix(".json").read_text())
    assert about["settings"]["lora"] == [f"{style}:1.0"] and about["details"]["loras"]
    none = run(FORCING, *SHORT, *FRAMES, "--lora", f"{style}:0", "--outdir", "none", cwd=tmp_path)
    assert np.array_equal(none.frames, plain.frames)
    twice = run(FORCING, *SHORT, *FRAMES, "--lora", f"{style}:0.5", "--lora", f"{style}:0.5", cwd=tmp_path)
    assert psnr(twice.frames, made.frames) > 45
    resumed = run(FORCING, *SHORT, *FRAMES, "--lora", f"{style}:0.25", "--resume", cwd=tmp_path)
    assert resumed.path not in (made.path, twice.path), "strength is part of a run's identity"


@pytest.mark.slow
def test_a_lora_s_strength_changes_with_the_story(folder, tmp_path):
    def told(name: str, *strengths: float) -> np.ndarray:
        starts = (0, 33)
        scenes = [
            {"start": start, "prompt": "a red circle", "lora": {"style": strength}}
            for start, strength in zip(starts, strengths, strict=True)
        ]
        flags = (*SHORT[:6], "--device", "cpu", *LONG, "--story", json.dumps(scenes), "--outdir", name)
        return run(FORCING, *flags, "--lora", folder / "style.safetensors", cwd=tmp_path).frames

    off, later = told("off", 0, 0), told("later", 0, 1)
    assert np.array_equal(off[:33], later[:33]) and not np.array_equal(off[33:], later[33:])
    plain = run(FORCING, *SHORT, *LONG, "--outdir", "plain", cwd=tmp_path).frames
    assert np.array_equal(off, plain)
    scenes = json.dumps([{"start": 0, "prompt": "a red circle", "lora": {"another": 1}}])
    made = run(FORCING, *SHORT[:6], *LONG, "--story", scenes, "--lora", folder / "style.safetensors", cwd=tmp_path)
    assert made.code == 2 and len(made.lines) == 1 and "another" in made.err and "style" in made.err


def test_what_is_no_lora_is_refused(folder, tmp_path):
    for name, argument in (("comfy.safetensors", "--lora"), ("no.safetensors", "--lora")):
        made = run(FORCING, *SHORT, *FRAMES, "--lora", folder / name, cwd=tmp_path)
        assert made.code == 2 and f"{argument} {folder / name}" in made.lines[-1]
    made = run(FORCING, *SHORT, *FRAMES, "--lora", f"{folder / 'style.safetensors'}:1e", cwd=tmp_path)
    assert made.code == 2 and len(made.lines) == 1


@pytest.mark.parametrize("solver", ["euler", "lcm"])
@pytest.mark.slow
def test_every_solver_works_in_windows_and_asynchronously(solver, tmp_path):
    flags = (*SHORT, *LONG, "--solver", solver)
    made = run(FORCING, *flags, cwd=tmp_path)
    assert made.frames.shape == (49, 64, 64, 3)
    asynchronous = run(FORCING, *flags, "--ar_step", 2, "--outdir", "async", cwd=tmp_path)
    assert psnr(made.frames, asynchronous.frames) < 50
    again = run(FORCING, *flags, "--outdir", "again", cwd=tmp_path)
    assert again.path.read_bytes() == made.path.read_bytes(), "a solver's noise comes from the seed"


def test_noise_levels_replace_steps_and_shift(tmp_path):
    flags = SHORT[:2] + SHORT[4:]
    made = run(GENERATE, *flags, *FRAMES, "--sigmas", "1,0.9,0.6", "--solver", "euler", cwd=tmp_path)
    assert "3 rows" in made.err and made.code == 0
    refused = run(GENERATE, *SHORT, *FRAMES, "--sigmas", "1,0.9", cwd=tmp_path)
    assert refused.code == 2 and "--inference_steps 4: " in refused.err
    for wrong in ("0.5,0.9", "2,1", "a,b", ""):
        refused = run(GENERATE, *flags, *FRAMES, f"--sigmas={wrong}", cwd=tmp_path)
        assert refused.code == 2 and len(refused.lines) == 1 and "--sigmas" in refused.err


@pytest.mark.slow
def test_a_replay_takes_noise_levels_and_what_replaces_them(tmp_path):
    flags = SHORT[:2] + SHORT[4:]
    made = run(FORCING, *flags, "--num_frames", 5, "--sigmas", "1,0.9,0.6", cwd=tmp_path)
    again = run(FORCING, "--replay", made.path, "--outdir", "again", cwd=tmp_path)
    assert again.path.read_bytes() == made.path.read_bytes()

    def parsed(*argv):
        return parse_diffusion_forcing(["--replay", str(made.path), *argv])

    assert (parsed("--shift", "2").sigmas, parsed("--shift", "2").inference_steps) == (None, 20)
    assert parsed("--sigmas", "0.5,0.1").sigmas == (0.5, 0.1)
    preset = parsed("--preset", "4steps")
    assert (preset.sigmas, preset.inference_steps, preset.solver, preset.guidance_scale) == (None, 4, "euler", 1.0)


def test_a_given_lora_replaces_recorded_ones(folder, tmp_path):
    settings = {"model_id": "tiny", "prompt": "a red circle", "lora": ["/etc/elsewhere.safetensors:0.5"]}
    about = {"format": 1, "script": FORCING, "settings": settings}
    (tmp_path / "from.json").write_text(json.dumps(about))
    argv = ["--replay", str(tmp_path / "from.json"), "--lora", str(folder / "style.safetensors")]
    assert [lora.name for lora in parse_diffusion_forcing(argv).lora] == ["style"]
    with pytest.raises(SystemExit):
        parse_diffusion_forcing(argv[:2])


def test_kernels_that_are_not_exact_are_part_of_a_run_s_identity():
    def identity(*flags):
        settings = parse_diffusion_forcing(["--model_id", "tiny", *flags])
        return identity_of(FORCING, settings, plan_of(settings, None), Checkpoint.open(settings.model_id))

    assert identity("--attention", "math") == identity() != identity("--attention", "sage")
    sage = parse_diffusion_forcing(["--model_id", "tiny", "--attention", "sage"])
    assert manifest.settings_of(sage, plan_of(sage, None))["attention"] == "sage"


def test_strengths_follow_every_plan_of_a_pipeline(folder):
    pipeline = DiffusionForcingPipeline(
        embedded.folder(False), device="cpu", loras=[(folder / "style.safetensors", 1.0)], loras_change=True
    )
    settings = {"height": 64, "width": 64, "prompt": "a red circle", "negative_prompt": "", "seed": 1}

    def latents(strength: float) -> torch.Tensor:
        loras = [LoraPlan(folder / "style.safetensors", strength)]
        return collect(pipeline.execute(make_plan(5, 1, 3.0, loras=loras, **settings), Inputs()), "latent")

    one, off = latents(1.0), latents(0.0)
    plain = DiffusionForcingPipeline(embedded.folder(False), device="cpu")
    assert torch.equal(off, collect(plain.execute(make_plan(5, 1, 3.0, **settings), Inputs()), "latent"))
    assert not torch.equal(one, off) and torch.equal(latents(1.0), one)


@pytest.mark.slow
def test_a_preset_is_its_flags(tmp_path):
    flags = SHORT[:2] + SHORT[4:]
    preset = run(GENERATE, *flags, *FRAMES, "--preset", "4steps", cwd=tmp_path)
    spelt = ("--inference_steps", 4, "--solver", "euler", "--shift", 5, "--guidance_scale", 1, "--outdir", "spelt")
    assert preset.path.read_bytes() == run(GENERATE, *flags, *FRAMES, *spelt, cwd=tmp_path).path.read_bytes()
    refused = run(GENERATE, *flags, "--preset", "8steps", cwd=tmp_path)
    assert refused.code == 2 and "--preset 8steps: must be 4steps" in refused.err


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_rounded_weights_make_nearly_the_same_video(kind, plain, tmp_path):
    made = run(FORCING, *SHORT, *FRAMES, "--quantize", kind, cwd=tmp_path)
    near = psnr(made.frames, plain.frames)
    assert 15 < near < 60, near


def test_the_vae_in_bfloat16_makes_nearly_the_same_frames(plain, tmp_path):
    made = run(FORCING, *SHORT, *FRAMES, "--vae_dtype", "bfloat16", cwd=tmp_path)
    assert 25 < psnr(made.frames, plain.frames) < 60


def test_a_kernel_that_is_not_there_is_refused(tmp_path):
    made = run(FORCING, *SHORT, *FRAMES, "--attention", "fa4", cwd=tmp_path)
    assert made.code == 2 and len(made.lines) == 1 and "--attention fa4: " in made.err
