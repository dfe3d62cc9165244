"""Linear layers of the transformer's blocks with weights of one byte, swapped in before a checkpoint is loaded.

Weights are quantised per output channel. `Fp8Linear` quantises its input as well, per row while it runs, and computes
in float8 (e4m3): twice the arithmetic of bfloat16 on GPUs that have it. The other two expand their weights when they
compute, which saves memory but no time.

M rows (tokens), K input channels, N output channels.
"""

from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.modules.dense import linear

FP8 = torch.float8_e4m3fn
FP8_LARGEST = torch.finfo(FP8).max  # 448
FP8_CAPABILITY = (8, 9)  # from which compute capability on a GPU multiplies in float8
ALIGNED = 16  # channels: the float8 product takes multiples of this
# The blocks' layers that every token passes in every step.
STEP_LAYERS = (
    "self_attn.q",
    "self_attn.k",
    "self_attn.v",
    "self_attn.o",
    "cross_attn.q",
    "cross_attn.o",
    "ffn.0",
    "ffn.2",
)
# Those that only a prompt passes, once: nothing is gained by computing them in float8.
PROMPT_LAYERS = ("cross_attn.k", "cross_attn.v", "cross_attn.k_img", "cross_attn.v_img")
KINDS = ("fp8", "int8")


class Rows(NamedTuple):
    """An input quantised per row: ``values * scale``.

    Attributes:
        values: float8 ``[M, K]``.
        scale: float32 ``[M, 1]``.
        shape: of the input, ``[..., K]``.
        dtype: of the input.
    """

    values: torch.Tensor
    scale: torch.Tensor
    shape: torch.Size
    dtype: torch.dtype


def quantize_rows(x: torch.Tensor) -> Rows:
    """x ``[..., K]``, each row scaled so that its largest value becomes the largest of float8."""
    rows = x.reshape(-1, x.shape[-1]).float()
    scale = rows.abs().amax(dim=-1, keepdim=True).clamp_min(1e-12) / FP8_LARGEST
    return Rows((rows * scale.reciprocal()).to(FP8), scale, x.shape, x.dtype)


class OneByteLinear(nn.Module):
    """What the kinds share: ``weight`` ``[N, K]`` of one byte each, ``scale`` float32 ``[N, 1]``, and ``bias``.

    Built on the meta device in place of an `nn.Linear`, with the same parameter names and shapes; `from_dense` or
    `from_scaled` fills it.
    """

    stored: torch.dtype
    largest: float

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        weight = torch.empty(out_features, in_features, dtype=self.stored)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None
        self.register_buffer("scale", torch.empty(out_features, 1))

    def from_dense(self, weight: torch.Tensor) -> None:
        """Quantises a weight ``[N, K]`` of any float dtype, on the device it is on."""
        weight = weight.detach().float()
        # Not divided by `largest`, which CUDA may do by its reciprocal: host and GPU have to make the same numbers.
        scale = weight.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) * (1 / self.largest)
        self.from_scaled(self.rounded(weight / scale), scale)

    def from_scaled(self, weight: torch.Tensor, scale: torch.Tensor) -> None:
        """Takes over a weight that a file holds quantised: ``weight * scale``, scale ``[]``, ``[N]`` or ``[N, 1]``."""
        if weight.dtype != self.stored or weight.shape != (self.out_features, self.in_features):
            size = [self.out_features, self.in_features]
            raise ValueError(f"weight {list(weight.shape)} {weight.dtype}: must be {size} {self.stored}")
        self.weight = nn.Parameter(weight, requires_grad=False)
        scale = scale.to(weight.device, torch.float32).reshape(-1, 1).expand(self.out_features, 1)
        self.register_buffer("scale", scale.contiguous())

    def rounded(self, scaled: torch.Tensor) -> torch.Tensor:
        return scaled.to(self.stored)

    def dense(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weight ``[N, K]`` that it stands for."""
        return (self.weight.float() * self.scale).to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.dense(x.dtype), self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Fp8WeightLinear(OneByteLinear):
    """Float8 weights, expanded to the input's dtype: for GPUs without float8 arithmetic."""

    stored, largest = FP8, FP8_LARGEST


class Int8Linear(OneByteLinear):
    """int8 weights, expanded to the input's dtype."""

    stored, largest = torch.int8, 127.0

    def rounded(self, scaled: torch.Tensor) -> torch.Tensor:
        return scaled.round().to(torch.int8)


class Fp8Linear(OneByteLinear):
    """Float8 weights times float8 rows. On a CPU the same numbers are multiplied in float32, as a reference."""

    stored, largest = FP8, FP8_LARGEST

    def forward(self, x: torch.Tensor | Rows) -> torch.Tensor:
        rows = x if isinstance(x, Rows) else quantize_rows(x)
        if rows.values.is_cuda:
            out = torch._scaled_mm(
                rows.values,
                self.weight.t(),
                scale_a=rows.scale,
                scale_b=self.scale.t(),
                bias=None if self.bias is None else self.bias.to(torch.bfloat16),
                out_dtype=torch.bfloat16,  # the only one that scales per row and channel can be combined with
                use_fast_accum=True,
            ).to(rows.dtype)
        else:
            bias = None if self.bias is None else self.bias.float()
            out = F.linear(rows.values.float() * rows.scale, self.dense(), bias).to(rows.dtype)
        return out.view(*rows.shape[:-1], self.out_features)


def project(x: torch.Tensor, *layers: nn.Module) -> list[torch.Tensor]:
    """What several linear layers make of the same input; for float8 it is quantised once.

    A layer with hooks (which may add a LoRA) gets the input itself.
    """
    if all(isinstance(layer, Fp8Linear) and not layer._forward_hooks for layer in layers):
        x = quantize_rows(x)
        return [layer(x) for layer in layers]
    return [linear(layer, x) for layer in layers]


def computes_fp8(device: torch.device) -> bool:
    """Whether a device multiplies in float8, with a scale for each row and column; on a CPU that is emulated."""
    if device.type != "cuda":
        return device.type == "cpu"
    return torch.cuda.get_device_capability(device) >= FP8_CAPABILITY and multiplies_rows(device)


@cache
def multiplies_rows(device: torch.device) -> bool:
    """Whether torch has such a product for this GPU: some releases have it for some architectures only."""
    try:
        ones = torch.ones(32, 32, device=device).to(FP8)
        scale = torch.ones(32, 1, device=device)
        out = torch._scaled_mm(ones, ones.t(), scale_a=scale, scale_b=scale.t(), out_dtype=torch.bfloat16)
        return bool((out == 32).all())
    except (RuntimeError, ValueError, TypeError):
        return False


def quantize_blocks(model: nn.Module, kind: str, device: torch.device | str) -> int:
    """Puts quantised layers in place of the linear ones of a `WanModel`'s blocks; all else keeps its precision.

    To be called on the meta device, before weights are loaded; a layer that holds weights already is quantised from
    them. Layers whose sizes are no multiples of 16 stay as they are.

    Args:
        kind: "fp8" (weights alone where the device has no float8 arithmetic) or "int8" (weights alone).
        device: what will compute.

    Returns:
        the number of layers replaced.

    Raises:
        InputError: another kind.
    """
    if kind not in KINDS:
        raise InputError("quantize", kind, f"must be {' or '.join(KINDS)}")
    weights_only = {"fp8": Fp8WeightLinear, "int8": Int8Linear}[kind]
    in_steps = Fp8Linear if kind == "fp8" and computes_fp8(torch.device(device)) else weights_only
    replaced = 0
    for block in model.blocks:
        for names, swapped in ((STEP_LAYERS, in_steps), (PROMPT_LAYERS, weights_only)):
            for name in names:
                owner, _, leaf = name.rpartition(".")
                owner = block.get_submodule(owner)
                layer = getattr(owner, leaf, None)
                if isinstance(layer, nn.Linear) and not (layer.in_features % ALIGNED or layer.out_features % ALIGNED):
                    setattr(owner, leaf, quantized(layer, swapped))
                    replaced += 1
    return replaced


def quantized(layer: nn.Linear, kind: type[OneByteLinear]) -> OneByteLinear:
    """A layer of a quantised kind; on the meta device an empty one, else with the layer's weights."""
    with torch.device("meta"):
        made = kind(layer.in_features, layer.out_features, layer.bias is not None)
    if not layer.weight.is_meta:
        made.from_dense(layer.weight)
        if layer.bias is not None:
            made.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    return made.train(layer.training)
