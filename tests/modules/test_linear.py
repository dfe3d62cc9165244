"""Linear layers of one byte a weight against float32, and their place in a transformer."""

import pytest
import torch
import torch.nn.functional as F
from peers import EXACT, apart, small_model

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.modules.linear import (
    Fp8Linear,
    Fp8WeightLinear,
    Int8Linear,
    OneByteLinear,
    project,
    quantize_blocks,
    quantize_rows,
    quantized,
)
from skyreels_v2_infer.modules.transformer import WanModel

# Norm of the error of a product of normally distributed numbers, stated in docs: float8 has 3 bits of mantissa.
ERRORS = {Fp8Linear: 0.04, Fp8WeightLinear: 0.03, Int8Linear: 0.01}


def error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return float((ours.double() - exact.double()).norm() / exact.double().norm())


def linear(inner: int = 64, outer: int = 48) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(inner, outer).requires_grad_(False)


@pytest.mark.parametrize("kind", ERRORS)
def test_the_error_is_that_of_its_number_format(kind):
    layer, x = linear(512, 256), torch.randn(2, 5, 512)
    found = error(quantized(layer, kind)(x), layer(x))
    assert ERRORS[kind] / 10 < found < ERRORS[kind]


@pytest.mark.parametrize("kind", ERRORS)
def test_each_channel_has_a_scale_of_its_own(kind):
    layer, x = linear(), torch.randn(7, 64)
    layer.weight[3] *= 1000
    layer.weight[5] *= 1e-3
    exact, found = layer(x) - layer.bias, quantized(layer, kind)(x) - layer.bias
    for channel in (3, 5, 0):
        assert error(found[:, channel], exact[:, channel]) < 2 * ERRORS[kind]


def test_each_row_has_a_scale_of_its_own():
    x = torch.randn(3, 4, 64) * torch.tensor([1e-4, 1.0, 1e4]).view(3, 1, 1)
    x[1, 2] = 0
    rows = quantize_rows(x)
    assert rows.values.dtype == torch.float8_e4m3fn and rows.scale.shape == (12, 1)
    back = (rows.values.float() * rows.scale).view(x.shape)
    assert torch.equal(back[1, 2], x[1, 2])
    assert all(error(back[i], x[i]) < 0.03 for i in range(3))


def test_rows_are_quantised_once_for_several_layers(monkeypatch):
    layers, x = [quantized(linear(), Fp8Linear) for _ in range(3)], torch.randn(1, 5, 64)
    expected = [layer(x) for layer in layers]
    calls = []
    monkeypatch.setattr("skyreels_v2_infer.modules.linear.quantize_rows", lambda x: calls.append(x) or quantize_rows(x))
    assert all(torch.equal(*pair) for pair in zip(project(x, *layers), expected, strict=True))
    assert len(calls) == 1


def test_project_takes_ordinary_layers():
    layers, x = [linear(), linear(64, 8)], torch.randn(1, 5, 64)
    assert all(apart(out, layer(x)) <= EXACT for out, layer in zip(project(x, *layers), layers, strict=True))


@pytest.mark.parametrize("scale", [torch.tensor(0.5), torch.full((48,), 0.5), torch.full((48, 1), 0.5)])
def test_a_scaled_weight_is_taken_over_as_it_is(scale):
    weight = torch.randn(48, 64).to(torch.float8_e4m3fn)
    layer = Fp8WeightLinear(64, 48, bias=False)
    layer.from_scaled(weight, scale)
    x = torch.randn(5, 64)
    assert layer.weight.data_ptr() == weight.data_ptr()
    assert torch.equal(layer(x), F.linear(x, weight.float() * 0.5))


def test_a_weight_of_another_type_or_shape_is_refused():
    layer = Fp8Linear(64, 48)
    for weight in (torch.zeros(48, 64), torch.zeros(64, 48).to(torch.float8_e4m3fn)):
        with pytest.raises(ValueError, match="weight"):
            layer.from_scaled(weight, torch.ones(()))


@pytest.mark.parametrize(("kind", "most"), [("fp8", 0.06), ("int8", 0.02)])
def test_a_quantised_transformer_stays_near_the_dense_one(kind, most):
    model = small_model(task="i2v", head_size=32)
    given = {"x": torch.randn(1, 16, 3, 6, 4), "t": torch.tensor([[900.0, 500.0, 100.0]])}
    given |= {"context": torch.randn(1, 9, 24), "clip_fea": torch.randn(1, 257, 20), "y": torch.randn(1, 20, 3, 6, 4)}
    expected = model(**given)
    assert quantize_blocks(model, kind, "cpu") == 2 * 12  # q, k, v, o twice, k and v of the image, two of feed-forward
    assert 0 < error(model(**given), expected) < most


def test_only_layers_that_every_step_passes_compute_in_float8():
    model = small_model()
    quantize_blocks(model, "fp8", "cpu")
    kinds = {name: type(layer) for name, layer in model.named_modules() if isinstance(layer, OneByteLinear)}
    assert {name for name, kind in kinds.items() if kind is not Fp8Linear} == {
        f"blocks.{i}.cross_attn.{leaf}" for i in range(2) for leaf in "kv"
    }
    assert not any(name.startswith(("time", "text", "head", "patch")) for name in kinds)


def test_layers_are_swapped_on_the_meta_device_and_filled_by_name():
    """As loading does it: same parameter names and shapes, dense weights handed to `from_dense`."""
    dense = small_model()
    with torch.device("meta"):
        model = WanModel(dim=64, num_heads=4, num_layers=2, ffn_dim=96, text_dim=24)
    quantize_blocks(model, "int8", "cpu")
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    assert shapes == {name: parameter.shape for name, parameter in dense.named_parameters()}
    for name, tensor in dense.named_parameters():
        owner, _, leaf = name.rpartition(".")
        owner = model.get_submodule(owner)
        if leaf == "weight" and isinstance(owner, OneByteLinear):
            owner.from_dense(tensor)
        else:
            setattr(owner, leaf, torch.nn.Parameter(tensor, requires_grad=False))
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    given = {"x": torch.randn(1, 16, 3, 6, 4), "t": torch.tensor([500.0]), "context": torch.randn(1, 9, 24)}
    expected = dense(**given)
    quantize_blocks(dense, "int8", "cpu")
    assert torch.equal(model.eval()(**given), dense(**given))
    assert error(dense(**given), expected) < 0.02


def test_layers_whose_sizes_do_not_fit_stay():
    model = small_model(heads=3, head_size=10)
    assert quantize_blocks(model, "fp8", "cpu") == 0


def test_an_unknown_kind_is_refused():
    with pytest.raises(InputError) as caught:
        quantize_blocks(small_model(), "int3", "cpu")
    assert (caught.value.name, caught.value.value) == ("quantize", "int3")
