"""Signs of life: bars at a terminal, lines in a log, messages above the bars."""

import io
import itertools
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from script_runs import FORCING, ROOT, environment

from skyreels_v2_infer import console, progress
from skyreels_v2_infer.progress import BEAT, TICK, Board, Stage, VideoProgress, WindowWork, clock, counting_bytes, doing

SLOWED = Path(__file__).parent / "slowed.py"
SHORT = ("--model_id", "tiny", "--prompt", "a red circle moves slowly to the right", "--seed", 3, "--device", "cpu")
THREE_WINDOWS = (*SHORT, "--num_frames", 65, "--overlap_history", 17, "--inference_steps", 2)
WINDOWS = [WindowWork([10, 10], 5), WindowWork([20, 20], 4)]


def test_a_message_cannot_command_a_terminal(capsys):
    console.say("prompt: \x1b]0;a title\x07 caf\u00e9\t\u9b5a\x9b2J\r\nsecond line")
    assert capsys.readouterr().err == "prompt: \\x1b]0;a title\\x07 caf\u00e9\t\u9b5a\\x9b2J\\r\nsecond line\n"


def screen(text: str) -> list[str]:
    """What a terminal shows after a text, line by line."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[\d*[A-Z]|[\r\n]|[^\x1b\r\n]+", text):
        if part == "\r":
            column = 0
        elif part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif part.startswith("\x1b"):
            count, kind = int(part[2:-1] or 1), part[-1]
            if kind == "A":
                row -= count
            else:
                lines[row] = lines[row][:column]
                if kind == "J":
                    del lines[row + 1 :]
        else:
            lines[row] = lines[row].ljust(column)[:column] + part + lines[row][column + len(part) :]
            column += len(part)
    return [line for line in lines if line]


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        raise OSError


def terminal_of(monkeypatch) -> Terminal:
    """A terminal in place of stderr; not a fixture, since pytest replaces stderr after those."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    found = Terminal()
    monkeypatch.setattr(sys, "stderr", found)
    return found


@pytest.fixture
def board(monkeypatch):
    """A board whose thread does not draw, so that tests do."""
    made = Board(tick=3600)
    monkeypatch.setattr(progress, "BOARD", made)
    return made


def test_a_person_never_waits_longer_than_promised():
    assert TICK <= 2 and BEAT + TICK < 30


@pytest.mark.parametrize(("seconds", "text"), [(-1, "0 s"), (59.4, "59 s"), (225, "3:45 min"), (3765, "1:02:45 h")])
def test_durations(seconds, text):
    assert clock(seconds) == text


# ---- a video ---------------------------------------------------------------------------------------------------------


def at(monkeypatch, *times: float) -> None:
    ticks = itertools.chain(times, itertools.repeat(times[-1]))
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks))


def test_time_left_counts_the_cost_of_rows(board, monkeypatch):
    shown = VideoProgress()
    with shown.video(WINDOWS):
        assert shown.seconds_left is None and shown.seconds_a_row is None
        with shown.rows(0) as advance:
            shown._row_began = time.monotonic() - 10
            advance()
            left = shown.seconds_left
        assert shown.seconds_a_row == pytest.approx(10, abs=0.5)
        assert left == pytest.approx(10 + 20 + 20, abs=1)  # a row of this window, two of twice the cost
        assert shown.seconds_left == pytest.approx(40, abs=1)


def test_time_left_counts_decoding_once_it_is_known(board):
    import numpy as np

    def slow():
        shown._decoding[1] += 10  # as if it had taken so long
        yield np.zeros((1, 3, 5, 8, 8))

    shown = VideoProgress()
    with shown.video([WindowWork([1], 5), WindowWork([1], 5)]):
        with shown.rows(0) as advance:
            advance()
        assert [piece.shape[2] for piece in shown.decoding(0, slow())] == [5]
        assert shown.seconds_left == pytest.approx(10, abs=0.5) and shown.decoded == 5


def test_a_resumed_video_counts_what_is_there(board):
    shown = VideoProgress()
    with shown.video(WINDOWS, 1):
        assert "2/4" in shown.bar(80) and shown.decoded == 5


def test_a_line_after_every_window_and_a_check_after_every_row(board, capsys):
    checks = []
    shown = VideoProgress(lambda: checks.append(1), lines=True)
    with shown.video(WINDOWS), shown.rows(1) as advance:
        advance()
        advance()
    assert len(checks) == 2 and re.fullmatch(r"window 2/2: 2 rows, [\d.]+ s\n", capsys.readouterr().err)


# ---- a log -----------------------------------------------------------------------------------------------------------


def test_a_line_in_a_log_says_where_the_video_is(board, capsys):
    board.beat = 0
    shown = VideoProgress()
    with board.speaking(), shown.video(WINDOWS), shown.rows(1) as advance:
        advance()
        board.show()
    assert re.fullmatch(r"window 2/2: row 2/2, \S+ s a row, about 0 s left\n", capsys.readouterr().err)


def test_lines_in_a_log_come_when_nothing_else_did(board, capsys):
    board.beat = 60
    with board.speaking(), doing("loading a model"):
        board.show()
        assert capsys.readouterr().err == ""
        console.BARS.last -= 61
        board.show()
        assert capsys.readouterr().err == "loading a model: 0 s\n"
        board.show()
        assert capsys.readouterr().err == ""
    console.BARS.last -= 61
    board.show()
    assert capsys.readouterr().err == ""  # nothing goes on


def test_python_programs_get_no_lines_without_a_terminal(board, capsys):
    board.beat = 0
    with doing("loading a model"):
        board.show()
    assert capsys.readouterr().err == ""


def test_the_thread_speaks_by_itself(monkeypatch, capsys):
    made = Board(tick=0.01, beat=0.02)
    with made.speaking(), made.stage(Stage("loading a model")):
        time.sleep(0.3)
    said = capsys.readouterr().err.splitlines()
    assert len(said) >= 2 and set(said) == {"loading a model: 0 s"}


def test_downloads_count_bytes(board, capsys):
    board.beat = 0
    with board.speaking(), doing("downloading owner/name") as stage:
        counter = counting_bytes(stage)
        files, received = counter(total=3, desc="Fetching 3 files"), counter(total=0, unit="B", unit_scale=True)
        received.total = 4e9
        files.update(1)
        received.update(1e9)
        board.show()
    assert re.match(r"downloading owner/name: 1.00 of 4.00 GB, \S+ MB/s\n", capsys.readouterr().err)


# ---- a terminal ------------------------------------------------------------------------------------------------------


def test_the_bar_of_the_job_is_above_that_of_the_rows(board, monkeypatch):
    terminal = terminal_of(monkeypatch)
    shown = VideoProgress()
    with shown.video(WINDOWS), shown.rows(1) as advance:
        advance()
        board.show()
        job, rows = screen(terminal.getvalue())
        assert "3/4 rows" in job and " left" in job and "s a row" in job
        assert rows.startswith("window 2/2") and "1/2 rows" in rows
        assert max(len(job), len(rows)) < 80
    assert screen(terminal.getvalue()) == []


@pytest.mark.parametrize("columns", [20, 33, 200])
def test_bars_fit_into_the_terminal(board, monkeypatch, columns):
    terminal = terminal_of(monkeypatch)
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = VideoProgress()
    with board.labelled("3/12 "), shown.video(WINDOWS), shown.rows(0) as advance:
        advance()
        board.show()
        assert all(0 < len(line) < columns for line in screen(terminal.getvalue()))


@pytest.mark.parametrize("write", [console.say, lambda text: console.Lenient(sys.stderr).write(f"{text}\n")])
def test_messages_do_not_land_on_a_bar(board, monkeypatch, write):
    terminal = terminal_of(monkeypatch)
    shown = VideoProgress()
    with shown.video(WINDOWS), shown.rows(0):
        board.show()
        terminal.write("^C")  # by the terminal itself
        write("a message")
        assert screen(terminal.getvalue()) == ["a message"]
        board.show()
        assert screen(terminal.getvalue())[0] == "a message" and len(screen(terminal.getvalue())) == 3
    assert screen(terminal.getvalue()) == ["a message"]


def test_a_line_that_is_not_finished_is_not_drawn_over(board, monkeypatch):
    terminal = terminal_of(monkeypatch)
    monkeypatch.setattr(sys, "stderr", console.Lenient(terminal))
    with doing("loading"):
        sys.stderr.write("some library: 50 %")
        board.show()
        assert screen(terminal.getvalue()) == ["some library: 50 %"]
        sys.stderr.write("\n")
        board.show()
        assert screen(terminal.getvalue()) == ["some library: 50 %", "loading: 0 s"]


def test_python_pipelines_show_bars_at_a_terminal(board, monkeypatch):
    terminal = terminal_of(monkeypatch)
    import numpy as np

    from skyreels_v2_infer.pipelines.hooks import Hooks

    shown = Hooks().progress()
    with shown.video(WINDOWS), shown.rows(0):
        board.show()
    assert "4 rows" in terminal.getvalue()
    terminal.truncate(0)
    list(shown.decoding(0, [np.zeros((1, 3, 5, 8, 8))]))
    board.show()
    assert screen(terminal.getvalue()) == []  # nothing while the caller does something else


def test_bars_of_a_pipeline_can_be_switched_off(board, monkeypatch):
    terminal = terminal_of(monkeypatch)
    shown = VideoProgress(lines=True, shown=False)
    with shown.video(WINDOWS), shown.rows(0) as advance, shown.doing("preparing"):
        advance()
        board.show()
        shown.board.show()
    assert terminal.getvalue() == "" and shown.counts() == (2, 4)


def test_a_dumb_terminal_gets_lines(board, monkeypatch):
    terminal = terminal_of(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    board.beat = 0
    with board.speaking(), doing("loading"):
        board.show()
    assert terminal.getvalue() == "loading: 0 s\n"


# ---- scripts with a slow model ---------------------------------------------------------------------------------------


def at_a_terminal(*argv: object, folder: Path, interrupt: str | None = None) -> tuple[str, int, float]:
    """What a command shows at a terminal of 100 columns, its exit code, and the longest time without a change.

    Args:
        interrupt: Ctrl-C is pressed once this is shown.
    """
    ours, theirs = pty.openpty()
    environ = environment(TERM="xterm", COLUMNS="100")
    child = subprocess.Popen(
        [sys.executable, SLOWED, *map(str, argv)],
        cwd=folder,
        env=environ,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    os.close(theirs)
    shown, last, longest = b"", time.monotonic(), 0.0
    while True:
        select.select([ours], [], [], 60)
        try:
            more = os.read(ours, 2**16)
        except OSError:
            break
        if not more:
            break
        now = time.monotonic()
        longest, last = max(longest, now - last), now
        shown += more
        if interrupt is not None and interrupt.encode() in shown:
            os.write(ours, b"")
            child.send_signal(signal.SIGINT)
            interrupt = None
    os.close(ours)
    return shown.decode(), child.wait(), longest


@pytest.mark.slow
def test_a_terminal_is_never_silent_for_two_seconds(tmp_path):
    shown, code, longest = at_a_terminal(0.2, 60, FORCING, *THREE_WINDOWS, "--outdir", "o", folder=tmp_path)
    assert code == 0 and longest < 2
    assert re.search(r"video: +\d+%\|.*left.*/\d+ rows", shown)
    lines = screen(shown)
    assert lines[-1].endswith(".mp4") and not any("%|" in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["starting", "encoding the prompt", "window 2/"])
def test_an_interrupt_leaves_no_rest_of_a_bar(tmp_path, when):
    windows = ("--num_frames", 65 + 16 * 100)  # so many that it is in time
    shown, code, _ = at_a_terminal(0.2, 60, FORCING, *THREE_WINDOWS, *windows, folder=tmp_path, interrupt=when)
    lines = screen(shown)
    assert code == 130 and lines[-1].startswith(f"{FORCING}: interrupted; ") and "%|" not in "".join(lines)


@pytest.mark.slow
def test_a_log_gets_a_line_in_time(tmp_path):
    # A window takes longer than a line and a tick together, so that there is one within it.
    command = [sys.executable, SLOWED, 0.7, 0.8, FORCING, *THREE_WINDOWS]
    with (tmp_path / "log").open("w") as log:
        child = subprocess.Popen(
            [*map(str, command)], cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        last, longest, began = time.monotonic(), 0.0, False
        for line in child.stderr:
            now = time.monotonic()
            longest, last = max(longest, now - last if began else 0), now
            began = True
            log.write(line.decode())
    said = (tmp_path / "log").read_text()
    assert child.wait() == 0
    assert longest < 0.8 + 2 * TICK + 1, said
    for expected in (
        "starting: |loading ",
        "encoding the prompt: ",
        r"window 2/3: row \d/2, \S+ s a row, about .* left",
    ):
        assert re.search(expected, said), said
    assert ROOT and "\r" not in said
