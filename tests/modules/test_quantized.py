"""Quantised matrices: every GGUF format against the gguf package, and parts of matrices against the whole."""

import gguf
import numpy as np
import pytest
import torch

from skyreels_v2_infer.modules import quantized
from skyreels_v2_infer.modules.quantized import BYTE_FORMATS, GGUF, Quantized, QuantizedEmbedding, QuantizedLinear

# Byte offsets of the float16 scales in a block.
SCALES_AT = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
}
ROWS, COLUMNS = 12, 768


def random_bytes(form: str, rows: int = ROWS) -> np.ndarray:
    """Rows of random blocks with scales of a sane size."""
    numbers, size, _ = GGUF[form]
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (rows * COLUMNS // numbers, size), dtype=np.uint8)
    for at in SCALES_AT[form]:
        blocks[:, at : at + 2] = rng.normal(0, 0.02, (len(blocks), 1)).astype(np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)


def matrices() -> dict[str, Quantized]:
    """One of each format and shape of scales."""
    found = {form: Quantized(form, torch.from_numpy(random_bytes(form))) for form in GGUF}
    stored = torch.randint(0, 120, (ROWS, COLUMNS), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for form in BYTE_FORMATS:
        for shape in ((1, 1), (ROWS, 1), (ROWS, 12), (4, 3)):
            scale = torch.rand(shape, generator=torch.Generator().manual_seed(1))
            found[f"{form} {shape}"] = Quantized(form, stored, scale)
    return found | {"plain": Quantized("float8_e5m2", stored)}


@pytest.mark.parametrize("form", GGUF)
def test_gguf_formats_equal_the_packages(form):
    kind, stored = gguf.GGMLQuantizationType[form], random_bytes(form)
    assert gguf.GGML_QUANT_SIZES[kind] == GGUF[form][:2]
    ours = Quantized(form, torch.from_numpy(stored))
    assert ours.shape == (ROWS, COLUMNS)
    assert np.array_equal(ours.dequantize(torch.float32).numpy(), gguf.quants.dequantize(stored, kind))


@pytest.mark.parametrize("name", matrices())
def test_parts_equal_the_whole(name, monkeypatch):
    matrix = matrices()[name]
    monkeypatch.setitem(quantized.CHUNK, "cpu", 2**30)
    whole = matrix.dequantize(torch.float32)
    for chunk in (1, 5 * COLUMNS, 7 * COLUMNS + 3):
        monkeypatch.setitem(quantized.CHUNK, "cpu", chunk)
        assert torch.equal(matrix.dequantize(torch.float32), whole)
        assert torch.equal(matrix.dequantize(torch.bfloat16), whole.bfloat16())
    assert torch.equal(torch.cat([part.dequantize(torch.float32) for part in matrix.chunk(3)]), whole)
    ids = torch.tensor([[3, 0], [11, 3]])
    embedding = QuantizedEmbedding(matrix, torch.float32)
    assert torch.equal(embedding(ids), whole[ids])
    bias = torch.nn.Parameter(torch.arange(ROWS).float())
    layer, x = QuantizedLinear(matrix, bias, torch.float32), torch.randn(2, 3, COLUMNS)
    assert torch.equal(layer(x), torch.nn.functional.linear(x, whole, bias))


def test_scales_are_of_tiles():
    stored = torch.ones(4, 6, dtype=torch.int8).view(torch.uint8)
    scale = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    expected = [[1, 1, 2, 2, 3, 3]] * 2 + [[4, 4, 5, 5, 6, 6]] * 2
    assert Quantized("int8", stored, scale).dequantize(torch.float32).tolist() == expected


def test_a_layer_keeps_its_bytes_whatever_it_is_cast_to():
    matrix = matrices()["float8_e4m3fn (1, 1)"]
    layer = QuantizedLinear(matrix, None, torch.float32)
    whole = layer.dequantize()
    assert layer.half().stored.dtype == torch.uint8
    assert (layer.dequantize() - whole).abs().max() <= 1e-3 * whole.abs().max()  # the scale alone was rounded
    assert layer.weight.shape == (ROWS, COLUMNS) and layer.weight.is_meta and layer.weight.dtype == torch.float32
    assert not list(layer.parameters()) and (layer.in_features, layer.out_features) == (COLUMNS, ROWS)
