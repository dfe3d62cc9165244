"""Writers of one small transformer in the forms that weights are passed around in, with their quirks."""

import json
import re
from pathlib import Path

import gguf
import numpy as np
import small_checkpoints as small
import torch
from safetensors.torch import save_file

SIZES = {"dim": 256, "ffn_dim": 512, "layers": 2}  # two heads of 128; rows of whole GGUF blocks of 256
LINEAR = re.compile(r"^blocks\.\d+\.(self_attn|cross_attn|ffn)\..*(?<!norm_q)(?<!norm_k)(?<!norm_k_img)\.weight$")
# Byte offsets of the float16 scales in a GGUF block.
SCALES_AT = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,)}
SCALES_AT |= {"IQ4_XS": (0,)}


def weights(task: str = "df", dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return small.random_weights(small.transformer_shapes(task, **SIZES), 0, dtype)


def config(task: str = "df") -> dict:
    return small.transformer_config(task, heads=2, **SIZES)


def write_folder(folder: Path, tensors: dict, task: str = "df") -> Path:
    """The transformer of the original layout."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(task)))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def scaled(tensors: dict, form: torch.dtype, shape: str, names=(".scale_weight", ".scale_input")) -> tuple[dict, dict]:
    """Block linears in 8 bits with scales.

    Args:
        shape: of the scales: ``"[]"``, ``"[1]"``, ``"[out]"``, ``"[out, 1]"``, ``"blocks"`` (64 columns), ``"tiles"``.

    Returns:
        the tensors to write, and those that they stand for.
    """
    written, meant = {}, {}
    largest = 127 if form == torch.int8 else torch.finfo(form).max
    for name, tensor in tensors.items():
        if not LINEAR.search(name):
            written[name] = meant[name] = tensor
            continue
        rows, columns = tensor.shape
        r, c = {"blocks": (rows, columns // 64), "tiles": (rows // 128, columns // 128)}.get(
            shape, (rows if "out" in shape else 1, 1)
        )
        tiles = tensor.view(r, rows // r, c, columns // c)
        scale = tiles.abs().amax(dim=(1, 3)) / largest
        low = tiles / scale[:, None, :, None]
        low = (low.round() if form == torch.int8 else low).to(form)
        meant[name] = (low.float() * scale[:, None, :, None]).view(rows, columns)
        layer = name.removesuffix(".weight")
        written[name] = low.view(rows, columns)
        shapes = {"[]": (), "[1]": (1,), "[out]": (rows,), "[out, 1]": (rows, 1), "blocks": (r, c, 1), "tiles": (r, c)}
        written[layer + names[0]] = scale.reshape(shapes[shape])
        written[layer + names[1]] = torch.ones(())
    return written, meant


def comfy_quant(layer_format: dict) -> torch.Tensor:
    return torch.tensor(list(json.dumps(layer_format).encode()), dtype=torch.uint8)


def gguf_bytes(form: str, rows: int, columns: int, seed: int) -> np.ndarray:
    """Random blocks with scales of a sane size: what no quantiser has to write."""
    kind = gguf.GGMLQuantizationType[form]
    numbers, size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (rows * columns // numbers, size), dtype=np.uint8)
    for at in SCALES_AT[form]:
        scale = rng.normal(0, 0.001 / (50 if form[0] == "I" else 1), (len(blocks), 1)).astype(np.float16)
        blocks[:, at : at + 2] = scale.view(np.uint8)
    return blocks.reshape(rows, -1)


def write_gguf(path: Path, tensors: dict, form: str, architecture: str | None = "wan", metadata=None) -> dict:
    """A GGUF file of tensors, block linears in a format; returns the tensors that it stands for."""
    writer = gguf.GGUFWriter(path, architecture or "wan")
    for add in metadata or ():
        add(writer)
    meant = {}
    for i, (name, tensor) in enumerate(tensors.items()):
        kind = gguf.GGMLQuantizationType[form if LINEAR.search(name) else "F32"]
        if kind.name in SCALES_AT:
            data = gguf_bytes(kind.name, *tensor.shape, seed=i)
        else:
            data = gguf.quants.quantize(tensor.float().numpy(), kind)
        writer.add_tensor(name, data, raw_dtype=kind)
        meant[name] = torch.from_numpy(gguf.quants.dequantize(data, kind).reshape(tensor.shape).copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


def velocity(model) -> torch.Tensor:
    """What a transformer computes for fixed inputs, with its weights in memory of their own.

    The last bits of a product depend on the alignment of its factors, so that views of two files would differ.
    """
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()
    return computed(model)


def computed(model) -> torch.Tensor:
    """What a transformer computes for fixed inputs."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 16, 2, 4, 4, generator=generator)
    context = torch.randn(1, 5, small.TEXT_DIM, generator=generator)
    inputs = {}
    if model.inject_sample_info:
        inputs["fps"] = torch.tensor([1])
    if model.model_type == "i2v":
        inputs["y"] = torch.randn(1, 20, 2, 4, 4, generator=generator)
        inputs["clip_fea"] = torch.randn(1, 7, small.CLIP_DIM, generator=generator)
    with torch.no_grad():
        return model(x, torch.tensor([[700.0, 300.0]]), context, **inputs)
