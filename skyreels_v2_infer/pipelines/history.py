"""What a run has finished, what later windows go on from, and where a run goes on that was stopped."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch


class History:
    """The newest frames of what is finished, on the CPU, no more of them than later windows can ask for.

    Args:
        keep: how many.
    """

    def __init__(self, keep: int):
        self.keep = keep
        self.pieces: deque[torch.Tensor] = deque()
        self.length = 0

    def add(self, piece: torch.Tensor) -> None:
        """Appends ``[B, 3, t, H, W]``."""
        if not self.keep:
            return
        self.pieces.append(piece.cpu())
        self.length += piece.shape[2]
        while self.length - self.pieces[0].shape[2] >= self.keep:
            self.length -= self.pieces.popleft().shape[2]

    def newest(self, frames: int) -> torch.Tensor:
        """float32 ``[B, 3, frames, H, W]`` in -1..1."""
        return self.all()[:, :, -frames:]

    def all(self) -> torch.Tensor:
        """All that is kept, float32 ``[B, 3, t, H, W]``."""
        return torch.cat(list(self.pieces), dim=2)


class LatentHistory(History):
    """The same for latents, ``[B, 16, F, H/8, W/8]``, and what the decoder remembers of them.

    Args:
        keep: how many latents later windows, or a decoder that has lost its memory, can ask for.
    """

    def __init__(self, keep: int):
        super().__init__(keep)
        self.memory: dict = {}

    def restore(self, latents: torch.Tensor, lengths: list[int], vae) -> None:
        """As if it had been here all the time.

        The decoder runs once more over as many windows as it depends on, each as a whole, so that its memory is the
        same to the bit.

        Args:
            latents: from `all`. lengths: of the windows before, in latents.
        """
        while latents.shape[2] and lengths:
            length = min(lengths.pop(), latents.shape[2])
            self.pieces.appendleft(latents[:, :, latents.shape[2] - length :])
            self.length += length
            latents = latents[:, :, : latents.shape[2] - length]
        for piece in self.pieces:
            for _ in vae.decode_stream(piece, self.memory):
                pass


@dataclass(frozen=True)
class Finished:
    """A stretch of the video that is finished: a window, or the video before the first one.

    Attributes:
        latents: float32 ``[B, 16, F, H/8, W/8]`` of the frames that are new, an image in front among them; None for
            the video before.
        pieces: its new frames, float32 ``[B, 3, t, H, W]`` in -1..1, decoded while it is iterated over.
        window: index of the window; None for the video before.
        whole: float32 ``[B, 16, F, H/8, W/8]``, what is decoded: new latents and those of the history in front.
        history: the newest frames (or latents), up to this stretch's once `pieces` are exhausted; None where no window
            goes on.
    """

    latents: torch.Tensor | None
    pieces: Iterator[torch.Tensor]
    window: int | None = None
    whole: torch.Tensor | None = None
    history: History | None = None


@dataclass(frozen=True)
class Resume:
    """Where a run goes on that was stopped, with what `Finished` told of it.

    Attributes:
        window: index of the first window that is made.
        latents: `Finished.whole` of that window, if it was denoised already.
        history: what `Finished.history` has kept, `all` of it; None before the first window.
    """

    window: int = 0
    latents: torch.Tensor | None = None
    history: torch.Tensor | None = None
