"""--preview_every: a picture of the latents beside the output, written again every N rows of a window."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from skyreels_v2_infer.console import say
from skyreels_v2_infer.errors import first_line
from skyreels_v2_infer.media.latent_picture import picture, projection_in
from skyreels_v2_infer.run.files import write_whole

if TYPE_CHECKING:
    import torch

SUFFIX = ".latents.png"


class LatentPictures:
    """Writes the pictures of a video; a hook of the pipeline, see `pipelines.hooks.Hooks.look`.

    Args:
        path: of the picture.
        every: rows from one picture to the next.
        vae: folder that may hold the colours of its latents.
    """

    def __init__(self, path: Path, every: int, vae: Path):
        self.path, self.every, self.vae = path, every, vae
        self._failed = False

    def __call__(self, window: int, row: int, rows: int, estimate: Callable[[], torch.Tensor]) -> None:
        """After every `every` rows and the last: draws the estimate of the denoised latents ``[B, C, F, h, w]``.

        What goes wrong is said once, and the video goes on.
        """
        if self._failed or ((row + 1) % self.every and row + 1 < rows):
            return
        try:
            page = picture(estimate()[0].float().cpu().numpy(), projection_in(self.vae))
            write_whole(self.path, lambda file: page.save(file, format="PNG"))
        except (OSError, ValueError) as error:
            self._failed = True
            say(f"--preview_every: no picture: {first_line(error)}")
            return
        if window == 0 and row + 1 == min(self.every, rows):
            say(f"{self.path}: what the latents look like, in approximate colours, every {self.every} rows")

    def remove(self) -> None:
        """Removes the picture of a run of which nothing is kept."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)


def name_after(picture: Path, video: Path) -> None:
    """Renames a picture, if there is one, to the name of the finished video, unless such a file exists."""
    target = video.with_suffix(SUFFIX)
    with suppress(OSError):
        if picture.exists() and not target.exists():
            picture.rename(target)
