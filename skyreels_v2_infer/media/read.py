"""Reads videos: the header, every frame, or the newest frames of a video that is continued.

Frames are uint8 RGB ``[H, W, 3]``. A video is seen as players show it: upright, with square pixels.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.media.damage import check_damage
from skyreels_v2_infer.media.ffmpeg import (
    AS_SHOWN,
    PIXELS,
    RAW_PIXELS,
    TIMESTAMPS,
    Ffmpeg,
    decode_arguments,
    picked_filter,
    stretched_filter,
)
from skyreels_v2_infer.media.images import fit
from skyreels_v2_infer.media.input_options import DEFAULT, InputOptions
from skyreels_v2_infer.media.picture_video import is_pictures, pictures_size
from skyreels_v2_infer.media.probe import Probe, no_frame, probe_file, refused
from skyreels_v2_infer.media.timing import time_filter
from skyreels_v2_infer.media.video_filters import Chain, prepared

if TYPE_CHECKING:
    from typing import BinaryIO

    import numpy as np

    from skyreels_v2_infer.media.statistics import Look
    from skyreels_v2_infer.media.write import VideoWriter


class VideoHeader(NamedTuple):
    """``height`` and ``width`` in pixels as shown, and the mean rate ``fps`` per second that the file states.

    ``fps`` is rounded to two digits; 0.0 if the file does not state it.
    """

    height: int
    width: int
    fps: float


class VideoInfo(NamedTuple):
    """``height`` and ``width`` in pixels as shown, the exact number of ``frames``, and their mean rate ``fps``.

    ``fps`` is computed from timestamps; 0.0 if the file has none. ``damage``: what is left out or damaged, in words.
    ``read``: the number of frames at the rate that was asked for. ``start``: when the first one is shown, in seconds
    of the file's clock, rounded to frames.
    """

    height: int
    width: int
    frames: int
    fps: float
    damage: str = ""
    read: int = 0
    start: float = 0.0


class Decoded(NamedTuple):
    """``frames``: exact number in the file. ``fps``: mean rate from timestamps, 0.0 if the file has none. ``read``: the
    number of frames at the rate that was asked for. ``start``: as of `VideoInfo`.

    ``newest``: the last ones, uint8 ``[min(keep, frames), H, W, 3]``. ``probe``: the file's. ``damage``: what was left
    out or is damaged, in words.
    """

    frames: int
    fps: float
    newest: np.ndarray
    probe: Probe
    damage: str = ""
    read: int = 0
    start: float = 0.0


def video_header(path: Path | str, name: str = "video_path") -> VideoHeader:
    """Size and stated frame rate of the video at `path`; decodes one frame.

    Raises:
        InputError: for the flag `name`: the file is missing, is no video, or its first frame cannot be decoded.
        OSError: ffmpeg is missing, lacks what is needed, or makes no progress for too long.
    """
    if is_pictures(path):
        return VideoHeader(*pictures_size(path, name), 0.0)
    found = probe_file(path, name)
    return VideoHeader(found.height, found.width, found.fps)


def probe_video(path: Path | str, name: str = "video_path", rate: float | None = None) -> VideoInfo:
    """Size, exact number of frames and mean rate of the video at `path`; decodes all of it.

    Args:
        rate: frames per second at which it would be read; None: frame for frame.

    Raises:
        InputError: for the flag `name`: the file is missing, is no video, or is damaged or truncated anywhere.
        OSError: ffmpeg is missing, lacks what is needed, or makes no progress for too long.
    """
    chain = Chain(AS_SHOWN if rate is None else f"{time_filter(rate)},{AS_SHOWN}")
    with tempfile.TemporaryDirectory() as folder:
        every = None if rate is None else Path(folder, "timestamps")
        with _decoding(probe_file(path, name), path, name, *TIMESTAMPS, chain=chain, timestamps=every) as running:
            stamps = read = _parse_timestamps(running.output)
        if every is not None:
            with every.open("rb") as lines:
                stamps = _parse_timestamps(lines)
    if not stamps.times or stamps.size is None:
        raise no_frame(path, name)
    _check_read(len(read.times), rate, path, name)
    about = {"frames": len(stamps.times), "fps": stamps.fps(), "read": len(read.times)}
    return VideoInfo(*(read.size or stamps.size), **about, damage=running.damage, start=stamps.start())


def read_video(
    path: Path | str,
    height: int,
    width: int,
    name: str = "video_path",
    options: InputOptions = DEFAULT,
    rate: float | None = None,
) -> Iterator[np.ndarray]:
    """The frames of the video at `path`, one at a time, as uint8 ``[height, width, 3]``, fitted as `options` say.

    Holds one frame at a time; closing the iterator ends ffmpeg.

    Args:
        rate: frames per second at which it is read, by timestamps; None: frame for frame.

    Raises:
        InputError: for the flag `name`: at the first frame if the file is no video, later where it is damaged.
        OSError: ffmpeg is missing, lacks what is needed, or makes no progress for too long.
    """
    probe = probe_file(path, name)
    with (
        prepared(probe, height, width, options, time_filter(rate)) as chain,
        _decoding(probe, path, name, *PIXELS, chain=chain) as running,
    ):
        yield from _fitted(running.output, height, width, options)


def pick_frames(
    path: Path | str, indices: Sequence[int], height: int, width: int, name: str = "video_path"
) -> list[np.ndarray]:
    """Frames of the video at `path` by number, uint8 ``[height, width, 3]``, stretched to the size.

    Args:
        indices: rising, from 0. Decoding ends with the last one.

    Raises:
        InputError: for the flag `name`: the file is missing, is no video, is damaged before the last of these frames,
            or is too short for them.
        OSError: ffmpeg is missing, lacks what is needed, or makes no progress for too long.
    """
    import numpy as np

    probe, size = probe_file(path, name), 3 * height * width
    output = [*RAW_PIXELS, "-frames:v", f"{len(indices)}"]
    with prepared(probe, height, width, then=picked_filter(indices, height, width)) as chain:
        arguments = _arguments(probe, path, output, chain)
        with Ffmpeg(arguments, stdout=subprocess.PIPE) as ffmpeg:
            content = ffmpeg.output.read(size * len(indices))
            if not ffmpeg.succeeded():
                raise refused(ffmpeg, path, name)
    if len(content) < size * len(indices):
        raise InputError(name, path, f"has no frame {indices[len(content) // size]}")
    return list(np.frombuffer(content, np.uint8).reshape(-1, height, width, 3))


def stretched_frames(path: Path | str, height: int, width: int, name: str = "video_path") -> Iterator[np.ndarray]:
    """All frames of the video at `path`, one at a time, uint8 ``[height, width, 3]``, stretched to the size.

    Raises:
        InputError: for the flag `name`: at the first frame if the file is no video, later where it is damaged.
        OSError: ffmpeg is missing, lacks what is needed, or makes no progress for too long.
    """
    import numpy as np

    probe, size = probe_file(path, name), 3 * height * width
    with (
        prepared(probe, height, width, then=stretched_filter(height, width)) as chain,
        _decoding(probe, path, name, *RAW_PIXELS, chain=chain) as running,
    ):
        while len(pixels := running.output.read(size)) == size:
            yield np.frombuffer(pixels, np.uint8).reshape(height, width, 3)


def decode_prefix(
    path: Path | str,
    height: int,
    width: int,
    keep: int,
    spool: VideoWriter | None = None,
    look: Look | None = None,
    check: Callable[[], object] | None = None,
    name: str = "video_path",
    options: InputOptions = DEFAULT,
    rate: float | None = None,
) -> Decoded:
    """Decode the video at `path` once, from start to end, for everything that continuing it needs.

    Holds ``keep + 1`` frames at a time, each fitted to ``height`` x ``width`` as `options` say.

    Args:
        keep: how many of the newest frames are returned.
        spool: receives every frame. The caller closes or discards it.
        look: receives every frame.
        check: called after every frame; may raise, so that an interrupted run ends here.
        rate: frames per second at which it is read, by timestamps; None: frame for frame.

    Raises:
        InputError: for the flag `name`: the file is missing, is no video, or is damaged or truncated anywhere.
        OSError: ffmpeg is missing, lacks what is needed, or makes no progress for too long; or from `spool`.
    """
    import numpy as np

    kept: deque[np.ndarray] = deque(maxlen=keep)
    read, probe, time = 0, probe_file(path, name), time_filter(rate)
    with tempfile.TemporaryDirectory() as folder, prepared(probe, height, width, options, time) as chain:
        timestamps = Path(folder, "timestamps")  # a file, since two pipes that are read in turn can block each other
        with _decoding(probe, path, name, *PIXELS, chain=chain, timestamps=timestamps) as running:
            for frame in _fitted(running.output, height, width, options):
                if spool is not None:
                    spool.write(frame)
                if look is not None:
                    look.add(frame[None])
                kept.append(frame)
                read += 1
                if check is not None:
                    check()
        with timestamps.open("rb") as lines:
            stamps = _parse_timestamps(lines)
        if not stamps.times:
            raise no_frame(path, name)
        _check_read(read, rate, path, name)
    newest = np.empty((len(kept), height, width, 3), np.uint8)
    for i in range(len(newest)):
        newest[i] = kept.popleft()  # releases the frame before the next one takes memory in `newest`
    return Decoded(len(stamps.times), stamps.fps(), newest, probe, running.damage, read, stamps.start())


def _check_read(read: int, rate: float | None, path: Path | str, name: str) -> None:
    """Raises an `InputError` if a video is too short for a frame at a rate."""
    if not read:
        raise InputError(name, path, f"is shorter than one frame at {rate:g} fps; --keep_rate takes all its frames")


class _Running:
    """A decoding: its output, and once it has ended what was damaged."""

    def __init__(self, output: BinaryIO):
        self.output, self.damage = output, ""


@contextmanager
def _decoding(
    probe: Probe,
    path: Path | str,
    name: str,
    *output: str,
    chain: Chain = Chain(AS_SHOWN),  # noqa: B008  frozen
    timestamps: Path | None = None,
) -> Iterator[_Running]:
    """Context manager that runs ffmpeg on all frames of a video.

    If the block ends normally, the file must have been decoded to its end: without errors, unless its format is one
    that may be cut anywhere.
    """
    arguments = _arguments(probe, path, output, chain, timestamps)
    with Ffmpeg(arguments, stdout=subprocess.PIPE, verbose="counts" if probe.may_be_cut else False) as ffmpeg:
        running = _Running(ffmpeg.output)
        yield running
        if not ffmpeg.succeeded() or (not probe.may_be_cut and _is_truncated(ffmpeg)):
            raise refused(ffmpeg, path, name)
        if probe.may_be_cut:
            running.damage = check_damage(ffmpeg.messages(), probe, path, name)


def _arguments(
    probe: Probe, path: Path | str, output: Sequence[str], chain: Chain, timestamps: Path | None = None
) -> list[str]:
    how = {"filters": chain.filters, "decoder": chain.decoder, "strict": not probe.may_be_cut}
    return decode_arguments(path, *output, timestamps=timestamps, **how)


def _is_truncated(ffmpeg: Ffmpeg) -> bool:
    """Whether ffmpeg reports that a file ends too early, for which some containers exit with code 0."""
    return any(re.search("ended prematurely|decode failed|partial file", line) for line in ffmpeg.errors())


def _fitted(stream: BinaryIO, height: int, width: int, options: InputOptions) -> Iterator[np.ndarray]:
    """Frames in ffmpeg's `PIXELS` output -> uint8 ``[height, width, 3]``; ends early if ffmpeg does."""
    from PIL import Image

    while stream.readline():
        size = tuple(map(int, stream.readline().split()))
        stream.readline()
        pixels = stream.read(3 * size[0] * size[1])
        if len(pixels) < 3 * size[0] * size[1]:
            return
        yield fit(Image.frombytes("RGB", size, pixels), height, width, options)


class _Timestamps(NamedTuple):
    size: tuple[int, int] | None  # height, width of the first frame
    tick: Fraction | None  # seconds per unit of `times`
    times: list[tuple[int, int]]  # start and duration of each frame

    def start(self) -> float:
        """When the first frame is shown, in seconds; 0.0 without timestamps."""
        return float(self.times[0][0] * self.tick) if self.times and self.tick else 0.0

    def fps(self) -> float:
        """Mean rate; 0.0 without timestamps."""
        if not self.times or self.tick is None:
            return 0.0
        span = self.times[-1][0] - self.times[0][0]
        shown, seconds = (len(self.times) - 1, span * self.tick) if span > 0 else (1, self.times[0][1] * self.tick)
        return float(shown / seconds) if seconds > 0 else 0.0


def _parse_timestamps(lines: Iterable[bytes]) -> _Timestamps:
    """Reads ffmpeg's `TIMESTAMPS` output."""
    size = tick = None
    times = []
    for line in lines:
        if match := re.match(rb"#tb 0: (\d+)/(\d+)", line):
            tick = Fraction(int(match[1]), int(match[2]))
        elif match := re.match(rb"#dimensions 0: (\d+)x(\d+)", line):
            size = int(match[2]), int(match[1])
        elif not line.startswith(b"#"):
            _, _, start, duration, *_ = line.split(b",")
            times.append((int(start), int(duration)))
    return _Timestamps(size, tick, times)
