"""Programs that handle data of strangers, in a process of their own whose time and memory are limited."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

BEGINNING = """
import sys
sys.path = [place for place in sys.path if place]  # nothing from the folder where it is started
{imports}
try:
    import resource
    import time
    seconds = int(time.process_time()) + 1 + {seconds}  # what is imported above may take longer than that
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_DATA, ({gib} << 30, {gib} << 30))
except (ImportError, OSError, ValueError):
    pass  # not on every system
"""


class LimitError(Exception):
    """A program took more time or memory than it may, or was ended by a fault of native code."""


class ProgramError(Exception):
    """A program failed; the message is the last line that it printed about it."""


@dataclass(frozen=True)
class Limits:
    """Of a process.

    Attributes:
        seconds: of processor time, beside what its imports take.
        patience: seconds altogether, on a busy machine.
        gib: of memory.
    """

    seconds: int
    patience: int
    gib: int

    def __str__(self) -> str:
        return f"{self.seconds} s or {self.gib} GiB"


def run_limited(imports: str, program: str, limits: Limits, sent: bytes, arguments: Sequence[str] = ()) -> bytes:
    """What a Python program prints on stdout.

    Args:
        imports: its import statements, which are run without limits.
        program: the rest of it.
        sent: its stdin.
        arguments: its `sys.argv[1:]`.

    Raises:
        LimitError: see there.
        ProgramError: it ended in another way than by its end.
    """
    beginning = BEGINNING.format(imports=imports, seconds=limits.seconds, gib=limits.gib)
    command = [sys.executable, "-c", beginning + program, *arguments]
    try:
        done = subprocess.run(command, input=sent, capture_output=True, timeout=limits.patience)
    except subprocess.TimeoutExpired:
        raise LimitError(f"more than {limits.patience} s altogether") from None
    lines = done.stderr.decode(errors="replace").split("\n")
    reason = next((line for line in reversed(lines) if line.strip()), "")[:150]
    if done.returncode < 0 or reason.startswith("MemoryError"):
        raise LimitError(f"more than {limits}")
    if done.returncode:
        raise ProgramError(reason)
    return done.stdout
