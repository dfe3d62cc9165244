"""The process of a script: argv, signals, exit codes and stdout."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from skyreels_v2_infer.cli.batch import InvalidRowsError, JobList
from skyreels_v2_infer.cli.settings import GenerateSettings
from skyreels_v2_infer.console import BARS, Lenient, called, open_standard_streams, say
from skyreels_v2_infer.distributed.team import SilencedError, assembled, own_device
from skyreels_v2_infer.errors import InputError, first_line
from skyreels_v2_infer.launch import Launch
from skyreels_v2_infer.progress import doing, speaking
from skyreels_v2_infer.run import summary
from skyreels_v2_infer.run.dry_run import dry_run, dry_run_batch
from skyreels_v2_infer.run.foreseen import is_foreseen
from skyreels_v2_infer.run.signals import INTERRUPTED, Interrupts

if TYPE_CHECKING:  # imported where something is made: --dry_run answers sooner without them
    from skyreels_v2_infer.run.batch import Batch
    from skyreels_v2_infer.run.jobs import Job
    from skyreels_v2_infer.run.session import Session

DONE, FAILED, REFUSED = 0, 1, 2
LAST_TO_END = 60.0  # seconds that the first of several processes has for messages


class Work(Protocol):
    """What the process of a script does.

    Attributes:
        makes: what its result is, for messages.
    """

    makes: str

    def run(self, interrupts: Interrupts) -> Path | str | int | None:
        """Does it -> the result, which is printed, or None; or the exit code, if it has printed all there is.

        Exceptions decide the exit code otherwise.
        """

    def left(self) -> str:
        """For messages: what survives if the work stops here."""


def main(
    prog: str,
    parse: Callable[[Sequence[str]], GenerateSettings | JobList],
    argv: Sequence[str] | None = None,
    open_session: Callable[..., Session] | None = None,
) -> int:
    """Runs a script that makes a video, or many, and returns its exit code, see `run_process`.

    Args:
        prog: file name of the script.
        parse: argv -> settings, or those of many videos; exits with 2 on invalid arguments.
        argv: arguments; None: those of the process.
        open_session: constructor of the session; None: `Session`.
    """
    return run_process(prog, VideoWork(prog, parse, argv, open_session))


class VideoWork:
    """Makes a video, or those of a job file, see `main`."""

    makes = "video"

    def __init__(
        self, prog: str, parse: Callable, argv: Sequence[str] | None, open_session: Callable[..., Session] | None
    ):
        self.prog, self.parse, self.argv, self.open_session = prog, parse, argv, open_session
        self.job: Job | Batch | None = None

    def left(self) -> str:
        return "no video was written" if self.job is None else self.job.left()

    def run(self, interrupts: Interrupts) -> Path | str | int | None:
        settings = self.parse(sys.argv[1:] if self.argv is None else self.argv)
        launch = Launch.from_environment()
        many = isinstance(settings, JobList)
        if settings.dry_run:
            if launch.rank:
                return None
            return dry_run_batch(settings) if many else dry_run(settings, launch.size)
        from skyreels_v2_infer.run.batch import Batch
        from skyreels_v2_infer.run.jobs import Job
        from skyreels_v2_infer.run.session import Session

        if launch.rank:  # nothing to clean up, and Python handlers do not run while this rank waits for others
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if launch.size > 1:
            settings = settings.on_device(own_device(settings.device, launch.local_rank))
        if many:
            job = Batch(self.prog, settings, interrupts.check, partial(tell, called(self.prog), kind=self.makes))
        else:
            job = Job(self.prog, settings, interrupts.check)
        self.job = job
        if many and settings.ray is not None:
            return self._distributed(job, settings)

        def lost(reason: str) -> None:
            left = "--resume continues after the last window that was kept" if launch.rank else job.left()
            say(f"{called(self.prog)}: failed: {reason}; {left}", from_any_rank=True)

        with assembled(launch, settings.device, lost, settings.group if many else None) as team:
            try:
                path = job.run(team, self.open_session or Session)
                team.meet_all()  # the first rank decodes and writes longer than the others compute
            finally:
                job.close()
        if not many:
            return path
        say(f"{job.done()}; {job.outdir / summary.NAME}")
        return DONE if launch.rank else job.code  # the first one ends last and knows of all

    def _distributed(self, batch: Batch, jobs: JobList) -> int:
        """Has the workers of a cluster make the videos -> exit code."""
        from skyreels_v2_infer.run.cluster import Cluster

        try:
            batch.distribute(partial(Cluster, jobs.ray, self.prog, jobs.group, jobs.device))
        finally:
            batch.close()
        say(f"{batch.done()}; {batch.outdir / summary.NAME}")
        return batch.code


def run_process(script: str, work: Work) -> int:
    """Does the work of a script and returns its exit code.

    0: done; 1: failed, or some of many videos did; 2: invalid input; 130 or 143: interrupted.

    Args:
        script: its file name.
    """
    open_standard_streams()
    if sys.stderr is None:  # closed; tracebacks and libraries would write to stdout then
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  for the rest of the process
    given = sys.stderr
    sys.stderr = Lenient(given)  # for libraries' messages and tracebacks as well
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")  # libraries' to programmers; of a damaged file there are many
            code = _run(called(script), work)
    finally:
        sys.stderr.flush()
        sys.stderr = given
    if code and Launch.for_messages().size > 1:
        # A regular exit would wait on a GPU for ranks that wait for this one.
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code)
    return code


def _run(prog: str, work: Work) -> int:
    interrupts = Interrupts()
    try:
        with interrupts, speaking(), doing("starting"):
            result = work.run(interrupts)
            if isinstance(result, str):  # a plan: no file that is complete and only has to be named
                return tell(prog, result)
    except InvalidRowsError as error:
        for line in error.lines:
            say(f"{prog}: {line}")
        if Launch.for_messages().rank:  # torchrun ends all processes when one has ended; the first one speaks
            time.sleep(LAST_TO_END)
        return REFUSED
    except InputError as error:
        say(f"{prog}: {error}", from_any_rank=True)
        return REFUSED
    except SilencedError:
        say(f"{prog}: {work.left()}")  # printed by the first rank only
        return interrupts.code or FAILED
    except KeyboardInterrupt:
        say(f"{prog}: interrupted; {work.left()}")
        return interrupts.code or INTERRUPTED
    except Exception as error:
        reason = first_line(error)
        if not is_foreseen(error):
            traceback.print_exc()
            reason = f"{type(error).__name__}: {reason}"
        left = "" if Launch.for_messages().rank else f"; {work.left()}"  # known to the first rank only
        say(f"{prog}: failed: {reason}{left}", from_any_rank=True)
        return FAILED
    if isinstance(result, int):
        return result
    return DONE if result is None else tell(prog, result, work.makes)


def tell(prog: str, result: Path | str, kind: str = "") -> int:
    """Prints the result on stdout -> exit code. If it cannot be printed, a message names the finished file.

    Args:
        kind: what a file is.
    """
    line = f"{result}\n"
    try:
        with BARS.above():
            write_line(line)
    except OSError as error:
        if sys.stdout is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python fails again when it exits
        complete = f", but the {kind} is complete: {result}" if isinstance(result, Path) else ""
        say(f"{prog}: stdout cannot be written ({error.strerror}){complete}")
        return FAILED
    return DONE


def write_line(line: str) -> None:
    """Writes to stdout; raises an OSError if that fails."""
    if sys.stdout is None:
        raise OSError(errno.EBADF, "it is closed")
    sys.stdout.flush()
    if hasattr(sys.stdout, "buffer"):
        sys.stdout.buffer.write(as_bytes(line))
    else:  # a notebook's
        sys.stdout.write(line)
    sys.stdout.flush()


def as_bytes(line: str) -> bytes:
    """The line as bytes: file names unchanged; characters of a prompt that the locale cannot encode are escaped."""
    try:
        return os.fsencode(line)
    except UnicodeEncodeError:
        return line.encode(sys.getfilesystemencoding(), "backslashreplace")
