"""The files of one video while it is made: journal, manifest and preview."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from skyreels_v2_infer.console import say
from skyreels_v2_infer.media import preview
from skyreels_v2_infer.media.ffmpeg import QUALITY
from skyreels_v2_infer.media.report import refresh_report
from skyreels_v2_infer.media.statistics import Look, drift
from skyreels_v2_infer.plan.plan import Plan
from skyreels_v2_infer.run.frames import FrameFolder
from skyreels_v2_infer.run.identity import asked_for
from skyreels_v2_infer.run.inputs import Source
from skyreels_v2_infer.run.journal import Journal
from skyreels_v2_infer.run.latent_pictures import SUFFIX as PICTURE
from skyreels_v2_infer.run.latent_pictures import LatentPictures, name_after
from skyreels_v2_infer.run.manifest import peak_memory, rounded, shared

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

OF_A_PIECE = ("frames", "seconds", "brightness", "saturation", "seam")  # fields of a piece in the manifest


class Video:
    """Writes one video; first rank only.

    Args:
        journal: its pieces on the disk.
        about: the part of the manifest that is known beforehand, see `manifest.describe`.
        plan: the plan that is executed.
        with_preview: whether to write a preview beside the video.
        began: time when the run began (`time.perf_counter`); None: now.
        with_report: whether to write or update the report page of the folder.
        quality: of the encoding, from 0 to 10.

    Attributes:
        path: of the finished video; None before.
        prefix: number of pieces before the first window: 1 if a video is continued, else 0.
        pieces: number of pieces of the finished video: `prefix` and one for each window.
        pictures: of the latents (--preview_every); None: none.
    """

    def __init__(
        self,
        journal: Journal,
        about: dict,
        plan: Plan,
        with_preview: bool,
        began: float | None = None,
        with_report: bool = False,
        quality: float = QUALITY,
    ):
        self.journal, self.about = journal, about
        self.with_preview, self.with_report = with_preview, with_report
        self.form = plan.height, plan.width, plan.fps, quality
        self.path: Path | None = None
        self.prefix = int(plan.prefix_frames > 0)
        self.pieces = self.prefix + len(plan.windows)
        self._new_frames = [window.window.new_frames for window in plan.windows]
        self._thumbnails: list[Image.Image] = []
        self._spots: frozenset[int] = frozenset()
        self._began = time.perf_counter() if began is None else began
        self._frames = 0
        self._state: tuple | None = None
        self._writing = ExitStack()
        self._writer = self._look = None
        self._details: dict = {}
        self.pictures: LatentPictures | None = None
        self._folder: FrameFolder | None = None

    def write_frames_to(self, folder: Path) -> None:
        """Opens the folder for the single frames.

        Raises:
            InputError: it cannot be used; see `FrameFolder.open`.
        """
        done = sum(piece["frames"] for piece in self.journal.pieces)
        self._folder = FrameFolder.open(folder, self.journal.info.digest, done, self.is_complete)

    def close(self) -> None:
        """Unlocks the folders; removes them where nothing in them is worth keeping. A second call does nothing."""
        keep = self.path is not None or self.journal.worth_keeping
        if self.pictures is not None and not keep:
            self.pictures.remove()
        self.journal.close()
        if self._folder is not None:
            self._folder.close(keep)

    def draw_latents(self, every: int, vae: Path) -> None:
        """From now on a picture of the latents is written, see `LatentPictures`."""
        self.pictures = LatentPictures(self._picture, every, vae)

    @property
    def _picture(self) -> Path:
        folder = self.journal.folder
        return folder.with_name(folder.stem + PICTURE)

    def add_details(self, details: dict) -> None:
        """Adds to the manifest what is known once the model is loaded."""
        self._details = details

    def state(self) -> tuple[int, np.ndarray | None, np.ndarray | None] | None:
        """(window, its latents if it is denoised, history) to resume from; None: from the beginning."""
        if self._state is None:
            done = len(self.journal.pieces)
            latents, history = self.journal.state()
            if done or latents is not None:
                self._state = done - self.prefix, latents, history
        return self._state

    @property
    def is_complete(self) -> bool:
        """Whether all pieces are done and only have to be joined."""
        return len(self.journal.pieces) == self.pieces

    def add_source(self, source: Source, newest: np.ndarray, frames: Callable[[], Iterable[np.ndarray]]) -> None:
        """Makes the video that is continued the first piece.

        Args:
            newest: float32 ``[1, 3, t, H, W]`` in -1..1, its newest frames.
            frames: all of them, uint8 ``[H, W, 3]``; called if single frames are written.
        """
        if self._folder is not None:
            self._begin_frames()
            for frame in frames():
                self._folder.write(frame[None])
            self._folder.end()
        ends = preview.pair(source.look.first, source.look.last)
        self._end(self.journal.place(source.segment), source.look, newest, {}, ends)

    def begin_piece(self) -> None:
        """Opens the segment of the next piece."""
        self._look, self._thumbnails = Look(), []
        window = self._new_frames[len(self.journal.pieces) - self.prefix]
        self._spots = frozenset(preview.spots(window, self.pieces))
        self._begin_frames()
        self._writer = self._writing.enter_context(self.journal.segment(*self.form))

    def write(self, fetch: Callable[[], np.ndarray]) -> None:
        """Appends the frames that `fetch` returns, uint8 ``[t, H, W, 3]``."""
        frames = fetch()
        self._writer.write(frames)
        shown = (place for place in range(len(frames)) if self._look.frames + place in self._spots)
        self._thumbnails += [preview.thumbnail(frames[place]) for place in shown]
        self._look.add(frames)
        if self._folder is not None:
            self._folder.write(frames)

    def _begin_frames(self) -> None:
        if self._folder is not None:
            self._folder.begin(sum(piece["frames"] for piece in self.journal.pieces))

    def end_piece(self, state: np.ndarray | None, seconds: dict[str, float]) -> None:
        """Closes the piece and records it as finished.

        Args:
            state: of the history after it; None where no window could follow.
            seconds: spent on it, by stage.
        """
        self._writing.close()
        if self._folder is not None:
            self._folder.end()
        self._end(self._writer.path, self._look, state, seconds, preview.strip(self._thumbnails))
        self._writer = None

    def _end(self, path: Path, look: Look, state: np.ndarray | None, seconds: dict[str, float], ends) -> None:
        about = {"frames": look.frames, "seconds": rounded(seconds), **look.figures()}
        about["seam"] = round(self._seam(ends), 4)
        last = len(self.journal.pieces) + 1 == self.pieces
        self.journal.done(path, None if last and not self.journal.keep else state, about, ends)
        self._frames += look.frames

    @property
    def _width(self) -> int:
        """Of a thumbnail."""
        return preview.first_frame(*self.form[:2], 1)[1][2]

    def _seam(self, ends) -> float:
        """Mean difference between the last frame of the piece before and the first of this one, 0 to 1."""
        number = len(self.journal.pieces)
        if not number:
            return 0.0
        before, after = (preview.parted(one, self._width) for one in (self.journal.ends(number - 1), ends))
        return preview.difference(before[-1], after[0])

    def stop_writing(self) -> None:
        """Makes a task that writes frames fail soon; called by another thread than the one that writes."""
        writer = self._writer
        if writer is not None:
            writer.give_up()

    def give_up_piece(self) -> None:
        """Removes the current piece if it is not finished."""
        if self._writer is not None:
            with suppress(GivenUp), self._writing:
                raise GivenUp
            self._writer = None
            if self._folder is not None:
                self._folder.give_up()

    def finish(self, loading: float = 0.0) -> Path:
        """Joins the pieces and writes manifest, preview and report page -> the video's path.

        Args:
            loading: seconds that loading the model took.
        """
        journal = self.journal
        pieces = [{name: piece[name] for name in OF_A_PIECE} for piece in journal.pieces]
        lasting = shared(self.about) | {
            "pieces": [{k: v for k, v in piece.items() if k != "seconds"} for piece in pieces]
        }
        seconds = {"loading": loading, "total": time.perf_counter() - self._began}
        manifest = self.about | {"pieces": pieces, "asked": asked_for(journal.identity), "details": self._details}
        manifest |= {"seconds": rounded(seconds), "peak_memory_gib": peak_memory()}
        firsts = [sum(piece["frames"] for piece in pieces[:i]) for i in range(len(pieces))]
        total = sum(piece["frames"] for piece in pieces)
        moved = drift(pieces, self.prefix)
        if moved is not None:
            say(moved)

        def page(ends):
            return preview.sheet(ends, firsts, total, self._width)

        if self._folder is not None:
            self._folder.finish()
        picture = self._picture
        self.path = journal.finish(manifest, lasting, page if self.with_preview else None)
        name_after(picture, self.path)  # also one of an interrupted run that this one has resumed
        if self._frames:
            count = f"{total} frame{'s' * (total != 1)}"
            if total != self._frames:
                count += f" ({self._frames} of them made now)"
            say(f"{count}, seed {journal.identity['seed']}, {seconds['total']:.1f} s")
        if self.with_report:
            refresh_report(self.path.parent, create=self.pieces > 1)
        return self.path

    def left(self) -> str:
        """For messages: what survives if the run stops here."""
        if self.path is not None:
            return f"the video is complete: {self.path}"
        if not self.journal.worth_keeping:
            return "no video was written"
        kept = self.counted(len(self.journal.pieces))
        also = ", and the next one is denoised" if self.journal.is_denoised else ""
        return f"{kept} are kept{also}; the same command with --resume continues"

    def counted(self, pieces: int) -> str:
        """How many windows so many pieces are, of all; the video that is continued is none."""
        windows = self.pieces - self.prefix
        return f"{max(pieces - self.prefix, 0)} of {windows} windows"


class GivenUp(Exception):
    """Raised inside a piece's writer so that it removes its file."""
