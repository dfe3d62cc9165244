"""LoRA files as the trainers write them, for small models."""

import copy
import re
from pathlib import Path

import torch
from peers import apart, small_model
from safetensors.torch import save_file
from torch import nn

from skyreels_v2_infer.weights.lora import LoraFile

SAME = 1e-6  # relative, of the output
RANK, ALPHA, STRENGTH = 4, 2.0, 0.7

# Linear layers that a file changes, of every kind that there is.
LINEAR = [
    "blocks.0.self_attn.q",
    "blocks.1.self_attn.k",
    "blocks.0.self_attn.v",
    "blocks.1.self_attn.o",
    "blocks.0.cross_attn.q",
    "blocks.1.cross_attn.k",
    "blocks.0.cross_attn.v",
    "blocks.1.cross_attn.o",
    "blocks.0.ffn.0",
    "blocks.1.ffn.2",
    "text_embedding.0",
    "text_embedding.2",
    "time_embedding.0",
    "time_embedding.2",
    "time_projection.1",
    "head.head",
]
IMAGE = ["blocks.0.cross_attn.k_img", "blocks.1.cross_attn.v_img", "img_emb.proj.1", "img_emb.proj.3"]

# (ours, diffusers'), parts of a layer's name
THEIRS = [
    ("self_attn", "attn1"),
    ("cross_attn", "attn2"),
    ("attn1.o", "attn1.to_out.0"),
    ("attn2.o", "attn2.to_out.0"),
    (".k_img", ".add_k_proj"),
    (".v_img", ".add_v_proj"),
    ("ffn.0", "ffn.net.0.proj"),
    ("ffn.2", "ffn.net.2"),
    ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    ("time_projection.1", "condition_embedder.time_proj"),
    ("head.head", "proj_out"),
    ("img_emb.proj.1", "condition_embedder.image_embedder.ff.net.0.proj"),
    ("img_emb.proj.3", "condition_embedder.image_embedder.ff.net.2"),
]


def theirs(name: str) -> str:
    """What diffusers calls a layer."""
    for ours, called in THEIRS:
        name = name.replace(ours, called)
    return re.sub(r"(attn\d)\.([qkv])$", r"\1.to_\2", name)


def kohya(name: str) -> str:
    return name.replace(".", "_")


# How a trainer writes a pair: (which names, prefix, way to write the module, ends of up and down)
STYLES = {
    "kijai": ("ours", "diffusion_model.", str, ".lora_up.weight", ".lora_down.weight"),
    "lightx2v": ("ours", "", str, ".lora_up.weight", ".lora_down.weight"),
    "diffusion-pipe": ("ours", "diffusion_model.", str, ".lora_B.weight", ".lora_A.weight"),
    "diffusers": ("theirs", "transformer.", str, ".lora_B.weight", ".lora_A.weight"),
    "PEFT": ("ours", "base_model.model.", str, ".lora_B.weight", ".lora_A.weight"),
    "PEFT of diffusers": ("theirs", "base_model.model.", str, ".lora_B.default.weight", ".lora_A.default.weight"),
    "DiffSynth": ("ours", "pipe.dit.", str, ".lora_B.default.weight", ".lora_A.default.weight"),
    "musubi": ("ours", "lora_unet_", kohya, ".lora_up.weight", ".lora_down.weight"),
    "VideoX-Fun": ("ours", "lora_unet__", kohya, ".lora_up.weight", ".lora_down.weight"),
    "SimpleTuner": ("theirs", "lycoris_", kohya, ".lora_up.weight", ".lora_down.weight"),
    "bare": ("ours", "model.diffusion_model.", str, ".lora_B", ".lora_A"),
    "old diffusers": ("theirs", "unet.", str, "_lora.up.weight", "_lora.down.weight"),
    "processors": ("theirs", "transformer.", str, ".processor.lora.up.weight", ".processor.lora.down.weight"),
    "layers": ("theirs", "video_model.", str, ".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
    "compiled": ("ours", "diffusion_model._orig_mod.", str, ".lora_up.weight", ".lora_down.weight"),
}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def pairs(model: nn.Module, names, seed: int = 0) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Layer -> (up, down), such that the change is about as large as the weight."""
    made = {}
    for i, name in enumerate(names):
        out, inputs = model.get_submodule(name).weight.shape
        made[name] = draw(out, RANK, seed=seed + i) / RANK**0.5, draw(RANK, inputs, seed=seed + i) / inputs**0.5
    return made


def written(style: str, made: dict, alpha: float | None = None) -> dict[str, torch.Tensor]:
    """Pairs as a trainer names them."""
    whose, prefix, spelling, up, down = STYLES[style]
    tensors = {}
    for name, (b, a) in made.items():
        module = prefix + spelling(name if whose == "ours" else theirs(name))
        tensors |= {module + up: b, module + down: a}
        if alpha is not None:
            tensors[module + ".alpha"] = torch.tensor(alpha)
    return tensors


def lora_in(folder: Path, tensors: dict, name: str = "some.safetensors", metadata: dict | None = None) -> LoraFile:
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / name, metadata=metadata)
    return LoraFile.open(folder / name)


def output(model: nn.Module) -> torch.Tensor:
    x, text = draw(1, 16, 3, 4, 6), draw(1, 7, model.text_dim)
    kw = {"fps": torch.tensor([1])} if model.inject_sample_info else {}
    if model.model_type == "i2v":
        kw |= {"y": draw(1, 20, 3, 4, 6), "clip_fea": draw(1, 5, 20)}
    with torch.no_grad():
        return model(x, torch.tensor([500.0]), text, **kw)


def by_hand(model: nn.Module, changes: dict[str, torch.Tensor]) -> nn.Module:
    """A copy of the model with something added to its parameters."""
    changed = copy.deepcopy(model)
    for name, change in changes.items():
        changed.get_parameter(name).data += change
    return changed


def assert_changed(model: nn.Module, expected: nn.Module, before: torch.Tensor) -> None:
    made = output(model)
    assert apart(made, output(expected)) <= SAME
    assert apart(made, before) > 1e-4


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_bits(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def full_pairs(task: str, layers: int = 2) -> dict[str, torch.Tensor]:
    """A pair for every linear layer of a model, and the differences that distilled files carry."""
    model, tensors = small_model(task=task, layers=layers), {}
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    tensors |= written_ours(pairs(model, linear))
    tensors |= {f"{name}.diff_b": draw(model.get_submodule(name).weight.shape[0]) for name in linear}
    tensors["patch_embedding.diff"] = draw(*model.patch_embedding.weight.shape) / 8
    norms = [name for name, _ in model.named_modules() if name.endswith(("norm_q", "norm_k_img"))]
    tensors |= {f"{name}.diff": draw(64) for name in norms}
    return tensors


def written_ours(made: dict) -> dict[str, torch.Tensor]:
    return {f"{n}.lora_{end}.weight": t for n, (b, a) in made.items() for end, t in (("up", b), ("down", a))}
