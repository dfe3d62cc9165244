"""Linear layers by oneDNN: the same product as torch's, and where they are not used."""

import pytest
import torch
import torch.nn.functional as F
from peers import EXACT, apart
from torch import nn

from skyreels_v2_infer.modules import dense
from skyreels_v2_infer.modules.dense import by_onednn, linear, linear_gelu
from skyreels_v2_infer.modules.linear import Int8Linear, quantized


@pytest.fixture(autouse=True)
def on_amd(monkeypatch):
    monkeypatch.setattr(dense, "is_amd", lambda: True)


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return nn.Linear(48, 80).requires_grad_(False)


def inputs(**options) -> torch.Tensor:
    return torch.randn(2, 7, 48, generator=torch.Generator().manual_seed(1), **options)


def in_float64(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x.double(), layer.weight.double(), layer.bias.double())


def test_the_product_and_the_activation(layer):
    x = inputs()
    assert by_onednn(layer, x)
    assert apart(linear(layer, x), in_float64(layer, x)) <= EXACT
    assert apart(linear_gelu(layer, x), F.gelu(in_float64(layer, x), approximate="tanh")) <= EXACT


def test_inputs_whose_memory_is_in_another_order(layer):
    x = inputs().transpose(0, 1)
    assert apart(linear(layer, x), in_float64(layer, x)) <= EXACT


def test_gradients_are_torch_s(layer):
    layer.requires_grad_()
    x = inputs()
    linear_gelu(layer, x).sum().backward()
    assert layer.weight.grad is not None
    with torch.no_grad():
        assert by_onednn(layer, x)


def test_other_precisions_and_other_layers_compute_as_they_are_made_to(layer):
    x, low = inputs(), nn.Linear(48, 80).bfloat16().requires_grad_(False)
    assert torch.equal(linear(low, x.bfloat16()), low(x.bfloat16()))
    one_byte = quantized(layer, Int8Linear)
    assert torch.equal(linear(one_byte, x), one_byte(x))
    assert torch.equal(linear_gelu(one_byte, x), F.gelu(one_byte(x), approximate="tanh"))


def test_hooks_of_a_layer_are_called(layer):
    x = inputs()
    layer.register_forward_hook(lambda module, args, output: output + 1)
    assert torch.equal(linear(layer, x), layer(x))
    assert torch.equal(linear_gelu(layer, x), F.gelu(layer(x), approximate="tanh"))


def test_other_processors_compute_by_mkl(layer, monkeypatch):
    monkeypatch.setattr(dense, "is_amd", lambda: False)
    x = inputs()
    assert not by_onednn(layer, x)
    assert torch.equal(linear(layer, x), layer(x))
