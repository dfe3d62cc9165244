"""Trains the VAE's decoder once more, on latents as inference has them: the transformer's, and decoded frames'.

The encoder and so the meaning of latents stay as they are. What the decoder then forgives are the transformer's own
faults (a bent outline, a step too short, a shadow), and what every window of a long video would add to them when its
history is decoded and encoded again: before it, objects grew by a twentieth to a third in twenty such rounds.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from skyreels_v2_infer.cli.defaults import TINY
from skyreels_v2_infer.modules import WanVAE
from skyreels_v2_infer.pipelines import Text2VideoPipeline
from skyreels_v2_infer.pipelines.conditioning import to_frames
from skyreels_v2_infer.scheduler.sigmas import flow_sigmas
from training import clips, evaluate, judge, loop, vae, world
from training import text as texts
from training.dit import SHIFT, Trained

RECIPE = loop.Recipe(steps=700, muon=1.2e-3, adamw=8e-4, decay=0.9, seed=3)
REMADE, ROUNDS = 0.5, 0.35  # shares of the batches, see `spoilt`; the rest is as it was encoded
LAST_STEPS = 6  # of inference's: before these, noise hides so much that the model would make another video
NOISE = 0.12  # standard deviations, at most


@torch.no_grad()
def remade(
    model: Trained, latents: torch.Tensor, noise: torch.Tensor, prompts: list[str], given: int, sigmas: np.ndarray
) -> torch.Tensor:
    """What the model makes of clips that it meets on the way, by Euler's method.

    Args:
        latents, noise: ``[B, 16, F, 8, 8]``, normalised.
        given: latents at the beginning that stay as they are.
        sigmas: falling to 0; the clips are met at the first.
    """
    contexts = [
        model.transformer.prepare_context(model.encoder.encode(said, texts.TEXT_LEN))
        for said in (prompts, [""] * len(prompts))
    ]
    scale = TINY.guidance_scale
    levels = torch.full((len(latents), latents.shape[2]), float(sigmas[0]), device=latents.device)
    levels[:, :given] = 0
    x = torch.lerp(latents, noise, levels[:, None, :, None, None])
    for sigma, following in pairwise(sigmas.tolist()):
        levels[:, given:] = sigma
        prompted, unprompted = (model.transformer(x, 1000 * levels, context) for context in contexts)
        velocity = unprompted + scale * (prompted - unprompted)
        x[:, :, given:] += (following - sigma) * velocity[:, :, given:]
    return x


def round_trip(coder: WanVAE, latents: torch.Tensor) -> torch.Tensor:
    """`clips.round_trip` in bfloat16, which is faster."""
    with torch.autocast(latents.device.type, torch.bfloat16):
        return clips.round_trip(coder, latents)


def spoilt(
    coder: WanVAE,
    model: Trained,
    latents: torch.Tensor,
    prompts: list[str],
    draws: np.random.Generator,
    kinds: np.random.Generator,
) -> torch.Tensor:
    """Normalised latents with the faults of inference: remade by the model, or decoded and encoded; a little noise.

    Args:
        draws: noise. kinds: all else.
    """
    kind, count = kinds.random(), latents.shape[2]
    noise = torch.from_numpy(draws.standard_normal((2, *latents.shape), np.float32)).to(latents.device)
    if kind < REMADE:
        given = int(kinds.choice((0, 0, 1, count // 2)))
        steps = int(kinds.integers(2, LAST_STEPS + 1))
        sigmas = flow_sigmas(TINY.inference_steps, SHIFT)[-1 - steps :]
        latents = remade(model, latents, noise[0], prompts, given, sigmas)
    elif kind < REMADE + ROUNDS:
        for _ in range(int(kinds.integers(1, 4))):
            latents = round_trip(coder, latents)
    return latents + NOISE * float(kinds.random()) * noise[1] if kinds.random() < 0.5 else latents


def decoder_loss(coder: WanVAE, model: Trained, size: int, device: torch.device) -> loop.Task:
    def drawn(step: int, draws: np.random.Generator):
        kinds = np.random.default_rng((RECIPE.seed, step))  # the same for all processes, so that none waits
        shown = vae.draw(draws, size, int(kinds.choice((17, 17, 33))), "train", clips.MIX)
        return *vae.pictures(shown, draws, vae.SIDE), [clip.prompt for clip in shown], draws, kinds

    def loss(batch):
        video, weight, prompts, draws, kinds = batch
        video, weight = video.to(device), weight.to(device)
        mean, std = coder.statistics()
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            latents = (vae.encode(coder, video)[0] - mean) / std
        latents = spoilt(coder, model, latents, prompts, draws, kinds)
        with torch.autocast(device.type, torch.bfloat16):
            out = vae.decode(coder, latents * std + mean)
        return vae.reconstruction(out, video, weight), {"psnr": vae.psnr(out, video)}

    return loop.Task(drawn, loss)


@torch.no_grad()
def growth(coder: WanVAE, count: int = 12, rounds: int = 5) -> float:
    """By how much objects change their size in `rounds` of decoding and encoding: percent, median of `count` clips."""
    mean, std = coder.statistics()
    changes = []
    for i in range(count):
        video = clips.video_of([world.sample_clip(99, i, 17, world.CORE)]).to(coder.device)
        latents = (vae.encode(coder, video)[0] - mean) / std
        for _ in range(rounds):
            latents = round_trip(coder, latents)
        before, after = (judge.judge(to_frames(x)[0]).first for x in (video, coder.decode(latents)))
        if before and after:
            changes.append(abs(after.radius / before.radius - 1))
    return 100 * float(np.median(changes)) if changes else math.nan


def gate(model: Trained) -> Callable[[WanVAE], dict[str, float]]:
    """What is seen of a decoder: of clips, of clips that went through it often, and of the model's videos."""

    def figures(coder: WanVAE) -> dict[str, float]:
        pipeline = Text2VideoPipeline.from_parts(model.transformer, coder, model.encoder)
        return vae.judged(coder) | {"growth": growth(coder)} | evaluate.quick(pipeline)

    return figures


def train(
    folder: Path,
    coder: WanVAE,
    model: Trained,
    device: torch.device,
    minutes: float,
    size: int,
    recipe: loop.Recipe,
    judged=None,
    workers: int = 0,
) -> bool:
    """Trains the decoder of `coder`, and nothing else: True when all is done."""
    coder.to(device).requires_grad_(False)
    for part in (coder.conv2, coder.decoder):
        part.requires_grad_(True)
    model.to(device).eval().requires_grad_(False)
    task = decoder_loss(coder, model, size, device)
    return loop.fit(coder, task, recipe, folder / "decoder", workers=workers, minutes=minutes, every=300, judge=judged)
