"""Regional compilation: one code for all blocks of a transformer, for every window length.

A block is compiled in two halves, before and after self-attention, each without a graph break. Attention between them
runs as it is: nothing could be fused with it, and it may be a ring over ranks, a loop over blocks of frames or a kernel
that torch.compile cannot trace. What is fused is the elementwise work: norm + modulation, norm + rotary positions,
gate + residual, and with float8 layers the quantisation of their inputs.

torch keeps the code in its cache folder (``TORCHINDUCTOR_CACHE_DIR``), so a later process starts faster.
"""

from collections.abc import Callable
from types import MethodType

import torch

from skyreels_v2_infer.errors import first_line
from skyreels_v2_infer.modules.transformer import Block, WanModel

HALVES = ("before_attention", "after_attention")


def any_length(x: torch.Tensor, dim: int) -> None:
    """Lets one code serve every size of a dimension but 1, which broadcasts and gets a code of its own."""
    if x.shape[dim] > 1:
        torch._dynamo.maybe_mark_dynamic(x, dim)


def compile_blocks(model: WanModel, say: Callable[[str], object] | None = None, **options) -> None:
    """From now on the model's blocks run compiled; the code is made at their first call.

    Weights may be replaced or moved afterwards, and each block may be wrapped by hooks (offload by blocks), as long as
    all that a half reads is on the device when the block is called. If the compiler fails, the blocks run as before.

    Args:
        say: called with one line if the compiler fails.
        options: of `torch.compile`.
    """
    before, after = (torch.compile(getattr(Block, half), fullgraph=True, **options) for half in HALVES)

    def eager_after(error: Exception) -> None:
        restore_blocks(model)
        if say is not None:
            cause = getattr(error, "inner_exception", error)  # what the backend raised says more
            say(f"compile: failed ({first_line(cause, 120)}); the blocks run uncompiled")

    def before_attention(self: Block, x, modulation, rotary):
        for tensor, dim in ((x, 1), (modulation, 1), (rotary, 0)):
            any_length(tensor, dim)
        try:
            return before(self, x, modulation, rotary)
        except torch._dynamo.exc.TorchDynamoException as error:
            eager_after(error)
            return self.before_attention(x, modulation, rotary)

    def after_attention(self: Block, x, attended, modulation, keys_values, choice):
        for tensor in (x, attended, modulation):
            any_length(tensor, 1)
        try:
            return after(self, x, attended, modulation, keys_values, choice)
        except torch._dynamo.exc.TorchDynamoException as error:
            eager_after(error)
            return self.after_attention(x, attended, modulation, keys_values, choice)

    for block in model.blocks:
        block.before_attention = MethodType(before_attention, block)
        block.after_attention = MethodType(after_attention, block)


def is_compiled(model: WanModel) -> bool:
    """Whether the blocks run compiled."""
    return any(half in block.__dict__ for block in model.blocks for half in HALVES)


def restore_blocks(model: WanModel) -> None:
    """Undoes `compile_blocks`."""
    for block in model.blocks:
        for half in HALVES:
            block.__dict__.pop(half, None)
