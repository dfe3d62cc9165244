"""Linear layers of the blocks by oneDNN, on AMD's processors.

torch computes float32 products with MKL. oneDNN takes half the time on an AMD EPYC with AVX-512 (144 rows, 128 to 512
channels), and it applies an activation to the product before it is stored. On an Intel Xeon whole videos of the
embedded model take 3 to 13 % longer with it, so MKL is kept there.
"""

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from skyreels_v2_infer.modules.quantized import QuantizedLinear


@cache
def is_amd() -> bool:
    """Whether the processor is AMD's, as far as Linux says."""
    try:
        with Path("/proc/cpuinfo").open() as file:
            return "AuthenticAMD" in file.read(200)
    except OSError:
        return False


def by_onednn(layer: nn.Module, x: torch.Tensor) -> bool:
    """Whether `linear` computes a layer's product by oneDNN.

    Its operators have no gradient. A layer that expands a stored quantised weight is computed as the dense layer with
    that weight, so that both have the same results. Layers of other classes (of lower precision) and layers with hooks
    (which may add a LoRA) compute as they are made to, and torch.compile generates code of its own.
    """
    return (
        type(layer) in (nn.Linear, QuantizedLinear)
        and not (layer._forward_hooks or layer._forward_pre_hooks)
        and x.device.type == "cpu"
        and x.dtype == layer.weight.dtype == torch.float32
        and not (torch.is_grad_enabled() and (x.requires_grad or layer.weight.requires_grad))
        and not torch.compiler.is_compiling()
        and is_amd()
        and torch.backends.mkldnn.is_available()
    )


def linear(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """``layer(x)``, x ``[..., K]`` -> ``[..., N]``."""
    if not by_onednn(layer, x):
        return layer(x)
    return product(layer, x, "none", "")


def linear_gelu(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """``gelu(layer(x))``, approximated by tanh."""
    if not by_onednn(layer, x):
        return F.gelu(layer(x), approximate="tanh")
    return product(layer, x, "gelu", "tanh")


def product(layer: nn.Linear | QuantizedLinear, x: torch.Tensor, activation: str, algorithm: str) -> torch.Tensor:
    weight = layer.dequantize() if isinstance(layer, QuantizedLinear) else layer.weight
    # of tensors that are not contiguous it takes a hundred times as long
    return torch.ops.mkldnn._linear_pointwise(
        x.contiguous(), weight.contiguous(), layer.bias, activation, [], algorithm
    )
