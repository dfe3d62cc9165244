"""Trains the embedded model's VAE: reconstruction and a little KL, then one code for images and for frames that follow,
then the decoder alone on slightly noisy latents.

The class is the package's own `WanVAE`, narrower; what is learnt here loads like the published weights.
"""

import json
import os
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import save_file

from skyreels_v2_infer.modules import WanVAE
from training import loop, world

SHAPE = {"dim": 8, "z_dim": 16, "multipliers": (1, 2, 4, 8), "blocks": 1}
KL = 1e-4
EDGES = 0.5  # weight of the difference of gradients
OBJECT = 3.0  # how much more a pixel of an object, or near it, counts than one of the background
MARGIN = 3  # pixels around an object that count like it
ALIGN = 0.05  # weight of the distance, in squared standard deviations, between the latents of a video that stands still
LATENT_NOISE = 0.12  # standard deviations; from when the code is aligned on
SIDE = 64
# What a batch holds: (share, frames, side of the crop). The first updates are cheap ones: what an edge is can be learnt
# from short clips and small crops; long ones then teach the layers that look far back in time.
SHORT = ((0.6, 5, 32), (0.4, 9, 32))
LONG = ((0.35, 13, 32), (0.2, 17, 48), (0.1, 17, 64), (0.2, 33, 32), (0.05, 33, 64), (0.1, 65, 32))
FINISHING = ((0.5, 17, SIDE), (0.5, 33, SIDE))
SHORT_SHARE = 0.62  # of the updates
MIX = world.Mix(bounce=0.25, star=0.1, diagonal=0.15, spin=0.05, growth=0.05, camera=0.05, pair=0.1)

MAIN = loop.Recipe(steps=4600, muon=2.5e-3, adamw=1.5e-3)
ALIGNMENT = loop.Recipe(steps=500, muon=1e-3, adamw=7e-4, decay=0.8, seed=2)
FINISH = loop.Recipe(steps=220, muon=1e-3, adamw=7e-4, decay=1.0, seed=1)
RECIPES = (MAIN, ALIGNMENT, FINISH)


def draw(draws: np.random.Generator, size: int, frames: int, split: str, mix: world.Mix = MIX) -> list[world.Clip]:
    return [world.sample_clip(int(draws.integers(2**62)), 0, frames, mix, split) for _ in range(size)]


def pictures(clips: list[world.Clip], draws: np.random.Generator, crop: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips as the VAE sees them, each at a place of its own.

    Returns:
        video float32 ``[B, 3, T, crop, crop]`` in -1..1, and weights ``[B, 1, T, crop, crop]`` of its pixels.
    """
    videos, weights = [], []
    for clip in clips:
        times = np.arange(clip.first_frame, clip.first_frame + clip.frames)
        video = clip.render(SIDE).astype(np.float32)
        object_seen = np.abs(video - world.backdrop(clip.scene, times, SIDE)).max(axis=-1) > 8
        top, left = draws.integers(SIDE - crop + 1, size=2)
        window = (slice(None), slice(top, top + crop), slice(left, left + crop))
        videos.append(torch.from_numpy(video[window]).permute(3, 0, 1, 2) / 127.5 - 1)
        weights.append(torch.from_numpy(object_seen[window]).float()[None])
    video, near = torch.stack(videos), torch.stack(weights)
    # As much counts outside an outline as inside; else what is unsure would go to the object, which would grow.
    near = F.max_pool3d(near, (1, 2 * MARGIN + 1, 2 * MARGIN + 1), stride=1, padding=(0, MARGIN, MARGIN))
    weight = 1 + OBJECT * near
    return video.contiguous(memory_format=torch.channels_last_3d), weight


def batch(draws: np.random.Generator, size: int, frames: int, crop: int, split: str = "train"):
    """`pictures` of `size` clips drawn anew."""
    return pictures(draw(draws, size, frames, split), draws, crop)


def draw_batch(draws: np.random.Generator, size: int, kinds) -> tuple[torch.Tensor, torch.Tensor, int]:
    """`batch` of one of the kinds ``(share, frames, side of the crop)``, and a seed for the noise on its latents."""
    _, frames, crop = kinds[draws.choice(len(kinds), p=[share for share, _, _ in kinds])]
    return *batch(draws, size, frames, crop), int(draws.integers(2**62))


def on(device: torch.device, batch) -> tuple[torch.Tensor, torch.Tensor, torch.Generator]:
    """Of `draw_batch`: video and weights on the device, and a generator on the CPU."""
    video, weight, seed = batch
    return video.to(device), weight.to(device), torch.Generator().manual_seed(seed)


def differences(video: torch.Tensor) -> list[torch.Tensor]:
    """Neighbouring pixels' differences along time, height and width."""
    return [video.diff(dim=dim) for dim in (2, 3, 4)]


def reconstruction(out: torch.Tensor, video: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    error = out.float() - video
    value = (weight * (error.abs() + error.pow(2))).mean()
    for mine, theirs in zip(differences(out.float()), differences(video), strict=True):
        value = value + EDGES / 3 * (mine - theirs).abs().mean()
    return value


def encode(vae: WanVAE, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`WanVAE.encode_moments` with all frames at once."""
    cache = {}
    return vae.conv1(vae.encoder(video, cache), cache).float().chunk(2, dim=1)


def decode(vae: WanVAE, latents: torch.Tensor) -> torch.Tensor:
    """All frames at once, not clamped: ``[B, z, n+1, h, w]`` before normalisation -> ``[B, 3, 4n+1, 8h, 8w]``."""
    cache = {}
    return vae.decoder(vae.conv2(latents.contiguous(memory_format=torch.channels_last_3d), cache), cache)


def main_loss(vae: WanVAE, size: int, device: torch.device, steps: int) -> loop.Task:
    """Short clips first, then long ones."""

    def drawn(step: int, draws: np.random.Generator):
        return draw_batch(draws, size, SHORT if step < SHORT_SHARE * steps else LONG)

    def loss(batch):
        video, weight, eps = on(device, batch)
        with torch.autocast(device.type, torch.bfloat16):
            mean, logvar = encode(vae, video)
            logvar = logvar.clamp(-20, 10)
            noise = torch.randn(mean.shape, generator=eps).to(device)
            out = decode(vae, mean + noise * (0.5 * logvar).exp())
        kl = 0.5 * (mean.pow(2) + logvar.exp() - 1 - logvar).mean()
        value = reconstruction(out, video, weight)
        return value + KL * kl, {"kl": kl.detach(), "psnr": psnr(out, video)}

    return loop.Task(drawn, loss)


def align_loss(vae: WanVAE, size: int, device: torch.device) -> loop.Task:
    """`main_loss` on long clips with noise on the latents, and one code for the first frame and for those that follow.

    The VAE encodes the first frame, an image, by other layers than those after it, so without this the two codes have
    nothing in common, and a model that predicts latents has to learn everything twice, once from a fifth of the data.
    """

    def loss(batch):
        video, weight, eps = on(device, batch)
        still = video[:, :, -1:].expand(-1, -1, 9, -1, -1)
        with torch.autocast(device.type, torch.bfloat16):
            mean, logvar = encode(vae, video)
            logvar = logvar.clamp(-20, 10)
            std = mean.detach().std(dim=(0, 2, 3, 4), keepdim=True)
            level = LATENT_NOISE * std * torch.rand(size, 1, 1, 1, 1, generator=eps).to(device)
            noise = torch.randn(mean.shape, generator=eps).to(device)
            out = decode(vae, mean + noise * (level.square() + logvar.exp()).sqrt())
            codes = encode(vae, still.contiguous(memory_format=torch.channels_last_3d))[0] / std
        apart = codes.diff(dim=2).square().mean()
        kl = 0.5 * (mean.pow(2) + logvar.exp() - 1 - logvar).mean()
        value = reconstruction(out, video, weight) + KL * kl + ALIGN * apart
        return value, {"kl": kl.detach(), "psnr": psnr(out, video), "apart": apart.detach()}

    return loop.Task(lambda step, draws: draw_batch(draws, size, LONG), loss)


def finish_loss(vae: WanVAE, size: int, device: torch.device, std: torch.Tensor) -> loop.Task:
    """The encoder stands still, so its latents can be used while the decoder learns to forgive small errors in them."""

    def loss(batch):
        video, weight, eps = on(device, batch)
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                mean = encode(vae, video)[0]
            level = LATENT_NOISE * torch.rand(size, 1, 1, 1, 1, generator=eps)
            out = decode(vae, mean + (level * torch.randn(mean.shape, generator=eps)).to(device) * std)
        return reconstruction(out, video, weight), {"psnr": psnr(out, video)}

    return loop.Task(lambda step, draws: draw_batch(draws, size, FINISHING), loss)


def psnr(out: torch.Tensor, video: torch.Tensor) -> torch.Tensor:
    """In dB, of values in -1..1."""
    return -10 * (F.mse_loss(out.detach().float().clamp(-1, 1), video) / 4).clamp(min=1e-12).log10()


@torch.no_grad()
def judged(vae: WanVAE, clips: int = 8, frames: int = 17) -> dict[str, float]:
    """PSNR, in dB, of clips that training never saw, encoded and decoded as at inference."""
    draws = np.random.default_rng(99)
    device = vae.device
    values, alike = [], []
    for _ in range(clips):
        video, _ = batch(draws, 1, frames, SIDE, split="test")
        latents = vae.encode(video.to(device))
        values.append(psnr(vae.decode(latents), video.to(device)).item())
        alike.append(F.cosine_similarity(latents[:, :, 0].flatten(), latents[:, :, 1].flatten(), dim=0).item())
    figures = {"held_out_psnr": np.mean(values), "held_out_worst": np.min(values), "first_two_alike": np.mean(alike)}
    return {name: float(value) for name, value in figures.items()}


@torch.no_grad()
def latent_statistics(vae: WanVAE, clips: int = 300) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of every channel of the latents, over clips of all lengths."""
    draws = np.random.default_rng(7)
    latents = []
    for _ in range(clips):
        video, _ = batch(draws, 1, int(draws.choice((17, 33))), SIDE)
        latents.append(encode(vae, video.to(vae.device))[0].transpose(0, 1).flatten(1).cpu())
    values = torch.cat(latents, dim=1)
    return values.mean(dim=1).tolist(), values.std(dim=1).tolist()


def export(vae: WanVAE, folder: Path) -> None:
    """``vae.safetensors`` under the published names and ``vae.json`` with the measured statistics."""
    mean, std = latent_statistics(vae)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in vae.state_dict().items()}
    save_file(tensors, folder / "vae.safetensors")
    settings = json.dumps(SHAPE | {"latents_mean": mean, "latents_std": std}, indent=1)
    (folder / "vae.part").write_text(settings)
    os.replace(folder / "vae.part", folder / "vae.json")  # last: it says that the stage is done


def train(
    folder: Path,
    device: torch.device,
    minutes: float,
    size: int,
    recipes: tuple[loop.Recipe, loop.Recipe, loop.Recipe],
    shape: dict,
    workers: int = 0,
) -> bool:
    """All parts, each resumed where it stopped; True when all is done and exported into `folder`."""
    torch.manual_seed(0)
    vae = WanVAE(**shape).to(device)
    main, align, finish = recipes
    how = {"workers": workers, "minutes": minutes, "judge": judged}
    tasks = {"main": main_loss(vae, size, device, main.steps), "align": align_loss(vae, size, device)}
    for (name, task), recipe in zip(tasks.items(), (main, align), strict=True):
        if not loop.fit(vae, task, recipe, folder / name, **how):
            return False
    std = torch.tensor(latent_statistics(vae)[1], device=device).view(1, -1, 1, 1, 1)
    vae.encoder.requires_grad_(False)
    vae.conv1.requires_grad_(False)
    if not loop.fit(vae, finish_loss(vae, size, device, std), finish, folder / "finish", **how):
        return False
    rank = dist.get_rank() if dist.is_initialized() else 0
    if rank == 0 and not (folder / "vae.json").exists():
        export(vae, folder)
    return True
