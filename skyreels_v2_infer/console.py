"""Messages on stderr: from the first of several processes, above the progress bars.

Where stderr cannot be written (a terminal that was closed, a pipe whose reader has ended, a full disk) messages are
dropped: a video is not lost because nobody can be told about it.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from skyreels_v2_infer.launch import Launch

INSTALLED = ("generate_video", "generate_video_df", "caption_video")  # names of the scripts where pip puts them
TO_THE_END = "\r\x1b[J"  # clears the line that the cursor is in, and those below
ALSO_BELOW = "\x1b[J"
# Control characters but tabs and line breaks: what files and models say must not command a terminal.
ESCAPED = {code: ascii(chr(code))[1:-1] for code in (*range(9), *range(11, 32), *range(127, 160))}


class Bars:
    """The last lines of the terminal, which are drawn again and again; everything else appears above them.

    The cursor rests at the beginning of the first of them, so that clearing what is below removes them, and also what
    the terminal itself adds there, like the ``^C`` of an interrupt.

    Attributes:
        lock: held by whoever writes to stderr.
        last: when something was printed that stays, by `time.monotonic`.
        shown: whether there are lines to clear.
    """

    def __init__(self):
        self.lock = threading.RLock()
        self.last = time.monotonic()
        self.shown = self._within_line = False

    def draw(self, lines: Sequence[str]) -> None:
        """Draws these lines in place of those that are shown; not while a line of another writer is unfinished."""
        with self.lock:
            if self._within_line:
                return
            self.shown = True
            up = f"\x1b[{len(lines) - 1}A" if len(lines) > 1 else ""
            self._write("\r" + "\x1b[K\n".join(lines) + ALSO_BELOW + up + "\r")

    def hide(self) -> None:
        with self.lock:
            if self.shown:
                self.shown = False
                self._write(TO_THE_END)

    def note(self, text: str = "\n") -> None:
        """Notes that a text was, or is about to be, written."""
        if text:
            self.last, self._within_line = time.monotonic(), not text.endswith("\n")

    def _write(self, text: str) -> None:
        stream = sys.stderr.stream if isinstance(sys.stderr, Lenient) else sys.stderr
        try:
            stream.write(text)
            stream.flush()
        except (OSError, ValueError):
            give_up(stream)

    @contextmanager
    def above(self) -> Iterator[None]:
        """Context manager for writing to the terminal, also by way of stdout; the lines are drawn again later."""
        with self.lock:
            self.hide()
            yield


BARS = Bars()  # as there is one stderr


class Lenient:
    """A stream like `stream` that writes above the bars, and drops what cannot be written instead of raising."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text: str) -> int:
        with BARS.above():
            BARS.note(text)
            try:
                return self.stream.write(text)
            except (OSError, ValueError):
                give_up(self.stream)
                return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except (OSError, ValueError):
            give_up(self.stream)

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


class OfMainThread:
    """A stream like `stream` that drops what other threads write: some libraries print from threads of their own."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text: str) -> int:
        if threading.current_thread() is not threading.main_thread():
            return len(text)
        return self.stream.write(text)

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


def give_up(stream) -> None:
    """Sends what a stream still holds, and all that follows, to nowhere: Python would fail with it at its exit."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def open_standard_streams() -> None:
    """Opens those of stdin, stdout and stderr that are closed on the null device.

    Otherwise the next file that is opened, perhaps the video, would get such a number and receive the messages.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number


def called(script: str) -> str:
    """The name by which the user calls a script: an installed one has no suffix."""
    name = os.path.basename(sys.argv[0]).removesuffix(".exe") if sys.argv else ""
    return script.removesuffix(".py") if name in INSTALLED else script


def say(message: str, from_any_rank: bool = False) -> None:
    """Prints a message on stderr, by default on the first rank only, with control characters escaped.

    stdout is for results.
    """
    if Launch.for_messages().rank and not from_any_rank:
        return
    if sys.stderr is None:
        return
    with BARS.above():
        try:
            if from_any_rank and Launch.for_messages().size > 1 and is_terminal():
                sys.stderr.write(TO_THE_END)  # the bars of the first rank
            print(message.translate(ESCAPED), file=sys.stderr)
            sys.stderr.flush()
        except (OSError, ValueError):
            give_up(sys.stderr)
        BARS.note()


def is_terminal() -> bool:
    """Whether stderr is a terminal on which lines can be drawn again."""
    try:
        return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:  # closed
        return False


def silent() -> bool:
    """Whether bars would disturb: where nobody looks, and on all ranks but the first."""
    return not is_terminal() or Launch.for_messages().rank > 0


def wipe() -> None:
    """Clears the bars without waiting for anybody, right before the process ends."""
    if BARS.shown:
        with suppress(OSError):
            os.write(2, TO_THE_END.encode())


def quiet_transformers() -> None:
    """No progress bars of transformers: this program shows its own."""
    import transformers

    transformers.logging.disable_progress_bar()
