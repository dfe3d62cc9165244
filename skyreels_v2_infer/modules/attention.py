"""The one door to every attention kernel, and which kernel is used where.

B batch, L query tokens, M key tokens, H heads, E head size; all tensors ``[B, L or M, H, E]``.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from skyreels_v2_infer.errors import InputError, first_line
from skyreels_v2_infer.plan.kernels import KERNELS

# torch's own kernels, each followed by those that take over where it refuses an input.
OTHER_BACKENDS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
BACKENDS = {
    "cudnn": [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, *OTHER_BACKENDS],
    "flash": [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, *OTHER_BACKENDS],
    "efficient": OTHER_BACKENDS,
    "math": [SDPBackend.MATH],
}
FA4, SAGE, DEFAULT = "fa4", "sage", "default"

# Up to this many keys cuDNN is used beside flash-attn-4: measured on an H200 at 51,000 queries, 40 heads of 128, it
# takes 0.99 ms for 512 keys where flash-attn-4 takes 1.45.
FEW_KEYS = 1024
# Largest relative error (norm) against float32 with which a kernel passes its trial; bfloat16 leaves 2e-3, and int8
# (SageAttention) ten times as much.
TRIAL_ERROR = 0.1


def cuda_backends(capability: tuple[int, int]) -> list[SDPBackend]:
    """Kernels in the order in which they are tried on a GPU of a compute capability.

    On Hopper cuDNN reaches 576 TFLOP/s where FlashAttention-2, torch's usual first choice, reaches 363; it covers large
    Blackwell GPUs as well. Elsewhere it is no faster, and it can fail where it reports that it can be used.
    """
    return BACKENDS["cudnn" if capability[0] in (9, 10) else "flash"]


@dataclass(frozen=True)
class AttentionChoice:
    """Names of kernels: those of `KERNELS`, or "default", torch's own choice (on a GPU: `cuda_backends`).

    Attributes:
        long: over more than `FEW_KEYS` keys: the self-attention of a window.
        short: over fewer: text, image, or the first block of causal attention.
        notes: one line for each kernel that would have come first but failed its trial.
    """

    long: str = DEFAULT
    short: str = DEFAULT
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        return self.long if self.long == self.short else f"{self.long}; {self.short} up to {FEW_KEYS} keys"

    def kernel(self, keys: int) -> str:
        return self.short if keys <= FEW_KEYS else self.long


DEFAULTS = AttentionChoice()


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, choice: AttentionChoice = DEFAULTS) -> torch.Tensor:
    """Softmax attention without a mask: q ``[B, L, H, E]``, k and v ``[B, M, H, E]`` -> ``[B, L, H, E]``."""
    kernel = choice.kernel(k.shape[1])
    if kernel == FA4:
        return flash_attention_4(q, k, v)
    if kernel == SAGE:
        from sageattention import sageattn

        return sageattn(q, k, v, tensor_layout="NHD", is_causal=False)
    if kernel == DEFAULT and not q.is_cuda:
        return torch_attention(q, k, v)
    backends = cuda_backends(torch.cuda.get_device_capability(q.device)) if kernel == DEFAULT else BACKENDS[kernel]
    with sdpa_kernel(backends, set_priority=True):
        return torch_attention(q, k, v)


def attend_with_log_sum(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, choice: AttentionChoice = DEFAULTS
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `attend`, and the log of the sum of exponentials, float32 ``[B, H, L]``, by which parts of M are combined."""
    if choice.kernel(k.shape[1]) == FA4:
        return flash_attention_4_with_log_sum(q, k, v)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if q.is_cuda:
        out, log_sum, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)
    else:
        out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    return out.transpose(1, 2), log_sum


def torch_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


# flash-attn-4 as operators that torch.compile calls without looking inside.


@torch.library.custom_op("skyreels_v2::flash_attention_4", mutates_args=())
def flash_attention_4(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """`attend` by flash-attn-4: float16 or bfloat16, compute capability 9 or 10."""
    from flash_attn.cute import flash_attn_func

    return flash_attn_func(q, k, v)[0]


@flash_attention_4.register_fake
def _(q, k, v):
    return q.new_empty(q.shape)


@torch.library.custom_op("skyreels_v2::flash_attention_4_with_log_sum", mutates_args=())
def flash_attention_4_with_log_sum(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`attend_with_log_sum` by flash-attn-4."""
    from flash_attn.cute import flash_attn_func

    return flash_attn_func(q, k, v, return_lse=True)


@flash_attention_4_with_log_sum.register_fake
def _(q, k, v):
    return q.new_empty(q.shape), q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32)


# Which kernel


def refusal(kernel: str, device: torch.device, dtype: torch.dtype, head_size: int) -> str | None:
    """Why a kernel cannot be used at all, in a few words; None: nothing speaks against trying it."""
    if device.type != "cuda":
        return None if kernel in ("flash", "math") and device.type == "cpu" else "needs an NVIDIA GPU"
    if kernel in ("math", "efficient"):
        return None
    if dtype not in (torch.float16, torch.bfloat16):
        return "needs --dtype bfloat16 or float16"
    major = torch.cuda.get_device_capability(device)[0]
    if kernel == FA4:
        if major not in (9, 10):
            return "needs a GPU of compute capability 9 or 10"
        if head_size % 8 or head_size > (256 if major == 9 else 128):
            return f"has no heads of {head_size} channels"
        if find_spec("flash_attn") is None or find_spec("flash_attn.cute") is None:
            return "is not installed: pip install flash-attn-4"
    if kernel == SAGE and find_spec("sageattention") is None:
        return "is not installed: pip install sageattention"
    return None


def trial(kernel: str, device: torch.device, dtype: torch.dtype, head_size: int) -> str | None:
    """Runs a kernel once on a few tokens, which also compiles it; what went wrong in one line, or None."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 256, 2, head_size, generator=draw).to(device, dtype) for _ in range(3))
    try:
        if kernel in BACKENDS:
            with sdpa_kernel(BACKENDS[kernel][0]):  # it alone, so that no other one passes its trial
                out = torch_attention(q, k, v)
        else:
            out = attend(q, k, v, AttentionChoice(kernel, kernel))
        with sdpa_kernel(SDPBackend.MATH):
            expected = torch_attention(q.float(), k.float(), v.float())
        error = float((out.float() - expected).norm() / expected.norm())
    except Exception as failure:  # compilers and drivers raise anything
        return first_line(failure, 120) or type(failure).__name__
    return None if error < TRIAL_ERROR else f"its result is {error:.2g} off"


def choose_attention(
    device: torch.device | str,
    dtype: torch.dtype,
    head_size: int,
    asked: str = "auto",
    say: Callable[[str], object] | None = None,
) -> AttentionChoice:
    """The kernels for a model on a device; each is run once before it is chosen.

    Args:
        dtype: of queries, keys and values.
        head_size: channels of a head.
        asked: "auto": the fastest exact one at hand; or a name of `KERNELS`.
        say: called with one line for each kernel that fails its trial and is passed over.

    Raises:
        InputError: the kernel asked for cannot be used here.
    """
    device = torch.device(device)
    if asked not in ("auto", *KERNELS):
        raise InputError("attention", asked, f"must be auto, {', '.join(KERNELS[:-1])} or {KERNELS[-1]}")
    if asked == "auto":
        if device.type != "cuda":
            return DEFAULTS
        major = torch.cuda.get_device_capability(device)[0]
        order = [FA4, "cudnn", "flash", "efficient"] if major in (9, 10) else ["flash", "efficient"]
    else:
        reason = refusal(asked, device, dtype, head_size)
        if reason is not None:
            raise InputError("attention", asked, reason)
        order = [asked, "cudnn", "flash", "efficient"] if device.type == "cuda" else [asked]
    passed, notes = [], []
    for kernel in dict.fromkeys(order):
        if refusal(kernel, device, dtype, head_size) is not None:
            continue
        failure = trial(kernel, device, dtype, head_size)
        if failure is None:
            passed.append(kernel)
            if kernel not in (FA4, SAGE):  # the two that leave short keys to another one
                break
        else:
            notes.append(f"attention: {kernel} failed ({failure}) and is not used")
            if say is not None:
                say(notes[-1])
    if not passed:
        return AttentionChoice("math", "math", tuple(notes))
    return AttentionChoice(passed[0], passed[-1], tuple(notes))


class WholeSequence:
    """All tokens of a frame are here; one rank of several has a part of them and overrides these.

    Attributes:
        choice: the attention kernels, also of attention to texts and images.
    """

    def __init__(self, choice: AttentionChoice = DEFAULTS):
        self.choice = choice

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, F, S, D]`` -> this rank's part of S."""
        return x

    def join(self, x: torch.Tensor) -> torch.Tensor:
        """The parts of all ranks -> ``[B, F, S, D]``."""
        return x

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """As `attend`, over the keys of all ranks."""
        return attend(q, k, v, self.choice)


WHOLE = WholeSequence()


def attend_block_causal(q, k, v, block_tokens: int, attend=attend) -> torch.Tensor:
    """Attention in which a block of tokens sees itself and the blocks before it.

    Blocks of queries are taken one by one over a growing prefix of the keys: the L x L mask that says the same thing
    would take 2.6 GB at 540P and rule out the fast kernels.

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
