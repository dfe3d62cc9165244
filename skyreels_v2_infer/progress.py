"""Progress on stderr: at a terminal lines that are drawn again and again, elsewhere a line at least every 30 seconds.

Whatever may take longer than a moment runs inside `doing`. A thread shows the innermost of these and, of a video, all
its rows with the time that is left. Python programs that use the pipelines see it at a terminal only; scripts, which
run inside `speaking`, in pipes and log files as well.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from skyreels_v2_infer.console import BARS, say, silent
from skyreels_v2_infer.launch import Launch

TICK = 0.5  # seconds between two drawings at a terminal
BEAT = 25.0  # seconds without any message after which a line is printed where there is no terminal
RECENT = 10  # rows whose time is that of the coming ones: caches and other prompts change it


@dataclass
class Stage:
    """Something that takes time.

    Attributes:
        text: what it is.
        unit: of `done` and `total`; "B": bytes.
        total: 0: unknown.
    """

    text: str
    total: float = 0
    unit: str = ""
    done: float = 0
    began: float = field(default_factory=time.monotonic)

    def update(self, by: float = 1) -> None:
        self.done += by

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began

    def line(self) -> str:
        """For log files."""
        if not self.done:
            return f"{self.text}: {clock(self.elapsed)}"
        if self.unit == "B":
            total = f" of {self.total / 1e9:.2f}" if self.total else ""
            return f"{self.text}: {self.done / 1e9:.2f}{total} GB, {self.done / self.elapsed / 1e6:.1f} MB/s"
        total = f"/{self.total:g}" if self.total else ""
        return f"{self.text}: {self.done:g}{total} {self.unit}, {clock(self.elapsed)}"

    def bar(self, width: int) -> str:
        """For a terminal of that many columns."""
        if not self.total:
            return self.line()[:width]
        shown = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {unit}, {elapsed}"
        return meter(min(self.done, self.total), self.total, self.elapsed, width, self.text, shown, self.unit)


@dataclass(frozen=True)
class WindowWork:
    """What a window of a video costs.

    Attributes:
        rows: of each row, in any unit.
        frames: that are decoded.
    """

    rows: Sequence[float]
    frames: int


class VideoProgress:
    """The progress of one video: its rows, and the time that is left, estimated from the latest rows.

    Args:
        check: called after every row; may raise.
        lines: whether to print a line after every window.
        shown: False: nothing is drawn or printed.
    """

    def __init__(self, check: Callable[[], object] = lambda: None, lines: bool = False, shown: bool = True):
        self.check, self.lines, self.board = check, lines and shown, BOARD if shown else Board(hidden=True)
        self.work: Sequence[WindowWork] = ()
        self.window = self.row = self.decoded = 0  # windows denoised, rows of the next one, frames decoded
        self.began = time.monotonic()
        self._recent: deque[tuple[float, float]] = deque(maxlen=RECENT)  # cost and seconds of rows
        self._decoding = [0, 0.0]  # frames and seconds
        self._row_began: float | None = None

    @contextmanager
    def video(self, work: Sequence[WindowWork], done: int = 0) -> Iterator[None]:
        """Context manager around the whole video.

        Args:
            done: windows that are there already.
        """
        self.work, self.window, self.began = work, done, time.monotonic()
        self.decoded = sum(window.frames for window in work[:done])
        with self.board.showing(self):
            yield

    def doing(self, text: str):
        """See `doing`."""
        return self.board.stage(Stage(text))

    @contextmanager
    def rows(self, window: int) -> Iterator[Callable[[], None]]:
        """Context manager around the rows of a window; its value is called after every row."""
        self.window, self.row = window, 0
        rows, began = self.work[window].rows, time.monotonic()
        with self.board.stage(Stage(f"window {window + 1}/{len(self.work)}", len(rows), "rows")) as stage:
            self._row_began = began

            def advance() -> None:
                now = time.monotonic()
                self._recent.append((rows[self.row], now - self._row_began))
                self._row_began = now
                self.row += 1
                stage.update()
                self.check()

            try:
                yield advance
            finally:
                self._row_began = None
        self.window, self.row = window + 1, 0
        if self.lines:
            say(f"{stage.text}: {len(rows)} row{'s' * (len(rows) != 1)}, {time.monotonic() - began:.1f} s")

    def decoding(self, window: int, pieces: Iterable) -> Iterator:
        """The same pieces, whose axis 2 is frames; time between them does not count."""
        self.window, self.row = window + 1, 0
        frames = self.work[window].frames
        stage = Stage(f"decoding window {window + 1}/{len(self.work)}", frames, "frames")
        iterator, nothing = iter(pieces), object()
        while True:
            began = time.monotonic()
            with self.board.stage(stage):
                piece = next(iterator, nothing)
            if piece is nothing:
                return
            count = piece.shape[2]
            self._decoding[0] += count
            self._decoding[1] += time.monotonic() - began
            self.decoded += count
            stage.update(count)
            yield piece

    @property
    def seconds_a_row(self) -> float | None:
        """Of the latest rows; None: none is done."""
        recent = tuple(self._recent)
        return sum(seconds for _, seconds in recent) / len(recent) if recent else None

    @property
    def seconds_left(self) -> float | None:
        """An estimate; None: nothing is known. Decoding counts from the first decoded window on."""
        recent = tuple(self._recent)  # rows go on meanwhile
        cost = sum(cost for cost, _ in recent)
        if not cost:
            return None
        pace = sum(seconds for _, seconds in recent) / cost
        rows = [*(self.work[self.window].rows[self.row :] if self.window < len(self.work) else ())]
        left = pace * (sum(rows) + sum(sum(window.rows) for window in self.work[self.window + 1 :]))
        if rows and self._row_began is not None:
            left -= min(pace * rows[0], time.monotonic() - self._row_began)
        frames, seconds = self._decoding
        if frames:
            left += seconds / frames * max(0, sum(window.frames for window in self.work) - self.decoded)
        return left

    def counts(self) -> tuple[int, int]:
        """Rows that are done, and all rows."""
        lengths = [len(window.rows) for window in self.work]
        return sum(lengths[: self.window]) + self.row, sum(lengths)

    def line(self, stage: Stage) -> str:
        """For log files: where the video is, with the time that is left."""
        pace, left = self.seconds_a_row, self.seconds_left
        line = stage.line()
        if stage.unit == "rows":
            a_row = "" if pace is None else f", {pace:.3g} s a row"
            line = f"{stage.text}: row {min(self.row + 1, stage.total)}/{stage.total}{a_row}"
        return line if left is None else f"{line}, about {clock(left)} left"

    def bar(self, width: int) -> str:
        """For a terminal of that many columns."""
        done, total = self.counts()
        pace, left = self.seconds_a_row, self.seconds_left
        a_row = "" if pace is None else f", {pace:.3g} s a row"
        rest = "" if left is None else f"{clock(left)} left, "
        shown = "{desc}: {percentage:3.0f}%|{bar}| " + rest + "{n_fmt}/{total_fmt} rows, {elapsed}" + a_row
        return meter(done, max(1, total), time.monotonic() - self.began, width, "video", shown, "")


def meter(done: float, total: float, elapsed: float, width: int, text: str, shown: str, unit: str) -> str:
    """A line with a bar, of that many columns at most."""
    from tqdm import tqdm

    encoding = getattr(sys.stderr, "encoding", None) or ""
    options = {"ncols": width, "prefix": text, "unit": unit, "bar_format": shown, "unit_scale": unit == "B"}
    return tqdm.format_meter(done, total, elapsed, ascii=not encoding.lower().startswith("utf"), **options)[:width]


def clock(seconds: float) -> str:
    """12 s, 3:45 min or 1:02:45 h."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


class Board:
    """Shows the stages of this process, of which there is one board, as there is one stderr.

    Args:
        tick, beat: see `TICK` and `BEAT`.
        hidden: True: it shows nothing.
    """

    def __init__(self, tick: float = TICK, beat: float = BEAT, hidden: bool = False):
        self.tick, self.beat, self.hidden = tick, beat, hidden
        self.label = ""  # in front of each line
        self._forget()

    def _forget(self) -> None:
        self._stages: list[Stage] = []
        self._videos: list[VideoProgress] = []
        self._speaking = 0
        self._thread: threading.Thread | None = None
        self._busy = threading.Event()

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[Stage]:
        """Context manager in which a stage is the one that goes on, unless a later one does."""
        self._stages.append(stage)
        self._start()
        try:
            yield stage
        finally:
            self._stages = [one for one in self._stages if one is not stage]
            if not self._stages and self._busy.is_set():
                self._busy.clear()
                BARS.hide()

    @contextmanager
    def showing(self, video: VideoProgress) -> Iterator[None]:
        """Context manager in which a video's bar is above the stage's."""
        self._videos.append(video)
        try:
            yield
        finally:
            self._videos = [one for one in self._videos if one is not video]

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """Context manager in which lines are printed where there is no terminal."""
        self._speaking += 1
        try:
            yield
        finally:
            self._speaking -= 1

    @contextmanager
    def labelled(self, label: str) -> Iterator[None]:
        """Context manager in which every line begins with a label."""
        before, self.label = self.label, label
        try:
            yield
        finally:
            self.label = before

    @property
    def shows(self) -> bool:
        """Whether anybody sees it."""
        return not self.hidden and (self._speaking > 0 or not silent())

    def _start(self) -> None:
        if not self._busy.is_set() and self.shows and not Launch.for_messages().rank:
            BARS.note()
            self._busy.set()
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name="progress", daemon=True)
                with suppress(RuntimeError):  # no more threads: the work itself may need none
                    self._thread.start()

    def _work(self) -> None:
        while True:
            self._busy.wait()
            time.sleep(self.tick)
            with BARS.lock:
                if self._busy.is_set():
                    self.show()

    def show(self) -> None:
        """Draws the lines, or prints one if it is time to."""
        stages, videos = self._stages, self._videos
        if not stages or self.hidden:
            return
        if not silent():
            width = columns()
            first, *others = [*videos[-1:], stages[-1]]
            BARS.draw([self.label + first.bar(width - len(self.label)), *(one.bar(width) for one in others)])
        elif self._speaking and time.monotonic() - BARS.last >= self.beat:
            say(self.label + (videos[-1].line(stages[-1]) if videos else stages[-1].line()))

    def stop(self) -> None:
        """At the end of the process: nothing is written any more, since streams are being closed."""
        with BARS.lock:
            self._busy.clear()
            BARS.hide()


BOARD = Board()
atexit.register(BOARD.stop)
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=BOARD._forget)
speaking, labelled = BOARD.speaking, BOARD.labelled


def columns() -> int:
    """Of the terminal, less one: a full line would move the cursor."""
    found = 0
    with suppress(OSError, ValueError, AttributeError):
        found = os.get_terminal_size(sys.stderr.fileno()).columns
    return max(20, found or shutil.get_terminal_size().columns) - 1


def doing(text: str, total: float = 0, unit: str = ""):
    """Context manager around something that takes time; its value is a `Stage`, to count what is done."""
    return BOARD.stage(Stage(text, total, unit))


def counting_bytes(stage: Stage) -> type | None:
    """A class in place of huggingface_hub's bars, which counts in `stage`; None: those are left as they are."""
    if not BOARD.shows:
        return None
    from tqdm.auto import tqdm

    counts: dict[int, list[float]] = {}

    class Counting(tqdm):
        def __init__(self, *args, **options):
            self.counts = options.get("unit") == "B"
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n=1):
            if self.counts:
                known = counts.setdefault(id(self), [0, 0])
                known[0] += n or 0
                known[1] = getattr(self, "total", None) or 0
                stage.done, stage.total = (max(column) for column in zip(*tuple(counts.values()), strict=True))

    stage.unit = "B"
    return Counting
