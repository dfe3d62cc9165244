"""Matrix products in bfloat16 around values that stay in float32, for CPUs that multiply bfloat16 twice as fast.

Autocast would do the same and more: it also takes attention to bfloat16, whose backward pass on a CPU is five times as
slow there, and the layers that the model wants in float32.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Product(torch.autograd.Function):
    """`F.linear` of float32 tensors, with bfloat16 inside, forwards and backwards."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        x, weight = x.bfloat16(), weight.bfloat16()
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, None if bias is None else bias.bfloat16()).float()

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        x, weight = ctx.saved_tensors
        rows = grad.bfloat16().flatten(0, -2)
        to_x = (rows @ weight).float().view_as(x) if ctx.needs_input_grad[0] else None
        to_weight = (rows.T @ x.flatten(0, -2)).float() if ctx.needs_input_grad[1] else None
        return to_x, to_weight, grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None


class Bfloat16Linear(nn.Linear):
    """A linear layer that learns with products in bfloat16; without gradients it is the float32 layer it was."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return super().forward(x)
        return Product.apply(x, self.weight, self.bias)


def worth_it(device: torch.device) -> bool:
    """Whether the device is a CPU with instructions for bfloat16."""
    able = torch.cpu.get_capabilities() if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities") else {}
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def use_bfloat16(module: nn.Module) -> None:
    """Every plain linear layer in `module` becomes a `Bfloat16Linear` with the same parameters."""
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear:  # those that compute in float32 whatever happens are of other classes
                swift = Bfloat16Linear(layer.in_features, layer.out_features, bias=False, device="meta")
                swift.weight, swift.bias = layer.weight, layer.bias
                setattr(parent, name, swift)
