"""WanVAE against diffusers' AutoencoderKLWan with the same weights."""

import pytest
import torch
from peers import EXACT, apart, peer_vae, small_vae

from skyreels_v2_infer.modules import vae as vae_module
from skyreels_v2_infer.modules.vae import WanVAE, causal_conv_fused, causal_conv_taps


def video(frames: int, height: int = 24, width: int = 40, batch: int = 1) -> torch.Tensor:
    draw = torch.Generator().manual_seed(frames)
    return torch.rand(batch, 3, frames, height, width, generator=draw) * 2 - 1


def normalise(peer, latents: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (peer.config.latents_mean, peer.config.latents_std))
    return (latents - mean) / std


def denormalise(peer, latents: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (peer.config.latents_mean, peer.config.latents_std))
    return latents * std + mean


@pytest.mark.parametrize(("frames", "batch"), [(1, 1), (5, 2), (17, 1)])
def test_encode_equals_diffusers(frames, batch):
    vae = small_vae()
    peer = peer_vae(vae)
    x = video(frames, batch=batch)
    latents = vae.encode(x)
    assert latents.shape == (batch, 16, (frames - 1) // 4 + 1, 3, 5)
    assert apart(latents, normalise(peer, peer.encode(x).latent_dist.mode())) <= EXACT


def test_moments_equal_diffusers():
    vae = small_vae()
    mean, logvar = vae.encode_moments(video(5))
    theirs = peer_vae(vae).encode(video(5)).latent_dist
    assert apart(mean, theirs.mean) <= EXACT
    assert apart(logvar.clamp(-30, 20), theirs.logvar) <= EXACT


@pytest.mark.parametrize(("latent_frames", "batch"), [(1, 1), (2, 2), (5, 1)])
def test_decode_equals_diffusers(latent_frames, batch):
    vae = small_vae()
    peer = peer_vae(vae)
    latents = torch.randn(batch, 16, latent_frames, 3, 5, generator=torch.Generator().manual_seed(latent_frames))
    frames = vae.decode(latents)
    assert frames.shape == (batch, 3, 4 * latent_frames - 3, 24, 40)
    assert frames.abs().max() <= 1
    assert apart(frames, peer.decode(denormalise(peer, latents)).sample) <= EXACT


@pytest.mark.parametrize("chunk", [1, 4 * 24 * 40, 3 * 4 * 24 * 40, 10**9])
def test_pieces_of_any_length_are_the_whole(chunk, monkeypatch):
    vae = small_vae()
    latents = torch.randn(1, 16, 6, 3, 5, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(vae_module, "CHUNK_PIXELS", 1)
    frames, encoded = vae.decode(latents), vae.encode(video(21))
    monkeypatch.setattr(vae_module, "CHUNK_PIXELS", chunk)
    pieces = list(vae.decode_stream(latents))
    assert len(pieces) == {1: 6, 4 * 24 * 40: 6, 3 * 4 * 24 * 40: 2, 10**9: 1}[chunk]
    assert sum(piece.shape[2] for piece in pieces) == 21
    assert apart(torch.cat(pieces, dim=2), frames) <= EXACT
    assert apart(vae.encode(video(21)), encoded) <= EXACT


def test_stream_does_not_wait_for_the_whole(monkeypatch):
    monkeypatch.setattr(vae_module, "CHUNK_PIXELS", 1)
    vae, calls = small_vae(), []
    vae.decoder.register_forward_hook(lambda *_: calls.append(1))
    stream = vae.decode_stream(torch.zeros(1, 16, 6, 2, 2))
    next(stream)
    assert len(calls) == 1


def test_later_frames_do_not_change_earlier_ones():
    vae = small_vae()
    x = video(9)
    before = vae.encode(x)
    x[:, :, 5:] = 0
    assert apart(vae.encode(x)[:, :, :2], before[:, :, :2]) <= EXACT


@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 1, 1), (1, 2, 2)])
@pytest.mark.parametrize("missing", [0, 1, 2])
@pytest.mark.parametrize("frames", [1, 2, 3, 6])
def test_both_ways_to_convolve_agree(stride, missing, frames):
    """The CPU takes one of them and the GPU the other."""
    if frames + missing < 3:
        return
    conv = torch.nn.Conv3d(4, 6, 3, stride=stride, padding=(0, 1, 1))
    x = torch.randn(2, 4, frames, 8, 10, generator=torch.Generator().manual_seed(0))
    assert apart(causal_conv_taps(x, conv, missing), causal_conv_fused(x, conv, missing)) <= EXACT


def test_own_latent_statistics():
    plain, other = small_vae(), WanVAE(dim=8, latents_mean=[0.5] * 16, latents_std=[2.0] * 16)
    other.load_state_dict(plain.state_dict())
    mean, _ = plain.encode_moments(video(1))
    assert apart(other.encode(video(1)), (mean - 0.5) / 2) <= EXACT
    with pytest.raises(ValueError, match="16 values"):
        WanVAE(dim=8, latents_mean=[0.0], latents_std=[1.0])


@pytest.mark.parametrize("shape", [(1, 3, 4, 16, 16), (1, 3, 5, 12, 16), (1, 1, 5, 16, 16)])
def test_wrong_videos_are_named(shape):
    with pytest.raises(ValueError, match="4n\\+1"):
        small_vae().encode(torch.zeros(shape))


def test_wrong_latents_are_named():
    with pytest.raises(ValueError, match="latents"):
        small_vae().decode(torch.zeros(1, 15, 1, 2, 2))


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_infinity_is_not_hidden_by_the_range(value):
    vae = small_vae()
    vae.decoder.head[-1].bias.data[1] = float(value)
    frames = vae.decode(torch.zeros(1, 16, 2, 2, 2))
    assert frames[:, 1].isnan().all() and frames[:, [0, 2]].isfinite().all()


def test_gradients_flow():
    """The embedded model is trained with this class."""
    vae = small_vae().requires_grad_(True)
    mean, _ = vae.encode_moments(video(5, 16, 16))
    torch.cat(list(vae.decode_stream(mean)), dim=2).pow(2).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())


def test_what_is_trained_is_what_is_used():
    """Under gradients norms and convolutions take other kernels."""
    vae, x = small_vae(), video(9)
    moments, frames = vae.encode_moments(x)[0], vae.decode(vae.encode(x))
    vae.requires_grad_(True)
    assert vae.encode_moments(x)[0].requires_grad
    assert apart(vae.encode_moments(x)[0], moments) <= EXACT
    assert apart(vae.decode(vae.encode(x)), frames) <= EXACT


@pytest.mark.parametrize("chunk", [1, 3])
def test_a_stream_goes_on_where_an_earlier_call_ended(chunk, monkeypatch):
    vae = small_vae()
    latents = torch.randn(1, 16, 9, 4, 4, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("skyreels_v2_infer.modules.vae.CHUNK_PIXELS", chunk * 4 * 32 * 32)
    whole = vae.decode(latents)
    memory = {}
    parts = [torch.cat([*vae.decode_stream(part, memory)], dim=2) for part in latents.split([3, 4, 2], dim=2)]
    assert [part.shape[2] for part in parts] == [9, 16, 8]
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, rtol=0, atol=1e-5)


def test_how_far_the_decoder_looks_back():
    """A change further back than its memory changes nothing; one just within the memory does."""
    vae = small_vae()
    reach = vae.decoder_memory
    latents = torch.randn(1, 16, reach + 2, 2, 2, generator=torch.Generator().manual_seed(0))
    last = vae.decode(latents)[:, :, -1]
    seen = []
    for back in range(reach + 2):
        changed = latents.clone()
        changed[:, :, -1 - back] += 3
        seen.append(not torch.equal(vae.decode(changed)[:, :, -1], last))
    furthest = max(back for back, change in enumerate(seen) if change)
    assert furthest <= reach
    assert furthest >= reach // 2  # not far more than is needed


def test_features_of_several_frames_stay_channels_last(monkeypatch):
    """GPUs would else turn every convolution's input and output round."""
    strides = []
    real = vae_module.CausalConv3d.forward

    def watched(conv, x, cache):
        strides.append((x.shape[1], x.stride()))
        return real(conv, x, cache)

    monkeypatch.setattr(vae_module.CausalConv3d, "forward", watched)
    small_vae().decode(torch.randn(1, 16, 4, 3, 5))
    inside = strides[2:]  # the first two are given the caller's latents
    assert len(inside) > 30 and all(stride[1] == 1 for channels, stride in inside if channels > 1)


@pytest.mark.parametrize(("channels", "frames"), [(1, 1), (4, 1), (4, 3)])
def test_a_layout_that_strides_leave_open_is_stated(channels, frames):
    for x in (torch.randn(2, channels, frames, 5, 6), torch.randn(2, frames, 5, 6, channels).permute(0, 4, 1, 2, 3)):
        stated = vae_module.channels_last(x)
        assert torch.equal(stated, x)
        assert stated.stride() == (frames * 30 * channels, 1, 30 * channels, 6 * channels, channels)
        assert vae_module.channels_last(stated) is stated
