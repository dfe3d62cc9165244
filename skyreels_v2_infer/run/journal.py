"""The folder of an unfinished run: state for resuming after any interruption.

A run makes its video in pieces, one for a video that is continued and one for each window. Its folder, in the output
folder, holds

- ``run.json``: the run's identity (settings, files, seed), and the finished pieces, each with the checksum of its
  segment; a piece counts once it is listed here, so this file is replaced last;
- ``segment-0000.mp4``, ...: the pieces, each a playable video;
- ``history-0001.npy``: the history that the window of that piece starts from;
- ``latents-0001.npy``: a window that is denoised but not decoded yet;
- ``ends-0000.png``, ...: thumbnails of the first and the last frame of each piece and some between, for the preview;
- ``sound.mp4``: the sound of a video that is continued; extracted anew by every process that works on the run;
- ``lock``: locked by the process that works on the run.

Every file is written under another name first, then renamed. Imports no torch.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from skyreels_v2_infer.errors import InputError, first_line
from skyreels_v2_infer.media.comment import as_ffmetadata
from skyreels_v2_infer.media.ffmpeg import QUALITY
from skyreels_v2_infer.media.write import VideoWriter, join_videos, publish
from skyreels_v2_infer.run.files import (
    checksum,
    is_regular,
    move_whole,
    open_regular,
    sync_folder,
    take_lock,
    write_array,
    write_whole,
)
from skyreels_v2_infer.run.folder import (
    damaged_files,
    has_progress,
    published,
    read_state,
    refuse_links,
    remove_beginning,
    stays_locked,
)
from skyreels_v2_infer.run.manifest import text_of
from skyreels_v2_infer.run.record import (
    JOINED,
    LOCK,
    NAME,
    SOUND,
    SUFFIX,
    DamagedError,
    Record,
    RunInfo,
    ends_name,
    history_name,
    latents_name,
    segment_name,
    write_record,
)

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image


class BusyError(InputError):
    """Another process works on the run."""

    def __init__(self, folder: Path):
        super().__init__("resume", None, f"another process is working on {folder}")


class Journal:
    """One run's folder, locked until `close`. Made by `begin`, or by `resume.resume_run` from an existing folder.

    Attributes:
        folder: where the files are.
        info: what the run makes.
        pieces: see `record.Record`.
    """

    def __init__(self, folder: Path, lock: int, record: Record):
        self.folder, self._lock, self._record = folder, lock, record

    @classmethod
    def begin(cls, outdir: Path, info: RunInfo, alone: bool = False) -> Journal:
        """Creates the folder of a new run, beside any others.

        Args:
            outdir: folder of the finished video.
            info: what the run makes.
            alone: refuse if another process works on the same run.

        Raises:
            BusyError: another process works on it.
            OSError: the folder cannot be written; the message names it.
        """
        for number in itertools.count(1):
            folder = outdir / f"{info.folder_stem}{f'-{number}' if number > 1 else ''}{SUFFIX}"
            try:
                folder.mkdir()
                lock = take_lock(folder / LOCK)
            except (FileExistsError, FileNotFoundError):  # exists, or was removed at once by `resume_run`
                if not outdir.is_dir():
                    raise
                if alone and stays_locked(folder):
                    raise BusyError(folder) from None
                continue
            if lock is None:
                continue
            journal = cls(folder, lock, Record(info))
            try:
                journal._write()
                sync_folder(outdir)
            except BaseException:
                journal.discard()
                raise
            return journal
        raise AssertionError("unreachable")

    @classmethod
    def reopen(cls, folder: Path, lock: int, record: Record) -> Journal:
        """The journal of an interrupted run; removes files that were being written when it stopped.

        Args:
            lock: of the folder; the journal closes it.
            record: as read under that lock.

        Raises:
            DamagedError: a file is missing or not as it was written, or is a link. The lock stays with the caller.
        """
        refuse_links(folder)
        journal = cls(folder, lock, record)
        journal._give_back_name()
        if published(folder, record) is not None:  # complete, except that the folder was not removed
            return journal
        for number in range(len(record.pieces)):
            for path in damaged_files(folder, number, record):
                raise DamagedError(path, "not what was written")
        known = journal._known_names()
        for path in folder.iterdir():
            if path.name not in known and not path.is_dir():
                path.unlink()
        return journal

    @property
    def info(self) -> RunInfo:
        return self._record.info

    @property
    def identity(self) -> dict:
        return self.info.identity

    @property
    def settled(self) -> dict:
        return self.info.settled

    @property
    def keep(self) -> bool:
        return self.info.keep

    @property
    def plan(self) -> str:
        """The last key; it differs between any two runs with different windows, settings or files."""
        return self.info.keys[-1]

    @property
    def pieces(self) -> list[dict]:
        return self._record.pieces

    @property
    def worth_keeping(self) -> bool:
        """Whether a resumed run would save work."""
        return has_progress(self.folder, self._record)

    @property
    def is_denoised(self) -> bool:
        """Whether the current window only has to be decoded."""
        return self._latents.exists()

    # Leaving

    def close(self) -> None:
        """Unlocks the folder; removes it if nothing in it is worth keeping."""
        if self._lock is None:
            return
        if not self.worth_keeping:
            self.discard()
            return
        self._unlock()

    def discard(self) -> None:
        """Removes the folder."""
        # run.json is removed last: as long as it exists, a resumed run knows that the video is published.
        found = self.folder.iterdir() if self.folder.is_dir() else ()  # the user may have removed it
        for path in sorted(found, key=lambda path: path.name == NAME):
            if path.is_dir() and not path.is_symlink():  # created by a file server
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != LOCK:
                path.unlink()
        remove_beginning(self.folder)
        self._unlock()
        if os.name == "nt":  # Windows cannot remove the lock's file while it is open
            remove_beginning(self.folder)

    def _unlock(self) -> None:
        os.close(self._lock)
        self._lock = None

    # The current piece

    @property
    def _number(self) -> int:
        return len(self.pieces)

    @property
    def _segment(self) -> Path:
        return self.folder / segment_name(self._number)

    @property
    def _latents(self) -> Path:
        return self.folder / latents_name(self._number)

    @property
    def _history(self) -> Path:
        return self.folder / history_name(self._number)

    def state(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """(latents of the current window if it is denoised, history before it); None where there are none.

        Raises:
            DamagedError: a file is missing or not as it was written.
        """
        if 0 < self._number < len(self.info.keys) and not self._history.exists():
            raise DamagedError(self._history, "it does not exist")
        return read_state(self._latents), read_state(self._history)

    def keep_latents(self, latents: np.ndarray) -> None:
        """Stores the latents of the current window before it is decoded."""
        write_array(self._latents, latents)

    @contextmanager
    def segment(self, height: int, width: int, fps: float, quality: float = QUALITY) -> Iterator[VideoWriter]:
        """Context manager whose writer takes the frames of the current piece; pass the writer's `path` to `done`."""
        self._segment.unlink(missing_ok=True)
        with VideoWriter(self.folder, self._segment.stem, height, width, fps, quality) as writer:
            yield writer

    def place(self, path: Path) -> Path:
        """Moves a video, also from another file system, here as the segment of the current piece -> path for `done`."""
        move_whole(path, self._segment)
        return self._segment

    def place_sound(self, path: Path) -> None:
        """Moves the sound of the video here."""
        move_whole(path, self._sound)

    def done(self, path: Path, history: np.ndarray | None, about: dict, ends: Image.Image) -> None:
        """Records the current piece as finished.

        Args:
            path: its segment, written by `segment` or moved here by `place`.
            history: newest frames (or latents) for the next window; None if no window follows.
            about: fields of the piece in the manifest, `record.MEASURED`.
            ends: its first and last frame and some between, see `preview.strip`.

        Raises:
            OSError: a file cannot be written; the piece is not recorded then. The message names the folder.
        """
        if path != self._segment:
            raise ValueError(f"{path}: the segment of this piece must be {self._segment}")
        used = (self._latents,) if self.keep else (self._latents, self._history)
        ends_path = self.folder / ends_name(self._number)
        # Syncs the folder as well, so that the segment's name is on the disk before run.json lists it.
        write_whole(ends_path, lambda file: ends.save(file, format="PNG"))
        sums = {"checksum": checksum(path), "ends_checksum": checksum(ends_path)}
        self.pieces.append({"name": path.name, **sums, **about})
        try:
            if history is not None:
                write_array(self._history, history)
            self._write()
        except BaseException:
            self.pieces.pop()
            raise
        for unneeded in used:
            unneeded.unlink(missing_ok=True)

    def extend(self, pieces: Sequence[dict]) -> None:
        """Records pieces of another run as finished; their files must already be in the folder."""
        sync_folder(self.folder)
        self._record.pieces = [*self.pieces, *pieces]
        self._write()

    def ends(self, number: int) -> Image.Image:
        """The thumbnails of a piece, as given to `done`."""
        from PIL import Image

        path = self.folder / ends_name(number)
        try:
            with open_regular(path) as file, Image.open(file, formats=["PNG"]) as picture:
                return picture.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DamagedError(path, first_line(error)) from None

    def _write(self) -> None:
        write_record(self.folder, self._record)

    def _known_names(self) -> set[str]:
        """Files that a resumed run uses; all others were being written or removed when it was interrupted."""
        done = range(self._number)
        known = {NAME, LOCK, JOINED, self._latents.name, self._history.name}
        known |= {name(number) for number in done for name in (segment_name, ends_name)}
        return known | ({history_name(number) for number in done} if self.keep else set())

    # The end

    def finish(
        self, manifest: dict, lasting: dict, preview: Callable[[Callable[[int], Image.Image]], Image.Image] | None
    ) -> Path:
        """Joins the segments without re-encoding under the first free name ``stem.mp4``, ``stem-2.mp4``, ...

        The folder is removed afterwards unless the run is kept.

        Args:
            manifest: written beside the video as JSON.
            lasting: the part of it that is written into the video.
            preview: makes the preview from `ends`; None: no preview.

        Raises:
            OSError: a file cannot be written; the message names the folder.
        """
        path = published(self.folder, self._record)
        if path is None:
            write_whole(self._metadata, lambda file: file.write(as_ffmetadata(text_of(lasting)).encode()))
            segments = [self.folder / piece["name"] for piece in self.pieces]
            sound = self._sound if is_regular(self._sound) else None
            join_videos(segments, self._joined, self.info.fps, self._metadata, sound)
            path = publish(self._joined, self.folder.parent, self.info.stem, self._announce, (".json", ".png"))
        if not path.with_suffix(".json").exists():
            # Syncs the output folder as well, so that the video's name is on the disk before its pieces are removed.
            write_whole(path.with_suffix(".json"), lambda file: file.write(f"{text_of(manifest)}\n".encode()))
        if preview is not None and not path.with_suffix(".png").exists():
            page = preview(self.ends)
            write_whole(path.with_suffix(".png"), lambda file: page.save(file, format="PNG"))
        if self.keep:
            for extra in (self._joined, self._metadata, self._sound):
                extra.unlink(missing_ok=True)
            self.close()
        else:
            with suppress(OSError):  # the video is complete; the next --resume removes the rest of the folder
                self.discard()
        return path

    @property
    def _metadata(self) -> Path:
        return self.folder / "metadata.txt"

    @property
    def _sound(self) -> Path:
        return self.folder / SOUND

    @property
    def _joined(self) -> Path:
        return self.folder / JOINED

    def _announce(self, name: str) -> None:
        """Records the name that the video will get."""
        self._record.output = name
        self._write()

    def _give_back_name(self) -> None:
        """Removes the empty file with which `publish` claims a name where there are no hard links."""
        if self._record.output is None or not is_regular(self._joined):
            return
        path = self.folder.parent / self._record.output
        if is_regular(path) and path.stat().st_size == 0:
            path.unlink()
