"""Runs a case in a process of its own, under limits, and says what is wrong with how it went."""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cases

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.launch import Launch

CODES = {0, 1, 2, 130, 143}
CPU_SECONDS = 10  # of the case, on an idle machine also its wall-clock time
MEMORY = 2 * 2**30  # bytes, beyond what this process has when the case begins
SCRIPTS = {
    "parse_generate": "generate_video.py",
    "parse_diffusion_forcing": "generate_video_df.py",
    "parse_captions": "caption_video.py",
}
# A line about one row of a job file, of which each invalid one gets a line.
ROW = re.compile(r"generate_video(_df)?\.py: (.*:\d+( \(.*\))?: |--sweep|\.\.\. and \d+ more)")
TRACES = ("Traceback (most recent call last)", "panicked at", "core dumped", "Segmentation fault", "MemoryError")


@dataclass
class Outcome:
    """How a case went.

    Attributes:
        code: exit code, negative for a signal; None: it hung.
        wrong: what is wrong with it; empty: nothing.
    """

    code: int | None
    out: str
    err: str
    seconds: float
    wrong: list[str]


def patience() -> float:
    """Wall-clock seconds of a case: as many as its CPU seconds, more on a machine that others use as well."""
    return CPU_SECONDS * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def snapshot(folder: Path) -> dict[str, tuple]:
    """Everything below a folder, with what tells that it was written to."""
    found = {}
    for path in _walk(folder):
        status = os.lstat(path)
        changed = (status.st_ino, status.st_size, status.st_mtime_ns) if not os.path.isdir(path) else ()
        found[os.path.relpath(path, folder)] = changed
    return found


def _walk(folder: Path) -> Iterator[str]:
    for at, below, files in os.walk(folder):
        yield from (os.path.join(at, name) for name in (*below, *files))


def outdir_of(case: cases.Case, box: Path) -> Path:
    """Where the case may write."""
    given = "video_out"
    for word, following in zip(case.argv, [*case.argv, ""][1:], strict=True):
        if word == "--outdir":
            given = following
        elif word.startswith("--outdir="):
            given = word.partition("=")[2]
    if given.startswith("~/"):
        given = str(box / "home" / given[2:])
    return Path(os.path.normpath(box / "work" / given))


def environment(case: cases.Case, box: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "IMAGEIO_FFMPEG_EXE") if name in os.environ}
    fixed = {"HOME": str(box / "home"), "TMPDIR": str(box / "tmp"), "HF_HOME": str(box / "home" / ".cache")}
    fixed |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONUTF8": "1"}
    fixed["TORCHINDUCTOR_CACHE_DIR"] = str(box / "home" / ".cache" / "inductor")
    return kept | fixed | case.env


def _child(case: cases.Case, box: Path, process: bool) -> None:
    """The process of a case: replaces itself by the script, or calls what the script calls. Does not return."""
    code = 99
    try:
        os.setsid()
        os.chdir(box / "work")
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (4 * CPU_SECONDS, 4 * CPU_SECONDS + 5))
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, 2**30))
        resource.setrlimit(resource.RLIMIT_AS, (_pages(0) + 2 * MEMORY,) * 2)  # a net under `MEMORY`, for the machine
        null = os.open(os.devnull, os.O_RDONLY)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(box / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.dup2(null, 0)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  those of this process may lead elsewhere
        sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115
        env = environment(case, box)
        if process:
            script = cases.ROOT / SCRIPTS[case.parse]
            os.execve(sys.executable, [os.fsencode(word) for word in (sys.executable, script, *case.argv)], env)
        os.environ.clear()
        os.environ.update(env)
        code = _call(case)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code & 255)


def _pages(column: int) -> int:
    """Bytes that this process has mapped (column 0) or resident (column 1)."""
    return int(Path("/proc/self/statm").read_text().split()[column]) * resource.getpagesize()


def _call(case: cases.Case) -> int:
    import tempfile

    from skyreels_v2_infer.run.main import main, run_process
    from skyreels_v2_infer.run.session import Session

    tempfile.tempdir = None  # was found for this process's environment
    if case.parse == "parse_captions":
        from skyreels_v2_infer.run.captions import CaptionWork

        return run_process(SCRIPTS[case.parse], CaptionWork(case.argv))

    class Unused(Session):
        def make(self, plan, inputs, video):
            return None

    return main(
        SCRIPTS[case.parse], cases.PARSERS[case.parse], case.argv, open_session=Session if case.makes else Unused
    )


def run(case: cases.Case, box: Path, process: bool = False) -> Outcome:
    """Runs a case whose box is laid out."""
    before = {name: snapshot(box / name) for name in ("work", "inputs", "home", "tmp")}
    sys.stdout.flush()
    sys.stderr.flush()
    began, limit = time.monotonic(), patience() * (2 if process else 1)
    base = _pages(1)  # what a fork begins with, not this process's peak
    pid = os.fork()
    if pid == 0:
        _child(case, box, process)
    hung, used = False, None
    while used is None:
        found, status, used_now = os.wait4(pid, os.WNOHANG)
        if found:
            used = used_now
        elif time.monotonic() - began > limit:
            hung = True
            os.killpg(pid, signal.SIGKILL)
            _, status, used = os.wait4(pid, 0)
        else:
            time.sleep(0.002)
    seconds = time.monotonic() - began
    out, err = ((box / name).read_text(errors="replace") for name in ("out", "err"))
    code = None if hung else os.waitstatus_to_exitcode(status)
    wrong = list(judge(code, err, case))
    if used.ru_utime + used.ru_stime > CPU_SECONDS:
        wrong.append(f"took {used.ru_utime + used.ru_stime:.0f} s of CPU")
    if used.ru_maxrss * 1024 - base > MEMORY:
        wrong.append(f"took {used.ru_maxrss / 2**20:.1f} GiB")
    if not hung:
        wrong += written_elsewhere(case, box, before)
    if _left_processes(pid):
        wrong.append("left processes behind")
    return Outcome(code, out, err, seconds, wrong)


def judge(code: int | None, err: str, case: cases.Case) -> Iterator[str]:
    """What is wrong with an exit code and the messages that came with it.

    Of several ranks the first alone says what all find wrong; a batch has a line for each wrong row.
    """
    if code is None:
        yield "hung"
    elif code not in CODES:
        yield f"exit code {code}"
    for trace in TRACES:
        if trace in err:
            yield trace.split(" ")[0].lower()
            break
    lines = err.splitlines()
    if other_rank(case):
        return
    if code == 2 and len(lines) != 1 and not (lines and all(map(ROW.match, lines))):
        yield f"exit code 2 with {len(lines)} lines"
    if code and code > 0 and not lines:
        yield f"exit code {code} without a word"


def other_rank(case: cases.Case) -> bool:
    """Whether the case is one of several ranks, and not the first."""
    try:
        return Launch.from_environment(case.env).rank > 0
    except InputError:
        return False


def written_elsewhere(case: cases.Case, box: Path, before: dict[str, dict]) -> Iterator[str]:
    outdir = outdir_of(case, box)
    for name, then in before.items():
        now = snapshot(box / name)
        for path in sorted({path for path in then.keys() | now.keys() if then.get(path) != now.get(path)}):
            whole = Path(os.path.normpath(box / name / path))
            allowed = whole == outdir or outdir in whole.parents or whole in outdir.parents
            if not allowed and not (name == "home" and path.startswith(".cache")):
                yield f"wrote {name}/{path}"
                break


def _left_processes(group: int) -> bool:
    """Whether a process of the case still runs; ends it."""
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return False
    return True
