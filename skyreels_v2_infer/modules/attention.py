"""The one door to every attention kernel.

B batch, L query tokens, M key tokens, H heads, E head size.
"""

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

OTHER_BACKENDS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def cuda_backends(capability: tuple[int, int]) -> list[SDPBackend]:
    """Kernels in the order in which they are tried on a GPU of a compute capability.

    On Hopper cuDNN reaches about 650 TFLOP/s where FlashAttention-2, torch's usual first choice, reaches 350; it knows
    large Blackwell GPUs as well. Elsewhere it is no faster, and it can fail where it says that it can be used.
    """
    first, second = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION
    if capability[0] in (9, 10):
        first, second = second, first
    return [first, second, *OTHER_BACKENDS]


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Softmax attention without a mask: q ``[B, L, H, E]``, k and v ``[B, M, H, E]`` -> ``[B, L, H, E]``."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if q.is_cuda:
        with sdpa_kernel(cuda_backends(torch.cuda.get_device_capability(q.device)), set_priority=True):
            out = F.scaled_dot_product_attention(q, k, v)
    else:
        out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2)


def attend_with_log_sum(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `attend`, and the log of the sum of exponentials, float32 ``[B, H, L]``, by which parts of M are combined."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if q.is_cuda:
        out, log_sum, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)
    else:
        out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    return out.transpose(1, 2), log_sum


class WholeSequence:
    """All tokens of a frame are here; one rank of several has a part of them and overrides these."""

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, F, S, D]`` -> this rank's part of S."""
        return x

    def join(self, x: torch.Tensor) -> torch.Tensor:
        """The parts of all ranks -> ``[B, F, S, D]``."""
        return x

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """As `attend`, over the keys of all ranks."""
        return attend(q, k, v)


WHOLE = WholeSequence()


def attend_block_causal(q, k, v, block_tokens: int, attend=attend) -> torch.Tensor:
    """Attention in which a block of tokens sees itself and the blocks before it.

    Blocks of queries are taken one by one over a growing prefix of the keys: the L x L mask that says the same thing
    would take 2.6 GB at 540P and close the door to the fast kernels.

    Args:
        q, k, v: ``[B, L, H, E]``.
        block_tokens: tokens in a block; the last block is short if it does not divide L.
        attend: the unmasked attention to build on.
    """
    length = q.shape[1]
    outs = []
    for start in range(0, length, block_tokens):
        end = start + block_tokens
        outs.append(attend(q[:, start:end], k[:, :end], v[:, :end]))
    return torch.cat(outs, dim=1)
