"""Conditioning on images, a video to continue and history: conversions, input channels, noised history.

Frames are uint8 ``[T, H, W, 3]``, videos float32 ``[1, 3, T, H, W]`` in -1..1.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from skyreels_v2_infer.media.images import as_shown, fit
from skyreels_v2_infer.media.read import probe_video, read_video
from skyreels_v2_infer.modules.vae import SPATIAL_STRIDE, TEMPORAL_STRIDE, WanVAE
from skyreels_v2_infer.runtime import Noise

if TYPE_CHECKING:
    from skyreels_v2_infer.pipelines.history import Codec


def to_video(frames: np.ndarray, device: torch.device) -> torch.Tensor:
    """uint8 ``[T, H, W, 3]`` -> float32 ``[1, 3, T, H, W]`` in -1..1."""
    video = torch.from_numpy(np.ascontiguousarray(frames)).to(device)
    return video.permute(3, 0, 1, 2).float().div_(127.5).sub_(1).unsqueeze(0)


def to_frames(video: torch.Tensor) -> np.ndarray:
    """float ``[B, 3, T, H, W]`` in -1..1 -> uint8 ``[B, T, H, W, 3]``, rounded to nearest."""
    return to_levels(video).cpu().numpy()


def to_levels(video: torch.Tensor) -> torch.Tensor:
    """As `to_frames`, but a tensor on the video's device."""
    levels = video.float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 4, 1)


def image_video(image, height: int, width: int, device: torch.device) -> torch.Tensor:
    """An image -> video of one frame ``[1, 3, 1, height, width]``, scaled to cover and cropped at the centre.

    Args:
        image: PIL image or uint8 ``[H, W, 3]``.
    """
    return to_video(fit(as_picture(image), height, width)[None], device)


def as_picture(image: Image.Image | np.ndarray, name: str = "image") -> Image.Image:
    """An upright RGB PIL image, from a PIL image or uint8 ``[H, W, 3]``; ValueError for anything else."""
    if isinstance(image, Image.Image):
        return as_shown(image)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        what = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"{name}: must be a PIL image or uint8 [H, W, 3], not {what}")
    return Image.fromarray(image)


def resizecrop(image: Image.Image, th: int, tw: int) -> Image.Image:
    """An image scaled to cover height `th` x width `tw` and cropped at the centre; pipelines do this themselves."""
    return Image.fromarray(fit(as_picture(image), th, tw))


def image_channels(vae: "WanVAE | Codec", image: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Input channels of an image-to-video model in addition to the noise: float32 ``[B, 20, F, H/8, W/8]``.

    Four channels of mask, 1 on the first latent frame, and sixteen of latents of the image followed by gray frames.

    Args:
        image: ``[B, 3, 1, H, W]``.
        num_frames: length of the video, 4n+1.
    """
    gray = image.new_zeros(len(image), 3, num_frames - 1, *image.shape[3:])
    return with_mask(vae.encode(torch.cat([image, gray], dim=2)))


def with_mask(latents: torch.Tensor) -> torch.Tensor:
    """``[B, 16, F, H, W]`` -> ``[B, 20, F, H, W]``: prepends the mask, 1 on the given first latent frame."""
    mask = latents.new_zeros(latents.shape[0], TEMPORAL_STRIDE, *latents.shape[2:])
    mask[:, :, 0] = 1
    return torch.cat([mask, latents], dim=1)


def latent_shape(batch: int, channels: int, latents: int, height: int, width: int) -> tuple[int, ...]:
    """Shape of the latents of a window ``[B, C, F, H/8, W/8]``."""
    return batch, channels, latents, height // SPATIAL_STRIDE, width // SPATIAL_STRIDE


class NoisedHistory:
    """Adds a little noise to the given leading frames in the model's input, so that artifacts do not accumulate.

    SkyReels-V2, section 3.4: generated history differs from the clean data of training. Only the model's input is
    noised; the latents themselves are unchanged.

    Args:
        noise: source of the noise, drawn anew for every row.
        window: index of the window.
        latents: number of leading latent frames that are noised.
        level: thousandths, 0..1000; also the timestep of these frames.
    """

    def __init__(self, noise: Noise, window: int, latents: int, level: float):
        self.noise, self.window, self.latents, self.level = noise, window, latents, level

    def __call__(self, row: int, x: torch.Tensor) -> torch.Tensor:
        """x ``[B, C, F, H, W]`` -> a noised copy."""
        x = x.clone()
        history = x[:, :, : self.latents]
        noise = self.noise.history(self.window, row, tuple(history.shape)).to(x)
        history.lerp_(noise, self.level / 1000)
        return x


# A video to continue: its path, or its frames, uint8 ``[T, H, W, 3]`` or a sequence of images for `as_picture`
Prefix = str | Path | np.ndarray | Sequence[Image.Image | np.ndarray]
PREFIX_CHUNK = 16  # frames of a prefix in a piece


def count_frames(prefix: Prefix | None) -> int:
    """Frames of a prefix; 0: there is none.

    Raises:
        ValueError: it is not a video, or a frame is not an image.
    """
    if prefix is None:
        return 0
    if isinstance(prefix, str | Path):
        return probe_video(prefix).frames
    for frame in prefix[:1] if isinstance(prefix, np.ndarray) else prefix:
        as_picture(frame, "prefix_video, each frame")
    if not len(prefix):
        raise ValueError("prefix_video: has no frames")
    return len(prefix)


class PrefixFrames:
    """The frames of a prefix, fitted piece by piece, of which the newest are kept.

    Args:
        keep: how many.
        batch: videos of the call; each begins with the same frames.
    """

    def __init__(self, prefix: Prefix, height: int, width: int, keep: int, batch: int, device: torch.device):
        if isinstance(prefix, str | Path):
            self._frames = read_video(prefix, height, width)
        else:
            self._frames = (fit(as_picture(frame), height, width) for frame in prefix)
        self._newest: deque[np.ndarray] = deque(maxlen=keep)
        self.batch, self.device = batch, device

    def pieces(self) -> Iterator[torch.Tensor]:
        """float32 ``[batch, 3, t, H, W]`` in -1..1."""
        while chunk := list(islice(self._frames, PREFIX_CHUNK)):
            self._newest.extend(chunk)
            yield to_video(np.stack(chunk), self.device).expand(self.batch, -1, -1, -1, -1)

    def newest(self) -> np.ndarray:
        """uint8 ``[keep, H, W, 3]``; reads what `pieces` has not."""
        for _ in self.pieces():
            pass
        return np.stack(self._newest)
