"""WanModel against diffusers' transformer with the same weights, and against an explicit mask."""

import pytest
import torch
import torch.nn.functional as F
from peers import EXACT, apart, peer_transformer, small_model
from torch.nn.attention import sdpa_kernel

from skyreels_v2_infer.modules.attention import attend, attend_block_causal, cuda_backends
from skyreels_v2_infer.modules.transformer import WanModel


def inputs(model: WanModel, frames: int, height: int, width: int, batch: int = 1, per_frame: bool = False) -> dict:
    draw = torch.Generator().manual_seed(frames * 1000 + height * 10 + width)
    given = {
        "x": torch.randn(batch, 16, frames, height, width, generator=draw),
        "t": torch.randint(0, 1000, (batch, frames) if per_frame else (batch,), generator=draw),
        "context": torch.randn(batch, 512, model.text_dim, generator=draw),
    }
    if model.model_type == "i2v":
        given["clip_fea"] = torch.randn(batch, 257, 20, generator=draw)
        given["y"] = torch.randn(batch, 20, frames, height, width, generator=draw)
    if model.inject_sample_info:
        given["fps"] = torch.arange(batch) % 2
    return given


def ask_peer(peer, given: dict) -> torch.Tensor:
    x = torch.cat([given["x"], given["y"]], dim=1) if "y" in given else given["x"]
    return peer(
        x,
        given["t"],
        given["context"],
        encoder_hidden_states_image=given.get("clip_fea"),
        enable_diffusion_forcing=given["t"].ndim == 2,
        fps=given["fps"].tolist() if "fps" in given else None,
        return_dict=False,
    )[0]


SHAPES = [(1, 4, 6, 1), (5, 6, 4, 2), (13, 10, 6, 1), (25, 6, 10, 1), (2, 14, 10, 2)]


@pytest.mark.parametrize("task", ["t2v", "i2v"])
@pytest.mark.parametrize("shape", SHAPES)
def test_shared_timesteps_equal_diffusers(shape, task):
    *size, batch = shape
    model = small_model(task=task)
    given = inputs(model, *size, batch)
    ours = model(**given)
    assert ours.dtype == torch.float32
    assert apart(ours, ask_peer(peer_transformer(model), given)) <= EXACT


@pytest.mark.parametrize("shape", SHAPES)
def test_timesteps_per_frame_equal_diffusers(shape):
    *size, batch = shape
    model = small_model()
    given = inputs(model, *size, batch, per_frame=True)
    assert apart(model(**given), ask_peer(peer_transformer(model), given)) <= EXACT


@pytest.mark.parametrize(("heads", "head_size"), [(3, 24), (2, 128), (6, 10)])
def test_head_sizes_equal_diffusers(heads, head_size):
    model = small_model(heads=heads, head_size=head_size)
    given = inputs(model, 5, 6, 4)
    assert apart(model(**given), ask_peer(peer_transformer(model), given)) <= EXACT


@pytest.mark.parametrize("per_frame", [False, True])
@pytest.mark.parametrize("fps", [0, 1])
def test_fps_embedding_equals_diffusers(fps, per_frame):
    model = small_model(inject_sample_info=True)
    given = inputs(model, 5, 6, 4, per_frame=per_frame) | {"fps": torch.tensor([fps])}
    ours = model(**given)
    assert apart(ours, ask_peer(peer_transformer(model), given)) <= EXACT
    other = model(**(given | {"fps": torch.tensor([1 - fps])}))
    assert apart(other, ours) > 1e-3


def test_samples_of_a_batch_keep_their_own_fps_and_timesteps():
    """The published code scrambles their order, diffusers fails."""
    model = small_model(inject_sample_info=True)
    given = inputs(model, 5, 6, 4, batch=3, per_frame=True)
    together = model(**given)
    for i in range(3):
        alone = model(**{name: value[i : i + 1] for name, value in given.items()})
        assert apart(together[i : i + 1], alone) <= EXACT


def test_a_shared_timestep_is_the_same_timestep_for_every_frame():
    model = small_model(inject_sample_info=True)
    given = inputs(model, 5, 6, 4, batch=2)
    per_frame = model(**(given | {"t": given["t"][:, None].expand(-1, 5)}))
    assert apart(per_frame, model(**given)) <= EXACT


@pytest.mark.parametrize("block", [2, 3, 5])
def test_causal_blocks_equal_diffusers(block):
    frames = 6 if block < 5 else 10
    model = small_model()
    given = inputs(model, frames, 6, 4, per_frame=True)
    peer = peer_transformer(model)
    peer._set_ar_attention(block)
    ours = model(**given, causal_block_size=block)
    assert apart(ours, ask_peer(peer, given)) <= EXACT
    assert apart(model(**given), ours) > 1e-3
    model.set_ar_attention(block)  # as published code asks for it
    assert torch.equal(model(**given), ours)


@pytest.mark.parametrize(("frames", "block"), [(7, 1), (7, 2), (7, 3), (8, 5), (4, 9)])
def test_causal_attention_equals_an_explicit_mask(frames, block):
    """Also where the last block is short, and with blocks of one frame, which diffusers does not mask at all."""
    tokens = 6
    q, k, v = torch.randn(3, 2, frames * tokens, 3, 8, generator=torch.Generator().manual_seed(0))
    of = torch.arange(frames * tokens) // tokens // block
    mask = of[:, None] >= of[None, :]
    masked = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)
    assert apart(attend_block_causal(q, k, v, block * tokens), masked.transpose(1, 2)) <= EXACT


def test_causal_model_never_looks_ahead():
    model = small_model()
    given = inputs(model, 7, 6, 4, per_frame=True)
    before = model(**given, causal_block_size=3)
    given["x"][:, :, 6] += 1
    after = model(**given, causal_block_size=3)
    assert torch.equal(before[:, :, :6], after[:, :, :6])
    assert not torch.equal(before[:, :, 6], after[:, :, 6])


def test_a_prepared_prompt_is_the_prompt_and_is_projected_once(monkeypatch):
    model = small_model(task="i2v")
    given = inputs(model, 2, 4, 6)
    whole = model(**given)
    context = model.prepare_context(given.pop("context"), given.pop("clip_fea"))
    calls = []
    for block in model.blocks:
        for layer in (block.cross_attn.k, block.cross_attn.v, block.cross_attn.k_img, block.cross_attn.v_img):
            layer.register_forward_hook(lambda *_: calls.append(1))
    model.text_embedding.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(model(**given, context=context), whole)
    assert not calls


def test_short_text_is_padded_with_zeros():
    model = small_model()
    given = inputs(model, 2, 4, 6)
    given["context"][:, 40:] = 0
    whole = model(**given)
    given["context"] = given["context"][:, :40]
    assert torch.equal(model(**given), whole)


def test_modulation_is_never_repeated_per_token():
    model = small_model()
    seen = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[1].shape)))
    model(**inputs(model, 5, 6, 4, per_frame=True))
    assert seen == [(1, 5, 6, model.dim)] * 2


def test_attention_is_never_given_a_mask(monkeypatch):
    real, masks = F.scaled_dot_product_attention, []

    def spy(*args, attn_mask=None, **kwargs):
        masks.append(attn_mask)
        return real(*args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    model = small_model()
    model(**inputs(model, 7, 6, 4), causal_block_size=3)
    assert masks
    assert all(mask is None for mask in masks)


def test_bfloat16_keeps_its_dtype_inside_and_stays_close():
    model = small_model()
    given = inputs(model, 5, 6, 4, per_frame=True)
    exact = model(**given)
    dtypes = set()
    low = model.bfloat16()
    for block in low.blocks:
        block.register_forward_hook(lambda _, args, out: dtypes.add(out.dtype))
    out = low(**given)
    assert dtypes == {torch.bfloat16}
    assert out.dtype == torch.float32
    assert apart(out, exact) < 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(1, 15, 2, 4, 6)}, r"x \[1, 15, 2, 4, 6\]"),
        ({"x": torch.zeros(1, 16, 2, 5, 6)}, "H divisible by 2"),
        ({"t": torch.zeros(1, 3)}, r"t \[1, 3\]"),
        ({"context": torch.zeros(1, 600, 24)}, r"context \[1, 600, 24\]"),
        ({"clip_fea": torch.zeros(1, 257, 20)}, "clip_fea"),
        ({"causal_block_size": 0}, "causal_block_size 0"),
    ],
)
def test_wrong_shapes_are_named(change, message):
    model = small_model()
    with pytest.raises(ValueError, match=message):
        model(**(inputs(model, 2, 4, 6) | change))


def test_missing_fps_is_named():
    model = small_model(inject_sample_info=True)
    given = inputs(model, 2, 4, 6)
    del given["fps"]
    with pytest.raises(ValueError, match="fps"):
        model(**given)


def test_unknown_configuration_keys_are_ignored():
    assert isinstance(small_model(window_size=(-1, -1), qk_norm=True, _class_name="WanModel", soon=3), WanModel)


def test_attend_takes_other_lengths_of_keys():
    q, k = torch.randn(2, 5, 3, 8), torch.randn(2, 9, 3, 8)
    weights = torch.einsum("blhe,bmhe->bhlm", q, k).div(8**0.5).softmax(-1)
    assert apart(attend(q, k, k), torch.einsum("bhlm,bmhe->blhe", weights, k)) <= EXACT


def test_the_preference_of_kernels_can_be_stated():
    """What attend asks for on a GPU; here, where all of it is ignored, at least in words that torch knows."""
    q = torch.randn(1, 5, 3, 8)
    with sdpa_kernel(cuda_backends((9, 0)), set_priority=True):
        preferred = attend(q, q, q)
    assert torch.equal(preferred, attend(q, q, q))


def test_which_kernel_is_tried_first_depends_on_the_gpu():
    for capability, first in {
        (8, 0): "FLASH",
        (8, 9): "FLASH",
        (9, 0): "CUDNN",
        (10, 0): "CUDNN",
        (12, 0): "FLASH",
    }.items():
        order = [kind.name for kind in cuda_backends(capability)]
        assert order[0].startswith(first) and len(set(order)) == 4 and order[-1] == "MATH"


def test_the_image_projection_equals_diffusers():
    """Alone, since attention over 257 tokens averages small differences away."""
    model = small_model(task="i2v")
    features = inputs(model, 1, 4, 6)["clip_fea"]
    assert apart(model.img_emb(features), peer_transformer(model).condition_embedder.image_embedder(features)) <= EXACT
