"""Conversion between original, diffusers and single-file form."""

import json
import os
import signal
import subprocess
import sys
import weakref
from collections import Counter, namedtuple
from pathlib import Path

import forms
import pytest
import small_checkpoints as small
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from skyreels_v2_infer.modules import get_transformer
from skyreels_v2_infer.modules.quantized import QuantizedLinear
from skyreels_v2_infer.weights import conversion, key_tables
from skyreels_v2_infer.weights import convert as command_line
from skyreels_v2_infer.weights.conversion import convert
from skyreels_v2_infer.weights.lora import apply
from skyreels_v2_infer.weights.lora_file import LoraFile

ROOT = Path(__file__).parents[2]
Result = namedtuple("Result", "code out lines")


def run(capsys, *argv) -> Result:
    """The command line, in this process."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        code = command_line.main([*map(str, argv)])
    except SystemExit as error:
        code = error.code
    finally:
        signal.signal(signal.SIGTERM, handler)
    out, err = capsys.readouterr()
    return Result(code, out, err.splitlines())


def contents(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file or folder, read by the safetensors library."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    found = {}
    for file in files:
        tensors = load_file(file)
        assert not found.keys() & tensors.keys()
        found |= tensors
    return found


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


def mixed(task: str = "df") -> dict[str, torch.Tensor]:
    """Weights of several dtypes, as published: conditioning and norms in float32, the rest in bfloat16."""
    return {
        name: tensor if key_tables.KEEP_FLOAT32.search(name) else tensor.bfloat16()
        for name, tensor in forms.weights(task).items()
    }


@pytest.mark.parametrize("task", ["df", "i2v", "t2v"])
def test_every_form_and_back_is_bit_identical(tmp_path, task):
    from diffusers import SkyReelsV2Transformer3DModel

    tensors = mixed(task)
    first = forms.write_folder(tmp_path / "first", tensors, task)
    theirs = convert(first, tmp_path / "theirs", "diffusers", shard_size=0.0005)
    assert len(list(theirs.glob("diffusion_pytorch_model-0*-of-0*.safetensors"))) > 2
    model, info = SkyReelsV2Transformer3DModel.from_pretrained(theirs, output_loading_info=True)
    assert not any(info.values()), info
    assert {key_tables.renamed(n, key_tables.DIFFUSERS_TRANSFORMER) for n in model.state_dict()} == tensors.keys()
    assert (model.config.num_attention_heads, model.config.attention_head_dim) == (2, 128)
    model.save_pretrained(tmp_path / "saved")
    for stage, source in enumerate((theirs, first, tmp_path / "saved")):
        file = convert(source, tmp_path / f"{stage}.safetensors", "file")
        folder = convert(file, tmp_path / str(stage), "original")
        if stage < 2:
            assert same(contents(file), tensors) and same(contents(folder), tensors)
        else:  # diffusers has loaded all of it in one dtype
            assert all(torch.equal(t, tensors[n].float()) for n, t in contents(folder).items())
        config = json.loads((folder / "config.json").read_text())
        assert config.items() >= {k: v for k, v in forms.config(task).items() if k != "_diffusers_version"}.items()
    expected = forms.velocity(get_transformer(first, "cpu", torch.bfloat16))
    for made in (theirs, file, folder):
        assert torch.equal(forms.velocity(get_transformer(made, "cpu", torch.bfloat16)), expected)


def test_the_tables_of_names_are_inverse():
    for task in ("df", "i2v", "t2v"):
        for name in forms.weights(task):
            theirs = key_tables.renamed(name, key_tables.TO_DIFFUSERS_TRANSFORMER)
            assert key_tables.renamed(theirs, key_tables.DIFFUSERS_TRANSFORMER) == name
            assert theirs != name or name.startswith(("patch_embedding", "fps_embedding")) or ".norm_" in name


def test_the_index_lists_every_tensor_where_it_is(tmp_path):
    out = convert(forms.write_folder(tmp_path / "a", mixed()), tmp_path / "b", "original", shard_size=0.0005)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    found = {}
    for file in sorted(out.glob("*.safetensors")):
        with safe_open(file, framework="pt") as handle:
            assert handle.metadata()["format"] == "pt"
            found |= dict.fromkeys(handle.keys(), file.name)
        size = sum(tensor.nbytes for tensor in load_file(file).values())
        assert size <= 500_000 or len(load_file(file)) == 1
    assert index["weight_map"] == found
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in contents(out).values())
    whole = convert(out, tmp_path / "c", "original")
    assert {p.name for p in whole.iterdir()} == {"config.json", "model.safetensors"}


def test_heads_survive_a_single_file(tmp_path):
    """Shapes do not tell 4 heads of 64 from 2 heads of 128."""
    config = forms.config() | {"num_heads": 4}
    source = forms.write_folder(tmp_path / "a", forms.weights())
    (source / "config.json").write_text(json.dumps(config | {"text_len": 64}))
    file = convert(source, tmp_path / "a.safetensors", "file")
    assert get_transformer(file, "cpu").num_heads == 4 and get_transformer(file, "cpu").text_len == 64
    folder = convert(file, tmp_path / "b", "diffusers")
    model = get_transformer(folder, "cpu")
    assert (model.num_heads, model.text_len) == (4, 64)
    for text in ("{", "[]", json.dumps(config | {"ffn_dim": 999})):  # of no use, and not believed
        save_file(contents(file), tmp_path / "odd.safetensors", {"skyreels_v2_config": text})
        assert get_transformer(tmp_path / "odd.safetensors", "cpu").num_heads == 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_numbers_are_rounded_once_and_conditioning_is_kept(tmp_path, dtype):
    tensors = forms.weights()
    out = convert(forms.write_folder(tmp_path / "a", tensors), tmp_path / "b.safetensors", "file", dtype)
    for name, tensor in contents(out).items():
        kept = key_tables.KEEP_FLOAT32.search(name)
        wanted = tensors[name] if kept else tensors[name].to(getattr(torch, dtype))
        assert tensor.dtype == wanted.dtype and torch.equal(tensor, wanted), name


def test_quantised_weights_are_expanded(tmp_path):
    meant = forms.write_gguf(tmp_path / "a.gguf", forms.weights(), "Q4_K")
    out = convert(tmp_path / "a.gguf", tmp_path / "b", "diffusers")
    assert {tensor.dtype for tensor in contents(out).values()} == {torch.float32, torch.bfloat16}
    exact = contents(convert(tmp_path / "a.gguf", tmp_path / "c.safetensors", "file", "float32"))
    assert exact.keys() == meant.keys()
    assert all(torch.allclose(exact[name], meant[name], rtol=1e-6, atol=0) for name in meant)
    low, stands_for = forms.scaled(forms.weights(), torch.float8_e4m3fn, "blocks")
    save_file(low, tmp_path / "low.safetensors")
    assert same(contents(convert(tmp_path / "low.safetensors", tmp_path / "d", "original", "float32")), stands_for)


def test_scaled_float8_is_what_comfyui_writes_and_what_we_read(tmp_path):
    tensors = mixed()
    source = forms.write_folder(tmp_path / "a", tensors)
    out = convert(source, tmp_path / "b.safetensors", "file", "fp8_scaled")
    made = contents(out)
    marker = made.pop("scaled_fp8")
    assert marker.dtype == torch.float8_e4m3fn and marker.numel() == 0
    linear = [name for name in tensors if forms.LINEAR.search(name)]
    assert len(linear) == 20 and sum(t.dtype == torch.float8_e4m3fn for t in made.values()) == len(linear)
    for name, tensor in tensors.items():
        if name not in linear:
            assert made[name].dtype == tensor.dtype and torch.equal(made[name], tensor)
            continue
        scale = made.pop(name.replace(".weight", ".scale_weight"))
        assert scale.dtype == torch.float32 and scale.shape == ()
        assert made[name].float().abs().max() == 448
        wanted = tensor.float().abs().max() / 448
        assert torch.equal(scale, wanted) and torch.equal(made[name], (tensor.float() / scale).to(torch.float8_e4m3fn))
    assert made.keys() == tensors.keys()
    assert isinstance(get_transformer(out, "cpu").blocks[0].ffn[0], QuantizedLinear)
    again = convert(out, tmp_path / "c.safetensors", "file", "fp8_scaled")
    assert again.read_bytes() == out.read_bytes()
    plain = {n: t.to(torch.float8_e4m3fn) if n in linear else t for n, t in tensors.items()}
    save_file(plain, tmp_path / "plain.safetensors")
    unscaled = contents(convert(tmp_path / "plain.safetensors", tmp_path / "d.safetensors", "file", "fp8_scaled"))
    assert all(torch.equal(unscaled[n], plain[n]) and unscaled[n[:-6] + "scale_weight"] == 1 for n in linear)


def test_a_weight_of_zeros_has_a_scale(tmp_path):
    tensors = forms.weights()
    tensors["blocks.0.ffn.0.weight"].zero_()
    out = convert(forms.write_folder(tmp_path / "a", tensors), tmp_path / "b.safetensors", "file", "fp8_scaled")
    made = contents(out)
    assert made["blocks.0.ffn.0.scale_weight"] == 1 and not made["blocks.0.ffn.0.weight"].float().any()


def write_lora(path: Path, seed: int = 0) -> Path:
    """Changes of a linear layer, of a norm and of a bias."""
    draw = torch.Generator().manual_seed(seed)
    dim, ffn = forms.SIZES["dim"], forms.SIZES["ffn_dim"]
    tensors = {
        "diffusion_model.blocks.0.ffn.0.lora_A.weight": torch.randn(4, dim, generator=draw) / 16,
        "diffusion_model.blocks.0.ffn.0.lora_B.weight": torch.randn(ffn, 4, generator=draw) / 16,
        "diffusion_model.blocks.1.self_attn.norm_q.diff": torch.randn(dim, generator=draw) / 16,
        "diffusion_model.blocks.1.self_attn.q.diff_b": torch.randn(dim, generator=draw) / 16,
    }
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("to", ["original", "diffusers", "file"])
def test_loras_are_baked_in_as_they_are_applied(tmp_path, capsys, to):
    source = forms.write_folder(tmp_path / "a", forms.weights())
    loras = [(write_lora(tmp_path / "x.safetensors"), 0.5), (write_lora(tmp_path / "y:2.safetensors", 1), -1.0)]
    out = tmp_path / ("b.safetensors" if to == "file" else "b")
    flags = ("--lora", f"{loras[0][0]}:0.5", "--lora", f"{loras[1][0]}:-1")
    made = run(capsys, source, out, "--to", to, *flags)
    assert (made.code, made.out) == (0, f"{out}\n")
    assert sum("4 of 4 tensors applied to 3 parameters" in line for line in made.lines) == 2
    model = get_transformer(source, "cpu", torch.float32)
    apply(model, [(LoraFile.open(path), strength) for path, strength in loras])
    baked = get_transformer(out, "cpu", torch.float32).state_dict()
    assert all(torch.equal(baked[name], tensor) for name, tensor in model.state_dict().items())
    changed = [name for name, tensor in forms.weights().items() if not torch.equal(baked[name], tensor)]
    assert len(changed) == 3
    none = convert(source, tmp_path / "none", "original", loras=[(loras[0][0], 0.0)])
    assert same(contents(none), forms.weights())


def test_a_lora_on_quantised_weights_is_added_before_they_are_rounded(tmp_path):
    low, meant = forms.scaled(forms.weights(), torch.float8_e4m3fn, "[1]")
    save_file(low, tmp_path / "low.safetensors")
    lora = LoraFile.open(write_lora(tmp_path / "x.safetensors"))
    out = convert(tmp_path / "low.safetensors", tmp_path / "b.safetensors", "file", "fp8_scaled", [(lora.path, 1.0)])
    made = contents(out)
    name = "blocks.0.ffn.0.weight"
    report = lora.matched({name: tuple(t.shape) for name, t in meant.items()})
    wanted = meant[name] + lora.delta(report.of(name))
    error = (made[name].float() * made["blocks.0.ffn.0.scale_weight"] - wanted).abs().max()
    assert error <= wanted.abs().max() / 16
    assert torch.equal(made["blocks.1.ffn.0.weight"], low["blocks.1.ffn.0.weight"])
    bfloat16 = contents(convert(tmp_path / "low.safetensors", tmp_path / "c", "original", None, [(lora.path, 1.0)]))
    assert torch.equal(bfloat16[name], wanted.bfloat16())
    assert bfloat16["blocks.1.self_attn.norm_q.weight"].dtype == torch.float32


# Memory


class Allocations(TorchDispatchMode):
    """Counts bytes that live at once in tensors that operations have made; a tensor read from a file counts."""

    def __init__(self):
        super().__init__()
        self.holders, self.live, self.peak, self.given = Counter(), 0, 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        inputs = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if not isinstance(tensor, torch.Tensor) or tensor.is_meta:
                continue
            key, size = tensor.untyped_storage()._cdata, tensor.untyped_storage().nbytes()
            if key in inputs and not self.holders[key]:
                continue  # a view of what was there before
            self.live += size * (not self.holders[key])
            self.holders[key] += 1
            weakref.finalize(tensor, self.release, key, size)
        self.peak = max(self.peak, self.live)
        return made

    def release(self, key, size):
        self.holders[key] -= 1
        self.live -= size * (not self.holders[key])


@pytest.mark.parametrize(("dtype", "largest_ones"), [(None, 1), ("bfloat16", 1), ("float16", 1), ("fp8_scaled", 2.3)])
def test_memory_is_that_of_one_tensor(tmp_path, dtype, largest_ones):
    shapes = small.transformer_shapes("df", dim=256, ffn_dim=512, layers=24)
    tensors = small.random_weights(shapes, 0)
    source = forms.write_folder(tmp_path / "a", tensors)
    (source / "config.json").write_text(json.dumps(forms.config() | {"num_layers": 24}))
    one, total = max(t.nbytes for t in tensors.values()), sum(t.nbytes for t in tensors.values())
    assert total > 40 * one
    out = tmp_path / ("b.safetensors" if dtype == "fp8_scaled" else "b")
    with Allocations() as allocations:
        convert(source, out, "file" if dtype == "fp8_scaled" else "original", dtype, shard_size=total / 3e9)
    assert one / 2 < allocations.peak <= largest_ones * one + 2**16
    if dtype == "fp8_scaled":
        lora = write_lora(tmp_path / "x.safetensors")
        with Allocations() as allocations:
            convert(source, tmp_path / "c", "original", loras=[(lora, 1.0)])
        assert allocations.peak <= 4 * one


# Errors


def test_errors_are_one_line_and_leave_nothing(tmp_path, capsys):
    source = forms.write_folder(tmp_path / "a", forms.weights())
    lora = write_lora(tmp_path / "x.safetensors")
    (tmp_path / "full").mkdir()
    (tmp_path / "cut.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:-10])
    big = forms.weights()
    big["text_embedding.0.weight"][0, 0] = 1e5
    forms.write_folder(tmp_path / "big", big)
    broken = forms.weights()
    broken["blocks.0.ffn.0.bias"][0] = float("nan")
    forms.write_folder(tmp_path / "broken", broken)
    short = {name: t for name, t in forms.weights().items() if "ffn.2" not in name}
    forms.write_folder(tmp_path / "short", short)
    before = sorted(tmp_path.iterdir())
    file, out = tmp_path / "o.safetensors", tmp_path / "o"
    for argv, named in (
        ((source, tmp_path / "full", "--to", "original"), "OUT"),
        ((source, source / "model.safetensors", "--to", "file"), "OUT"),
        ((source, out, "--to", "file"), "OUT"),
        ((source, file, "--to", "diffusers"), "OUT"),
        ((source, tmp_path / "no" / "o", "--to", "original"), "OUT"),
        ((source, out, "--to", "original", "--dtype", "fp8_scaled"), "--dtype fp8_scaled"),
        ((source, out, "--to", "original", "--dtype", "int4"), "--dtype"),
        ((source, out, "--to", "gguf"), "--to"),
        ((source, out), "the following arguments are required: --to"),
        ((source, out, "--to", "original", "--shard_size", "0"), "--shard_size"),
        ((source, out, "--to", "original", "--shard_size", "nan"), "--shard_size"),
        ((source, out, "--to", "original", "--lora", f"{lora}:inf"), "--lora"),
        ((source, out, "--to", "original", "--lora", tmp_path / "none.safetensors"), "--lora"),
        ((source, out, "--to", "original", "--lora", source / "model.safetensors"), "--lora"),
        ((tmp_path / "none", out, "--to", "original"), "SOURCE"),
        ((tmp_path / "full", out, "--to", "original"), "SOURCE"),
        ((tmp_path / "cut.safetensors", out, "--to", "original"), "SOURCE"),
        ((tmp_path / "x.safetensors", out, "--to", "original"), "SOURCE"),
        ((tmp_path / "short", out, "--to", "original"), "SOURCE"),
        ((tmp_path / "broken", out, "--to", "original"), "SOURCE"),
        ((tmp_path / "big", out, "--to", "original", "--dtype", "float16"), "--dtype float16"),
    ):
        made = run(capsys, *argv)
        assert made.code == 2 and made.out == "" and len(made.lines) == 1, (argv, made)
        assert f"convert: {named}" in made.lines[0], made.lines
        assert sorted(tmp_path.iterdir()) == before


def test_too_little_space_and_failures_while_writing(tmp_path, capsys, monkeypatch):
    source = forms.write_folder(tmp_path / "a", forms.weights())
    usage = namedtuple("Usage", "free")
    with monkeypatch.context() as patch:
        patch.setattr(conversion.shutil, "disk_usage", lambda _: usage(1000))
        made = run(capsys, source, tmp_path / "o", "--to", "original")
        assert made.code == 2 and len(made.lines) == 1 and "OUT" in made.lines[0]

    for error, code in ((OSError(28, "No space left on device"), 1), (KeyboardInterrupt(), 130)):

        def fails(*_, error=error):
            raise error
            yield

        monkeypatch.setattr(conversion, "values", fails)
        made = run(capsys, source, tmp_path / "o", "--to", "original")
        assert made.code == code and made.out == "" and len(made.lines) == 1
        assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_result_that_appeared_meanwhile_is_kept(tmp_path, capsys, monkeypatch):
    source = forms.write_folder(tmp_path / "a", forms.weights())
    values = conversion.values
    for to, name in (("original", "o"), ("file", "o.safetensors")):

        def slow(*arguments, name=name):
            yield from values(*arguments)
            (tmp_path / name).write_text("of another process")

        monkeypatch.setattr(conversion, "values", slow)
        made = run(capsys, source, tmp_path / name, "--to", to)
        assert made.code == 1 and len(made.lines) == 1 and (tmp_path / name).read_text() == "of another process"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "o", "o.safetensors"]


def test_the_module_converts_the_embedded_model_and_is_stopped_cleanly(tmp_path):
    command = [sys.executable, "-m", "skyreels_v2_infer.weights.convert", "tiny"]
    done = subprocess.run(
        [*command, tmp_path / "t.safetensors", "--to", "file"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path / 't.safetensors'}\n", "")
    assert get_transformer(tmp_path / "t.safetensors", "cpu").num_heads == 4
    code = (
        "import os, signal\nfrom skyreels_v2_infer.weights import conversion, convert\n"
        "def stopped(*_):\n    os.kill(os.getpid(), signal.SIGTERM)\n    yield\n"
        f"conversion.values = stopped\nconvert.main(['tiny', {str(tmp_path / 'o')!r}, '--to', 'original'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "")
    assert os.listdir(tmp_path) == ["t.safetensors"]
