"""Finding, checking and loading the parts of a checkpoint, in both layouts."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import small_checkpoints as small
import torch
from safetensors.torch import load_file, save_file

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.modules import (
    WanModel,
    WanVAE,
    get_image_encoder,
    get_text_encoder,
    get_transformer,
    get_vae,
    image_encoder,
    text_encoder,
)
from skyreels_v2_infer.plan import cost
from skyreels_v2_infer.weights import key_tables, loading
from skyreels_v2_infer.weights.download import download_model
from skyreels_v2_infer.weights.locate import Checkpoint, read_transformer_config
from skyreels_v2_infer.weights.verify import check_files

ROOT = Path(__file__).parents[2]
GETTERS = {
    "transformer": get_transformer,
    "vae": get_vae,
    "text_encoder": get_text_encoder,
    "image_encoder": get_image_encoder,
}
# dim, heads, layers, ffn, in_dim, then tensors and parameters, of facts/checkpoints.md
PUBLISHED = {
    "SkyReels-V2-DF-1.3B-540P": (1536, 12, 30, 8960, 16, 830, 1_435_525_696),
    "SkyReels-V2-DF-14B and SkyReels-V2-T2V-14B": (5120, 40, 40, 13824, 16, 1095, 14_288_491_584),
    "SkyReels-V2-I2V-1.3B-540P": (1536, 12, 30, 8960, 36, 983, 1_564_428_608),
    "SkyReels-V2-I2V-14B": (5120, 40, 40, 13824, 36, 1303, 16_394_878_784),
}


def refusal(call, *arguments, **keywords) -> str:
    """The one line with which a call refuses its input."""
    with pytest.raises(InputError) as caught:
        call(*arguments, **keywords)
    line = str(caught.value)
    assert "\n" not in line and line.startswith("--model_id ") and len(line) < 800
    return line


def load(part: str, folder, dtype=torch.float32):
    return GETTERS[part](folder, device="cpu", weight_dtype=dtype)


def shapes_of(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.fixture(scope="module")
def stock(tmp_path_factory) -> dict[tuple[str, str], Path]:
    """One checkpoint of each task and layout; tests that damage one copy it first."""
    root = tmp_path_factory.mktemp("checkpoints")
    writers = {"original": small.write_original, "diffusers": small.write_diffusers}
    return {(k, task): write(root / f"{k}_{task}", task) for k, write in writers.items() for task in small.TRANSFORMERS}


@pytest.fixture
def copy(stock, tmp_path):
    """A copy of a checkpoint, to damage."""

    def make(layout="original", task="t2v") -> Path:
        return shutil.copytree(stock[layout, task], tmp_path / f"{layout}_{task}")

    return make


# Names and shapes at the published sizes


@pytest.mark.parametrize("model", PUBLISHED)
def test_transformer_has_the_published_tensors(model):
    dim, heads, layers, ffn, in_dim, tensors, parameters = PUBLISHED[model]
    kind = "i2v" if in_dim == 36 else "t2v"
    config = {"dim": dim, "num_heads": heads, "num_layers": layers, "ffn_dim": ffn, "in_dim": in_dim}
    with torch.device("meta"):
        module = WanModel(**config, model_type=kind, inject_sample_info="DF-1.3B" in model)
    assert shapes_of(module) == small.published_shapes(model)
    assert (len(module.state_dict()), sum(p.numel() for p in module.parameters())) == (tensors, parameters)


def test_vae_has_the_published_tensors():
    with torch.device("meta"):
        module = WanVAE()
    assert shapes_of(module) == small.published_shapes(small.VAE)
    assert (len(module.state_dict()), sum(p.numel() for p in module.parameters())) == (194, 126_892_531)


def renamed(shapes: dict, table: key_tables.Table) -> dict[str, tuple[int, ...]]:
    return {key_tables.renamed(name, table): shape for name, shape in shapes.items()}


def filled_by(published: dict, table: key_tables.Table, unused: list[str] = ()) -> dict[str, tuple[int, ...]]:
    """Our names and shapes for those of a published file, fused tensors split; no two tensors may fill one."""
    import re

    result = {}
    for name, shape in published.items():
        if any(re.search(pattern, name) for pattern in unused):
            continue
        names = key_tables.targets(name, table)
        for ours in names:
            assert ours not in result
            result[ours] = (shape[0] // len(names), *shape[1:]) if len(names) > 1 else shape
    return result


def test_every_published_text_tensor_has_its_place():
    published = small.published_shapes(small.T5)
    config = text_encoder.config_from_shapes(renamed(published, key_tables.ORIGINAL_TEXT_ENCODER))
    expected = {"vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
    assert config == expected | {"relative_attention_num_buckets": 32}
    module = text_encoder.empty_model(config)
    ours = {name: tuple(p.shape) for name, p in module.named_parameters()}
    assert filled_by(published, key_tables.ORIGINAL_TEXT_ENCODER) == ours
    assert (len(ours), sum(p.numel() for p in module.parameters())) == (242, cost.TEXT_ENCODER)


def test_every_published_image_tensor_has_its_place_or_is_known_to_be_unused():
    published = small.published_shapes(small.CLIP)
    assert len(published) == 784
    config = image_encoder.config_from_shapes(renamed(published, key_tables.ORIGINAL_IMAGE_ENCODER))
    assert (config["image_size"], config["patch_size"], config["num_hidden_layers"]) == (224, 14, 32)
    module = image_encoder.empty_model(config)
    unused = [pattern.format(last=31) for pattern in key_tables.ORIGINAL_IMAGE_ENCODER_UNUSED]
    ours = {name: tuple(p.shape) for name, p in module.named_parameters()}
    filled = filled_by(published, key_tables.ORIGINAL_IMAGE_ENCODER, unused)
    squeezed = {"embeddings.class_embedding": (1280,), "embeddings.position_embedding.weight": (257, 1280)}
    assert filled | squeezed == ours
    assert sum(p.numel() for p in module.parameters()) == cost.IMAGE_ENCODER
    # 392 of the image tower, without the 12 of its last layer, the 2 of its last norm and the projection
    assert len(filled) == 392 - 12 - 2 - 1 + 2 * 2 * 31  # each fused weight and bias fills three


# Both layouts


@pytest.mark.parametrize("task", small.TRANSFORMERS)
@pytest.mark.parametrize("part", GETTERS)
def test_layouts_give_the_same_module(stock, task, part):
    if part == "image_encoder" and task != "i2v":
        assert "is no image-to-video model" in refusal(load, part, Checkpoint.open(stock["original", task]))
        return
    ours, theirs = (load(part, stock[layout, task]).state_dict() for layout in ("original", "diffusers"))
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not any(tensor.is_meta for tensor in ours.values())
    if part in ("transformer", "vae"):
        shapes = small.transformer_shapes(task) if part == "transformer" else small.vae_shapes()
        written = small.random_weights(shapes, seed=0)
        assert ours.keys() == written.keys() and all(torch.equal(ours[name], written[name]) for name in ours)


@pytest.mark.parametrize("layout", ("original", "diffusers"))
@pytest.mark.parametrize("task", small.TRANSFORMERS)
def test_open_tells_the_layout_and_the_task_by_content(stock, tmp_path, layout, task):
    misnamed = tmp_path / ("SkyReels-V2-I2V-14B-540P-Diffusers" if task != "i2v" else "SkyReels-V2-DF-1.3B-540P")
    misnamed.symlink_to(stock[layout, task])
    checkpoint = Checkpoint.open(misnamed)
    check_files(checkpoint)
    assert (checkpoint.layout, checkpoint.is_image_to_video) == (layout, task == "i2v")
    assert ("image_encoder" in checkpoint.parts) == (task == "i2v")
    assert checkpoint.transformer_config == read_transformer_config(misnamed)
    expected = {"dim": 64, "ffn_dim": 96, "num_heads": 4, "num_layers": 2, "in_dim": 36 if task == "i2v" else 16}
    assert expected.items() <= checkpoint.transformer_config.items()
    assert checkpoint.transformer_config.get("inject_sample_info", False) == (task == "df")


@pytest.mark.parametrize("shards", ("model", "diffusion_pytorch_model", "diffusion_pytorch_model.safetensors"))
@pytest.mark.parametrize("index", (False, True))
def test_shards_under_both_published_names(stock, tmp_path, shards, index):
    folder = small.write_original(tmp_path, shards=shards, index=index)
    (folder / "lora.safetensors").write_bytes(b"not a part of the model")
    check_files(Checkpoint.open(folder))
    whole, sharded = load("transformer", stock["original", "t2v"]), load("transformer", folder)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), sharded.parameters(), strict=True))


def test_the_only_file_may_have_any_name(tmp_path):
    """As models have that somebody tuned or merged; published code takes every file of the folder."""
    folder = small.write_original(tmp_path)
    (file,) = folder.glob("*.safetensors")
    file = file.rename(folder / "my_finetune.safetensors")
    check_files(Checkpoint.open(folder))
    assert Checkpoint.open(folder).parts["transformer"].files == (file,)
    file.rename(folder / "my_finetune-00001-of-00002.safetensors")
    assert "lacks the transformer" in refusal(Checkpoint.open, folder)


def test_parts_are_found_where_published_callers_point_to(stock):
    original, diffusers = stock["original", "i2v"], stock["diffusers", "i2v"]
    for place in (original / small.VAE, str(original / small.VAE), diffusers, diffusers / "vae"):
        assert shapes_of(load("vae", place)) == small.vae_shapes()
    assert shapes_of(load("transformer", diffusers / "transformer")) == small.transformer_shapes("i2v")
    checkpoint = Checkpoint.open(original)
    assert Checkpoint.open(checkpoint) is checkpoint and load("image_encoder", checkpoint).dtype == torch.float32


def test_vae_statistics_come_from_the_config(copy):
    folder = copy("diffusers")
    config = json.loads((folder / "vae" / "config.json").read_text())
    config["latents_mean"] = [i / 10 for i in range(16)]
    (folder / "vae" / "config.json").write_text(json.dumps(config))
    assert load("vae", folder).latents_mean == tuple(i / 10 for i in range(16))
    wrong = [("is_residual", True), ("patch_size", 2), ("dim_mult", [1, 2, 4]), ("dim_mult", [1, 2, 4, 0])]
    for name, value in [*wrong, ("num_res_blocks", 0), ("num_res_blocks", "two")]:
        (folder / "vae" / "config.json").write_text(json.dumps(config | {name: value}))
        assert name in refusal(load, "vae", folder)
    (folder / "vae" / "config.json").write_text(json.dumps(config | {"latents_std": [1.0] * 4}))
    assert "16 means and 4 deviations" in refusal(load, "vae", folder)


# Precision and memory


def test_conditioning_and_norms_stay_float32(stock):
    for task in small.TRANSFORMERS:
        module = load("transformer", stock["original", task], torch.bfloat16)
        dtypes = {name: parameter.dtype for name, parameter in module.named_parameters()}
        wide = {name for name, dtype in dtypes.items() if dtype == torch.float32}
        assert set(dtypes.values()) == {torch.float32, torch.bfloat16}
        words = ("time_embedding", "time_projection", "fps_", "modulation", "norm_q", "norm_k", "norm3")
        assert wide == {name for name in dtypes if any(word in name for word in words)}
    assert load("text_encoder", stock["original", "t2v"], torch.bfloat16).dtype == torch.bfloat16


def test_a_float16_text_encoder_keeps_what_would_overflow(stock):
    encoder = load("text_encoder", stock["original", "t2v"], torch.float16)
    wide = {name for name, p in encoder.model.named_parameters() if p.dtype == torch.float32}
    assert wide and all(name.endswith("DenseReluDense.wo.weight") for name in wide)
    exact = load("text_encoder", stock["original", "t2v"]).encode("a swan on a lake", 16)
    assert (encoder.encode("a swan on a lake", 16).float() - exact).abs().max() < 0.02 * exact.abs().max()


def test_modules_are_ready_for_inference_and_apart_from_their_files(copy):
    folder = copy()
    module = load("transformer", folder)
    assert not module.training and not any(p.requires_grad for p in module.parameters())
    before = (folder / "model.safetensors").read_bytes()
    module.head.head.weight.fill_(7.0)  # as merging a LoRA would
    assert (folder / "model.safetensors").read_bytes() == before


MEASURE = """
import sys, torch
import skyreels_v2_infer.modules as modules
def resident(what):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(what))
def load(folder):
    return getattr(modules, sys.argv[1])(folder, device="cpu", weight_dtype=torch.bfloat16)
load(sys.argv[3])  # what is imported late is not the checkpoint's
before = resident("VmRSS")
module = load(sys.argv[2])
touched = sum(parameter.sum().item() for parameter in module.parameters())
print(resident("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of resident memory from /proc")
@pytest.mark.parametrize(
    ("part", "stored"),
    [("transformer", torch.bfloat16), ("transformer", torch.float32), ("text_encoder", torch.float32)],
)
def test_peak_memory_while_loading(stock, tmp_path, part, stored):
    folder = shutil.copytree(stock["original", "t2v"], tmp_path / "big")
    if part == "transformer":
        sizes = {"dim": 640, "ffn_dim": 5120, "layers": 10 if stored == torch.bfloat16 else 5}
        shapes, file = small.transformer_shapes("t2v", **sizes), folder / "model.safetensors"
        (folder / "config.json").write_text(json.dumps(small.transformer_config("t2v", heads=10, **sizes)))
    else:
        sizes = {256384: 10_000, 4096: 512, 10240: 2048, 64: 8}
        shapes, file = small.resize(small.published_shapes(small.T5, 10), sizes), folder / small.T5
    weights = {name: torch.ones(shape, dtype=stored) for name, shape in shapes.items()}
    (save_file if part == "transformer" else torch.save)(weights, file)
    size = file.stat().st_size
    assert size > 150e6
    run = [sys.executable, "-c", MEASURE, f"get_{part}", str(folder), str(stock["original", "t2v"])]
    peak = int(subprocess.run(run, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    assert peak < 1.2 * size, f"{peak / size:.2f} times the checkpoint's size"
    assert peak > 0.4 * size  # or nothing was measured


def test_checks_need_no_torch(stock):
    code = "\n".join(
        [
            "import sys",
            "from skyreels_v2_infer.weights.locate import Checkpoint, read_transformer_config",
            "from skyreels_v2_infer.weights.verify import check_files",
            "import skyreels_v2_infer.modules",
            "for folder in sys.argv[1:]: check_files(Checkpoint.open(folder)), read_transformer_config(folder)",
            "assert 'torch' not in sys.modules and 'huggingface_hub' not in sys.modules",
        ]
    )
    subprocess.run([sys.executable, "-c", code, *map(str, stock.values())], cwd=ROOT, check=True)


# Refusals: folders and parts


def test_folders_that_are_none(tmp_path):
    assert "no such folder" in refusal(Checkpoint.open, str(tmp_path / "nowhere"))
    assert "no such folder" in refusal(Checkpoint.open, "./nowhere")
    assert "no such folder" in refusal(Checkpoint.open, "")
    assert "no such folder" in refusal(Checkpoint.open, "a" * 300)
    assert "empty folder" in refusal(Checkpoint.open, tmp_path)
    (tmp_path / "file").touch()
    assert "is a file" in refusal(Checkpoint.open, tmp_path / "file")


@pytest.mark.parametrize(
    ("layout", "removed", "words"),
    [
        ("original", "config.json", ("transformer", "config.json")),
        (
            "original",
            "model.safetensors",
            ("transformer", "model*.safetensors", "diffusion_pytorch_model*.safetensors"),
        ),
        ("original", small.VAE, ("VAE", small.VAE)),
        ("original", small.T5, ("text encoder", small.T5)),
        ("original", small.CLIP, ("image encoder", small.CLIP)),
        ("original", "google", ("tokenizer", "google/umt5-xxl/tokenizer.json")),
        ("diffusers", "transformer/config.json", ("transformer", "transformer/config.json")),
        ("diffusers", "transformer/diffusion_pytorch_model.safetensors", ("transformer", "transformer/")),
        ("diffusers", "transformer", ("transformer", "transformer/config.json")),
        ("diffusers", "vae", ("VAE", "vae/config.json")),
        ("diffusers", "text_encoder", ("text encoder", "text_encoder/config.json")),
        ("diffusers", "text_encoder/model.safetensors", ("text encoder", "text_encoder/model*.safetensors")),
        ("diffusers", "tokenizer", ("tokenizer", "tokenizer/tokenizer.json")),
        ("diffusers", "image_encoder", ("image encoder", "image_encoder/config.json")),
    ],
)
def test_a_part_that_is_not_there_is_named(copy, layout, removed, words):
    folder = copy(layout, "i2v")
    gone = folder / removed
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    line = refusal(Checkpoint.open, folder)
    assert "lacks the " in line and "not there" in line and all(word in line for word in words)
    assert line.count("not there") == 1


def test_all_missing_parts_are_named_at_once(copy):
    folder = copy()
    (folder / small.VAE).unlink()
    (folder / small.T5).unlink()
    line = refusal(Checkpoint.open, folder)
    assert small.VAE in line and small.T5 in line and small.CLIP not in line


@pytest.mark.parametrize("stem", ("model", "diffusion_pytorch_model"))
@pytest.mark.parametrize("number", (1, 2, 3))
def test_a_missing_shard_is_named(tmp_path, stem, number):
    folder = small.write_original(tmp_path, shards=stem)
    name = f"{stem}-{number:05}-of-00003.safetensors"
    (folder / name).unlink()
    line = refusal(Checkpoint.open, folder)
    assert name in line and "one of 3 shards" in line
    assert not any(f"-{other:05}-of" in line for other in {1, 2, 3} - {number})


def test_files_that_an_index_lists_must_be_there(tmp_path):
    folder = small.write_original(tmp_path, shards="model", index=True)
    for file in folder.glob("model-*.safetensors"):
        file.unlink()
    line = refusal(Checkpoint.open, folder)
    assert "model-00001-of-00003.safetensors (listed in model.safetensors.index.json) and 2 more" in line
    (folder / "model.safetensors.index.json").write_text("{")
    assert "model.safetensors.index.json" in refusal(Checkpoint.open, folder)


def test_two_sets_of_weights_are_not_guessed_between(tmp_path):
    folder = small.write_original(tmp_path, shards="model")
    small.write_original(tmp_path)
    assert "more than one set of weights" in refusal(Checkpoint.open, folder)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ("config.json", "json")),
        ("{'dim': 64}", ("config.json", "json")),
        ("[1, 2]", ("config.json", "object")),
        ('{"dim": 64}', ("ffn_dim", "num_heads", "num_layers")),
        ({"dim": "64"}, ("dim", '"64"', "positive integer")),
        ({"num_layers": 0}, ("num_layers", "0")),
        ({"num_heads": 5}, ("dim 64", "num_heads 5")),
        ({"model_type": "i2v"}, ("i2v", "in_dim 16")),
        ({"in_dim": 36}, ("t2v", "in_dim 36")),
        ({"window_size": [4, 4]}, ("window_size", "[4, 4]")),
        ({"qk_norm": False}, ("qk_norm",)),
    ],
)
def test_config_that_cannot_be_used(copy, content, words):
    folder = copy()
    file = folder / "config.json"
    file.write_text(content if isinstance(content, str) else json.dumps(json.loads(file.read_text()) | content))
    for call in (Checkpoint.open, read_transformer_config):
        assert all(word in refusal(call, folder) for word in words)


def test_unknown_keys_of_a_config_are_ignored(copy):
    folder = copy()
    config = json.loads((folder / "config.json").read_text())
    config |= {"window_size": [-1, -1], "qk_norm": True, "patch_size": [1, 2, 2], "new_in_2027": {"a": 1}}
    (folder / "config.json").write_text(json.dumps(config))
    load("transformer", folder)


# Refusals: files


@pytest.mark.parametrize("keep", (0, 5, 100, -1000, -1))
def test_cut_safetensors(copy, keep):
    folder = copy()
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:keep])
    checkpoint = Checkpoint.open(folder)
    for call in (check_files, load_transformer):
        line = refusal(call, checkpoint)
        assert "model.safetensors" in line and f"{len(whole[:keep]):,} bytes" in line and "interrupted" in line
        assert keep >= 0 or f"{len(whole):,}" in line


def load_transformer(checkpoint):
    return load("transformer", checkpoint)


def test_safetensors_that_are_none(copy):
    folder = copy()
    (folder / "model.safetensors").write_bytes((20).to_bytes(8, "little") + b"<html>not found</html>")
    assert "header" in refusal(check_files, Checkpoint.open(folder))


def test_a_tokenizer_that_cannot_be_read_is_found_before_weights_are(copy):
    folder = copy()
    place = folder / "google" / "umt5-xxl"
    whole = (place / "tokenizer.json").read_text()
    for content, fault in (("version https://git-lfs", "git-lfs pointer"), (whole[:-9], "cannot be read as json")):
        (place / "tokenizer.json").write_text(content)
        line = refusal(check_files, Checkpoint.open(folder))
        assert "tokenizer.json" in line and fault in line


@pytest.mark.parametrize("name", ("model.safetensors", small.VAE))
def test_git_lfs_pointers(copy, name):
    folder = copy()
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5742021952\n")
    line = refusal(check_files, Checkpoint.open(folder))
    assert f"{name} is a git-lfs pointer" in line and "git lfs pull" in line


@pytest.mark.parametrize("layout", ("original", "diffusers"))
def test_renamed_and_misshapen_tensors_are_named(copy, layout):
    folder = copy(layout)
    file = folder / ("model.safetensors" if layout == "original" else "transformer/diffusion_pytorch_model.safetensors")
    bias = "head.head.bias" if layout == "original" else "proj_out.bias"
    weights = load_file(file)
    save_file({name if name != bias else "head.bias": tensor for name, tensor in weights.items()}, file)
    line = refusal(load, "transformer", folder)
    assert "1 missing (head.head.bias)" in line and "1 unexpected (head.bias)" in line and "another shape" not in line
    save_file(weights | {bias: torch.zeros(1, 63)}, file)
    line = refusal(load, "transformer", folder)
    assert f"1 of another shape ({bias} is [1, 63], must be [64])" in line and "missing" not in line


def test_a_checkpoint_of_another_shape_is_summarised(copy):
    folder = copy()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"ffn_dim": 128, "num_layers": 3}))
    line = refusal(load, "transformer", folder)
    assert "27 missing (blocks.2.cross_attn.k.bias, blocks.2.cross_attn.k.weight, " in line and ", ...)" in line
    assert "6 of another shape (blocks.0.ffn.0.bias is [96], must be [128]" in line


@pytest.mark.parametrize("part", ("vae", "text_encoder", "image_encoder"))
def test_tensors_of_the_other_parts_are_compared_too(copy, part):
    folder = copy("original", "i2v")
    file = folder / {"vae": small.VAE, "text_encoder": small.T5, "image_encoder": small.CLIP}[part]
    weights = torch.load(file, weights_only=True)
    victim = {
        "vae": "decoder.upsamples.4.shortcut.weight",
        "text_encoder": "blocks.1.attn.o.weight",
        "image_encoder": "visual.transformer.1.attn.to_qkv.weight",
    }[part]
    torch.save({**weights, "extra.weight": torch.zeros(2)}, file)
    assert "1 unexpected (extra.weight)" in refusal(load, part, folder)
    torch.save({name: tensor for name, tensor in weights.items() if name != victim}, file)
    missing = {"text_encoder": "encoder.block.1.layer.0.SelfAttention.o.weight", "vae": victim}.get(
        part, "k_proj.weight"
    )
    line = refusal(load, part, folder)
    assert missing in line and f"{3 if part == 'image_encoder' else 1} missing" in line
    torch.save({**weights, victim: weights[victim][:-1]}, file)
    assert f"1 of another shape ({victim} is " in refusal(load, part, folder)
    torch.save({name: t for name, t in weights.items() if "encoder.conv1" in name}, file)
    assert "do not fit" in refusal(load, part, folder)


class Touch:
    """Runs code when it is unpickled, as a hostile checkpoint would."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_code_in_a_pth_file_is_refused_and_does_not_run(copy, tmp_path):
    folder, marker = copy(), tmp_path / "ran"
    torch.save({"conv1.weight": Touch(marker)}, folder / small.VAE)
    assert small.VAE in refusal(load, "vae", folder)
    assert not marker.exists()
    torch.load(folder / small.VAE, weights_only=False)
    assert marker.exists()  # the trap does work


@pytest.mark.parametrize("content", ([torch.zeros(2)], {"model": {"conv1.weight": torch.zeros(2)}}, torch.zeros(2)))
def test_a_pth_file_that_is_no_plain_dict(copy, content):
    folder = copy()
    torch.save(content, folder / small.VAE)
    assert f"{small.VAE} is not a plain dict of tensors" in refusal(load, "vae", folder)


@pytest.mark.parametrize("damage", ("cut", "empty", "text", "zip"))
def test_damaged_pth(copy, damage):
    import zipfile

    folder = copy()
    file = folder / small.T5
    if damage == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("readme.txt", "no tensors here")
    else:
        file.write_bytes({"cut": file.read_bytes()[:-1000], "empty": b"", "text": b"<html>404</html>"}[damage])
    checkpoint = Checkpoint.open(folder)
    assert small.T5 in refusal(check_files, checkpoint)
    assert small.T5 in refusal(load, "text_encoder", checkpoint)


def test_pth_whose_pickle_is_damaged(copy):
    folder = copy()
    content = bytearray((folder / small.VAE).read_bytes())
    at = content.index(b"decoder")
    content[at - 40 : at + 400] = os.urandom(440)
    (folder / small.VAE).write_bytes(content)
    assert small.VAE in refusal(load, "vae", folder)


# The hub


@pytest.fixture
def hub(stock, tmp_path, monkeypatch):
    """A hub with the models of `stock`, each with files that nobody needs; returns the list of what was fetched."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    fetched = []
    junk = ("README.md", "assets/demo.mp4", "xlm-roberta-large/tokenizer.json", "text_encoder/pytorch_model.bin")

    def snapshot_download(repo_id, *, allow_patterns, **_):
        layout, task = repo_id.split("/")[1].split("-")
        source, target = stock[layout, task], tmp_path / "cache" / repo_id.replace("/", "--")
        files = [file.relative_to(source).as_posix() for file in source.rglob("*") if file.is_file()]
        wanted = list(filter_repo_objects([*files, *junk, small.CLIP], allow_patterns=allow_patterns))
        for name in wanted:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, target / name)  # fails for junk, and for an image encoder that is not needed
        fetched.append(wanted)
        return str(target)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return fetched


@pytest.mark.parametrize("layout", ("original", "diffusers"))
@pytest.mark.parametrize("task", ("t2v", "i2v"))
def test_download_fetches_what_is_needed_and_no_more(stock, hub, layout, task):
    folder = Path(download_model(f"owner/{layout}-{task}"))
    config = "config.json" if layout == "original" else "transformer/config.json"
    assert config in hub[0] and set(hub[0]) <= {config, "model_index.json"}
    needed = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    everything = {p.relative_to(stock[layout, task]).as_posix() for p in stock[layout, task].rglob("*") if p.is_file()}
    # Those two folders serve diffusers' pipelines alone.
    assert needed == {file for file in everything if file.split("/")[0] not in ("scheduler", "image_processor")}
    check_files(Checkpoint.open(f"owner/{layout}-{task}"))
    load("transformer", f"owner/{layout}-{task}")


def test_a_hub_model_that_is_a_transformer_alone(stock, monkeypatch):
    folder, asked = stock["diffusers", "df"] / "transformer", []
    stub = lambda *_, allow_patterns, **__: asked.append(allow_patterns) or str(folder)  # noqa: E731
    monkeypatch.setattr("huggingface_hub.snapshot_download", stub)
    load("transformer", "owner/name")
    assert "diffusion_pytorch_model*.safetensors*" in asked[-1]


@pytest.mark.parametrize("layout", ("original", "diffusers"))
def test_the_task_of_a_hub_model_costs_two_small_files(hub, layout):
    assert read_transformer_config(f"owner/{layout}-i2v")["model_type"] == "i2v"
    assert len(hub) == 1 and all(name.endswith(".json") for name in hub[0])


def test_one_part_of_a_hub_model(hub):
    load("vae", "owner/original-t2v")
    assert hub[-1] == [small.VAE]


def test_a_local_folder_is_never_downloaded(stock, hub, monkeypatch):
    folder = stock["original", "t2v"]
    monkeypatch.chdir(folder.parents[1])
    relative = str(folder.relative_to(folder.parents[1]))  # looks like owner/name
    assert Path(download_model(relative)) == Path(relative) and hub == []


def test_failing_downloads_are_one_line(monkeypatch):
    import huggingface_hub
    from huggingface_hub import errors

    def fail_with(error):
        def snapshot_download(*_, **__):
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        line = refusal(Checkpoint.open, "owner/name")
        assert line.startswith("--model_id owner/name: ")
        return line

    gated, unknown = (kind.__new__(kind) for kind in (errors.GatedRepoError, errors.RepositoryNotFoundError))
    assert "access" in fail_with(gated)
    assert "neither a folder here nor a public model" in fail_with(unknown)
    with pytest.raises(OSError, match=r"--model_id owner/name: no such folder, and .* cannot be reached"):
        fail_with(errors.LocalEntryNotFoundError("no snapshot\nand more lines"))
    with pytest.raises(OSError, match=r"--model_id owner/name cannot be downloaded: .*No space left"):
        fail_with(OSError(28, "No space left on device"))  # another try goes on with it, so it is no wrong command


def test_the_real_library_offline(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert "HF_HUB_OFFLINE keeps it" in refusal(Checkpoint.open, "owner/name")


def test_a_hub_model_that_is_something_else(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    assert "is no SkyReels-V2 checkpoint" in refusal(Checkpoint.open, "owner/name")


# diffusers reads what we write


@pytest.mark.parametrize("task", small.TRANSFORMERS)
def test_the_small_checkpoint_is_a_real_diffusers_pipeline(stock, task):
    import diffusers

    names = {"t2v": "SkyReelsV2Pipeline", "df": "SkyReelsV2DiffusionForcingPipeline"}
    pipeline = getattr(diffusers, names.get(task, "SkyReelsV2ImageToVideoPipeline"))
    pipeline = pipeline.from_pretrained(stock["diffusers", task])
    theirs, ours = pipeline.transformer, load("transformer", stock["diffusers", task])
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())


def test_loading_names_its_exports():
    import skyreels_v2_infer.modules as modules

    assert {"WanModel", "WanVAE", "download_model", *(f"get_{part}" for part in GETTERS)} == set(modules.__all__)
    assert modules.get_vae is loading.get_vae and set(modules.__all__) <= set(dir(modules))
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = modules.nothing_such
