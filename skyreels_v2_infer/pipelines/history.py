"""History between windows, in pixels or latents; what pipelines yield, and the state from which a run resumes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch

from skyreels_v2_infer.modules import vae_tiles
from skyreels_v2_infer.modules.vae import WanVAE
from skyreels_v2_infer.plan.plan import WindowPlan


class Codec:
    """The VAE with its placement: on the device while it computes.

    Args:
        at_work: see `VideoPipeline`.
        device: of the videos and latents.
        tiled: compute tile by tile, see `modules.vae_tiles`.
    """

    def __init__(
        self,
        vae: WanVAE,
        at_work: Callable[..., AbstractContextManager],
        device: torch.device,
        tiled: bool = False,
    ):
        self.vae, self.at_work, self.device, self.tiled = vae, at_work, device, tiled

    @torch.no_grad()
    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """``[B, 3, 4n+1, H, W]`` in -1..1 -> float32 ``[B, 16, n+1, H/8, W/8]``."""
        with self.at_work(self.vae):
            if self.tiled:
                return vae_tiles.encode(self.vae, video)
            return self.vae.encode(video.to(self.device))

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, skip: int, memory: dict | None = None) -> Iterator[torch.Tensor]:
        """Yields the frames of latents ``[B, 16, F, H/8, W/8]`` after the first `skip`, float32 ``[B, 3, t, H, W]``.

        Args:
            memory: the decoder's cached features of the latents before these; updated in place. None: these begin a
                video.
        """
        # Tiles keep their cached features in host memory themselves.
        with self.at_work(self.vae, None if self.tiled else memory):
            decode_stream = partial(vae_tiles.decode_stream, self.vae) if self.tiled else self.vae.decode_stream
            for piece in decode_stream(latents, memory):
                new = piece[:, :, skip:]
                skip = max(0, skip - piece.shape[2])
                if new.shape[2]:
                    yield new


def finite(pieces: Iterator[torch.Tensor], window: WindowPlan) -> Iterator[torch.Tensor]:
    """The same pieces; whether they are finite is checked after the last one, without a wait for the device before.

    Raises:
        FloatingPointError: a piece contains NaN (`decode_stream`), which would become black pixels.
    """
    found = []
    for piece in pieces:
        found.append(piece.isfinite().all())
        yield piece
    if found and not torch.stack(found).all():
        raise FloatingPointError(f"window {window.window.index + 1}: decoded frames contain NaN or Inf")


class Newest:
    """The newest frames or latents, on the CPU: at least `keep` along axis 2, and at most one piece more."""

    def __init__(self, keep: int):
        self.keep = keep
        self.pieces: deque[torch.Tensor] = deque()
        self.length = 0

    def add(self, piece: torch.Tensor) -> None:
        """Appends ``[B, C, t, H, W]``."""
        if not self.keep:
            return
        self.pieces.append(piece.cpu())
        self.length += piece.shape[2]
        while self.length - self.pieces[0].shape[2] >= self.keep:
            self.length -= self.pieces.popleft().shape[2]

    def add_in_front(self, piece: torch.Tensor) -> None:
        """Prepends ``[B, C, t, H, W]``."""
        self.pieces.appendleft(piece)
        self.length += piece.shape[2]

    def newest(self, count: int) -> torch.Tensor:
        """``[B, C, count, H, W]``."""
        return self.all()[:, :, -count:]

    def all(self) -> torch.Tensor:
        """All kept pieces ``[B, C, t, H, W]``."""
        return torch.cat(list(self.pieces), dim=2)


class PixelHistory:
    """Windows start from decoded frames, which are encoded again, as published.

    Args:
        codec: the VAE.
        keep: largest number of frames that a later window needs; 0: none.
    """

    def __init__(self, codec: Codec, keep: int):
        self.codec, self.frames = codec, Newest(keep)

    def add(self, frames: torch.Tensor) -> None:
        """Frames of a video that is continued, float32 ``[B, 3, t, H, W]`` in -1..1."""
        self.frames.add(frames)

    def given(self, window: WindowPlan) -> torch.Tensor | None:
        """The history of a window as latents ``[B, 16, F, H/8, W/8]``; None: it has no history."""
        count = window.window.history_frames
        return self.codec.encode(self.frames.newest(count)) if count else None

    def decode(self, window: WindowPlan, latents: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yields the new frames of a window piece by piece, and keeps the newest.

        Args:
            latents: of the whole window, its history included.
        """
        for piece in finite(self.codec.decode(latents, window.window.history_frames), window):
            self.frames.add(piece)
            yield piece

    def state(self) -> torch.Tensor | None:
        """State for `restore`; None where no window follows."""
        return self.frames.all() if self.frames.keep else None

    def restore(self, state: torch.Tensor, done: Sequence[WindowPlan]) -> None:
        """Restores the history after the windows `done`, as if this process had made them."""
        self.frames.add(state)


class LatentHistory:
    """Windows start from latents, and the video is decoded in one stream.

    Args:
        codec: the VAE.
        keep: largest number of latent frames that a later window, or the decoder after resuming, needs.
        prefix: history of the first window, which continues the frames of a video.
    """

    def __init__(self, codec: Codec, keep: int, prefix: PixelHistory):
        self.codec, self.latents, self.prefix = codec, Newest(keep), prefix
        self.memory: dict = {}

    def add(self, frames: torch.Tensor) -> None:
        """As `PixelHistory.add`."""
        self.prefix.add(frames)

    def given(self, window: WindowPlan) -> torch.Tensor | None:
        """As `PixelHistory.given`."""
        if window.window.index == 0:
            return self.prefix.given(window)
        return self.latents.newest(window.given_latents) if window.given_latents else None

    def decode(self, window: WindowPlan, latents: torch.Tensor) -> Iterator[torch.Tensor]:
        """As `PixelHistory.decode`."""
        first = window.window.index == 0
        new = latents if first else latents[:, :, window.window.history_latents :]
        yield from finite(self.codec.decode(new, window.window.history_frames if first else 0, self.memory), window)
        self.latents.add(new)

    def state(self) -> torch.Tensor | None:
        """As `PixelHistory.state`."""
        return self.latents.all()

    def restore(self, state: torch.Tensor, done: Sequence[WindowPlan]) -> None:
        """As `PixelHistory.restore`.

        The decoder runs again over as many windows as its output depends on, in the same pieces, so that its cached
        features are bit-identical.
        """
        lengths = [w.latents - w.end_latents - (w.window.history_latents if w.window.index else 0) for w in done]
        while state.shape[2] and lengths:
            length = min(lengths.pop(), state.shape[2])
            self.latents.add_in_front(state[:, :, state.shape[2] - length :])
            state = state[:, :, : state.shape[2] - length]
        for piece in self.latents.pieces:
            for _ in self.codec.decode(piece, 0, self.memory):
                pass


@dataclass(frozen=True)
class Finished:
    """A finished part of the video: a window, or the video that is continued.

    Attributes:
        latents: float32 ``[B, 16, F, H/8, W/8]`` of the new frames, including a first image; None for the video that is
            continued.
        pieces: its new frames, float32 ``[B, 3, t, H, W]`` in -1..1, decoded while iterated over.
        window: index of the window; None for the video that is continued.
        whole: float32 ``[B, 16, F, H/8, W/8]``, input of the decoder: the history's latents and the new ones.
        history: includes this part once `pieces` is exhausted.
    """

    latents: torch.Tensor | None
    pieces: Iterator[torch.Tensor]
    window: int | None = None
    whole: torch.Tensor | None = None
    history: PixelHistory | LatentHistory | None = None


@dataclass(frozen=True)
class Resume:
    """State from which a run resumes.

    Attributes:
        window: index of the first window to make.
        latents: `Finished.whole` of that window, if it is denoised already.
        history: `state()` of the history before that window; None before the first window.
    """

    window: int = 0
    latents: torch.Tensor | None = None
    history: torch.Tensor | None = None
