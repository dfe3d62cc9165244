"""ffmpeg as a process: its command lines, starting and ending it, why it failed, and whether it has what we use.

ffmpeg is the binary that imageio-ffmpeg ships, or the one that IMAGEIO_FFMPEG_EXE names. It is started here rather than
through that package's generators, which report neither its exit code nor its messages: a truncated input would read as
a short video, and a full disk would leave a file that looks finished.
"""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from skyreels_v2_infer.errors import in_one_line
from skyreels_v2_infer.media.pipes import Patience, PatientReader, StalledError, write_all
from skyreels_v2_infer.media.rates import exact, rate_text

LEAST = "5.1"  # version; older ones lack options that we use

# Seconds without progress after which an ffmpeg is ended. Reading: no byte of output. Writing: no byte of a frame
# accepted, or after the last one no change of the file; longer, since a network disk may be away for a while.
READING_PATIENCE = 60.0
WRITING_PATIENCE = 120.0
ENDING_PATIENCE = 5.0  # for a killed process to be gone; one that waits for a dead disk stays

# Without accurate rounding each RGB -> YUV -> RGB conversion darkens the picture by a level or more, and the error adds
# up in a video that is extended repeatedly.
ACCURATE = "flags=bicubic+accurate_rnd+full_chroma_int"
# The picture as players show it: ffmpeg has applied the rotation by then, this makes the pixels square.
AS_SHOWN = f"scale=w=iw*sar:h=ih:{ACCURATE}"
# Untagged HD is read as BT.709 by players but written as BT.601 by ffmpeg: convert to BT.709 and tag the file.
_TO_BT709 = (
    f"scale=out_color_matrix=bt709:out_range=tv:{ACCURATE},"
    "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"
)
QUALITY = 8.0  # as published
WORST, BEST = 0, 10

# Outputs of decoding. PPM states the size in front of every frame, which may change within a video.
PIXELS = ("-pix_fmt", "rgb24", "-c:v", "ppm", "-f", "image2pipe")
RAW_PIXELS = ("-pix_fmt", "rgb24", "-c:v", "rawvideo", "-f", "rawvideo")  # of a known size
# One line of text per frame with its timestamp; wrapped_avframe avoids copying pixels that nobody reads.
TIMESTAMPS = ("-c:v", "wrapped_avframe", "-f", "framecrc")

# The formats that are opened: containers and streams of compressed video. Left out is what ffmpeg makes pictures of
# (text, drawings, raw memory) and what names other files or addresses (playlists, lists of files, scripts).
VIDEO_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,gif,ogg,asf,ivf,nut,mxf,dv,rm,wtv,"
    "h264,hevc,m4v,obu,av1,vc1,mjpeg,yuv4mpegpipe"
)
VIDEO_EXAMPLES = "mp4, mov, mkv, webm, avi, mpg, ts, gif, ..."
OWN_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2"  # of the videos that are written here
REFUSED_FORMAT = re.compile("[Nn]ot on whitelist")

# A static ffmpeg (7.0.2 of imageio-ffmpeg 0.6) crashes where a stream names a programme, as MPEG-TS does, since it
# loads the converters of another C library. Without them names stay as they are; nobody reads them.
_ENVIRONMENT = {"GCONV_PATH": os.devnull}

_given_up: ContextVar[Callable[[], bool]] = ContextVar("given_up", default=lambda: False)

# Messages about ffmpeg itself, whatever the input is.
_LACKING = re.compile(
    "Unrecognized option|Unknown encoder|Unknown bitstream filter|Bitstream filter not found|No such filter|"
    "Requested output format|Option '.*' not found"
)
_LEVELS = {False: "error", True: "level+info", "counts": "repeat+level+verbose"}
_CONSEQUENCES = re.compile("Nothing was written|Task finished|Terminating thread")


def crf_of(quality: float) -> int:
    """x264's constant rate factor for a quality from 0 to 10, on imageio's scale; 1 for 10.

    With 0 x264 would write lossless H.264, which most players do not play.
    """
    return max(1, int((BEST - quality) * 5.1))


def encode_arguments(
    height: int, width: int, fps: float, out: Path, quality: float = QUALITY, least: float = WORST
) -> list[str]:
    """Raw RGB frames from stdin -> H.264 in `out`.

    Videos of the usual quality can be joined without encoding again, and so can those of all other ones.

    Args:
        least: a better quality than this where `quality` is lower; the video is still joined as one of `quality`.
    """
    arguments = ["-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
    arguments += ["-r", rate_text(fps), "-i", "-"]
    arguments += ["-an", "-vf", _TO_BT709, "-c:v", "libx264", "-pix_fmt", "yuv420p"]
    arguments += ["-crf", f"{crf_of(max(quality, least))}"]
    if quality != QUALITY:  # the headers, of which a joined video has one set, would depend on it
        arguments += ["-x264-params", "stitchable=1"]
    return [*arguments, "-f", "mp4", f"file:{out}"]


def join_arguments(fps: float, out: Path, metadata: Path | None = None, sound: Path | None = None) -> list[str]:
    """Videos listed on stdin (see `join_list`) -> `out`, without encoding again.

    Args:
        metadata: a file of metadata. sound: an mp4 with the sound.
    """
    arguments = ["-y", *(["-copyts"] if sound is not None else [])]  # the clock of a sound begins with the first frame
    arguments += ["-f", "concat", "-safe", "0", "-protocol_whitelist", "file,pipe,fd"]
    arguments += ["-format_whitelist", f"concat,{OWN_FORMATS}", "-i", "-"]  # the list's files as well
    if metadata is not None:
        arguments += ["-f", "ffmetadata", "-i", f"file:{metadata}"]
    if sound is not None:
        arguments += ["-protocol_whitelist", "file", "-format_whitelist", OWN_FORMATS, "-i", f"file:{sound}"]
    if metadata is not None or sound is not None:
        arguments += ["-map", "0"]
    if metadata is not None:
        arguments += ["-map_metadata", "1"]
    if sound is not None:
        arguments += ["-map", f"{1 + (metadata is not None)}:a:0"]
    # x264 reorders over up to two frames, but not in a video of one frame. Without the same lead everywhere the
    # decoding timestamps would be uneven where two videos meet, and players would derive another frame rate from them.
    frame = f"{exact(fps).denominator}/({exact(fps).numerator}*TB)"  # in units of the timestamps
    arguments += ["-bsf:v", f"setts=pts=PTS:dts=(N-2)*{frame}:duration={frame}"]
    # The index first, so that a player can begin before it has the whole file.
    return [*arguments, "-c", "copy", "-movflags", "+faststart", "-f", "mp4", f"file:{out}"]


def join_list(paths: Sequence[Path]) -> bytes:
    """The list of files that `join_arguments` reads from stdin."""
    quoted = (str(path.absolute()).replace("'", r"'\''") for path in paths)
    return os.fsencode("ffconcat version 1.0\n" + "".join(f"file 'file:{name}'\n" for name in quoted))


def decode_arguments(
    path: Path | str,
    *output: str,
    timestamps: Path | None = None,
    filters: str = AS_SHOWN,
    decoder: Sequence[str] = (),
    strict: bool = True,
) -> list[str]:
    """The frames of the video at `path`, as shown, to stdout in the form `output` (`PIXELS` or `TIMESTAMPS`).

    Args:
        timestamps: a file that receives `TIMESTAMPS` as well, from the same decoding.
        filters: for stdout's frames, see `video_filters.prepared`.
        decoder: options that choose it.
        strict: whether the first error ends it: a truncated file is an error then, not a shorter video.
    """
    # 0:V:0: the cover picture of an audio file is no video. passthrough: every frame once, whatever its timestamp.
    # file: names may contain a colon.
    every_frame = ["-map", "0:V:0", "-fps_mode", "passthrough"]
    # copyts: timestamps as the file has them, which its sound has as well.
    arguments = ["-nostdin", *(["-xerror"] if strict else []), "-copyts", "-protocol_whitelist", "file"]
    arguments += ["-format_whitelist", VIDEO_FORMATS, *decoder, "-i", f"file:{path}"]
    arguments += [*every_frame, "-vf", filters, *output, "-"]
    if timestamps is not None:
        arguments += [*every_frame, *TIMESTAMPS, "-y", f"file:{timestamps}"]
    return arguments


def probe_arguments(path: Path | str) -> list[str]:
    """The first frame of the video at `path`, described by showinfo; its size as shown is in `TIMESTAMPS` on stdout."""
    # No -xerror: a stream that is cut in the middle begins with frames that cannot be decoded.
    arguments = ["-nostdin", "-protocol_whitelist", "file", "-format_whitelist", VIDEO_FORMATS, "-i", f"file:{path}"]
    arguments += ["-map", "0:V:0", "-fps_mode", "passthrough", "-frames:v", "1"]
    return [*arguments, "-vf", f"showinfo,{AS_SHOWN}", *TIMESTAMPS, "-"]


def picked_filter(indices: Sequence[int], height: int, width: int) -> str:
    """The filter that passes frames by number only, stretched to a size."""
    picked = "+".join(rf"eq(n\,{index})" for index in indices)
    return f"select={picked},{stretched_filter(height, width)}"


def stretched_filter(height: int, width: int) -> str:
    """The filter that stretches frames to a size."""
    return f"scale={width}:{height}:{ACCURATE},setsar=1"


def executable() -> str:
    """Path of the ffmpeg binary. Raises OSError if there is none."""
    import imageio_ffmpeg

    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise OSError(in_one_line(error)) from None


@contextmanager
def until(given_up: Callable[[], bool]) -> Iterator[None]:
    """Ends every ffmpeg that this thread starts inside, once one waits for it and `given_up()` is true."""
    token = _given_up.set(given_up)
    try:
        yield
    finally:
        _given_up.reset(token)


class Ffmpeg:
    """A running ffmpeg whose messages are kept. Leaving the ``with`` block ends it.

    No method waits for an ffmpeg that makes no progress for longer than its patience: it is ended, and has failed.

    Args:
        arguments: its command line.
        stdin, stdout: as `subprocess.Popen` takes them.
        verbose: whether messages say more than errors: each then starts with its level, as ``[info]``. "counts": also
            how much was read and decoded, with every repetition of a message.
        out: the file that it writes; None: it writes to stdout.

    Attributes:
        output: what it writes to its stdout; None if that is no pipe. Ends early where ffmpeg stalls.
        stalled: whether it was ended for want of progress.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.DEVNULL,
        verbose: bool | str = False,
        out: Path | None = None,
    ):
        self.process: subprocess.Popen | None = None
        self.output: io.BufferedReader | None = None
        self.stalled = False
        self._verbose, self._ended, self._starting, self._out = verbose, False, threading.Lock(), out
        # Read here, not at import: tests shorten them.
        seconds, given_up = READING_PATIENCE if out is None else WRITING_PATIENCE, _given_up.get()
        self._patience = Patience(seconds, lambda: self._ended or given_up())
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed by `end`
        command = [executable(), "-hide_banner", "-v", _LEVELS[verbose], *arguments]
        try:
            # Not in the main thread, where an exception that a signal handler raises inside Popen would leave a process
            # behind of which nobody has a handle.
            with ThreadPoolExecutor(1) as other:
                other.submit(self._start, command, stdin, stdout).result()
        except BaseException:
            self.end()
            raise

    def _start(self, command: list[str], stdin: int, stdout: int) -> None:
        with self._starting:
            if self._ended:  # an interrupt came first
                return
            try:
                self.process = subprocess.Popen(
                    command,
                    bufsize=0,
                    stdin=stdin,
                    stdout=stdout,
                    stderr=self._log,
                    env={**os.environ, **_ENVIRONMENT},
                    # Ctrl-C is handled by us and must not reach ffmpeg first.
                    start_new_session=True,
                )
            except OSError as error:
                raise OSError(f"ffmpeg cannot be started: {error.strerror} ({command[0]})") from None
        if self.process.stdout is not None:
            self.output = io.BufferedReader(PatientReader(self.process.stdout, self._patience, self._stall), 2**16)

    def __enter__(self) -> Ffmpeg:
        return self

    def __exit__(self, *error) -> None:
        self.end()

    def send(self, data: memoryview | bytes) -> None:
        """Writes to stdin.

        Raises:
            OSError: ffmpeg has ended, or accepts nothing; `reason` tells.
        """
        try:
            write_all(self.process.stdin, memoryview(data), self._patience)
        except StalledError:
            self._stall()
            raise

    def close_input(self) -> None:
        """Tells it that nothing more is sent."""
        with suppress(OSError):
            self.process.stdin.close()

    def communicate(self, sent: bytes) -> None:
        """Writes `sent` to stdin and waits for the end."""
        with suppress(OSError):  # the exit code tells why
            self.send(sent)
        self.close_input()
        self._wait()

    def succeeded(self) -> bool:
        """Whether it ended with exit code 0; waits for that."""
        return self._wait() == 0

    def _wait(self) -> int:
        """Waits for its end -> its exit code. It is killed if the file that it writes does not change for too long."""

        def ended(seconds: float) -> bool:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
            return self.process.returncode is not None

        try:
            self._patience.until(ended, self._written)
        except StalledError:
            self._stall()
        return -signal.SIGKILL if self.process.returncode is None else self.process.returncode

    def _written(self) -> tuple[int, int] | None:
        """Changes while the file that it writes does."""
        with suppress(OSError):
            if self._out is not None:
                status = self._out.stat()
                return status.st_size, status.st_mtime_ns
        return None

    def _stall(self) -> None:
        self.stalled = not self._ended  # else it was ended by us
        self._kill()

    def _kill(self) -> None:
        """Kills the process, and those that a script in its place has started, which would keep the pipes open."""
        if self.process.poll() is None:
            with suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(ENDING_PATIENCE)

    def give_up(self) -> None:
        """Ends it from another thread than the one that works with it, which then sees it fail."""
        self._ended = True
        self._kill()

    def messages(self) -> list[str]:
        """All lines that it has written to stderr."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace").splitlines()

    def errors(self) -> list[str]:
        """The lines of `messages` that report errors, without the parts of ffmpeg that report them."""
        lines = self.messages()
        if self._verbose:
            tagged = [line for line in lines if re.search(r"\[(error|fatal|panic)\]", line)]
            lines = tagged or [line for line in lines if not re.search(r"\[(info|warning|verbose)\]", line)]
        return [re.sub(r"^(\[[^]]*\] *)+", "", line) for line in lines]

    def lacks(self) -> str | None:
        """The message about an option, encoder, filter or format that this ffmpeg does not have; None if it has all."""
        return next((in_one_line(line) for line in self.errors() if _LACKING.search(line)), None)

    def reason(self) -> str:
        """Why it failed, in one line; waits for its end."""
        code = self._wait()
        if self.stalled:
            return f"ffmpeg has made no progress for {self._patience.seconds:g} s and was ended"
        lines = self.errors()
        if any("matches no streams" in line for line in lines):
            return "matches no streams"
        lines = [line for line in lines if not _CONSEQUENCES.match(line)]
        if lines:
            inner = re.search(r"return code -?\d+ \((.*)\)$", lines[-1])
            return in_one_line(inner[1] if inner else lines[-1])
        return f"ffmpeg was ended by signal {-code}" if code < 0 else f"ffmpeg ended with code {code}"

    def end(self) -> None:
        """Kills the process if it still runs, and closes its pipes. A second call does nothing."""
        with self._starting:
            self._ended = True
        if self.process is not None:
            self._kill()
            for pipe in (self.process.stdin, self.process.stdout):
                with suppress(OSError):
                    if pipe is not None:
                        pipe.close()
        self._log.close()


def check_ffmpeg(reading: bool = False) -> None:
    """Encodes and joins two tiny videos with the command lines of a run, so that a missing encoder is found at once.

    Args:
        reading: whether the run decodes a video as well.

    Raises:
        OSError: ffmpeg cannot be started, or has no such option, encoder, filter or format (which, and where it is); or
            there is no folder for temporary files.
    """
    with tempfile.TemporaryDirectory() as folder:
        video, joined, metadata = (Path(folder, name) for name in ("encoded.mp4", "both.mp4", "metadata"))
        metadata.write_text(";FFMETADATA1\ncomment=none\n")
        _try("write videos", encode_arguments(16, 16, 24, video), bytes(3 * 16 * 16 * 3))
        _try("join videos", join_arguments(24, joined, metadata), join_list([video, video]))
        if reading:
            times = Path(folder, "timestamps")
            _try("read videos", probe_arguments(joined))
            _try("read videos", decode_arguments(joined, *PIXELS, timestamps=times, filters=f"fps=24,{AS_SHOWN}"))


def _try(what: str, arguments: list[str], sent: bytes = b"") -> None:
    with Ffmpeg(arguments, stdin=subprocess.PIPE) as ffmpeg:
        ffmpeg.communicate(sent)
        if not ffmpeg.succeeded():
            if ffmpeg.stalled:
                raise unusable(what, ffmpeg.reason())
            # The first line names what is missing, the later ones say that this was an error.
            reason = ffmpeg.lacks() or next(iter(ffmpeg.errors()), None) or ffmpeg.reason()
            raise unusable(what, reason)


def unusable(what: str, reason: str) -> OSError:
    """The error for an ffmpeg that lacks something. Its path comes last because messages may be cut at the end."""
    path = executable()
    return OSError(f"ffmpeg cannot {what}: {reason} (needed: {LEAST} or newer, with libx264; this one: {_about(path)})")


def _about(path: str) -> str:
    """An ffmpeg's version, if it states one, and its path."""
    deadline = time.monotonic() + ENDING_PATIENCE
    too_late = until(lambda: time.monotonic() > deadline)
    with suppress(OSError), too_late, Ffmpeg(["-version"], stdout=subprocess.PIPE) as asked:
        if match := re.match(rb"ffmpeg version ([\w.:+~-]{1,40})", asked.output.read(100)):
            return f"{match[1].decode()}, {path}"
    return path
