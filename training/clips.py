"""Clips as latents: made once by the trained VAE, kept in shards beside the checkpoints, drawn from by every stage.

N clips; latents ``[16, F, 8, 8]``. The VAE is causal, so the first n latents of a clip are those of a shorter one.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from skyreels_v2_infer.modules import WanVAE
from skyreels_v2_infer.pipelines.conditioning import image_channels
from skyreels_v2_infer.scheduler.windows import latent_length
from training import grammar, loop, world
from training.vae import decode as decode_whole
from training.vae import encode as encode_whole

FRAMES = 33
LENGTHS = (5, 9)  # latents after which an end image is known
SIDE = 64
HISTORY = 17  # frames that are decoded and encoded again: a window's history comes from decoded frames
AGAIN = 0.7  # of the clips that need a history
AGAIN_FREE = 0.2  # of the others
STRAYED = 0.6  # of the clips that need a history, half as many of the others
STRAY_SPEED, STRAY_SIZE = 0.15, 0.04  # deviations of how far they stray, as a fraction; at most two of them
SHARD = 200
MIX = world.Mix(bounce=0.25, star=0.05, diagonal=0.07, spin=0.03, growth=0.04, camera=0.02, pair=0.02)
TURNS = replace(MIX, bounce=1.0)  # clips from the middle of long videos only
STARTS = replace(MIX, bounce=0.0)
TENSORS = ("latents", "ends", "again", "has_again", "strayed", "has_strayed", "images", "channels")
TOGETHER, TOGETHER_ON_CPU = 100, 2  # clips that are encoded at once: more do not fit a CPU's caches


@dataclass
class Clips:
    """Attributes:
    latents: float16 ``[N, 16, 9, 8, 8]``, normalised.
    ends: float16 ``[N, 2, 16, 8, 8]``, the last frame of the first 5 and of all 9 latents, encoded as an image.
    again: float16 ``[N, 16, 5, 8, 8]``, the first 17 frames after decoding and encoding; zeros where not made.
    strayed: float16 ``[N, 16, 5, 8, 8]``, the same of frames such as windows make, see `straying`.
    has_again, has_strayed: bool ``[N]``.
    channels: float16 ``[N, 16, 9, 8, 8]``, what an image-to-video model sees of the first frame; or None.
    images: uint8 ``[N, 64, 64, 3]``, the first frames.
    facts: what a prompt may name. history: latents that must be given.
    weights: float32 ``[9]``, what an error in each latent frame counts: 1 over how much the clips differ there. The
        first frames are encoded by layers that see less, in smaller values, so equal errors are larger faults.
    """

    latents: torch.Tensor
    ends: torch.Tensor
    again: torch.Tensor
    has_again: torch.Tensor
    strayed: torch.Tensor
    has_strayed: torch.Tensor
    images: torch.Tensor
    channels: torch.Tensor | None
    facts: list[dict[str, str]]
    history: np.ndarray
    weights: torch.Tensor = field(init=False)

    def __post_init__(self):
        spread = [self.latents[:, :, t].float().var(dim=0).mean() for t in range(self.latents.shape[2])]
        self.weights = 1 / torch.stack(spread)

    def __len__(self) -> int:
        return len(self.facts)

    def prompt(self, index: int, rng: np.random.Generator, left_out: Mapping[str, float]) -> str:
        """A new wording each time; `left_out`: how often a fact is not told that the grammar might tell."""
        facts = {name: value for name, value in self.facts[index].items() if rng.random() >= left_out.get(name, 0)}
        return grammar.put_into_words(facts, rng, "train")[0]


def video_of(clips: list[world.Clip], side: int = SIDE) -> torch.Tensor:
    """float32 ``[B, 3, T, side, side]`` in -1..1."""
    return as_video(torch.from_numpy(np.stack([clip.render(side) for clip in clips])))


def as_video(frames: torch.Tensor) -> torch.Tensor:
    """The same of frames, uint8 ``[B, T, H, W, 3]``."""
    return frames.permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1)


def encode(vae: WanVAE, video: torch.Tensor) -> torch.Tensor:
    """`WanVAE.encode` with all frames at once, which suits small short videos."""
    mean, std = vae.statistics()
    video = video.contiguous(memory_format=torch.channels_last_3d)
    return (encode_whole(vae, video)[0] - mean) / std


def straying(clip: world.Clip, rng: np.random.Generator) -> np.ndarray:
    """The clip's first HISTORY frames as a window may have made them: uint8 ``[17, 64, 64, 3]``.

    The object is now a little slower, now faster than it should be, now larger, now smaller, and in the last frame
    where the clip has it. What goes on from it learns to come back to a speed and a size that there are.
    """
    knots, frames = (0, HISTORY // 2, HISTORY - 1), np.arange(HISTORY)
    pace, scale = (
        1 + np.interp(frames, knots, deviation * rng.standard_normal(3).clip(-2, 2))
        for deviation in (STRAY_SPEED, STRAY_SIZE)
    )
    steps = (pace[1:] + pace[:-1]) / 2
    left = np.append(steps[::-1].cumsum()[::-1], 0)  # time until the last frame
    times = clip.first_frame + HISTORY - 1 - left
    return world.render_at(clip.scene, times, SIDE, scale)


@torch.no_grad()
def round_trip(vae: WanVAE, latents: torch.Tensor) -> torch.Tensor:
    """Normalised latents, decoded to frames of 8 bits and encoded again."""
    mean, std = vae.statistics()
    frames = decode_whole(vae, latents * std + mean).float().clamp(-1, 1)
    return encode(vae, frames.add(1).mul(127.5).round().div(127.5).sub(1))


@dataclass
class Drawn:
    """A shard of clips before they are encoded.

    Attributes:
        videos: uint8 ``[N, 33, 64, 64, 3]``.
        strayed: uint8 ``[M, 17, 64, 64, 3]``, of the clips that `has_strayed` names, see `straying`.
        has_again, has_strayed: bool ``[N]``.
        facts, history: as in `Clips`.
    """

    videos: torch.Tensor
    strayed: torch.Tensor
    has_again: torch.Tensor
    has_strayed: torch.Tensor
    facts: list[dict[str, str]]
    history: np.ndarray


def draw_shard(indices: range, seed: int, mix: world.Mix, with_channels: bool) -> Drawn:
    """Some clips of the seed's list, and which of them get which histories."""
    rng, strays = (np.random.default_rng((seed, indices.start, purpose)) for purpose in (0, 1))
    clips = [world.sample_clip(seed, i, FRAMES, mix) for i in indices]
    share = 0.0 if with_channels else STRAYED  # of the clips that need a history; half as many of the others
    has_again = [rng.random() < (AGAIN if clip.history else AGAIN_FREE) for clip in clips]
    has_strayed = [strays.random() < (share if clip.history else share / 2) for clip in clips]
    strayed = [straying(clip, strays) for clip, chosen in zip(clips, has_strayed, strict=True) if chosen]
    return Drawn(
        torch.from_numpy(np.stack([clip.render(SIDE) for clip in clips])),
        torch.from_numpy(np.stack(strayed)) if strayed else torch.empty(0, HISTORY, SIDE, SIDE, 3, dtype=torch.uint8),
        torch.tensor(has_again),
        torch.tensor(has_strayed),
        [clip.facts for clip in clips],
        np.array([latent_length(clip.history) if clip.history else 0 for clip in clips]),
    )


@torch.no_grad()
def encode_shard(vae: WanVAE, drawn: Drawn, with_channels: bool) -> dict:
    """The tensors and facts of `Clips`."""
    together = TOGETHER_ON_CPU if vae.device.type == "cpu" else TOGETHER

    def encoded(frames: torch.Tensor, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """`function` of the frames as a video in -1..1, some clips at a time -> float16 on the CPU."""
        return torch.cat([function(as_video(part.to(vae.device))).half().cpu() for part in frames.split(together)])

    def lasts(video: torch.Tensor) -> torch.Tensor:
        frames = [video[:, :, 4 * n - 4 : 4 * n - 3] for n in LENGTHS]
        return torch.stack([encode(vae, frame)[:, :, 0] for frame in frames], dim=1)

    def histories(latents: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Of the `chosen` clips, decoded and encoded again; zeros of the others."""
        all_of_them = torch.zeros(len(chosen), 16, LENGTHS[0], SIDE // 8, SIDE // 8, dtype=torch.float16)
        if len(latents):
            parts = (part.to(vae.device).float() for part in latents.split(together))
            all_of_them[chosen] = torch.cat([round_trip(vae, part).half().cpu() for part in parts])
        return all_of_them

    latents = encoded(drawn.videos, lambda video: encode(vae, video))
    strayed = encoded(drawn.strayed, lambda video: encode(vae, video)) if len(drawn.strayed) else drawn.strayed
    tensors = {
        "latents": latents,
        "ends": encoded(drawn.videos, lasts),
        "again": histories(latents[drawn.has_again, :, : LENGTHS[0]], drawn.has_again),
        "has_again": drawn.has_again,
        "strayed": histories(strayed, drawn.has_strayed),
        "has_strayed": drawn.has_strayed,
        "images": drawn.videos[:, 0].clone(),
    }
    if with_channels:
        tensors["channels"] = encoded(drawn.videos, lambda video: image_channels(vae, video[:, :, :1], FRAMES)[:, 4:])
    return tensors | {"facts": drawn.facts, "history": drawn.history}


def shard_names(
    vae: WanVAE, shards: list[range], seed: int, mix: world.Mix, with_channels: bool, workers: int = 0
) -> list[str]:
    """File names: other clips get other ones, as do other latents and other histories, which the decoder made, too."""
    weights = 0
    for tensor in vae.state_dict().values():
        weights = zlib.crc32(tensor.float().cpu().numpy().tobytes(), weights)
    origin = (weights, vae.latents_mean, vae.latents_std, with_channels, STRAYED, STRAY_SPEED, STRAY_SIZE)

    def name(indices: range) -> str:
        clips = [world.sample_clip(seed, i, FRAMES, mix) for i in indices]
        shown = [(clip.scene, clip.first_frame, clip.facts) for clip in clips]
        return f"{zlib.crc32(repr((origin, shown)).encode()):08x}-{seed}-{indices.start:06d}.pt"

    return list(loop.ahead(name, shards, workers))


def load_or_encode(
    vae: WanVAE,
    folder: Path,
    count: int,
    seed: int,
    mix: world.Mix = MIX,
    rank: int = 0,
    world_size: int = 1,
    with_channels: bool = False,
    workers: int = 0,
) -> Clips:
    """`count` clips from `folder`; shards that are not there yet are made, each rank its share of them.

    Args:
        with_channels: also what an image-to-video model sees.
        workers: processes that render ahead.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = [range(first, min(first + SHARD, count)) for first in range(0, count, SHARD)]
    paths = [folder / name for name in shard_names(vae, shards, seed, mix, with_channels, workers)]
    lacking = [i for i, path in enumerate(paths) if i % world_size == rank and not path.exists()]
    drawn = loop.ahead(lambda i: draw_shard(shards[i], seed, mix, with_channels), lacking, workers)
    for i, shard in zip(lacking, tqdm(drawn, desc="encoding clips", unit="shard", disable=rank > 0), strict=True):
        loop.save(paths[i], encode_shard(vae, shard, with_channels))
    loop.barrier()
    parts = [torch.load(path, weights_only=False) for path in paths]
    tensors = {name: torch.cat([part[name] for part in parts]) if name in parts[0] else None for name in TENSORS}
    facts = [facts for part in parts for facts in part["facts"]]
    return Clips(**tensors, facts=facts, history=np.concatenate([part["history"] for part in parts]))


def joined(one: Clips, other: Clips) -> Clips:
    """The clips of both, neither with image channels."""
    tensors = {name: torch.cat([getattr(one, name), getattr(other, name)]) for name in TENSORS if name != "channels"}
    history = np.concatenate([one.history, other.history])
    return Clips(**tensors, channels=None, facts=one.facts + other.facts, history=history)
