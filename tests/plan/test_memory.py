"""The fastest way to hold a model whose planned peak fits into a GPU's memory."""

import pytest
from script_runs import FORCING, run

from skyreels_v2_infer.cli import arguments as cli
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.plan import memory, models
from skyreels_v2_infer.plan.cost import Holding, cost_of
from skyreels_v2_infer.plan.plan import Plan, make_plan
from skyreels_v2_infer.plan.sharing import Layout
from skyreels_v2_infer.run.dry_run import described

DF_14B, DF_1B = "Skywork/SkyReels-V2-DF-14B-540P", "Skywork/SkyReels-V2-DF-1.3B-540P"


def about(model: str, *flags: object) -> dict:
    return described(cli.parse_diffusion_forcing(["--model_id", model, *map(str, flags)]))


def peak(found: dict) -> float:
    return max(found["memory_gib"].values())


def plan_540p() -> Plan:
    return make_plan(97, 30, 8.0, height=544, width=960, guidance_scale=6.0)


@pytest.mark.parametrize(
    ("model", "gib", "flags", "way", "tiled"),
    [
        (DF_1B, 8, (), "none", True),
        (DF_14B, 12, (), "blocks", False),
        (DF_14B, 24, ("--quantize", "fp8"), "parts", False),
        (DF_14B, 24, ("--quantize", "int8"), "parts", False),
        (DF_14B, 24, (), "blocks", False),
        (DF_14B, 40, (), "none", False),
        (DF_14B.replace("540P", "720P"), 16, (), "blocks", True),
    ],
)
def test_published_models_fit(model, gib, flags, way, tiled):
    found = about(model, "--memory", gib, *flags)
    assert peak(found) <= memory.USABLE * gib
    assert (found["offload"], found["vae_tiling"]) == (way, tiled)
    tight = peak(found) < peak(about(model, *flags))
    assert bool(found["memory"]) == tight and all(f"--memory {gib}" in line for line in found["memory"][:1])
    assert tiled == any("--vae_tiling off" in line for line in found["memory"])


def test_more_memory_is_never_slower():
    """Each way is taken only where no faster one fits; tiles, which round differently, after all others."""
    order = [(tiled, way) for tiled in (False, True) for way in ("none", "parts", "blocks")]
    taken = []
    for gib in (64, 40, 36, 30, 24, 16, 12, 10, 9):
        found = about(DF_14B, "--memory", gib)
        taken.append(order.index((found["vae_tiling"], found["offload"])))
        assert found["encoders_by_layers"] == (gib < 11)
    assert taken == sorted(taken) and taken[0] == 0 and taken[-1] == 5 and len(set(taken)) == 4


def test_flags_limit_what_is_chosen():
    assert about(DF_1B, "--memory", 20, "--offload")["offload"] == "blocks"
    assert about(DF_1B, "--memory", 80, "--vae_tiling", "on")["vae_tiling"]
    for flags, words in (
        (("--memory", 8, "--vae_tiling", "off"), "10.0 GiB (decoding), of which 95 % may be used; --vae_tiling auto"),
        (("--memory", 2), "3.2 GiB (denoising)"),
        (("--memory", 8, "--device", "cpu"), "--dtype bfloat16"),
    ):
        with pytest.raises(InputError, match=r"^--memory \d: the smallest planned peak is") as refused:
            about(DF_1B, *flags)
        assert words in str(refused.value)


def test_what_is_free_counts_where_nothing_is_given():
    config = models.architecture(DF_1B)
    chosen = memory.choose(plan_540p(), config, weight_bytes=2, gib=7.6)
    assert chosen.holding == Holding("none", layers=True, tiled=True)
    assert next(chosen.lines()).startswith("7.6 GiB of GPU memory are free: encoders layer by layer, the VAE in tiles")
    assert list(memory.choose(plan_540p(), config, weight_bytes=2, gib=80).lines()) == []
    unlimited = memory.choose(plan_540p(), config, weight_bytes=2)
    assert unlimited.holding == Holding() and list(unlimited.lines()) == []
    with pytest.raises(InputError, match=r"^--memory: 1\.5 GiB are free on the GPU, and the smallest planned peak"):
        memory.choose(plan_540p(), config, weight_bytes=2, gib=1.5)


def test_a_cpu_holds_all_weights_and_can_only_cut_frames():
    found = about(DF_1B, "--device", "cpu", "--dtype", "bfloat16", "--memory", 21.5)
    assert (found["offload"], found["encoders_by_layers"], found["vae_tiling"]) == ("none", False, True)
    assert not about(DF_1B, "--device", "cpu")["vae_tiling"]


def test_every_stage_is_shown_and_both_sizes_alike():
    for model in (DF_14B, DF_14B.replace("540P", "720P")):
        found = about(model)
        assert list(found["memory_gib"]) == ["texts", "denoising", "decoding"]
        assert found["weights_gib"] + found["activations_gib"] == pytest.approx(peak(found), abs=0.11)
        assert found["memory_gib"]["denoising"] > 28
    small = about(DF_14B, "--vae_dtype", "bfloat16")["memory_gib"]["decoding"]
    assert about(DF_14B)["memory_gib"]["decoding"] - small == pytest.approx(5, abs=0.2)


def test_ranks_that_share_a_frame_hold_less_of_it():
    config = models.architecture(DF_14B)
    alone = cost_of(plan_540p(), config, weight_bytes=2).stages
    shared = cost_of(plan_540p().with_sharing(Layout(2, 4, 1)), config, weight_bytes=2).stages
    assert shared["denoising"] < alone["denoising"] - 4 and shared["texts"] == alone["texts"]


def test_the_dry_run_says_why_and_a_wrong_wish_is_one_line(tmp_path):
    made = run(FORCING, "--dry_run", "--memory", 8, cwd=tmp_path)
    assert made.code == 0 and "\n--memory 8: encoders layer by layer, the VAE in tiles; planned peak 6.1" in made.out
    made = run(FORCING, "--dry_run", "--memory", 2, cwd=tmp_path)
    assert (made.code, made.out, len(made.lines)) == (2, "", 1)
