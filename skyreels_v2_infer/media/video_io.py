"""Videos in, finished videos out. Nothing here knows torch; nothing heavy is imported before it is used.

Frames are uint8 RGB, ``[H, W, 3]`` for one and ``[t, H, W, 3]`` for several. ffmpeg is the binary that imageio-ffmpeg
ships; it is started here rather than through that package's generators, which report neither its exit code nor its
messages: a truncated input would read as a short video, and a full disk would leave what looks like a finished one.
"""

from __future__ import annotations

import itertools
import os
import re
import secrets
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from skyreels_v2_infer.errors import InputError, in_one_line
from skyreels_v2_infer.media.files import check_file
from skyreels_v2_infer.media.images import fit

if TYPE_CHECKING:
    from typing import BinaryIO

    import numpy as np

# Without accurate rounding every trip RGB -> YUV -> RGB darkens the picture by one level or more, and a video that is
# extended again and again adds them up.
_EXACT = "flags=bicubic+accurate_rnd+full_chroma_int"
# The picture as a player shows it: ffmpeg has turned it upright by then, this undoes non-square pixels.
_AS_SHOWN = f"scale=iw*sar:ih:{_EXACT}"
# Untagged HD is read as BT.709 by players but written as BT.601 by ffmpeg: convert to the one and say so in the file.
_TO_BT709 = (
    f"scale=out_color_matrix=bt709:out_range=tv:{_EXACT},"
    "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"
)
_CRF = "10"  # what imageio calls quality 8: int((1 - 8 / 10) * 51)


class VideoInfo(NamedTuple):
    """What a video holds.

    ``height`` and ``width`` in pixels as shown (upright, square pixels), the exact number of ``frames`` that decode,
    and their mean rate ``fps`` per second (0.0 when the file does not say).
    """

    height: int
    width: int
    frames: int
    fps: float


def probe_video(path: Path | str, name: str = "video_path") -> VideoInfo:
    """Decode the whole video at `path` once and say what it holds.

    Raises InputError under the flag `name` if it is missing, has no video stream, or breaks off anywhere.
    """
    size = tick = None
    times: list[tuple[int, int]] = []
    # framecrc writes a line of text per frame; wrapped_avframe spares the copying of pixels that nobody looks at.
    with _decoding(path, name, "-c:v", "wrapped_avframe", "-f", "framecrc") as lines:
        for line in lines:
            if match := re.match(rb"#tb 0: (\d+)/(\d+)", line):
                tick = Fraction(int(match[1]), int(match[2]))
            elif match := re.match(rb"#dimensions 0: (\d+)x(\d+)", line):
                size = int(match[2]), int(match[1])
            elif not line.startswith(b"#"):
                _, _, start, duration, *_ = line.split(b",")
                times.append((int(start), int(duration)))
    if not times or size is None or tick is None:
        raise InputError(name, path, "has no frame that can be decoded")
    span = times[-1][0] - times[0][0]
    shown, seconds = (len(times) - 1, span * tick) if span > 0 else (1, times[0][1] * tick)
    return VideoInfo(*size, frames=len(times), fps=float(shown / seconds) if seconds > 0 else 0.0)


def read_video(path: Path | str, height: int, width: int, name: str = "video_path") -> Iterator[np.ndarray]:
    """The frames of the video at `path`, one at a time, as uint8 RGB ``[height, width, 3]``, fitted like a picture.

    Holds one frame at a time, whatever the length; closing the iterator ends ffmpeg. Raises InputError under the flag
    `name`: at the first frame if the file is no video, later where it breaks off.
    """
    from PIL import Image

    # PPM states its size in front of every frame, so nothing has to be guessed from ffmpeg's log.
    with _decoding(path, name, "-pix_fmt", "rgb24", "-c:v", "ppm", "-f", "image2pipe") as stream:
        while stream.readline():
            size = tuple(map(int, stream.readline().split()))
            stream.readline()
            pixels = stream.read(3 * size[0] * size[1])
            if len(pixels) < 3 * size[0] * size[1]:
                break  # ffmpeg died; its exit code is turned into the error
            yield fit(Image.frombytes("RGB", size, pixels), height, width)


class VideoWriter:
    """Streams frames into ``outdir/stem.mp4`` (h264, yuv420p, quality 8), which appears only once it is complete.

    Until then the file has a hidden temporary name in the same folder. Leaving the ``with`` block by any exception
    removes it; leaving it normally is `close`. An existing file is never touched: ``stem-2.mp4``, ``stem-3.mp4``, ...
    are taken instead, also between processes.

    Args:
        outdir: an existing folder.
        stem: file name without extension.
        height, width: in pixels, even.
        fps: frames per second.

    Attributes:
        path: the finished file; None before `close`.

    Raises:
        OSError: the folder cannot be written, ffmpeg is missing or died (one line, with the end of its message).
    """

    def __init__(self, outdir: Path | str, stem: str, height: int, width: int, fps: float):
        self.path: Path | None = None
        self._outdir, self._stem, self._frame_shape = Path(outdir), stem, (height, width, 3)
        self._frames = 0
        self._part = self._outdir / f".{stem}.{secrets.token_hex(4)}.part.mp4"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed by _end
        self._ffmpeg: subprocess.Popen | None = None
        arguments = ["-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps}", "-i", "-"]
        arguments += ["-an", "-vf", _TO_BT709, "-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", _CRF]

        def start() -> None:
            self._ffmpeg = _start_ffmpeg(
                [*arguments, "-f", "mp4", f"file:{self._part}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._log,
            )

        try:
            # ffmpeg would create it with the first frame; a folder that cannot be written should come out before that.
            self._part.open("xb").close()
            _to_its_end(start)
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
            self._ffmpeg.stdin.write(frames.data)
            # A frame left in Python's buffer would surface its broken pipe later, in the wrong place.
            self._ffmpeg.stdin.flush()
        except OSError:
            raise self._died() from None
        except BaseException:
            # An interrupt may have cut a frame in two: nothing that follows could be right.
            self._end(discard=True)
            raise
        self._frames += len(frames) if frames.ndim == 4 else 1

    def close(self) -> Path:
        """Finish the file, see that it is on the disk, give it its name; returns `path`. A second call does nothing.

        Raises ValueError if no frame was written, OSError if ffmpeg could not finish.
        """
        if self.path is not None:
            return self.path
        if self._ffmpeg is None:
            raise ValueError("close of a VideoWriter that was given up")
        try:
            if self._frames == 0:
                raise ValueError(f"{self._stem}.mp4: a video needs at least one frame, none was written")
            with suppress(OSError):  # a broken pipe here is a dead ffmpeg: the exit code tells
                self._ffmpeg.stdin.close()
            if self._ffmpeg.wait() != 0 or self._part.stat().st_size == 0:
                raise self._died()
            with self._part.open("rb+") as file:
                os.fsync(file.fileno())
            self.path = publish(self._part, self._outdir, self._stem)
        except BaseException:
            self._end(discard=True)
            raise
        self._end(discard=False)
        return self.path

    def _died(self) -> OSError:
        with suppress(OSError):
            self._ffmpeg.stdin.close()
        error = OSError(f"{self._outdir / self._stem}.mp4 could not be written: {_last_words(self._ffmpeg, self._log)}")
        self._end(discard=True)
        return error

    def _end(self, discard: bool) -> None:
        if self._ffmpeg is not None:
            self._ffmpeg.kill()
            with suppress(OSError):
                self._ffmpeg.stdin.close()
            self._ffmpeg.wait()
            self._ffmpeg = None
        self._log.close()
        if discard:
            self._part.unlink(missing_ok=True)


@contextmanager
def _decoding(path: Path | str, name: str, *output: str) -> Iterator[BinaryIO]:
    """ffmpeg's output for the frames of a video; it ends with the block, and must have ended well if the block did."""
    check_file(path, name)
    with tempfile.TemporaryFile() as log:
        # -xerror: a file that breaks off is an error, not a shorter video. 0:V:0: the cover picture of a sound file is
        # no video. passthrough: every frame once, whatever its time stamp. file: a name may hold a colon.
        arguments = ["-nostdin", "-xerror", "-protocol_whitelist", "file", "-i", f"file:{path}", "-map", "0:V:0"]
        arguments += ["-fps_mode", "passthrough", "-vf", _AS_SHOWN, *output, "-"]
        try:
            ffmpeg = _start_ffmpeg(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
        except OSError as error:
            raise InputError(name, path, f"cannot be read: {in_one_line(error)}") from None
        try:
            yield ffmpeg.stdout
            failed = ffmpeg.wait() != 0 or _breaks_off(log)
        finally:
            ffmpeg.kill()
            ffmpeg.stdout.close()
            ffmpeg.wait()
        if failed:
            reason = _last_words(ffmpeg, log)
            if "matches no streams" in reason:
                raise InputError(name, path, "must be a video, but there is no video stream in this file")
            raise InputError(name, path, f"must be a complete video that ffmpeg can decode to its end, but: {reason}")


def _to_its_end(work: Callable[[], object]) -> None:
    """Calls `work`; an exception that a signal's handler raises comes only when it has ended.

    Such a one, raised in the middle of `Popen`, would leave a process behind that nobody knows of.
    """
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as other:  # handlers run in the main thread
        other.submit(work).result()


def check_ffmpeg() -> None:
    """Raises OSError if ffmpeg cannot be started, or has nowhere to put what it says."""
    with tempfile.TemporaryFile() as log:
        ffmpeg = _start_ffmpeg(["-version"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log)
        if ffmpeg.wait() != 0:
            raise OSError(f"ffmpeg cannot be used: {_last_words(ffmpeg, log)}")


def _start_ffmpeg(arguments: list[str], **pipes) -> subprocess.Popen:
    import imageio_ffmpeg

    try:
        executable = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise OSError(in_one_line(error)) from None
    # Own session: a Ctrl-C is for us to handle, and must not reach ffmpeg first.
    return subprocess.Popen([executable, "-hide_banner", "-v", "error", *arguments], start_new_session=True, **pipes)


def _breaks_off(log: BinaryIO) -> bool:
    """Whether ffmpeg found that a file ends too early, which for some kinds of file is no failure to it."""
    log.seek(0)
    return bool(re.search(rb"ended prematurely|decode failed|partial file", log.read()))


def _last_words(ffmpeg: subprocess.Popen, log: BinaryIO) -> str:
    """Why ffmpeg ended, in one line: waits for it."""
    code = ffmpeg.wait()
    log.seek(0)
    lines = [re.sub(r"^(\[[^]]*\] *)+", "", line) for line in log.read().decode(errors="replace").splitlines()]
    if any("matches no streams" in line for line in lines):
        return "matches no streams"
    # What follows on the reason in every case.
    lines = [line for line in lines if not re.match("Nothing was written|Task finished|Terminating thread", line)]
    if lines:
        inner = re.search(r"return code -?\d+ \((.*)\)$", lines[-1])
        return in_one_line(inner[1] if inner else lines[-1])
    return f"ffmpeg was ended by signal {-code}" if code < 0 else f"ffmpeg ended with code {code}"


def publish(
    part: Path, outdir: Path, stem: str, announce: Callable[[str], object] = str, beside: Sequence[str] = ()
) -> Path:
    """Move the finished file to the first free name ``stem.mp4``, ``stem-2.mp4``, ...; two processes never share one.

    Args:
        announce: is told the name that will be tried next.
        beside: suffixes of files that belong to it, which have to be free as well.
    """
    for number in itertools.count(1):
        path = outdir / (f"{stem}.mp4" if number == 1 else f"{stem}-{number}.mp4")
        if any(os.path.lexists(path.with_suffix(suffix)) for suffix in (".mp4", *beside)):
            continue
        announce(path.name)
        try:
            os.link(part, path)  # gives a name only where there is none
        except FileExistsError:
            continue
        except OSError:  # a file system without such links: exclusive creation claims the name
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


def join_videos(paths: Sequence[Path], out: Path, fps: float, metadata: Path | None = None) -> None:
    """One video of several with the same size and rate, frame after frame, without coding them anew.

    Args:
        metadata: a file of metadata for it, as ffmpeg writes them.

    Raises:
        OSError: ffmpeg is missing or could not; nothing is left of `out`.
    """
    part = out.with_name(f".{out.name}.part")
    quoted = (str(path.absolute()).replace("'", r"'\''") for path in paths)
    names = "ffconcat version 1.0\n" + "".join(f"file 'file:{name}'\n" for name in quoted)
    arguments = ["-y", "-f", "concat", "-safe", "0", "-protocol_whitelist", "file,pipe,fd", "-i", "-"]
    if metadata is not None:
        arguments += ["-f", "ffmetadata", "-i", f"file:{metadata}", "-map", "0", "-map_metadata", "1"]
    # x264 reorders over up to two frames, but not in a video of one: without the same lead everywhere the times of
    # decoding would stumble at the seams, and players would read another rate from them.
    arguments += ["-bsf:v", f"setts=pts=PTS:dts=(N-2)/({fps}*TB):duration=1/({fps}*TB)"]
    with tempfile.TemporaryFile() as log:
        ffmpeg = _start_ffmpeg(
            [*arguments, "-c", "copy", "-f", "mp4", f"file:{part}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
        try:
            with suppress(BrokenPipeError):
                ffmpeg.communicate(os.fsencode(names))
            if ffmpeg.returncode != 0 or not part.exists() or part.stat().st_size == 0:
                raise OSError(f"{out} could not be written: {_last_words(ffmpeg, log)}")
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(part, out)
        except BaseException:
            ffmpeg.kill()
            ffmpeg.wait()
            part.unlink(missing_ok=True)
            raise
