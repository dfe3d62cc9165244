"""Which attention kernel is chosen; the kernels themselves need a GPU (`benchmarks/attention.py`)."""

import sys
from types import ModuleType

import pytest
import torch
from peers import EXACT, apart

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.modules import attention
from skyreels_v2_infer.modules.attention import (
    DEFAULTS,
    FEW_KEYS,
    AttentionChoice,
    attend,
    attend_with_log_sum,
    choose_attention,
)

H100 = torch.device("cuda")


@pytest.fixture
def gpu(monkeypatch):
    """A GPU in name: `set_up(capability, failing kernels, missing packages)`."""

    def set_up(capability=(9, 0), failing=(), missing=()):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(attention, "find_spec", lambda name: None if name.split(".")[0] in missing else object())
        monkeypatch.setattr(attention, "trial", lambda kernel, *_: "no such symbol" if kernel in failing else None)

    return set_up


@pytest.mark.parametrize(
    ("capability", "missing", "failing", "long", "short"),
    [
        ((9, 0), (), (), "fa4", "cudnn"),
        ((10, 0), (), (), "fa4", "cudnn"),
        ((9, 0), ("flash_attn",), (), "cudnn", "cudnn"),
        ((9, 0), (), ("fa4",), "cudnn", "cudnn"),
        ((9, 0), (), ("cudnn",), "fa4", "flash"),
        ((9, 0), (), ("fa4", "cudnn", "flash", "efficient"), "math", "math"),
        ((8, 0), (), (), "flash", "flash"),
        ((7, 5), (), ("flash",), "efficient", "efficient"),
        ((12, 0), (), (), "flash", "flash"),
    ],
)
def test_the_fastest_kernel_that_works_is_chosen(gpu, capability, missing, failing, long, short):
    gpu(capability, failing, missing)
    said = []
    choice = choose_attention(H100, torch.bfloat16, 128, say=said.append)
    assert (choice.long, choice.short) == (long, short)
    assert tuple(said) == choice.notes and all(any(name in line for line in said) for name in failing)


def test_float32_and_odd_heads_take_a_kernel_that_has_them(gpu):
    gpu()
    assert choose_attention(H100, torch.float32, 128).long == "efficient"
    assert choose_attention(H100, torch.bfloat16, 10).long == "cudnn"


@pytest.mark.parametrize(
    ("asked", "missing", "dtype"),
    [("fa4", ("flash_attn",), torch.bfloat16), ("sage", ("sageattention",), torch.float16), ("fa4", (), torch.float32)],
)
def test_a_kernel_asked_for_that_cannot_be_used_is_an_error(gpu, asked, missing, dtype):
    gpu(missing=missing)
    with pytest.raises(InputError) as caught:
        choose_attention(H100, dtype, 128, asked)
    assert (caught.value.name, caught.value.value) == ("attention", asked)


def test_a_kernel_asked_for_that_fails_falls_back_with_one_line(gpu):
    gpu(failing=("sage",))
    said = []
    assert choose_attention(H100, torch.bfloat16, 128, "sage", said.append).long == "cudnn"
    assert len(said) == 1 and "sage" in said[0]


def test_an_unknown_kernel_is_refused():
    with pytest.raises(InputError) as caught:
        choose_attention("cpu", torch.float32, 64, "fa9")
    assert (caught.value.name, caught.value.value) == ("attention", "fa9")
    with pytest.raises(InputError):
        choose_attention("cpu", torch.float32, 64, "cudnn")


def test_on_a_cpu_nothing_is_chosen_or_tried(monkeypatch):
    monkeypatch.setattr(attention, "trial", None)
    assert choose_attention("cpu", torch.float32, 64) == DEFAULTS


def test_few_keys_and_many_take_different_kernels(monkeypatch):
    """flash-attn-4 by name; on a CPU a stand-in with its interface."""
    calls = []

    def flash_attn_func(q, k, v, return_lse=False):
        calls.append(k.shape[1])
        if return_lse:
            return attend_with_log_sum(q, k, v)
        return attend(q, k, v).contiguous(), None

    package, module = ModuleType("flash_attn"), ModuleType("flash_attn.cute")
    module.flash_attn_func, package.cute = flash_attn_func, module
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(sys.modules, "flash_attn.cute", module)
    choice = AttentionChoice("fa4", "math")
    q = torch.randn(1, 5, 2, 8)
    for keys, expected in ((FEW_KEYS, []), (FEW_KEYS + 1, [FEW_KEYS + 1])):
        k, v = torch.randn(1, keys, 2, 8), torch.randn(1, keys, 2, 8)
        assert apart(attend(q, k, v, choice), attend(q, k, v)) <= EXACT
        assert calls == expected
    out, log_sum = attend_with_log_sum(q, k, v, choice)
    exact, exact_sum = attend_with_log_sum(q, k, v)
    assert len(calls) == 2 and torch.equal(out, exact) and torch.equal(log_sum, exact_sum)


@pytest.mark.parametrize("kernel", ["flash", "math"])
def test_a_kernel_passes_its_trial_by_its_result(kernel, monkeypatch):
    assert attention.trial(kernel, torch.device("cpu"), torch.float32, 16) is None
    monkeypatch.setattr(attention, "torch_attention", lambda q, k, v: q if q.dtype == torch.bfloat16 else k)
    assert attention.trial(kernel, torch.device("cpu"), torch.bfloat16, 16) is not None


def test_a_kernel_that_raises_does_not_pass():
    assert attention.trial("fa4", torch.device("cpu"), torch.bfloat16, 16) is not None
