"""Writes videos: frames to H.264, pieces to one file, a finished file to a free name.

Frames are uint8 RGB, ``[H, W, 3]`` for one and ``[t, H, W, 3]`` for several.
"""

from __future__ import annotations

import itertools
import os
import secrets
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from skyreels_v2_infer.media.ffmpeg import QUALITY, WORST, Ffmpeg, encode_arguments, join_arguments, join_list

if TYPE_CHECKING:
    import numpy as np


class VideoWriter:
    """Writes frames to ``outdir/stem.mp4`` (h264, yuv420p, BT.709), which appears only once it is complete.

    Until then the file has a hidden temporary name in the same folder. Leaving the ``with`` block by an exception
    removes it; leaving it normally calls `close`. An existing file is never overwritten: ``stem-2.mp4``,
    ``stem-3.mp4``, ... are used instead, also if several processes write at the same time.

    Args:
        outdir: an existing folder.
        stem: file name without extension.
        height, width: in pixels, even.
        fps: frames per second.
        quality: from 0 to 10, see `ffmpeg.crf_of`. least: see `ffmpeg.encode_arguments`.

    Attributes:
        path: the finished file; None before `close`.

    Raises:
        OSError: the folder cannot be written, ffmpeg is missing or failed (one line with the folder and the reason).
    """

    def __init__(
        self,
        outdir: Path | str,
        stem: str,
        height: int,
        width: int,
        fps: float,
        quality: float = QUALITY,
        least: float = WORST,
    ):
        self.path: Path | None = None
        self._outdir, self._stem, self._frame_shape = Path(outdir), stem, (height, width, 3)
        self._frames = 0
        self._part = self._outdir / f".{stem}.{secrets.token_hex(4)}.part.mp4"
        self._ffmpeg: Ffmpeg | None = None
        try:
            # ffmpeg creates the file with the first frame; a folder that cannot be written is reported before that.
            self._part.open("xb").close()
        except OSError as error:
            raise self._unwritable(error.strerror) from None
        try:
            command = encode_arguments(height, width, fps, self._part, quality, least)
            self._ffmpeg = Ffmpeg(command, stdin=subprocess.PIPE, out=self._part)
        except BaseException:
            self._end(discard=True)
            raise

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self.close()
        else:
            self._end(discard=True)

    def write(self, frames: np.ndarray) -> None:
        """Append uint8 frames ``[t, H, W, 3]`` or one frame ``[H, W, 3]``."""
        import numpy as np

        frames = np.ascontiguousarray(frames)
        if frames.dtype != np.uint8 or frames.shape[-3:] != self._frame_shape or frames.ndim not in (3, 4):
            height, width, _ = self._frame_shape
            raise ValueError(
                f"frames {frames.dtype} {list(frames.shape)}: must be uint8 [t, {height}, {width}, 3] or without the t"
            )
        if self._ffmpeg is None:
            raise ValueError("write to a VideoWriter that is closed")
        try:
            self._ffmpeg.send(frames.data)
        except OSError:
            raise self._failed() from None
        except BaseException:
            # An interrupt may have cut a frame in two, which would shift all later ones.
            self._end(discard=True)
            raise
        self._frames += len(frames) if frames.ndim == 4 else 1

    def close(self) -> Path:
        """Finish the file, sync it to the disk, rename it; returns `path`. A second call does nothing.

        Raises ValueError if no frame was written, OSError if ffmpeg or the disk failed.
        """
        if self.path is not None:
            return self.path
        if self._ffmpeg is None:
            raise ValueError("close of a VideoWriter whose file was discarded")
        try:
            if self._frames == 0:
                raise ValueError(f"{self._stem}.mp4: a video needs at least one frame, none was written")
            self._ffmpeg.close_input()
            if not self._ffmpeg.succeeded() or self._part.stat().st_size == 0:
                raise self._failed()
            try:
                _sync(self._part)
            except OSError as error:
                raise self._unwritable(error.strerror) from None
            self.path = publish(self._part, self._outdir, self._stem)
        except BaseException:
            self._end(discard=True)
            raise
        self._end(discard=False)
        return self.path

    def give_up(self) -> None:
        """Makes a `write` or `close` that another thread is in fail soon."""
        ffmpeg = self._ffmpeg
        if ffmpeg is not None:
            ffmpeg.give_up()

    def _failed(self) -> OSError:
        self._ffmpeg.close_input()
        error = self._unwritable(self._ffmpeg.reason())
        self._end(discard=True)
        return error

    def _unwritable(self, reason: str) -> OSError:
        return unwritable(self._outdir / f"{self._stem}.mp4", reason)

    def _end(self, discard: bool) -> None:
        if self._ffmpeg is not None:
            self._ffmpeg.end()
            self._ffmpeg = None
        if discard:
            self._part.unlink(missing_ok=True)


def publish(
    part: Path, outdir: Path, stem: str, announce: Callable[[str], object] = str, beside: Sequence[str] = ()
) -> Path:
    """Rename a finished file to the first free name ``stem.mp4``, ``stem-2.mp4``, ...; no two processes get the same.

    Args:
        announce: called with each file name before it is tried.
        beside: suffixes of files with the same stem, which must be free as well.
    """
    for number in itertools.count(1):
        path = outdir / (f"{stem}.mp4" if number == 1 else f"{stem}-{number}.mp4")
        if any(os.path.lexists(path.with_suffix(suffix)) for suffix in (".mp4", *beside)):
            continue
        announce(path.name)
        try:
            os.link(part, path)  # fails if the name exists, unlike a rename
        except FileExistsError:
            continue
        except OSError:  # a file system without hard links: exclusive creation reserves the name
            try:
                path.open("xb").close()
            except FileExistsError:
                continue
            try:
                os.replace(part, path)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
            return path
        part.unlink()
        return path
    raise AssertionError("unreachable")


def join_videos(
    paths: Sequence[Path], out: Path, fps: float, metadata: Path | None = None, sound: Path | None = None
) -> None:
    """Concatenate videos of the same size and rate into `out`, without encoding again.

    Args:
        metadata: a file of metadata for it, in ffmpeg's format. sound: an mp4 with its sound.

    Raises:
        OSError: ffmpeg is missing or failed (one line with the folder and the reason); `out` is not created.
    """
    part = out.with_name(f".{out.name}.part")
    try:
        with Ffmpeg(join_arguments(fps, part, metadata, sound), stdin=subprocess.PIPE, out=part) as ffmpeg:
            ffmpeg.communicate(join_list(paths))
            if not ffmpeg.succeeded() or not part.exists() or part.stat().st_size == 0:
                raise unwritable(out, ffmpeg.reason())
        try:
            _sync(part)
            os.replace(part, out)
        except OSError as error:
            raise unwritable(out, error.strerror) from None
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def unwritable(path: Path, reason: str) -> OSError:
    """The error for a video that cannot be written; the folder comes first because messages may be cut at the end."""
    return OSError(f"cannot write to {os.path.abspath(path.parent)}: {reason} ({path.name})")


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
