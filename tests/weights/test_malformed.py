"""Damaged and hostile weight files and configs: one `InputError` of one line, quickly, whatever a library raises."""

import json
import os
import random
import struct
import time
import zipfile
from pathlib import Path

import forms
import gguf
import numpy as np
import pytest
import small_checkpoints as small
import torch
from safetensors.torch import save_file

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.modules import get_image_encoder, get_text_encoder, get_transformer, get_vae
from skyreels_v2_infer.plan.caching import choose_coefficients
from skyreels_v2_infer.weights import headers
from skyreels_v2_infer.weights.locate import Checkpoint, read_transformer_config
from skyreels_v2_infer.weights.lora_file import LoraFile
from skyreels_v2_infer.weights.tensor_files import check_file
from skyreels_v2_infer.weights.verify import check_files

DEEP = "[" * 100_000 + "]" * 100_000
HUGE = 10**400


def refusal(call, *arguments, **keywords) -> str:
    began = time.process_time()
    with pytest.raises(InputError) as caught:
        call(*arguments, **keywords)
    line = str(caught.value)
    assert "\n" not in line and line.startswith("--") and len(line) < 900
    assert time.process_time() - began < 10
    return line


def load(path, **keywords):
    return get_transformer(path, "cpu", torch.float32, **keywords)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "a.safetensors"
    save_file(forms.weights(), path)
    return path.read_bytes()


def rewritten(whole: bytes, change) -> bytes:
    """A safetensors file with its header changed."""
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    changed = change(header)
    text = (changed if isinstance(changed, str) else json.dumps(header)).encode()
    return len(text).to_bytes(8, "little") + text + whole[8 + length :]


NAME, OTHER = "blocks.0.ffn.0.weight", "blocks.1.ffn.0.weight"


def set_field(key, value, name=NAME):
    return lambda header: header[name].update({key: value})


def swap_offsets(header):
    header[NAME]["data_offsets"].reverse()


def overlap(header):
    header[OTHER]["data_offsets"] = header[NAME]["data_offsets"]


def shrink(header):
    header[NAME]["shape"][0] -= 1
    header[NAME]["data_offsets"][1] -= 4 * header[NAME]["shape"][1]


@pytest.mark.parametrize(
    "change",
    (
        set_field("dtype", "F99"),
        set_field("dtype", None),
        set_field("dtype", ["F32"]),
        set_field("shape", [-512, -256]),
        set_field("shape", [512.0, 256.0]),
        set_field("shape", [True, 131072]),
        set_field("shape", "512"),
        set_field("shape", [HUGE]),
        set_field("shape", None),
        set_field("shape", [512, 255]),
        set_field("dtype", "F16"),
        set_field("data_offsets", [0, HUGE]),
        set_field("data_offsets", [0]),
        set_field("data_offsets", [-4, 4]),
        set_field("data_offsets", [0, 1e300]),
        swap_offsets,
        overlap,
        shrink,
        lambda header: header.update({NAME: 3}),
        lambda header: header.update({NAME: []}),
        lambda header: header.update({"__metadata__": 3}),
        lambda header: header[NAME].pop("dtype"),
        lambda header: DEEP,
        lambda header: "[]",
        lambda header: '{"a": ' + "9" * 5000 + "}",
        lambda header: "\x00",
        lambda header: "",
    ),
)
def test_safetensors_headers(tmp_path, whole, change):
    (tmp_path / "a.safetensors").write_bytes(rewritten(whole, change))
    refusal(load, tmp_path / "a.safetensors")
    folder = forms.write_folder(tmp_path / "f", forms.weights())
    (folder / "model.safetensors").write_bytes(rewritten(whole, change))
    assert "model.safetensors" in refusal(check_files, Checkpoint.open(folder, ("transformer",)))


@pytest.mark.parametrize("keep", (0, 7, 8, 100, -1000, -1))
def test_truncated_files(tmp_path, whole, keep):
    (tmp_path / "a.safetensors").write_bytes(whole[:keep])
    assert "interrupted download" in refusal(load, tmp_path / "a.safetensors")
    forms.write_gguf(tmp_path / "whole.gguf", forms.weights(), "Q8_0")
    (tmp_path / "a.gguf").write_bytes((tmp_path / "whole.gguf").read_bytes()[:keep])
    if keep < 0:
        assert "interrupted download" in refusal(check_file, tmp_path / "a.gguf", "a.gguf")
    refusal(load, tmp_path / "a.gguf")


def test_a_header_that_is_too_long(tmp_path, monkeypatch, whole):
    monkeypatch.setattr(headers, "HEADER_LIMIT", 1000)
    (tmp_path / "a.safetensors").write_bytes(whole)
    assert "1,000" in refusal(load, tmp_path / "a.safetensors")


def test_numbers_of_tensors_and_axes_are_limited(tmp_path, monkeypatch, whole):
    (tmp_path / "a.safetensors").write_bytes(whole)
    forms.write_gguf(tmp_path / "a.gguf", forms.weights(), "Q8_0")
    torch.save({str(i): torch.zeros(1) for i in range(9)}, tmp_path / "a.pth")
    with monkeypatch.context() as patched:
        patched.setattr(headers, "MOST_TENSORS", 8)
        for name in ("a.safetensors", "a.gguf"):
            assert "at most 8 are read" in refusal(load, tmp_path / name)
        assert "not a plain dict of tensors" in refusal(load, tmp_path / "a.pth")
        save_file({str(i): torch.zeros(1) for i in range(9)}, tmp_path / "b.safetensors")
        with pytest.raises(InputError, match="at most 8 are read"):
            LoraFile.open(tmp_path / "b.safetensors")
    with monkeypatch.context() as patched:
        patched.setattr(headers, "PICKLE_LIMIT", 100)
        assert "at most 100 are read" in refusal(load, tmp_path / "a.pth")
    long = {"a": {"dtype": "F32", "shape": [2**60] * 10**5, "data_offsets": [0, 4]}}  # whose product is long to compute
    (tmp_path / "a.safetensors").write_bytes(
        len(json.dumps(long)).to_bytes(8, "little") + json.dumps(long).encode() + bytes(4)
    )
    assert "shape or offsets of a are not counts" in refusal(load, tmp_path / "a.safetensors")


@pytest.mark.parametrize("damaged", ["lora_A.weight", "lora_B.weight", "alpha"])
def test_a_lora_with_numbers_that_are_none_is_refused(tmp_path, damaged):
    """Where there are few tokens, attention on a CPU makes finite numbers of them."""
    name = "diffusion_model.blocks.0.self_attn.q"
    tensors = {f"{name}.lora_A.weight": torch.ones(2, 8), f"{name}.lora_B.weight": torch.ones(8, 2)}
    tensors |= {f"{name}.alpha": torch.ones(())}
    tensors[f"{name}.{damaged}"] = tensors[f"{name}.{damaged}"] * float("inf")
    save_file(tensors, tmp_path / "a.safetensors")
    lora = LoraFile.open(tmp_path / "a.safetensors")
    report = lora.matched({"blocks.0.self_attn.q.weight": (8, 8)})
    with pytest.raises(InputError, match=f"is damaged: {name}.{damaged} has NaN or infinity"):
        lora.delta(report.of("blocks.0.self_attn.q.weight"))


def test_a_lora_whose_names_are_numbers_is_refused(tmp_path):
    torch.save({1: torch.zeros(1)}, tmp_path / "a.pt")
    with pytest.raises(InputError, match="must hold a dict of tensors"):
        LoraFile.open(tmp_path / "a.pt")


def test_whatever_a_library_raises(tmp_path, monkeypatch, whole):
    """Also what is no Exception, as a panic in Rust; but not an interrupt."""
    import safetensors

    panic = type("PanicException", (BaseException,), {})

    def fail(error):
        def raising(*_, **__):
            raise error

        return raising

    (tmp_path / "a.safetensors").write_bytes(whole)
    for error in (panic("index out of bounds"), RecursionError("deep"), IndexError("at 3"), OverflowError("large")):
        monkeypatch.setattr(safetensors, "safe_open", fail(error))
        assert str(error) in refusal(load, tmp_path / "a.safetensors")
    for error in (KeyboardInterrupt(), SystemExit(3)):
        monkeypatch.setattr(safetensors, "safe_open", fail(error))
        with pytest.raises(type(error)):
            load(tmp_path / "a.safetensors")


# GGUF


def gguf_file(tensors: int = 0, values: int = 0, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, values) + rest


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def array(kind: int, count: int, rest: bytes = b"") -> bytes:
    return text(b"a") + struct.pack("<IIQ", 9, kind, count) + rest


def tensor(shape=(32, 4), kind=8, offset=0, name=b"a") -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


@pytest.mark.parametrize(
    "content",
    (
        gguf_file(version=9),
        gguf_file(tensors=2**60),
        gguf_file(values=2**60),
        gguf_file(values=1, rest=struct.pack("<Q", 2**63) + b"abc"),
        gguf_file(values=1, rest=array(8, 2**60)),
        gguf_file(values=1, rest=array(4, 2**60)),
        gguf_file(values=1, rest=array(0, 2**63 + 5)),
        gguf_file(values=1, rest=array(9, 2**40, struct.pack("<IQ", 9, 3) * 50)),
        gguf_file(values=1, rest=array(8, 2**22, bytes(2**25))),
        gguf_file(values=1, rest=text(b"a") + struct.pack("<I", 99)),
        gguf_file(values=1, rest=text(b"general.alignment") + struct.pack("<II", 4, 0)),
        gguf_file(values=1, rest=text(b"general.alignment") + struct.pack("<I", 8) + text(b"x")),
        gguf_file(tensors=1, rest=tensor(shape=(2**40, 2**40)) + bytes(5000)),
        gguf_file(tensors=1, rest=tensor(shape=(2**63, 2)) + bytes(5000)),
        gguf_file(tensors=1, rest=tensor(shape=(33, 4)) + bytes(5000)),
        gguf_file(tensors=1, rest=tensor(shape=()) + bytes(5000)),
        gguf_file(tensors=1, rest=text(b"a") + struct.pack("<I", 2**31) + bytes(5000)),
        gguf_file(tensors=1, rest=tensor(offset=2**63) + bytes(5000)),
        gguf_file(tensors=1, rest=tensor(kind=4) + bytes(5000)),
        gguf_file(tensors=2, rest=2 * tensor() + bytes(5000)),
        gguf_file(tensors=2, rest=tensor() + tensor(name=b"b", offset=32) + bytes(5000)),
        gguf_file(tensors=1, rest=tensor(kind=0, name=b"time_embedding.0.weight", offset=2) + bytes(5000)),
    ),
)
def test_gguf_headers(tmp_path, content):
    (tmp_path / "a.gguf").write_bytes(content)
    refusal(load, tmp_path / "a.gguf")


# .pth


def test_a_tensor_that_is_larger_than_its_storage(tmp_path):
    tensors = small.random_weights(small.vae_shapes(), 0)
    tensors["decoder.conv1.weight"] = torch.zeros(1).expand(tensors["decoder.conv1.weight"].shape)
    torch.save(tensors, tmp_path / "vae.pth")
    line = refusal(get_vae, tmp_path / "vae.pth", "cpu")
    assert "decoder.conv1.weight" in line and "storage" in line


@pytest.mark.parametrize(
    "value",
    (
        torch.zeros(2, 2).to_sparse(),
        torch.empty(2, 2, device="meta"),
        torch.zeros(2, 2, dtype=torch.complex64),
        torch.zeros(2, 2, dtype=torch.bool),
        3,
        "text",
    ),
)
def test_values_that_are_no_plain_tensors(tmp_path, value):
    torch.save(small.random_weights(small.vae_shapes(), 0) | {"conv1.bias": value}, tmp_path / "vae.pth")
    refusal(get_vae, tmp_path / "vae.pth", "cpu")
    torch.save({3: torch.zeros(2)}, tmp_path / "vae.pth")
    refusal(get_vae, tmp_path / "vae.pth", "cpu")


def test_an_archive_that_would_expand(tmp_path):
    torch.save(small.random_weights(small.vae_shapes(), 0), tmp_path / "whole.pth")
    with zipfile.ZipFile(tmp_path / "whole.pth") as whole, zipfile.ZipFile(tmp_path / "vae.pth", "w", 8) as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    assert "compressed" in refusal(get_vae, tmp_path / "vae.pth", "cpu")


@pytest.mark.parametrize("wide", (False, True))
def test_an_archive_with_a_huge_directory(tmp_path, wide):
    """3 GiB on the disk of a sender cost nothing; the directory must not be read into memory."""
    torch.save(small.random_weights(small.vae_shapes(), 0), tmp_path / "vae.pth")
    os.truncate(tmp_path / "vae.pth", 3 * 2**30)
    size = 2**31
    narrow = (2**32 - 1 if wide else size, 2**32 - 1 if wide else 2**29)
    record = b"PK\6\6" + struct.pack("<QHHLLQQQQ", 44, 45, 45, 0, 0, 9, 9, size, 2**29)
    locator = b"PK\6\7" + struct.pack("<LQL", 0, 3 * 2**30, 1)
    end = b"PK\5\6" + struct.pack("<HHHHLLH", 0, 0, 9, 9, *narrow, 0)
    with (tmp_path / "vae.pth").open("ab") as file:
        file.write((record + locator if wide else b"") + end)
    assert "directory of 2,147,483,648 bytes" in refusal(get_vae, tmp_path / "vae.pth", "cpu")


# LoRA files


def write_lora(folder: Path, config: object) -> Path:
    folder.mkdir(exist_ok=True)
    factors = {"base_model.model.blocks.0.self_attn.q.lora_A.weight": torch.zeros(4, small.DIM)}
    factors |= {"base_model.model.blocks.0.self_attn.q.lora_B.weight": torch.zeros(small.DIM, 4)}
    save_file(factors, folder / "adapter_model.safetensors")
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "adapter_config.json").write_text(text)
    return folder


@pytest.mark.parametrize(
    "config",
    (
        DEEP,
        "[1]",
        "9" * 5000,
        {"lora_alpha": HUGE},
        {"lora_alpha": "8"},
        {"lora_alpha": float("nan")},
        {"alpha_pattern": ["q"]},
        {"alpha_pattern": {"q": "x"}},
        {"alpha_pattern": {"((a+)+)+$": 4}},
        {"alpha_pattern": {"[^.]*": 4}},
    ),
)
def test_configurations_of_a_lora(tmp_path, config):
    assert "its configuration" in refusal(LoraFile.open, write_lora(tmp_path / "lora", config))


def test_a_configuration_of_a_lora_without_end(tmp_path):
    folder = write_lora(tmp_path / "lora", {})
    os.truncate(folder / "adapter_config.json", 3 * 2**30)
    assert "its configuration" in refusal(LoraFile.open, folder)


def test_an_alpha_that_is_no_number(tmp_path):
    factors = {"diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.ones(4, small.DIM)}
    factors |= {"diffusion_model.blocks.0.self_attn.q.lora_B.weight": torch.ones(small.DIM, 4)}
    save_file(factors | {"diffusion_model.blocks.0.self_attn.q.alpha": torch.ones(2)}, tmp_path / "a.safetensors")
    lora, name = LoraFile.open(tmp_path / "a.safetensors"), "blocks.0.self_attn.q.weight"
    report = lora.matched({name: (small.DIM, small.DIM)})
    assert "alpha must be one number" in refusal(lora.delta, report.of(name))


# Names and kinds of files


def test_counts_in_the_names_of_shards(tmp_path):
    folder = forms.write_folder(tmp_path, forms.weights())
    (folder / "model.safetensors").rename(folder / "model-00000001-of-99999999.safetensors")
    line = refusal(Checkpoint.open, folder, ("transformer",))
    assert "model-00000002-of-99999999.safetensors" in line and "99999997 more" in line
    (folder / "model-00000001-of-99999999.safetensors").rename(folder / f"model-{'1' * 100}-of-{'9' * 100}.safetensors")
    assert "one of 999" in refusal(Checkpoint.open, folder, ("transformer",))
    for name in ("model-00001-of-00000.safetensors", "model-00000-of-00001.safetensors", "model-3-of-2.safetensors"):
        (next(folder.glob("*.safetensors"))).rename(folder / name)
        assert "lacks the transformer" in refusal(Checkpoint.open, folder, ("transformer",))


def test_an_index_cannot_lead_out_of_its_folder(tmp_path):
    folder = forms.write_folder(tmp_path / "f", forms.weights())
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    for name in ("../outside.safetensors", str(tmp_path / "outside.safetensors"), 3, None, ["x"]):
        for index in ("model.safetensors.index.json", "any.index.json"):
            for old in folder.glob("*.index.json"):
                old.unlink()
            (folder / index).write_text(json.dumps({"weight_map": {"a": name}}))
            refusal(Checkpoint.open, folder, ("transformer",))


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


KINDS = {
    "pipe": make_fifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "dangling": lambda path: path.symlink_to(path.parent / "nowhere"),
    "loop": lambda path: path.symlink_to(path),
    "folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ("model.safetensors", "config.json", small.VAE, "google/umt5-xxl/tokenizer.json"))
def test_files_that_are_no_regular_files(tmp_path, kind, name):
    folder = small.write_original(tmp_path / "m")
    (folder / name).unlink()
    KINDS[kind](folder / name)

    def run():
        checkpoint = Checkpoint.open(folder)
        check_files(checkpoint)
        load(checkpoint)

    refusal(run)
    if name == "config.json":
        refusal(read_transformer_config, folder)


@pytest.mark.parametrize("name", ("tokenizer_config.json", "added_tokens.json", "chat_template.jinja", "spiece.model"))
def test_large_files_beside_a_tokenizer(tmp_path, name):
    folder = small.write_original(tmp_path / "m")
    file = folder / "google" / "umt5-xxl" / name
    file.touch()
    os.truncate(file, 3 * 2**30)
    assert f"umt5-xxl/{name} has 3,221,225,472 bytes" in refusal(get_text_encoder, folder, "cpu")
    assert name in refusal(check_files, Checkpoint.open(folder))


@pytest.mark.parametrize(
    "content", (DEEP, '{"coefficients": ' + DEEP + "}", '{"coefficients": [1' + "0" * 400 + ", 1, 1, 1, 1]}", None)
)
def test_coefficients_of_teacache(tmp_path, content):
    file = tmp_path / "teacache.json"
    file.write_text(content or "")
    if content is None:
        os.truncate(file, 3 * 2**30)
    line = refusal(choose_coefficients, {"model_type": "t2v", "dim": 64}, tmp_path, 32, 32, False)
    assert "teacache.json has no usable coefficients" in line


def test_the_name_of_a_snapshot_without_end(tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    small.write_original(snapshot)
    refs = tmp_path / "models--a--b" / "refs"
    refs.mkdir()
    for make in (lambda file: os.truncate(file, 3 * 2**30), lambda file: file.write_text("../.."), lambda file: None):
        (refs / "main").touch()
        make(refs / "main")
        assert Checkpoint.open(tmp_path / "models--a--b", ("vae",)).folder == snapshot
        (refs / "main").unlink()


def test_a_tokenizer_without_padding(tmp_path):
    folder = small.write_original(tmp_path / "m")
    path = folder / "google" / "umt5-xxl" / "tokenizer_config.json"
    path.write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "unk_token": "<unk>"}))
    assert "no padding token" in refusal(get_text_encoder, folder, "cpu")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "folder"])
@pytest.mark.parametrize("suffix", (".safetensors", ".gguf", ".pth"))
def test_a_file_that_is_no_regular_file(tmp_path, kind, suffix):
    KINDS[kind](tmp_path / f"a{suffix}")
    for get in (get_transformer, get_vae, get_text_encoder, get_image_encoder):
        refusal(get, tmp_path / f"a{suffix}", "cpu")


# Configs


@pytest.mark.parametrize(
    "content",
    (
        DEEP,
        '{"a":' * 100_000,
        "9" * 5000,
        '{"dim": ' + "9" * 5000 + "}",
        b"\xff\xfe",
        "null",
        *(
            {name: value}
            for name in ("dim", "ffn_dim", "num_heads", "num_layers", "in_dim", "text_len", "freq_dim")
            for value in (HUGE, -1, 1.5, True, [], {}, "x", float("nan"), float("inf"))
        ),
        {"num_layers": 10**6},
        {"num_layers": 2**24},
        {"eps": "small"},
        {"eps": float("inf")},
        {"eps": -1.0},
        {"inject_sample_info": "yes"},
        {"model_type": []},
        {"model_type": {}},
        {"patch_size": HUGE},
        {"window_size": [[[[]]]]},
        {"text_dim": 31},
    ),
)
def test_configs_of_a_transformer(tmp_path, content):
    folder = forms.write_folder(tmp_path, forms.weights())
    if isinstance(content, dict):
        content = json.dumps(forms.config() | content)
    (folder / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    line = refusal(load, folder)
    assert "config.json" in line or "of another shape" in line


def test_keys_of_a_config_that_python_has_other_uses_for(tmp_path):
    folder = forms.write_folder(tmp_path, forms.weights())
    odd = {"self": 1, "": 2, "__class__": 3, "_unknown": 4, "*": 5, "cls": 6}
    (folder / "config.json").write_text(json.dumps(forms.config() | odd))
    load(folder)


@pytest.fixture(scope="module")
def diffusers(tmp_path_factory):
    return small.write_diffusers(tmp_path_factory.mktemp("model"), "i2v")


@pytest.mark.parametrize("part", ("vae", "text_encoder", "image_encoder"))
@pytest.mark.parametrize(
    "change",
    (
        DEEP,
        "9" * 5000,
        {"num_layers": 10**7, "num_hidden_layers": 10**7, "num_res_blocks": 10**7},
        {"num_layers": HUGE, "num_hidden_layers": HUGE, "num_res_blocks": HUGE},
        {"num_layers": "x", "num_hidden_layers": "x", "num_res_blocks": "x"},
        {"d_model": HUGE, "hidden_size": HUGE, "dim_mult": [HUGE, 1, 1, 1]},
        {"d_model": -1, "hidden_size": -1, "dim_mult": [-1, 1, 1, 1]},
        {"image_size": 10**9, "vocab_size": 3, "dim_mult": DEEP},
        {"image_size": "x", "vocab_size": "x", "dim_mult": None},
        {"patch_size": 0, "num_heads": 0},
    ),
)
def test_configs_of_the_other_parts(tmp_path, diffusers, part, change):
    folder = tmp_path / part
    folder.mkdir()
    for file in (diffusers / part).iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "config.json").unlink()
    if isinstance(change, dict):
        change = json.dumps(json.loads((diffusers / part / "config.json").read_text()) | change)
    (folder / "config.json").write_text(change)
    (tmp_path / "tokenizer").symlink_to(diffusers / "tokenizer")
    get = {"vae": get_vae, "text_encoder": get_text_encoder, "image_encoder": get_image_encoder}[part]
    refusal(get, tmp_path, "cpu")


# Random damage


@pytest.mark.parametrize("form", ("safetensors", "gguf", "pth"))
def test_random_damage(tmp_path, form):
    """Whatever happens to a file, it loads or is refused in one line; numbers may change unnoticed, nothing else."""
    path = tmp_path / f"a.{form}"
    tensors = small.random_weights(small.transformer_shapes("t2v"), 0)
    if form == "safetensors":
        save_file(tensors, path)
    elif form == "gguf":
        write_small_gguf(path, tensors)
    else:
        torch.save(tensors, path)
    whole, rng = path.read_bytes(), random.Random(form)
    config = small.transformer_config("t2v")
    outcomes = []
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(rng.choice((1, 1, 3, 20))):
            # Most of it where names, counts and offsets are.
            at = rng.randrange(4, min(len(content), 12_000)) if form != "pth" else rng.randrange(len(content))
            content[at : at + rng.choice((1, 1, 8))] = rng.randbytes(rng.choice((1, 1, 8)))
        path.write_bytes(content)
        began = time.process_time()
        try:
            load(path, config=config)
            outcomes.append("loaded")
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 900
            outcomes.append("refused")
        assert time.process_time() - began < 10
    assert set(outcomes) == {"loaded", "refused"} or form == "pth"


def write_small_gguf(path: Path, tensors: dict) -> None:
    writer = gguf.GGUFWriter(path, "wan")
    for name, value in tensors.items():
        writer.add_tensor(name, value.numpy().astype(np.float16 if value.ndim == 2 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_panic_is_recognised_by_its_name_alone():
    class PanicException(BaseException):
        pass

    with pytest.raises(InputError, match="a: b"), headers.refusing("m", "a"):
        raise PanicException("b")
    with pytest.raises(GeneratorExit), headers.refusing("m", "a"):
        raise GeneratorExit
