"""Bytes of a part once it is loaded, from headers alone: those of the module that is then built."""

import json
import math

import forms
import pytest
import script_runs
import small_checkpoints as small
import torch
from safetensors.torch import save_file

from skyreels_v2_infer.cli import arguments as cli
from skyreels_v2_infer.modules import get_text_encoder, get_transformer
from skyreels_v2_infer.modules.linear import OneByteLinear, quantize_blocks
from skyreels_v2_infer.modules.quantized import QuantizedLayer
from skyreels_v2_infer.modules.transformer import WanModel
from skyreels_v2_infer.plan import cost
from skyreels_v2_infer.plan.models import architecture
from skyreels_v2_infer.run.dry_run import described
from skyreels_v2_infer.run.sizes import loaded_bytes
from skyreels_v2_infer.weights.key_tables import BLOCK_LINEAR
from skyreels_v2_infer.weights.locate import Checkpoint

DF_14B = "Skywork/SkyReels-V2-DF-14B-540P"


def settings(*flags):
    return cli.parse_diffusion_forcing(["--model_id", "tiny", "--prompt", "a", *map(str, flags)])


def held(module: torch.nn.Module, but: str = "") -> int:
    """Bytes of a module's tensors, and of its largest quantised matrix in float32."""
    tensors = [t for n, t in [*module.named_parameters(), *module.named_buffers()] if not but or not n.endswith(but)]
    layers = [m for n, m in module.named_modules() if isinstance(m, QuantizedLayer) and not n.endswith("shared")]
    return sum(t.nbytes for t in tensors) + max((4 * math.prod(layer.shape) for layer in layers), default=0)


def test_block_linears_are_those_that_quantising_replaces():
    for task in ("df", "t2v", "i2v"):
        config = small.transformer_config(task)
        with torch.device("meta"):
            model = WanModel(**config)
        named = {name: p.numel() for name, p in model.named_parameters() if BLOCK_LINEAR.search(name)}
        assert sum(named.values()) == cost.block_weights(config)
        assert quantize_blocks(model, "int8", "cpu") == len(named)
        replaced = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, OneByteLinear)}
        assert replaced == named.keys()


@pytest.mark.parametrize("form", ["float8", "int8", "Q8_0", "Q4_K"])
def test_quantised_files_have_their_stored_size(tmp_path, form):
    if form[0] == "Q":
        path = tmp_path / "a.gguf"
        forms.write_gguf(path, forms.weights(), form)
    else:
        path = tmp_path / "a.safetensors"
        dtype = torch.int8 if form == "int8" else torch.float8_e4m3fn
        save_file(forms.scaled(forms.weights(), dtype, "[out]")[0], path)
    config = Checkpoint.open(path, ("transformer",)).transformer_config
    found = loaded_bytes(settings("--dit_path", path), config, None, 4)
    assert found == {"transformer": held(get_transformer(path, "cpu", torch.float32))}
    assert found["transformer"] < 4 * cost.parameters(config) / 1.5
    assert loaded_bytes(settings("--dit_path", path, "--weights", "dequantize"), config, None, 4) == {}
    rounded = loaded_bytes(settings("--dit_path", path, "--quantize", "int8"), config, None, 4)
    model = get_transformer(path, "cpu", torch.float32, quantize="int8")
    assert rounded == {"transformer": held(model, ".scale")}
    lora = tmp_path / "lora.safetensors"
    save_file({"x": torch.zeros(1)}, lora)
    merged = loaded_bytes(settings("--dit_path", path, "--quantize", "int8", "--lora", lora), config, None, 4)
    folder = forms.write_folder(tmp_path / "dense", forms.weights())
    assert loaded_bytes(settings("--dit_path", folder), config, None, 4) == {}
    dense = loaded_bytes(settings("--dit_path", folder, "--quantize", "fp8"), config, None, 4)
    assert dense == rounded
    assert merged == dense  # what is stored quantised is expanded, for the LoRA to be added


def test_a_text_encoder_counts_likewise(tmp_path):
    weights = small.random_weights(small.text_encoder_shapes(), 0)
    low = {n: t.to(torch.float8_e4m3fn) if t.ndim == 2 and "pos" not in n else t for n, t in weights.items()}
    save_file(low, tmp_path / "t5.safetensors")
    small.write_tokenizer(tmp_path / "tokenizer")
    path = tmp_path / "t5.safetensors"
    found = loaded_bytes(settings("--text_encoder_path", path), small.transformer_config("df"), None, 4)
    assert found == {"text_encoder": held(get_text_encoder(path, "cpu", torch.float32).model)}


def test_the_dry_run_of_a_14b_in_float8_loads_no_torch(tmp_path):
    """From a file that has a 14B's header, and no data that would take space."""
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in WanModel(**architecture(DF_14B)).named_parameters()}
    header, end = {}, 0
    for name, shape in shapes.items():
        dtype, size = ("F8_E4M3", 1) if BLOCK_LINEAR.search(name) else ("BF16", 2)
        first, end = end, end + size * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [first, end]}
    name = "blocks.0.self_attn.q.comfy_quant"
    content = json.dumps({"format": "float8_e4m3fn"}).encode()
    header[name] = {"dtype": "U8", "shape": [len(content)], "data_offsets": [end, end + len(content)]}
    scale = {"dtype": "F32", "shape": [], "data_offsets": [end + len(content), end + len(content) + 4]}
    header["blocks.0.self_attn.q.weight_scale"] = scale
    text = json.dumps(header).encode()
    with (tmp_path / "big.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.seek(8 + len(text) + end)
        file.write(content + bytes(4))
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch is asked for')")
    flags = ("--model_id", DF_14B, "--prompt", "a")
    made = script_runs.run(
        script_runs.FORCING, "--dry_run", "json", *flags, "--dit_path", "big.safetensors", cwd=tmp_path, PYTHONPATH="."
    )
    assert made.code == 0, made.err
    about = json.loads(made.out)
    dense = described(cli.parse_diffusion_forcing([*flags]))["weights_gib"]
    saved = (cost.block_weights(architecture(DF_14B)) - 2 * 5120 * 13824) / cost.GIB
    assert about["weights_gib"] == pytest.approx(dense - saved, abs=0.11)
    rounded = described(cli.parse_diffusion_forcing([*flags, "--quantize", "int8"]))["weights_gib"]
    assert rounded == pytest.approx(dense - cost.block_weights(architecture(DF_14B)) / cost.GIB, abs=0.11)
