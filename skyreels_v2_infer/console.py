"""Messages on stderr: from the first of several processes, above the progress bars.

Where stderr cannot be written (a terminal that was closed, a pipe whose reader has ended, a full disk) messages are
dropped: a video is not lost because nobody can be told about it.
"""

import os
import sys
from contextlib import suppress

from skyreels_v2_infer.launch import Launch

INSTALLED = ("generate_video", "generate_video_df", "caption_video")  # names of the scripts where pip puts them


class Lenient:
    """A stream like `stream` that drops what cannot be written instead of raising."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text: str) -> int:
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
    """Prints a message on stderr, by default on the first rank only; stdout is for results."""
    if Launch.for_messages().rank and not from_any_rank:
        return
    if sys.stderr is None:
        return
    try:
        if "tqdm" in sys.modules:
            sys.modules["tqdm"].tqdm.write(message, file=sys.stderr)  # above the bars, if there are any
        else:
            print(message, file=sys.stderr)
        sys.stderr.flush()
    except (OSError, ValueError):
        give_up(sys.stderr)


def silent() -> bool:
    """Whether progress bars would disturb: where nobody looks, and on all ranks but the first."""
    return sys.stderr is None or not sys.stderr.isatty() or Launch.for_messages().rank > 0


def quiet_transformers() -> None:
    """No progress bars of transformers where they would disturb."""
    if silent():
        import transformers

        transformers.logging.disable_progress_bar()
