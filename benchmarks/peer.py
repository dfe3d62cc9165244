"""diffusers' parts with our weights."""

from importlib.util import find_spec

import torch

from benchmarks.sizes import twin
from skyreels_v2_infer.modules import WanModel


def installed() -> bool:
    return find_spec("diffusers") is not None


def lowered(module: torch.nn.Module, dtype: torch.dtype, kept) -> torch.nn.Module:
    """With parameters in `dtype`, except those whose names are `kept`; buffers stay as they are."""
    for name, parameter in module.named_parameters():
        if not kept(name):
            parameter.data = parameter.data.to(dtype)
    return module


def transformer(model: WanModel, dtype: torch.dtype) -> torch.nn.Module:
    """diffusers' transformer with our weights, in the precision that its own loading gives each.

    Raises:
        ValueError: a weight differs from ours by more than its rounding.
    """
    from peers import named_as_diffusers, peer_transformer

    peer = peer_transformer(model)
    float32 = set(peer._keep_in_fp32_modules)
    peer = lowered(peer, dtype, lambda name: float32 & set(name.split(".")))
    ours = named_as_diffusers(model)
    for name, theirs in peer.named_parameters():
        low = min((ours[name].dtype, theirs.dtype), key=lambda dtype: dtype.itemsize)
        if not torch.equal(ours.pop(name).to(low), theirs.to(low)):
            raise ValueError(f"{name} is not the same in diffusers' transformer")
    if ours:
        raise ValueError(f"diffusers' transformer lacks {', '.join(ours)}")
    return peer


def at_its_best(peer: torch.nn.Module, cuda: bool) -> torch.nn.Module:
    """The same transformer with cuDNN's attention (on a GPU) and compiled blocks. `peer` keeps torch's attention.

    The backend is set on both: diffusers would apply one that is set on either to every module that has none.
    """
    best = twin(peer)
    best.set_attention_backend("_native_cudnn" if cuda else "native")
    peer.set_attention_backend("native")
    best.compile_repeated_blocks(fullgraph=True)
    return best
