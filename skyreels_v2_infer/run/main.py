"""A script as a process: argv, signals, exit codes, and what goes to stdout."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from skyreels_v2_infer.cli.settings import GenerateSettings
from skyreels_v2_infer.console import say
from skyreels_v2_infer.distributed.team import SilencedError, assembled, own_device
from skyreels_v2_infer.errors import InputError, first_line
from skyreels_v2_infer.launch import Launch
from skyreels_v2_infer.run.jobs import Job, dry_run
from skyreels_v2_infer.run.session import Session
from skyreels_v2_infer.run.signals import INTERRUPTED, Interrupts

DONE, FAILED, REFUSED = 0, 1, 2

FORESEEN = (OSError, MemoryError, FloatingPointError)
OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory")


def main(
    prog: str,
    parse: Callable[[Sequence[str]], GenerateSettings],
    argv: Sequence[str] | None = None,
    open_session: Callable[..., Session] = Session,
) -> int:
    """Runs a script and returns its exit code: 0 done, 1 failed while running, 2 refused, 130 or 143 interrupted.

    Args:
        prog: name of the script in messages.
        parse: argv -> settings; exits with 2 by itself.
        argv: arguments; None: the process's own.
        open_session: makes the session that makes the video.
    """
    if sys.stderr is None:  # closed; tracebacks and libraries would write to stdout then
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  for the rest of the process
    code = _run(prog, parse, argv, open_session)
    if code and Launch.for_messages().size > 1:
        # Ending properly would wait on a GPU for ranks that wait for this one.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _run(prog: str, parse: Callable, argv: Sequence[str] | None, open_session: Callable[..., Session]) -> int:
    interrupts, job = Interrupts(), None
    try:
        with interrupts:
            settings = parse(sys.argv[1:] if argv is None else argv)
            launch = Launch.from_environment()
            if settings.dry_run:
                return DONE if launch.rank else tell(prog, dry_run(settings, launch.size, interrupts.check))
            if launch.rank:  # nothing to tidy up here, and Python would not see the signal while it waits for others
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if launch.size > 1:
                settings = replace(settings, device=own_device(settings.device, launch.local_rank))
            job = Job(prog, settings, interrupts.check)

            def lost(reason: str) -> None:
                left = "--resume continues after the last piece that was kept" if launch.rank else job.left()
                say(f"{prog}: failed: {reason}; {left}", from_any_rank=True)

            with assembled(launch, settings.device, lost) as team:
                try:
                    path = job.run(team, open_session)
                    team.meet()  # the first rank still decodes and writes when the others are done
                finally:
                    job.close()
    except InputError as error:
        say(f"{prog}: {error}", from_any_rank=True)
        return REFUSED
    except SilencedError:
        if job is not None:
            say(f"{prog}: {job.left()}")  # only the first rank is heard
        return interrupts.code or FAILED
    except KeyboardInterrupt:
        say(f"{prog}: interrupted; {'no video was written' if job is None else job.left()}")
        return interrupts.code or INTERRUPTED
    except Exception as error:
        if not isinstance(error, FORESEEN) and not OUT_OF_MEMORY.search(str(error)):
            traceback.print_exc()  # nobody's disk or memory: a defect of ours, which its report needs
        left = "no video was written" if job is None else job.left()
        left = "" if Launch.for_messages().rank else f"; {left}"  # which only the first rank knows
        say(f"{prog}: failed: {type(error).__name__}: {first_line(error)}{left}", from_any_rank=True)
        return FAILED
    return DONE if path is None else tell(prog, path)


def tell(prog: str, result: Path | str) -> int:
    """Prints the result, names of files as they are; where it cannot be printed, a video is still there."""
    line = f"{result}\n"
    try:
        if sys.stdout is None:
            raise OSError(errno.EBADF, "it is closed")
        sys.stdout.flush()
        if hasattr(sys.stdout, "buffer"):
            sys.stdout.buffer.write(as_bytes(line))
        else:  # a notebook's
            sys.stdout.write(line)
        sys.stdout.flush()
    except OSError as error:
        if sys.stdout is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would fail once more at its exit
        complete = f", but the video is complete: {result}" if isinstance(result, Path) else ""
        say(f"{prog}: stdout cannot be written ({error.strerror}){complete}")
        return FAILED
    return DONE


def as_bytes(line: str) -> bytes:
    """Names of files as they are; what a prompt has beyond the locale's letters is written out."""
    try:
        return os.fsencode(line)
    except UnicodeEncodeError:
        return line.encode(sys.getfilesystemencoding(), "backslashreplace")
