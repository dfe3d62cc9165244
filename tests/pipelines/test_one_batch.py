"""Both passes of guidance as one batch: the same bits, and only where little is computed."""

import numpy as np
import pytest
import torch
from peers import small_model, small_vae

from skyreels_v2_infer import DiffusionForcingPipeline, Image2VideoPipeline
from skyreels_v2_infer.pipelines import one_batch
from skyreels_v2_infer.pipelines.hooks import Hooks, Ranks

SETTINGS = {
    "height": 32,
    "width": 48,
    "num_frames": 13,
    "num_inference_steps": 3,
    "shift": 5.0,
    "guidance_scale": 3.0,
    "seed": 1,
    "output_type": "latent",
}


def embeds(batch: int = 1) -> dict:
    drawn = torch.randn(2 * batch, 8, 24, generator=torch.Generator().manual_seed(3))
    return {"prompt_embeds": drawn[:batch], "negative_prompt_embeds": drawn[batch:]}


def one_after_the_other(positive, negative, x, t):
    return positive(x, t), negative(x, t)


def batches(model, monkeypatch) -> list[int]:
    """Sizes of the batches that the model gets from now on."""
    seen, forward = [], model.forward

    def counted(x, *args, **kwargs):
        seen.append(len(x))
        return forward(x, *args, **kwargs)

    monkeypatch.setattr(model, "forward", counted)
    return seen


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    "schedule", [{"ar_step": 0}, {"ar_step": 2}, {"ar_step": 2, "causal_block_size": 2, "causal_attention": True}]
)
@pytest.mark.parametrize("with_fps", [False, True])
def test_diffusion_forcing(batch, schedule, with_fps, monkeypatch):
    model, vae = small_model(inject_sample_info=with_fps), small_vae()
    seen = batches(model, monkeypatch)
    both = DiffusionForcingPipeline.from_parts(model, vae)(**SETTINGS, **schedule, **embeds(batch))
    assert set(seen) == {2 * batch}
    seen.clear()
    hooks = Hooks(ranks=Ranks(branches=one_after_the_other))
    apart = DiffusionForcingPipeline.from_parts(model, vae, hooks=hooks)(**SETTINGS, **schedule, **embeds(batch))
    assert set(seen) == {batch}
    assert torch.equal(both, apart)


def test_image_to_video(monkeypatch):
    class Features:
        def encode(self, pictures):
            return torch.randn(1, 5, 20, generator=torch.Generator().manual_seed(4))

    model, vae = small_model(task="i2v"), small_vae()
    given = {"image": np.full((32, 48, 3), 90, np.uint8), **embeds()}
    seen = batches(model, monkeypatch)
    both = Image2VideoPipeline.from_parts(model, vae, None, Features())(**SETTINGS, **given)
    hooks = Hooks(ranks=Ranks(branches=one_after_the_other))
    apart = Image2VideoPipeline.from_parts(model, vae, None, Features(), hooks)(**SETTINGS, **given)
    assert set(seen) == {1, 2}
    assert torch.equal(both, apart)


def test_large_inputs_and_runs_without_guidance_are_not_joined(monkeypatch):
    model, vae = small_model(), small_vae()
    pipeline, seen = DiffusionForcingPipeline.from_parts(model, vae), batches(model, monkeypatch)
    pipeline(**SETTINGS | {"guidance_scale": 1.0, "ar_step": 0}, **embeds())
    monkeypatch.setattr(one_batch, "SMALL", 4 * 6 * 4 // 4 * model.dim - 1)
    pipeline(**SETTINGS | {"ar_step": 0}, **embeds())
    assert set(seen) == {1}
    monkeypatch.setattr(one_batch, "SMALL", 4 * 6 * 4 // 4 * model.dim)
    pipeline(**SETTINGS | {"ar_step": 0}, **embeds())
    assert set(seen) == {1, 2}


def test_frames_of_a_single_token_are_not_joined(monkeypatch):
    """A matrix product of one row is computed otherwise than one of two."""
    model, vae = small_model(), small_vae()
    seen = batches(model, monkeypatch)
    DiffusionForcingPipeline.from_parts(model, vae)(
        **SETTINGS | {"ar_step": 0, "height": 16, "width": 16, "num_frames": 1}, **embeds()
    )
    assert set(seen) == {1}
