"""LoRA files of every trainer, merged and in the forward pass, against adding their changes by hand."""

import copy
import json

import forms
import pytest
import small_checkpoints
import torch
from diffusers.loaders.lora_pipeline import SkyReelsV2LoraLoaderMixin
from lora_files import (
    ALPHA,
    IMAGE,
    LINEAR,
    RANK,
    SAME,
    STRENGTH,
    STYLES,
    assert_changed,
    assert_same_bits,
    by_hand,
    draw,
    kohya,
    lora_in,
    output,
    pairs,
    state,
    theirs,
    written,
)
from peers import apart, peer_transformer, small_model
from torch import nn

from skyreels_v2_infer import DiffusionForcingPipeline
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.modules.linear import OneByteLinear, quantize_blocks
from skyreels_v2_infer.weights.key_tables import BLOCK_LINEAR
from skyreels_v2_infer.weights.loading import get_transformer
from skyreels_v2_infer.weights.lora import Added, LoraFile, apply, targets

# Every way of writing a pair


@pytest.mark.parametrize("alpha", [None, ALPHA])
@pytest.mark.parametrize("style", STYLES)
def test_pairs_of_every_trainer(tmp_path, style, alpha):
    model = small_model(task="i2v")
    before, made = output(model), pairs(model, LINEAR + IMAGE)
    tensors = written(style, made, alpha)
    applied = apply(model, [(lora_in(tmp_path, tensors), STRENGTH)])
    scale = STRENGTH * (1 if alpha is None else alpha / RANK)
    changes = {f"{name}.weight": scale * b @ a for name, (b, a) in made.items()}
    assert_changed(model, by_hand(small_model(task="i2v"), changes), before)
    (report,) = applied.reports
    assert (report.applied, report.tensors, report.skipped) == (len(tensors), len(tensors), {})
    assert sorted(report.parameters) == sorted(f"{name}.weight" for name in made)
    assert f"{len(tensors)} of {len(tensors)} tensors applied to {len(made)} parameters (rank {RANK})" in report.line()


def test_alpha_0_says_nothing(tmp_path):
    made = pairs(small_model(), ["head.head"])
    lora = lora_in(tmp_path, written("kijai", made, alpha=0.0))
    (change,) = lora.matched(targets(small_model())[0]).changes
    assert torch.equal(lora.delta([change]), made["head.head"][0] @ made["head.head"][1])


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("where", ["metadata", "beside"])
def test_alphas_of_pefts_configuration(tmp_path, where, rslora):
    model = small_model()
    before, made = output(model), pairs(model, ["blocks.0.self_attn.q", "blocks.1.self_attn.k"])
    config = {"r": RANK, "lora_alpha": 8, "alpha_pattern": {"to_k": 2}, "use_rslora": rslora}
    tensors = written("diffusers", made)
    if where == "metadata":
        packed = {f"transformer.{name}": value for name, value in config.items()}
        lora = lora_in(tmp_path, tensors, metadata={"lora_adapter_metadata": json.dumps(packed)})
    else:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        lora_in(tmp_path, tensors, "adapter_model.safetensors")
        lora = LoraFile.open(tmp_path)
    apply(model, [(lora, 1.0)])
    (qb, qa), (kb, ka) = made.values()
    rank = RANK**0.5 if rslora else RANK
    changes = {"blocks.0.self_attn.q.weight": 8 / rank * qb @ qa, "blocks.1.self_attn.k.weight": 2 / rank * kb @ ka}
    assert_changed(model, by_hand(small_model(), changes), before)


# What is not a pair


Q, FFN = "blocks.0.self_attn.q", "blocks.1.ffn.0"  # [64, 64] and [96, 64]

OTHERS = {
    "LoHa": lambda out, inputs: (
        parts := {
            "hada_w1_a": draw(out, RANK, seed=1),
            "hada_w1_b": draw(RANK, inputs, seed=2),
            "hada_w2_a": draw(out, RANK, seed=3) / out**0.5,
            "hada_w2_b": draw(RANK, inputs, seed=4),
            "alpha": torch.tensor(ALPHA),
        },
        ALPHA / RANK * (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"]),
    ),
    "LoHa in Tucker form": lambda out, inputs: (
        parts := {
            "hada_t1": draw(RANK, RANK, seed=5),
            "hada_w1_a": draw(RANK, out, seed=1) / out**0.5,
            "hada_w1_b": draw(RANK, inputs, seed=2),
            "hada_t2": draw(RANK, RANK, seed=6),
            "hada_w2_a": draw(RANK, out, seed=3),
            "hada_w2_b": draw(RANK, inputs, seed=4) / inputs**0.5,
        },
        (parts["hada_w1_a"].T @ parts["hada_t1"] @ parts["hada_w1_b"])
        * (parts["hada_w2_a"].T @ parts["hada_t2"] @ parts["hada_w2_b"]),
    ),
    "LoKr": lambda out, inputs: (
        parts := {"lokr_w1": draw(4, 8), "lokr_w2": draw(out // 4, inputs // 8) / 8, "alpha": torch.tensor(1e10)},
        torch.kron(parts["lokr_w1"], parts["lokr_w2"]),  # nothing is decomposed, so alpha has no part in it
    ),
    "LoKr, second factor decomposed": lambda out, inputs: (
        parts := {
            "lokr_w1": draw(4, 8),
            "lokr_w2_a": draw(out // 4, 2, seed=1),
            "lokr_w2_b": draw(2, inputs // 8, seed=2) / 8,
            "alpha": torch.tensor(ALPHA),
        },
        ALPHA / 2 * torch.kron(parts["lokr_w1"], parts["lokr_w2_a"] @ parts["lokr_w2_b"]),
    ),
    "LoKr of a 1x1 convolution": lambda out, inputs: (
        parts := {"lokr_w1": draw(4, 8), "lokr_w2": draw(out // 4, inputs // 8, 1, 1) / 8},
        torch.kron(parts["lokr_w1"], parts["lokr_w2"][:, :, 0, 0]),
    ),
    "LoKr, both decomposed": lambda out, inputs: (
        parts := {
            "lokr_w1_a": draw(4, 2, seed=3),
            "lokr_w1_b": draw(2, 8, seed=4),
            "lokr_w2_a": draw(out // 4, 2, seed=1),
            "lokr_w2_b": draw(2, inputs // 8, seed=2) / 8,
        },
        torch.kron(parts["lokr_w1_a"] @ parts["lokr_w1_b"], parts["lokr_w2_a"] @ parts["lokr_w2_b"]),
    ),
    "LoKr in Tucker form": lambda out, inputs: (
        parts := {
            "lokr_w1": draw(4, 8),
            "lokr_t2": draw(2, 2),
            "lokr_w2_a": draw(2, out // 4, seed=1),
            "lokr_w2_b": draw(2, inputs // 8, seed=2) / 8,
            "alpha": torch.tensor(ALPHA),
        },
        ALPHA / 2 * torch.kron(parts["lokr_w1"], parts["lokr_w2_a"].T @ parts["lokr_t2"] @ parts["lokr_w2_b"]),
    ),
    "LoCon": lambda out, inputs: (
        parts := {
            "lora_up.weight": draw(out, RANK, seed=1),
            "lora_mid.weight": draw(RANK, RANK, seed=2) / RANK,
            "lora_down.weight": draw(RANK, inputs, seed=3) / inputs**0.5,
        },
        parts["lora_up.weight"] @ parts["lora_mid.weight"] @ parts["lora_down.weight"],
    ),
    "difference": lambda out, inputs: (parts := {"diff": draw(out, inputs) / inputs**0.5}, parts["diff"]),
}


@pytest.mark.parametrize(
    ("prefix", "whose", "merge"), [("diffusion_model.", "ours", True), ("lycoris_", "theirs", False)]
)
@pytest.mark.parametrize("kind", OTHERS)
def test_other_changes_of_a_weight(tmp_path, kind, prefix, whose, merge):
    model, tensors, changes = small_model(), {}, {}
    for name in (Q, FFN):
        parts, change = OTHERS[kind](*model.get_submodule(name).weight.shape)
        module = name if whose == "ours" else theirs(name)
        module = prefix + (module if prefix.endswith(".") else kohya(module))
        tensors |= {f"{module}.{end}": tensor for end, tensor in parts.items()}
        changes[f"{name}.weight"] = STRENGTH * change
    before = output(model)
    applied = apply(model, [(lora_in(tmp_path, tensors), STRENGTH)], merge=merge)
    assert_changed(model, by_hand(small_model(), changes), before)
    assert not applied.reports[0].skipped


@pytest.mark.parametrize("per", ["row", "column", "PEFT"])
def test_dora(tmp_path, per):
    model = small_model()
    before, made = output(model), pairs(model, [Q, FFN])
    tensors, changes = written("kijai", made, ALPHA), {}
    for name, (b, a) in made.items():
        weight = model.get_submodule(name).weight
        changed = weight + ALPHA / RANK * b @ a
        axis = 0 if per == "column" else 1
        magnitude = 1 + draw(*changed.norm(dim=axis, keepdim=True).shape).abs()
        changes[f"{name}.weight"] = STRENGTH * (magnitude / changed.norm(dim=axis, keepdim=True) * changed - weight)
        end, magnitude = (".lora_magnitude_vector", magnitude[:, 0]) if per == "PEFT" else (".dora_scale", magnitude)
        tensors[f"diffusion_model.{name}{end}"] = magnitude
    apply(model, [(lora_in(tmp_path, tensors), STRENGTH)], merge=False)  # which it cannot do without
    assert_changed(model, by_hand(small_model(), changes), before)


def test_dora_that_keeps_the_norms_is_the_plain_weight(tmp_path):
    """A change of 0 at the weight's own norms changes nothing."""
    model, (b, a) = small_model(), pairs(small_model(), [Q])[Q]
    tensors = written("kijai", {Q: (0 * b, a)})
    tensors[f"diffusion_model.{Q}.dora_scale"] = model.get_submodule(Q).weight.norm(dim=1, keepdim=True)
    before = output(model)
    apply(model, [(lora_in(tmp_path, tensors), 1.0)])
    assert apart(output(model), before) <= SAME


def test_a_pair_on_the_patch_convolution(tmp_path):
    model = small_model()
    up, down = draw(64, RANK, 1, 1, 1), draw(RANK, 16, 1, 2, 2) / 8
    layer = "diffusion_model.patch_embedding"
    tensors = {f"{layer}.lora_up.weight": up, f"{layer}.lora_down.weight": down}
    before = output(model)
    apply(model, [(lora_in(tmp_path, tensors), STRENGTH)])
    change = (up.flatten(1) @ down.flatten(1)).view(64, 16, 1, 2, 2)
    assert_changed(model, by_hand(small_model(), {"patch_embedding.weight": STRENGTH * change}), before)


# What other programs lose

LOST = {
    "patch_embedding.diff": ("patch_embedding.weight", (64, 16, 1, 2, 2)),
    "patch_embedding.diff_b": ("patch_embedding.bias", (64,)),
    "blocks.0.norm3.diff": ("blocks.0.norm3.weight", (64,)),
    "blocks.1.norm3.diff_b": ("blocks.1.norm3.bias", (64,)),
    "blocks.0.self_attn.norm_q.diff": ("blocks.0.self_attn.norm_q.weight", (64,)),
    "blocks.1.cross_attn.norm_k.diff": ("blocks.1.cross_attn.norm_k.weight", (64,)),
    "blocks.0.cross_attn.norm_q.w_norm": ("blocks.0.cross_attn.norm_q.weight", (64,)),
    "blocks.0.norm3.b_norm": ("blocks.0.norm3.bias", (64,)),
    "blocks.1.diff_m": ("blocks.1.modulation", (1, 6, 64)),
    "blocks.0.modulation.diff": ("blocks.0.modulation", (1, 6, 64)),
    "head.diff_m": ("head.modulation", (1, 2, 64)),
    "head.head.diff": ("head.head.weight", (64, 64)),
    "head.head.diff_b": ("head.head.bias", (64,)),
    "time_projection.1.diff_b": ("time_projection.1.bias", (384,)),
    "text_embedding.0.diff_b": ("text_embedding.0.bias", (64,)),
    "blocks.0.self_attn.q.diff_b": ("blocks.0.self_attn.q.bias", (64,)),
}


@pytest.mark.parametrize("name", LOST)
def test_changes_that_others_drop_are_applied(tmp_path, name):
    parameter, shape = LOST[name]
    model, change = small_model(), draw(*shape) / (shape[-1] if len(shape) == 2 else 4) ** 0.5
    before = output(model)
    applied = apply(model, [(lora_in(tmp_path, {f"diffusion_model.{name}": change}), STRENGTH)])
    assert_changed(model, by_hand(small_model(), {parameter: STRENGTH * change}), before)
    assert applied.reports[0].parameters == [parameter]


def test_changes_of_image_and_fps_parameters(tmp_path):
    for task, name, parameter in (
        ("i2v", "blocks.0.cross_attn.norm_k_img.diff", "blocks.0.cross_attn.norm_k_img.weight"),
        ("i2v", "img_emb.proj.0.diff_b", "img_emb.proj.0.bias"),
        ("df", "fps_embedding.diff", "fps_embedding.weight"),
    ):
        model = small_model(task="i2v" if task == "i2v" else "t2v", inject_sample_info=task == "df")
        plain, before = copy.deepcopy(model), output(model)
        change = draw(*model.get_parameter(parameter).shape)
        apply(model, [(lora_in(tmp_path, {name: change}), STRENGTH)])
        assert_changed(model, by_hand(plain, {parameter: STRENGTH * change}), before)


def test_a_bias_of_a_pair_is_scaled_as_the_pair_is(tmp_path):
    model, made, bias = small_model(), pairs(small_model(), [Q]), draw(64)
    tensors = written("diffusers", made, ALPHA) | {"transformer.blocks.0.attn1.to_q.lora_B.bias": bias}
    before = output(model)
    apply(model, [(lora_in(tmp_path, tensors), STRENGTH)])
    b, a = made[Q]
    scale = STRENGTH * ALPHA / RANK
    assert_changed(model, by_hand(small_model(), {f"{Q}.weight": scale * b @ a, f"{Q}.bias": scale * bias}), before)


def test_a_set_weight_replaces_at_strength_1(tmp_path):
    model, weight = small_model(), draw(64, 64) / 8
    apply(model, [(lora_in(tmp_path, {f"{Q}.set_weight": weight}), 1.0)])
    assert apart(model.get_submodule(Q).weight, weight) <= SAME


# Strengths


def a_file(folder, seed: int = 0, name: str = "some.safetensors") -> tuple[LoraFile, dict[str, torch.Tensor]]:
    """A file with pairs, differences and a LoKr; and what each adds at strength 1."""
    model = small_model()
    made = pairs(model, LINEAR, seed)
    tensors = written("kijai", made, ALPHA)
    changes = {f"{name}.weight": ALPHA / RANK * b @ a for name, (b, a) in made.items()}
    singles = {
        "patch_embedding.diff": ("patch_embedding.weight", (64, 16, 1, 2, 2)),
        "blocks.0.norm3.diff": ("blocks.0.norm3.weight", (64,)),
        "blocks.1.diff_m": ("blocks.1.modulation", (1, 6, 64)),
        "head.head.diff_b": ("head.head.bias", (64,)),
    }
    for key, (parameter, shape) in singles.items():
        tensors[f"diffusion_model.{key}"] = changes[parameter] = draw(*shape, seed=seed) / 4
    parts, changes["blocks.0.ffn.2.weight"] = OTHERS["LoKr"](64, 96)
    tensors |= {f"diffusion_model.blocks.0.ffn.2.{end}": tensor for end, tensor in parts.items()}
    return lora_in(folder, tensors, name), changes


@pytest.mark.parametrize("changeable", [True, False])
@pytest.mark.parametrize("merge", [True, False])
def test_strength_0_is_the_model_bit_for_bit(tmp_path, merge, changeable):
    model = small_model()
    model.get_submodule(Q).weight[0, 0] = -0.0  # to which adding 0 would show
    before, bits = output(model), state(model)
    lora, _ = a_file(tmp_path)
    apply(model, [(lora, 0.0)], merge=merge, changeable=changeable)
    assert_same_bits(model, bits)
    assert torch.signbit(model.get_submodule(Q).weight[0, 0])
    assert_same_output(model, before, merge)


def assert_same_output(model, before, merge: bool) -> None:
    """To the last bit, but for dense float32 layers with a hook, which `modules.dense` leaves to torch."""
    if merge or model.dtype != torch.float32:
        assert torch.equal(output(model), before)
    else:
        assert apart(output(model), before) <= SAME


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("merge", [True, False])
def test_strengths_are_set_again_from_the_original_weights(tmp_path, merge, dtype):
    """After any others a strength gives the bits that it gives at once, and 0 the original's."""
    fresh, model = small_model().to(dtype), small_model().to(dtype)
    before, bits = output(model), state(model)
    lora, _ = a_file(tmp_path)
    other, _ = a_file(tmp_path, seed=50, name="other.safetensors")
    apply(fresh, [(lora, 0.3), (other, -1.0)], merge=merge)
    applied = apply(model, [(lora, 1.0), (other, 0.0)], merge=merge, changeable=True)
    applied.set_strengths([0.0, 2.0])
    applied.set_strengths([0.3, -1.0])
    assert applied.strengths == [0.3, -1.0]
    assert torch.equal(output(model), output(fresh))
    assert not torch.equal(output(model), before)
    applied.set_strengths([0.0, 0.0])
    assert_same_output(model, before, merge)
    assert_same_bits(model, bits)
    applied.set_strengths([1.0, 1.0])
    applied.remove()
    assert torch.equal(output(model), before)
    assert_same_bits(model, bits)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("merge", [True, False])
def test_an_interrupted_change_is_not_taken_for_a_finished_one(tmp_path, merge, monkeypatch):
    lora, _ = a_file(tmp_path)
    model = small_model()
    for changeable in (False, True):
        with monkeypatch.context() as patched:
            applied = apply(model, [(lora, 0.0)], merge=merge, changeable=changeable)
            before, calls = output(model), []
            name = "_set_merged" if merge else "_set_added"
            real = getattr(applied, name)

            def interrupted(*given, real=real, calls=calls):
                calls.append(1)
                if len(calls) == 2:
                    raise RuntimeError("out of memory")
                real(*given)

            patched.setattr(applied, name, interrupted)
            with pytest.raises(RuntimeError):
                applied.set_strengths([1.0])
        assert applied.strengths is None
        if changeable:
            applied.set_strengths([0.0])
            assert_same_output(model, before, merge)
        else:  # it cannot be undone
            with pytest.raises(ValueError, match="changeable"):
                applied.set_strengths([1.0])
            model = small_model()


def test_what_cannot_be_set_is_named(tmp_path):
    lora, _ = a_file(tmp_path)
    applied = apply(small_model(), [(lora, 1.0)])
    with pytest.raises(ValueError, match="changeable"):
        applied.set_strengths([0.5])
    for bad in ([], [1.0, 1.0], [float("nan")], [float("inf")]):
        with pytest.raises(ValueError, match="finite"):
            applied.set_strengths(bad)


def test_two_loras_add(tmp_path):
    model = small_model()
    before = output(model)
    one, first = a_file(tmp_path)
    two, second = a_file(tmp_path, seed=50, name="other.safetensors")
    apply(model, [(one, 0.5), (two, -0.25)])
    expected = by_hand(small_model(), {name: 0.5 * change for name, change in first.items()})
    assert_changed(model, by_hand(expected, {name: -0.25 * change for name, change in second.items()}), before)


def test_a_model_in_bfloat16_is_merged_in_float32(tmp_path):
    model, (b, a) = small_model().bfloat16(), pairs(small_model(), [Q])[Q]
    weight = model.get_submodule(Q).weight.float()
    apply(model, [(lora_in(tmp_path, written("kijai", {Q: (b, a)})), STRENGTH)])
    merged = model.get_submodule(Q).weight
    assert merged.dtype == torch.bfloat16
    assert torch.equal(merged, (weight + STRENGTH * (b @ a)).bfloat16())


def test_a_loaded_model_is_changed_in_memory_only(tmp_path):
    """On a CPU a parameter is a view of its mapped file."""
    folder = small_checkpoints.write_original(tmp_path / "model")
    model = get_transformer(folder, device="cpu", weight_dtype=torch.float32)
    bytes_before = (folder / "model.safetensors").read_bytes()
    plain = copy.deepcopy(model)
    before, made = output(model), pairs(model, LINEAR)
    apply(model, [(lora_in(tmp_path, written("kijai", made)), STRENGTH)])
    assert_changed(model, by_hand(plain, {f"{n}.weight": STRENGTH * b @ a for n, (b, a) in made.items()}), before)
    assert (folder / "model.safetensors").read_bytes() == bytes_before


# In the forward pass


def test_merged_and_unmerged_agree(tmp_path):
    lora, _ = a_file(tmp_path)
    merged, unmerged = small_model(), small_model()
    apply(merged, [(lora, STRENGTH)])
    weights = {name: unmerged.get_submodule(name).weight.clone() for name in LINEAR}
    apply(unmerged, [(lora, STRENGTH)], merge=False)
    assert apart(output(unmerged), output(merged)) <= 1e-5
    assert all(torch.equal(unmerged.get_submodule(name).weight, weights[name]) for name in LINEAR)


class Packed(nn.Module):
    """A linear layer as a quantised one looks: its weight is no parameter, but bytes in a buffer."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.out_features, self.in_features = layer.weight.shape
        self.register_buffer("stored", layer.weight.detach().view(torch.uint8))
        self.bias = layer.bias

    @property
    def weight(self) -> torch.Tensor:
        return torch.empty(self.out_features, self.in_features, device="meta")

    def forward(self, x):
        return nn.functional.linear(x, self.stored.view(torch.float32), self.bias)


class Plain8(nn.Linear):
    """A linear layer whose weight is float8, to which small changes cannot be added."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype), self.bias)


def packed(model: nn.Module) -> nn.Module:
    for block in model.blocks:
        for attention in (block.self_attn, block.cross_attn):
            for name in "qkvo":
                setattr(attention, name, Packed(getattr(attention, name)))
        block.ffn[0], block.ffn[2] = Packed(block.ffn[0]), Packed(block.ffn[2])
    return model


def test_quantised_layers_get_the_changes_in_the_forward_pass(tmp_path):
    """What is dense beside them (biases, norms, modulation, the first and last layers) is merged."""
    lora, changes = a_file(tmp_path)
    model = packed(small_model())
    stored = state(model)
    before = output(model)
    applied = apply(model, [(lora, STRENGTH)], changeable=True)
    assert not applied.reports[0].skipped
    assert applied.reports[0].parameters
    expected = output(by_hand(small_model(), {name: STRENGTH * change for name, change in changes.items()}))
    assert apart(output(model), expected) <= 1e-5
    assert all(torch.equal(model.state_dict()[name], stored[name]) for name in stored if name.endswith("stored"))
    applied.set_strengths([0.0])
    assert torch.equal(output(model), before)
    applied.remove()
    assert_same_bits(model, stored)


def test_at_strength_0_an_output_is_passed_on_untouched():
    """Not even 0 is added, which would make 0 of -0."""
    added, up, y = Added([("product", draw(2, 8), draw(4, 2))], torch.float32), draw(4, 2), torch.tensor([-0.0] * 4)
    added.set_strengths([0.0], lambda _: up)
    assert added(draw(8), y) is y
    added.set_strengths([1.0], lambda _: up)
    assert not torch.equal(added(draw(8), y), y)


def test_a_float8_weight_keeps_its_bits(tmp_path):
    model, reference = small_model(), small_model()
    layer, (b, a) = Plain8(64, 64), pairs(model, [Q])[Q]
    old = model.get_submodule(Q)
    layer.weight, layer.bias = nn.Parameter(old.weight.to(torch.float8_e4m3fn), False), old.bias
    model.blocks[0].self_attn.q = layer
    reference.get_submodule(Q).weight.data = layer.weight.float() + STRENGTH * b @ a
    kept = layer.weight.view(torch.uint8).clone()
    apply(model, [(lora_in(tmp_path, written("kijai", {Q: (b, a)})), STRENGTH)])
    assert apart(output(model), output(reference)) <= 1e-5
    assert torch.equal(layer.weight.view(torch.uint8), kept)


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_strengths_that_change_on_weights_that_are_rounded(tmp_path, kind):
    """They are added in the forward pass, and the rounded weights stay as they are."""
    folder = small_checkpoints.write_diffusers(tmp_path / "model", "df")
    dense = DiffusionForcingPipeline(folder, device="cpu").transformer
    made = pairs(dense, [Q, "blocks.0.self_attn.k", "blocks.0.self_attn.v", FFN])
    lora = lora_in(tmp_path, written("kijai", made))
    rounded = output(DiffusionForcingPipeline(folder, device="cpu", quantize=kind).transformer)
    given = {"quantize": kind, "loras": [(lora.path, STRENGTH)], "loras_change": True}
    pipeline = DiffusionForcingPipeline(folder, device="cpu", **given)
    assert is_quantised(pipeline.transformer.get_submodule(Q))
    first, expected = output(pipeline.transformer), output(by_hand(dense, scaled(made, STRENGTH)))
    assert apart(first, expected) <= 0.5 * apart(rounded, expected)
    pipeline.loras.set_strengths([0.0])
    assert torch.equal(output(pipeline.transformer), rounded)
    pipeline.loras.set_strengths([STRENGTH])
    assert torch.equal(output(pipeline.transformer), first)


@pytest.mark.parametrize("stored", ["dense", "float8"])
def test_weights_are_rounded_after_a_lora_whatever_a_file_holds(tmp_path, stored):
    """Also those that a file stores quantised, which would otherwise stay as they are."""
    folder = small_checkpoints.write_diffusers(tmp_path / "model", "df")
    tensors = forms.weights()
    if stored == "float8":
        low = {name: t.to(torch.float8_e4m3fn) for name, t in tensors.items() if BLOCK_LINEAR.search(name)}
        tensors |= {name: t for name, t in low.items() if name.endswith("weight")}
    dit = forms.write_folder(tmp_path / "dit", tensors)
    given = {"dit_path": dit, "device": "cpu", "dequantize": True}
    expected = DiffusionForcingPipeline(folder, **given).transformer
    lora = lora_in(tmp_path, written("kijai", pairs(expected, [Q, FFN])))
    apply(expected, [(lora, STRENGTH)])
    count = quantize_blocks(expected, "int8", "cpu")
    given |= {"dequantize": False, "quantize": "int8", "loras": [(lora.path, STRENGTH)]}
    model = DiffusionForcingPipeline(folder, **given).transformer
    assert sum(map(is_quantised, model.modules())) == count
    assert torch.equal(output(model), output(expected))


def is_quantised(layer: nn.Module) -> bool:
    return isinstance(layer, OneByteLinear)


def scaled(made: dict, strength: float) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": strength * b @ a for name, (b, a) in made.items()}


def test_dora_on_quantised_layers_is_reported_and_alone_refused(tmp_path):
    model, made = packed(small_model()), pairs(small_model(), [Q, "head.head"])
    tensors = written("kijai", made) | {f"diffusion_model.{Q}.dora_scale": draw(64, 1)}
    report = apply(model, [(lora_in(tmp_path, tensors), 1.0)]).reports[0]
    assert report.parameters == ["head.head.weight"]
    ((reason, names),) = report.skipped.items()
    assert "--weights dequantize" in reason
    assert len(names) == 3
    only = {name: tensor for name, tensor in tensors.items() if Q in name}
    with pytest.raises(InputError, match="--weights dequantize"):
        apply(model, [(lora_in(tmp_path, only), 1.0)])


def test_unmerged_changes_follow_the_layer_and_leave_the_state_dict_alone(tmp_path):
    lora, _ = a_file(tmp_path)
    model = small_model()
    names = list(model.state_dict())
    apply(model, [(lora, STRENGTH)], merge=False)
    assert list(model.state_dict()) == names
    assert {tensor.device.type for tensor in copy.deepcopy(model).to("meta").buffers()} == {"meta"}


def test_unmerged_changes_compile_without_a_break(tmp_path):
    lora, _ = a_file(tmp_path)
    model = small_model()
    applied = apply(model, [(lora, STRENGTH)], merge=False, changeable=True)
    eager = {}
    for strength in (STRENGTH, 0.2):
        applied.set_strengths([strength])
        eager[strength] = output(model)
    for block in model.blocks:
        block.compile(backend="eager", fullgraph=True)
    for strength, expected in eager.items():
        applied.set_strengths([strength])
        assert apart(output(model), expected) <= SAME


# Against diffusers


def loaded_by_diffusers(tensors: dict, strength: float, task: str = "t2v") -> dict[str, torch.Tensor]:
    """The weights of diffusers' transformer after it has loaded and fused a file."""
    peer = peer_transformer(small_model(task=task))
    names = [name for name, _ in peer.named_parameters()]
    state_dict = SkyReelsV2LoraLoaderMixin.lora_state_dict(dict(tensors))
    SkyReelsV2LoraLoaderMixin.load_lora_into_transformer(state_dict, peer, adapter_name="some")
    peer.set_adapters(["some"], [strength])
    peer.fuse_lora()
    peer.unload_lora()
    weights = dict(peer.named_parameters())
    assert list(weights) == names
    return weights


@pytest.mark.parametrize("task", ["t2v", "i2v"])
@pytest.mark.parametrize("style", ["kijai", "diffusion-pipe", "diffusers", "musubi", "kijai with biases"])
def test_weights_are_those_that_diffusers_makes(tmp_path, style, task):
    """Of files that diffusers can load: musubi's are of blocks only, and other layers' alphas are ignored there."""
    style, _, biases = style.partition(" with ")
    model = small_model(task=task)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    inside = [name for name in linear if name.startswith("blocks.")]
    tensors = written(style, pairs(model, inside), ALPHA if style in ("musubi", "kijai") else None)
    if style != "musubi":
        tensors |= written(style, pairs(model, [name for name in linear if name not in inside]))
    if biases:
        tensors |= {f"diffusion_model.{name}.diff_b": draw(len(model.get_submodule(name).bias)) for name in inside}
    report = apply(model, [(lora_in(tmp_path, tensors), STRENGTH)]).reports[0]
    assert not report.skipped
    expected = loaded_by_diffusers(tensors, STRENGTH, task)
    ours = dict(peer_transformer(model).named_parameters())
    for name, tensor in expected.items():
        assert apart(ours[name], tensor) <= SAME, name
