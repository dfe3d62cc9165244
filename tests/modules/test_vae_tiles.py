"""The VAE in tiles: the frames and latents of the whole, however it is cut, in less memory."""

import math

import pytest
import torch
from peers import randomize, small_vae

from skyreels_v2_infer.modules import vae_tiles
from skyreels_v2_infer.modules.vae import WanVAE

ROUNDING = 110  # dB: about 5e-6 of the range, as float32 rounds after so many layers


def psnr(a: torch.Tensor, b: torch.Tensor, largest: float = 2.0) -> float:
    error = (a - b).double().square().mean().item()
    return 10 * math.log10(largest**2 / error) if error else math.inf


def latents(frames: int, height: int = 12, width: int = 20, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 16, frames, height, width, generator=torch.Generator().manual_seed(frames))


@pytest.mark.parametrize(("frames", "batch", "largest"), [(1, 1, 5), (3, 2, 7), (10, 1, 6), (2, 1, 100)])
def test_tiles_make_the_frames_of_the_whole(frames, batch, largest):
    vae, z = small_vae(), latents(frames, batch=batch)
    whole = vae.decode(z)
    tiled = torch.cat(list(vae_tiles.decode_stream(vae, z, largest=largest)), dim=2)
    assert tiled.shape == whole.shape and tiled.dtype == torch.float32
    assert psnr(tiled, whole) > ROUNDING and whole.std() > 0.1


@pytest.mark.parametrize(("frames", "largest"), [(1, 5), (9, 7), (5, 100)])
def test_tiles_make_the_latents_of_the_whole(frames, largest):
    vae = small_vae()
    video = torch.rand(1, 3, frames, 96, 160, generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole, tiled = vae.encode(video), vae_tiles.encode(vae, video, largest)
    assert tiled.shape == whole.shape and psnr(tiled, whole) > ROUNDING and whole.std() > 0.1


def test_a_video_in_pieces_is_the_same_video_and_no_piece_grows():
    vae, z = small_vae(), latents(13)
    pieces = list(vae_tiles.decode_stream(vae, z, largest=6))
    assert [piece.shape[2] for piece in pieces] == [4 * vae_tiles.CHUNK - 3, 4 * (13 - vae_tiles.CHUNK)]
    cache: dict = {}
    later = [part for end in ((0, 4), (4, 13)) for part in vae_tiles.decode_stream(vae, z[:, :, slice(*end)], cache, 6)]
    assert psnr(torch.cat(later, dim=2), torch.cat(pieces, dim=2)) > ROUNDING
    assert sum(piece.shape[2] for piece in later) == 49


def test_a_tile_sees_its_surroundings_and_no_more():
    """Of what is further away a pixel does not depend on, and nearer nothing may be missing."""
    vae = small_vae()
    layers = [*vae.decoder.upsamples, vae.decoder.head]
    (tile,) = [t for t in vae_tiles.tiles(layers, (60, 60), (60, 60), 20) if t.rows[-1] == t.columns[-1] == (160, 320)]
    (low, high), (left, right) = tile.rows[0], tile.columns[0]
    assert (low, high) == (left, right) and 20 - low == high - 40 == 13
    channels = vae.decoder.conv1.out_channels
    x = torch.randn(1, channels, 1, 60, 60, generator=torch.Generator().manual_seed(0))
    made = tile.run(tile.source(x), {})
    outside = x.clone()
    outside[..., : low + 1, :] += 5
    assert not torch.equal(tile.run(tile.source(outside), {}), made)  # the outermost row matters


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_published_width(dtype):
    """With random weights, 5 frames of 64x96 in six tiles; in bfloat16 layers round, so errors are larger."""
    vae = randomize(WanVAE()).to(dtype).eval().requires_grad_(False)
    z = latents(2, 8, 12)
    whole = vae.decode(z)
    tiled = torch.cat(list(vae_tiles.decode_stream(vae, z, largest=4)), dim=2)
    assert psnr(tiled, whole) > (ROUNDING if dtype == torch.float32 else 40)
