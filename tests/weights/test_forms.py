"""One transformer in every form that weights come in gives the same output as its folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import forms
import pytest
import small_checkpoints as small
import torch
from safetensors.torch import save_file

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.modules import get_transformer
from skyreels_v2_infer.modules.quantized import QuantizedLayer, QuantizedLinear
from skyreels_v2_infer.weights import filling
from skyreels_v2_infer.weights.locate import Checkpoint
from skyreels_v2_infer.weights.verify import check_files

ROOT = Path(__file__).parents[2]


def load(path, dtype=torch.float32, **keywords):
    return get_transformer(path, "cpu", dtype, **keywords)


def refusal(call, *arguments, **keywords) -> str:
    with pytest.raises(InputError) as caught:
        call(*arguments, **keywords)
    line = str(caught.value)
    assert "\n" not in line and line.startswith("--") and len(line) < 900
    return line


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return forms.write_folder(tmp_path_factory.mktemp("folder"), forms.weights())


@pytest.fixture(scope="module")
def expected(folder):
    return forms.velocity(load(folder))


def result_of(folder: Path, meant: dict, dtype=torch.float32) -> torch.Tensor:
    """The output of a folder with given tensors."""
    return forms.velocity(load(forms.write_folder(folder, meant), dtype))


# One safetensors or .pth file


@pytest.mark.parametrize("prefix", ("", "model.diffusion_model.", "diffusion_model.", "model.", "net."))
def test_single_files_with_and_without_prefix(tmp_path, expected, prefix):
    tensors = {prefix + name: tensor for name, tensor in forms.weights().items()}
    marker = "model_type.SkyReels-V2-DF-14B-720P"
    save_file({**tensors, marker: torch.zeros(1), prefix + "scaled_fp8": torch.zeros(0)}, tmp_path / "a.safetensors")
    assert torch.equal(forms.velocity(load(tmp_path / "a.safetensors")), expected)
    torch.save(tensors, tmp_path / "a.pth")
    assert torch.equal(forms.velocity(load(tmp_path / "a.pth")), expected)


def test_a_file_of_a_whole_model_has_the_transformer_in_it(tmp_path, expected):
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in forms.weights().items()}
    others = {"first_stage_model.conv1.weight": torch.zeros(2), "text_encoders.umt5xxl.transformer.x": torch.zeros(2)}
    save_file({**tensors, **others}, tmp_path / "all.safetensors")
    assert torch.equal(forms.velocity(load(tmp_path / "all.safetensors")), expected)
    save_file({**tensors, "stray.weight": torch.zeros(2)}, tmp_path / "stray.safetensors")
    assert "1 unexpected (stray.weight)" in refusal(load, tmp_path / "stray.safetensors")


@pytest.mark.parametrize("task", ("df", "i2v", "t2v"))
@pytest.mark.parametrize("layout", ("original", "diffusers"))
def test_the_architecture_follows_from_shapes(tmp_path, task, layout):
    tensors = forms.weights(task)
    if layout == "diffusers":
        from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

        tensors = convert_wan_transformer_to_diffusers(tensors)
        tensors = {name.replace("fps_projection.", "fps_projection.net."): t for name, t in tensors.items()}
        tensors = {
            name.replace("fps_projection.net.0.", "fps_projection.net.0.proj."): t for name, t in tensors.items()
        }
    save_file(tensors, tmp_path / "a.safetensors")
    checkpoint = Checkpoint.open(tmp_path / "a.safetensors", ("transformer",))
    check_files(checkpoint)
    (tmp_path / "f").mkdir()
    theirs = Checkpoint.open(forms.write_folder(tmp_path / "f", forms.weights(task), task), ("transformer",))
    ours = checkpoint.transformer_config
    assert ours.items() >= {k: v for k, v in theirs.transformer_config.items() if k not in ("eps", "text_len")}.items()
    assert torch.equal(forms.velocity(load(checkpoint)), forms.velocity(load(theirs)))


def test_heads_come_from_a_config_that_agrees_with_the_shapes(tmp_path):
    tensors = small.random_weights(small.transformer_shapes("df"), 0)  # 4 heads of 16
    save_file(tensors, tmp_path / "a.safetensors")
    line = refusal(load, tmp_path / "a.safetensors")
    assert "64" in line and "128" in line
    config = small.transformer_config("df")
    for given in (config, {"num_heads": 4, "dim": 64, "ffn_dim": 96, "num_layers": 2, "inject_sample_info": True}):
        assert load(tmp_path / "a.safetensors", config=given).num_heads == 4
    assert "128" in refusal(load, tmp_path / "a.safetensors", config=config | {"ffn_dim": 128})
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load(tmp_path / "a.safetensors").num_heads == 4


# Folders


@pytest.mark.parametrize(
    "names",
    (
        "diffusion_pytorch_model.fp16.safetensors",
        "diffusion_pytorch_model.fp16-{:05}-of-00002.safetensors",
        "diffusion_pytorch_model-{:05}-of-00002.fp16.safetensors",
        "my_finetune-{:05}-of-00002.safetensors",
        "part_{}.safetensors",
    ),
)
def test_shards_of_other_names(tmp_path, expected, names):
    tensors = forms.weights()
    forms.write_folder(tmp_path, tensors)
    (tmp_path / "model.safetensors").unlink()
    weight_map = {}
    for i in range(2 if "{" in names else 1):
        part = {name: t for j, (name, t) in enumerate(tensors.items()) if "{" not in names or j % 2 == i}
        save_file(part, tmp_path / names.format(i + 1))
        weight_map |= dict.fromkeys(part, names.format(i + 1))
    if "part" in names:  # only an index can tell
        assert "lacks the transformer" in refusal(load, tmp_path)
        (tmp_path / "any.index.fp16.json").write_text(json.dumps({"weight_map": weight_map}))
    assert torch.equal(forms.velocity(load(tmp_path)), expected)
    save_file({"other": torch.zeros(1)}, tmp_path / "lora.safetensors")
    assert torch.equal(forms.velocity(load(tmp_path)), expected)


def test_a_folder_without_variant_comes_before_its_variants(tmp_path, expected):
    forms.write_folder(tmp_path, forms.weights())
    save_file({"nothing": torch.zeros(1)}, tmp_path / "model.fp16.safetensors")
    assert torch.equal(forms.velocity(load(tmp_path)), expected)
    (tmp_path / "model.safetensors").rename(tmp_path / "model.bf16.safetensors")
    assert "more than one set" in refusal(load, tmp_path)


def test_a_tensor_in_two_shards(tmp_path):
    tensors = forms.weights()
    forms.write_folder(tmp_path, tensors)
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00002.safetensors")
    save_file({"head.head.bias": tensors["head.head.bias"]}, tmp_path / "model-00002-of-00002.safetensors")
    line = refusal(load, tmp_path)
    assert "head.head.bias" in line and "model-00001-of" in line and "model-00002-of" in line


def test_a_folder_of_the_hubs_cache(tmp_path, expected):
    place = tmp_path / "models--owner--name"
    old, new = place / "snapshots" / "0123", place / "snapshots" / "4567"
    forms.write_folder(new, forms.weights())
    forms.write_folder(old, {"nothing": torch.zeros(1)})
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("4567")
    assert torch.equal(forms.velocity(load(place)), expected)
    assert Checkpoint.open(place, ("transformer",)).folder == new


def test_a_file_on_the_hub(tmp_path, folder, expected, monkeypatch):
    asked = []
    stub = lambda name, allow_patterns, **_: asked.append((name, allow_patterns)) or str(folder)  # noqa: E731
    monkeypatch.setattr("huggingface_hub.snapshot_download", stub)
    assert torch.equal(forms.velocity(load("owner/name/model.safetensors")), expected)
    assert asked == [("owner/name", ["model.safetensors"])]


# Precision as stored


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_sixteen_bits(tmp_path, dtype):
    tensors = forms.weights(dtype=dtype)
    save_file(tensors, tmp_path / "a.safetensors")
    wanted = result_of(tmp_path / "f", tensors)
    assert torch.equal(forms.velocity(load(tmp_path / "a.safetensors")), wanted)
    forms.write_gguf(tmp_path / "a.gguf", tensors, "F16" if dtype == torch.float16 else "BF16")
    assert torch.equal(forms.velocity(load(tmp_path / "a.gguf")), wanted)


def check_quantized(path: Path, meant: dict, folder: Path, **keywords) -> None:
    """A quantised file computes what a folder of its expanded weights computes, kept quantised or not."""
    layers = sum(map(bool, map(forms.LINEAR.search, meant)))
    for dtype in (torch.float32, torch.bfloat16):
        kept, expanded = (load(path, dtype, dequantize=flag, **keywords) for flag in (False, True))
        assert sum(isinstance(module, QuantizedLinear) for module in kept.modules()) == layers
        assert not any(isinstance(module, QuantizedLayer) for module in expanded.modules())
        wanted = result_of(folder, meant, dtype)
        assert torch.equal(forms.velocity(kept), forms.velocity(expanded))
        difference = (forms.velocity(kept) - wanted).abs().max()
        assert difference <= (1e-6 if dtype == torch.float32 else 1e-2) * wanted.abs().max(), difference
        stored = sum(
            b.nbytes for m in kept.modules() if isinstance(m, QuantizedLayer) for b in m.buffers(recurse=False)
        )
        dense = sum(p.nbytes for n, p in expanded.named_parameters() if forms.LINEAR.search(n))
        assert stored < 0.7 * dense


@pytest.mark.parametrize("form", (torch.float8_e4m3fn, torch.float8_e5m2))
def test_plain_float8(tmp_path, form):
    tensors = {n: t.to(form) if forms.LINEAR.search(n) else t for n, t in forms.weights().items()}
    save_file(tensors, tmp_path / "a.safetensors")
    check_quantized(tmp_path / "a.safetensors", {n: t.float() for n, t in tensors.items()}, tmp_path / "f")


def test_everything_in_float8(tmp_path):
    """Norms, biases and the patch embedding, which stay dense, are expanded."""
    tensors = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in forms.weights().items()}
    torch.save(tensors, tmp_path / "a.pth")
    wanted = result_of(tmp_path / "f", {name: tensor.float() for name, tensor in tensors.items()})
    assert torch.equal(forms.velocity(load(tmp_path / "a.pth")), wanted)


@pytest.mark.parametrize("form", (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8))
@pytest.mark.parametrize("shape", ("[]", "[1]", "[out]", "[out, 1]", "blocks", "tiles"))
def test_scaled(tmp_path, form, shape):
    tensors = forms.weights()
    written, meant = forms.scaled(tensors, form, shape)
    written["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    save_file(written, tmp_path / "a.safetensors")
    check_quantized(tmp_path / "a.safetensors", meant, tmp_path / "f")


def test_scales_in_another_precision_and_under_another_name(tmp_path):
    written, meant = forms.scaled(forms.weights(), torch.int8, "[out, 1]", (".weight_scale", ".input_scale"))
    torch.save({n: t for n, t in written.items() if not n.endswith(".input_scale")}, tmp_path / "a.pth")
    check_quantized(tmp_path / "a.pth", meant, tmp_path / "f")
    quanto = {n.replace(".weight_scale", ".weight._scale"): t for n, t in written.items()}
    quanto = {n.replace(".weight", ".weight._data") if t.dtype == torch.int8 else n: t for n, t in quanto.items()}
    save_file(quanto, tmp_path / "quanto.safetensors")
    check_quantized(tmp_path / "quanto.safetensors", meant, tmp_path / "f")


def test_a_scale_beside_a_dense_weight_counts(tmp_path):
    tensors = forms.weights()
    save_file({**tensors, "text_embedding.0.scale_weight": torch.tensor(2.0)}, tmp_path / "a.safetensors")
    doubled = tensors | {"text_embedding.0.weight": 2 * tensors["text_embedding.0.weight"]}
    assert torch.equal(forms.velocity(load(tmp_path / "a.safetensors")), result_of(tmp_path / "f", doubled))


@pytest.mark.parametrize("where", ("tensors", "metadata"))
def test_formats_that_comfyui_declares(tmp_path, where):
    written, meant = forms.scaled(forms.weights(), torch.float8_e4m3fn, "[]", (".weight_scale", ".input_scale"))
    layers = [name.removesuffix(".weight") for name in meant if forms.LINEAR.search(name)]

    def write(about: dict) -> Path:
        extra = {f"{layer}.comfy_quant": forms.comfy_quant(about) for layer in layers} if where == "tensors" else {}
        metadata = {
            "_quantization_metadata": json.dumps({"format_version": "1.0", "layers": dict.fromkeys(layers, about)})
        }
        save_file({**written, **extra}, tmp_path / "a.safetensors", None if where == "tensors" else metadata)
        return tmp_path / "a.safetensors"

    check_quantized(write({"format": "float8_e4m3fn", "full_precision_matrix_mult": True}), meant, tmp_path / "f")
    for form in ("nvfp4", "mxfp8", "convrot_w4a4", "asym_w4a8_int8", "awq_w4a16", "something_new"):
        assert form in refusal(load, write({"format": form}))
    assert "convrot" in refusal(load, write({"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 256}))
    assert "format" in refusal(load, write({"groupsize": 1}))
    written = {name: tensor for name, tensor in written.items() if not name.endswith(".weight_scale")}
    assert "no weight_scale" in refusal(load, write({"format": "float8_e4m3fn"}))


@pytest.mark.parametrize(
    ("suffix", "form"),
    (
        (".weight_scale_2", "nvfp4"),
        (".pre_quant_scale", "awq"),
        (".qweight", "awq"),
        (".weight.absmax", "bitsandbytes"),
    ),
)
def test_unsupported_formats_are_named(tmp_path, suffix, form):
    save_file({**forms.weights(), f"blocks.0.ffn.0{suffix}": torch.ones(4)}, tmp_path / "a.safetensors")
    assert form in refusal(load, tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "dtype", (torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool, torch.complex64), ids=str
)
@pytest.mark.parametrize("name", ("blocks.0.ffn.0.weight", "blocks.1.norm3.bias"))
def test_integers_without_scales_are_refused(tmp_path, name, dtype):
    tensors = forms.weights()
    tensors[name] = tensors[name].to(dtype)
    folder = forms.write_folder(tmp_path / "f", tensors)
    torch.save(tensors, tmp_path / "a.pth")
    for path in (folder, folder / "model.safetensors", tmp_path / "a.pth"):
        line = refusal(load, path)
        assert name in line and ("as integers (" in line) == (dtype not in (torch.bool, torch.complex64))


def test_scales_that_do_not_fit(tmp_path):
    written, _ = forms.scaled(forms.weights(), torch.float8_e4m3fn, "[]")
    for bad, word in ((torch.ones(3), "[3]"), (torch.ones(2, 3), "[2, 3]"), (torch.ones((), dtype=torch.int32), "I32")):
        save_file({**written, "blocks.0.ffn.0.scale_weight": bad}, tmp_path / "a.safetensors")
        line = refusal(load, tmp_path / "a.safetensors")
        assert "blocks.0.ffn.0.weight" in line and word in line
    save_file({**written, "blocks.1.ffn.9.scale_weight": torch.ones(())}, tmp_path / "a.safetensors")
    assert "blocks.1.ffn.9.scale_weight" in refusal(load, tmp_path / "a.safetensors")


@pytest.mark.parametrize("value", (float("nan"), float("inf")))
def test_numbers_that_are_not_finite(tmp_path, monkeypatch, value):
    with monkeypatch.context() as patch:
        patch.setattr(filling, "SMALL", 16)  # all tensors, where a CPU computes
        tensors = forms.weights()
        tensors["blocks.0.self_attn.q.weight"][3, 1] = value
        assert "blocks.0.self_attn.q.weight" in refusal(load, forms.write_folder(tmp_path, tensors))
    tensors = forms.weights()
    tensors["blocks.0.norm3.bias"][3] = value
    assert "blocks.0.norm3.bias" in refusal(load, forms.write_folder(tmp_path, tensors))
    written, _ = forms.scaled(forms.weights(), torch.float8_e4m3fn, "[]")
    written["blocks.1.ffn.2.scale_weight"].fill_(value)
    save_file(written, tmp_path / "a.safetensors")
    assert "blocks.1.ffn.2.weight" in refusal(load, tmp_path / "a.safetensors")


# GGUF

FORMS = ("Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")


@pytest.mark.parametrize("form", FORMS)
def test_gguf(tmp_path, form):
    meant = forms.write_gguf(tmp_path / "a.gguf", forms.weights(), form)
    check_files(Checkpoint.open(tmp_path / "a.gguf", ("transformer",)))
    check_quantized(tmp_path / "a.gguf", meant, tmp_path / "f")


def test_gguf_whose_fps_embedding_is_quantised(tmp_path, monkeypatch):
    import re

    monkeypatch.setattr(
        forms, "LINEAR", re.compile(forms.LINEAR.pattern + r"|^fps_(embedding|projection\.\d)\.weight$")
    )
    meant = forms.write_gguf(tmp_path / "a.gguf", forms.weights(), "Q8_0")
    model = load(tmp_path / "a.gguf", torch.bfloat16)
    assert model.fps_projection[0].dtype == torch.float32 and isinstance(model.fps_projection[0], QuantizedLinear)
    wanted = result_of(tmp_path / "f", meant)
    assert (forms.velocity(load(tmp_path / "a.gguf")) - wanted).abs().max() <= 1e-6 * wanted.abs().max()


def test_gguf_of_another_architecture(tmp_path):
    tensors = {"token_embd.weight": torch.zeros(4, 32), "blk.0.attn_q.weight": torch.zeros(32, 32)}
    forms.write_gguf(tmp_path / "a.gguf", tensors, "F32", "llama")
    assert "'llama'" in refusal(load, tmp_path / "a.gguf")
    import gguf

    kind = gguf.GGMLQuantizationType.IQ2_XS
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "wan")
    writer.add_tensor("blocks.0.ffn.0.weight", torch.zeros(4, 74, dtype=torch.uint8).numpy(), raw_dtype=kind)
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
    line = refusal(load, tmp_path / "b.gguf")
    assert "IQ2_XS" in line and "Q4_K" in line


# Files that are something else


@pytest.mark.parametrize(
    ("change", "word"),
    (
        (lambda t: t.update({"vace_patch_embedding.weight": torch.zeros(1)}), "VACE"),
        (lambda t: t.update({"img_emb.emb_pos": torch.zeros(1)}), "FLF2V"),
        (lambda t: t.update({"patch_embedding.weight": torch.zeros(256, 48, 1, 2, 2)}), "Wan 2.2"),
        (lambda t: t.update({"patch_embedding.weight": torch.zeros(256, 36, 1, 2, 2)}), "Wan 2.2"),
        (lambda t: t.update({"patch_embedding.weight": torch.zeros(256, 32, 1, 2, 2)}), "32 channels"),
        (lambda t: t.pop("head.modulation"), "head.modulation"),
        (lambda t: t.pop("blocks.0.ffn.2.bias"), "1 missing (blocks.0.ffn.2.bias)"),
        (lambda t: [t.pop(name) for name in list(t) if name.startswith("blocks.0.")], "blocks.0.ffn.0.weight"),
    ),
)
def test_transformers_of_another_architecture(tmp_path, change, word):
    tensors = forms.weights("t2v")
    change(tensors)
    save_file(tensors, tmp_path / "a.safetensors")
    assert word in refusal(load, tmp_path / "a.safetensors")


def test_files_that_are_no_transformer(tmp_path):
    lora = {f"diffusion_model.blocks.0.self_attn.q.lora_{kind}.weight": torch.zeros(4, 4) for kind in "AB"}
    save_file(lora, tmp_path / "lora.safetensors")
    assert "LoRA" in refusal(load, tmp_path / "lora.safetensors")
    torch.save(small.random_weights(small.vae_shapes(), 0), tmp_path / "vae.pth")
    assert "those of a VAE" in refusal(load, tmp_path / "vae.pth")
    save_file({"some.weight": torch.zeros(1)}, tmp_path / "some.safetensors")
    assert "some.weight" in refusal(load, tmp_path / "some.safetensors")
    save_file({}, tmp_path / "none.safetensors")
    assert "no tensors" in refusal(load, tmp_path / "none.safetensors")


# Memory

MEASURE = """
import sys, torch
from pathlib import Path
sys.path[:0] = [sys.argv[2], str(Path(sys.argv[2]) / "weights")]
import forms, gguf
from skyreels_v2_infer.modules import get_transformer
def resident(what):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(what))
forms.computed(get_transformer(sys.argv[3], "cpu", torch.float32))  # what is imported late is not the checkpoint's
before = resident("VmRSS")
model = get_transformer(sys.argv[1], "cpu", torch.float32)
touched = sum(int(b.max()) for b in model.buffers() if b.dtype == torch.uint8)
loaded = resident("VmHWM") - before
forms.computed(model)
print(loaded, resident("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of resident memory from /proc")
@pytest.mark.parametrize("form", ("Q4_K", "float8"))
def test_peak_memory_of_a_quantised_file(tmp_path, monkeypatch, form):
    """Loading stays under 1.2 times the file; a forward adds one layer expanded and not the model."""
    layers = 10 if form == "Q4_K" else 5
    monkeypatch.setattr(forms, "SIZES", {"dim": 1024, "ffn_dim": 8192, "layers": layers})
    if form == "Q4_K":
        path = tmp_path / "a.gguf"
        forms.write_gguf(path, forms.weights("t2v"), form)
    else:
        path = tmp_path / "a.safetensors"
        save_file(forms.scaled(forms.weights("t2v"), torch.float8_e4m3fn, "[out, 1]")[0], path)
    monkeypatch.undo()
    warm = tmp_path / f"warm{path.suffix}"
    if form == "Q4_K":
        forms.write_gguf(warm, forms.weights(), form)
    else:
        save_file(forms.scaled(forms.weights(), torch.float8_e4m3fn, "[out, 1]")[0], warm)
    size, layer = path.stat().st_size, 4 * 1024 * 8192
    keys_values = 4 * 2 * 512 * 1024 * layers  # of the prompt, which a forward makes as well
    assert size > 4 * layer
    run = [sys.executable, "-c", MEASURE, str(path), str(ROOT / "tests"), str(warm)]
    # What is freed goes back to the system at once, so that the peak is of what is in use.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    printed = subprocess.run(run, cwd=ROOT, check=True, capture_output=True, text=True, env=environment).stdout
    loaded, computed = map(int, printed.split())
    assert 0.4 * size < loaded < 1.2 * size, f"{loaded / size:.2f} times the file's size"
    beside = (computed - keys_values - size) / layer
    assert beside < 2, f"{beside:.2f} layers beside the file"


def test_loading_keeps_its_tables_in_step():
    from skyreels_v2_infer.modules.quantized import GGUF
    from skyreels_v2_infer.weights.gguf_header import TYPES

    assert {name: (numbers, size) for name, numbers, size in TYPES.values() if numbers > 1} == {
        name: (numbers, size) for name, (numbers, size, _) in GGUF.items()
    }
