"""Fills a module that was built on the meta device with the tensors of files.

Names and shapes are compared before any weight is read. Files are memory-mapped: on the CPU an aligned tensor of the
right dtype stays a view of its file, others are copied one at a time, so that the peak is little more than the size of
the module. Linear layers whose weights are quantised are replaced before, see `modules.quantized`.
"""

import re
from collections.abc import Callable, Iterator

import torch
from torch import nn

from skyreels_v2_infer.modules.linear import OneByteLinear
from skyreels_v2_infer.modules.quantized import (
    BYTE_FORMATS,
    Quantized,
    QuantizedEmbedding,
    QuantizedLayer,
    QuantizedLinear,
)
from skyreels_v2_infer.progress import doing
from skyreels_v2_infer.weights import key_tables
from skyreels_v2_infer.weights.layouts import refusal
from skyreels_v2_infer.weights.stored import Weights

ALIGNED = 64  # bytes, as torch allocates
EXAMPLES = 3  # tensors that a message names of each kind
SMALL = 2**16  # tensors of up to so many numbers are checked for NaN and infinity: norms, biases, modulation


def fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a tensor has a parameter's shape, apart from leading axes of size 1 as in some published files."""
    front = len(shape) - len(wanted)
    return front >= 0 and set(shape[:front]) <= {1} and shape[front:] == wanted


def compare(module: nn.Module, weights: Weights) -> None:
    """Raises an `InputError` that names missing, unexpected and misshapen tensors; reads no weights."""
    wanted = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    given, unexpected, misshapen = set(), [], []
    for name, shape in weights.shapes.items():
        ours = key_tables.targets(name, weights.style.table)
        for target in ours:
            if target not in wanted or target in given:
                unexpected.append(name)
                continue
            given.add(target)
            whole = (wanted[target][0] * len(ours), *wanted[target][1:]) if len(ours) > 1 else wanted[target]
            if not fits(shape, whole):
                misshapen.append(f"{name} is {list(shape)}, must be {list(whole)}")
    problems = []
    for kind, names in (
        ("missing", sorted(set(wanted) - given)),
        ("unexpected", list(dict.fromkeys(unexpected))),
        ("of another shape", list(dict.fromkeys(misshapen))),
    ):
        if names:
            more = ", ..." if len(names) > EXAMPLES else ""
            problems.append(f"{len(names)} {kind} ({', '.join(name[:200] for name in names[:EXAMPLES])}{more})")
    if problems:
        raise refusal(weights.model_id, f"the {weights.label}'s tensors do not fit: {'; '.join(problems)}")


def keep_quantized(module: nn.Module, weights: Weights, dtype_of: Callable[[str], torch.dtype]) -> None:
    """Replaces the layers of a module on the meta device whose weights are stored quantised.

    Those are linear layers, and the embedding of tokens; other quantised tensors are small and expanded on loading.

    Args:
        dtype_of: the dtype of a parameter, by its name.
    """
    for name, source in weights.sources.items():
        if source.form is None:
            continue
        ours = key_tables.targets(name, weights.style.table)
        for target in ours:
            owner_name, _, leaf = target.rpartition(".")
            owner = module.get_submodule(owner_name)
            if leaf != "weight" or not (isinstance(owner, nn.Linear) or owner_name == "shared"):
                continue
            row_bytes = source.stored_bytes // source.shape[0]
            stored = torch.empty(source.shape[0] // len(ours), row_bytes, dtype=torch.uint8, device="meta")
            weight, dtype = Quantized(source.form, stored), dtype_of(target)
            if isinstance(owner, nn.Linear):
                layer = QuantizedLinear(weight, owner.bias, dtype)
            else:
                layer = QuantizedEmbedding(weight, dtype)
            for parent in module.modules():
                for child in [key for key, value in parent.named_children() if value is owner]:
                    setattr(parent, child, layer)


def load_into(
    module: nn.Module,
    weights: Weights,
    device: str | torch.device,
    dtype: torch.dtype,
    keep_float32: re.Pattern | None = None,
    dequantize: bool = False,
    check_all: bool = False,
) -> nn.Module:
    """Fills a module that was built on the meta device and returns it in eval mode, without gradients; strict.

    Args:
        dtype: of every parameter except those whose name matches `keep_float32`; quantised weights are expanded to it.
        dequantize: expand quantised weights once, now, and not in every forward pass.
        check_all: check all tensors, and not only small ones, for NaN and infinity.

    Raises:
        InputError: tensors are missing, unexpected, misshapen, not finite, or stored in an unusable dtype; a file is
            truncated or damaged.
    """

    def dtype_of(target: str) -> torch.dtype:
        return torch.float32 if keep_float32 is not None and keep_float32.search(target) else dtype

    compare(module, weights)
    weights.check_formats()
    if not dequantize:
        keep_quantized(module, weights, dtype_of)
    for name, tensor in counted(weights):
        check_finite(name, tensor, weights, check_all)
        ours = key_tables.targets(name, weights.style.table)
        for target, piece in zip(ours, tensor.chunk(len(ours)) if len(ours) > 1 else [tensor], strict=True):
            owner, _, leaf = target.rpartition(".")
            owner = module.get_submodule(owner)
            wanted = dtype_of(target)
            if isinstance(owner, OneByteLinear) and leaf == "weight":
                fill_one_byte(owner, piece, device)
                continue
            if isinstance(piece, Quantized):
                if isinstance(owner, QuantizedLayer):
                    owner.hold(piece.to(device))
                    continue
                piece = piece.to(device).dequantize(wanted)
            # Copied, because a view would keep the mapping alive, with all pages that converting its neighbours has
            # touched. Converted on the device: torchrun leaves the CPU one thread.
            value = piece.reshape(getattr(owner, leaf).shape).to(device).to(wanted, copy=wanted != dtype)
            if value.device.type == "cpu" and value.data_ptr() % ALIGNED:
                value = value.clone()  # a view of the file; kernels for unaligned memory round sums otherwise
            setattr(owner, leaf, nn.Parameter(value, requires_grad=False))
    module.to(device)  # buffers, which no file contains
    assert not any(tensor.is_meta for tensor in [*module.parameters(), *module.buffers()])
    return module.eval()


def counted(weights: Weights) -> Iterator[tuple[str, torch.Tensor | Quantized]]:
    """All tensors by name, while the progress is shown."""
    with doing(f"loading the {weights.label}", total=len(weights.sources), unit="tensors") as stage:
        for named in weights:
            yield named
            stage.update()


def fill_one_byte(layer: OneByteLinear, weight: torch.Tensor | Quantized, device: str | torch.device) -> None:
    """Fills a layer that computes with one byte per weight: as stored where the file has just that, else rounded."""
    weight = weight.to(device)
    if isinstance(weight, Quantized):
        rows = weight.scale is not None and weight.scale.numel() in (1, layer.out_features)
        if rows and BYTE_FORMATS.get(weight.form) is layer.stored:
            layer.from_scaled(weight.stored.view(layer.stored), weight.scale)
            return
        weight = weight.dequantize(torch.float32)
    layer.from_dense(weight.reshape(layer.weight.shape))


def check_finite(name: str, tensor: torch.Tensor | Quantized, weights: Weights, check_all: bool) -> None:
    """Raises an `InputError` if a tensor, or the scale of a quantised one, has NaN or infinity in it."""
    if isinstance(tensor, Quantized):
        if tensor.scale is None:
            return
        name, tensor = f"the scale of {name}", tensor.scale
    elif tensor.numel() > SMALL and not check_all:
        return
    if tensor.itemsize == 1:
        tensor = tensor.float()
    # Both are NaN if any number is; unlike `isfinite` they need no memory.
    if tensor.numel() and not torch.stack([tensor.min(), tensor.max()]).isfinite().all():
        raise refusal(weights.model_id, f"the {weights.label}'s tensors are damaged: {name} has NaN or infinity in it")
