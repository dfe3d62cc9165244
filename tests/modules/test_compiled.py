"""Compiled blocks and norms against those that are not, here by the compiler for CPUs."""

import pytest
import torch
from peers import EXACT, apart, small_model, small_vae
from torch._dynamo.testing import CompileCounterWithBackend

from skyreels_v2_infer.modules import vae
from skyreels_v2_infer.modules.attention import AttentionChoice, WholeSequence
from skyreels_v2_infer.modules.compiled import compile_blocks, restore_blocks
from skyreels_v2_infer.modules.linear import quantize_blocks
from skyreels_v2_infer.modules.rope import rotary_table, rotate, rotate_real
from skyreels_v2_infer.modules.vae import compile_norms


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def given(frames: int, per_frame: bool = True) -> dict:
    draw = torch.Generator().manual_seed(frames)
    return {
        "x": torch.randn(1, 16, frames, 6, 4, generator=draw),
        "t": torch.randint(0, 1000, (1, frames) if per_frame else (1,), generator=draw),
        "context": torch.randn(1, 9, 24, generator=draw),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("length", "head_size"), [(300, 32), (7, 10), (64, 128), (1, 2)])
def test_rotary_in_real_arithmetic_has_the_same_bits(length, head_size, dtype):
    x, table = torch.randn(2, length, 3, head_size).to(dtype), rotary_table(1, 1, length, head_size)
    expected, found = rotate(x, table), rotate_real(x, table)
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    assert torch.equal(found.view(bits), expected.view(bits))


def test_one_code_serves_all_blocks_and_window_lengths():
    """Without the compiler behind it: how often torch traces."""
    model, counter = small_model(layers=3), CompileCounterWithBackend("eager")
    sequence = WholeSequence(AttentionChoice("flash", "cudnn"))
    for frames, causal in ((5, None), (3, None), (7, 2), (2, 1)):
        expected = model(**given(frames), causal_block_size=causal, sequence=sequence)
        compile_blocks(model, backend=counter)
        found = model(**given(frames), causal_block_size=causal, sequence=sequence)
        restore_blocks(model)
        assert apart(found, expected) <= EXACT
    assert counter.frame_count == 2  # the two halves of a block


def test_blocks_run_uncompiled_if_the_compiler_fails():
    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    model, said = small_model(), []
    expected = model(**given(3))
    compile_blocks(model, said.append, backend=broken)
    assert torch.equal(model(**given(3)), expected)
    assert len(said) == 1 and "no compiler here" in said[0]
    assert "before_attention" not in vars(model.blocks[1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [None, "fp8", "int8"])
def test_compiled_blocks_equal_eager_ones(kind):
    model = small_model()
    if kind is not None:
        quantize_blocks(model, kind, "cpu")
    expected = [model(**given(*case)) for case in ((5,), (3,), (5, False))]
    said = []
    compile_blocks(model, said.append)
    found = [model(**given(*case)) for case in ((5,), (3,), (5, False))]
    assert not said
    # a number that float8 rounds the other way moves the result by a thousandth
    assert all(apart(*pair) <= (1e-2 if kind == "fp8" else EXACT) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("batch", [1, 2])
def test_norms_that_write_where_convolutions_read_change_nothing(batch, monkeypatch):
    model = small_vae()
    latents, video = torch.randn(batch, 16, 4, 6, 4), torch.randn(batch, 3, 13, 32, 48)
    expected = model.decode(latents), model.encode(video)
    monkeypatch.setattr(vae, "in_place_of_copies", lambda x: True)
    for chunk in (1, 2):  # latent frames that pass through together
        monkeypatch.setattr(vae, "CHUNK_PIXELS", chunk * 4 * 48 * 32)
        assert apart(model.decode(latents), expected[0]) <= EXACT
        assert apart(model.encode(video), expected[1]) <= EXACT


@pytest.mark.slow
def test_compiled_norms_equal_eager_ones(monkeypatch):
    model = small_vae()
    latents = torch.randn(2, 16, 4, 6, 4)
    expected = model.decode(latents)
    monkeypatch.setattr(vae, "in_place_of_copies", lambda x: True)
    compile_norms(model)
    assert apart(model.decode(latents), expected) <= EXACT


def test_norms_run_uncompiled_where_the_compiler_fails(monkeypatch):
    def fails(graph, inputs):
        raise RuntimeError("no compiler here")

    model, said = small_vae(), []
    latents = torch.randn(1, 16, 2, 6, 4)
    monkeypatch.setattr(vae, "in_place_of_copies", lambda x: True)
    expected = model.decode(latents)
    compile_norms(model, said.append, backend=fails)
    assert torch.equal(model.decode(latents), expected)
    (line,) = said
    assert "no compiler here" in line


def test_in_bfloat16_the_vae_stays_near_float32():
    model = small_vae()
    latents = torch.randn(1, 16, 3, 6, 4)
    expected = model.decode(latents)
    found = model.to(torch.bfloat16).decode(latents)
    assert found.dtype == torch.float32
    assert float((found - expected).norm() / expected.norm()) < 0.03
