"""With this folder in PYTHONPATH a script sends itself a signal at a file, see `signal_at` in tests/script_runs.py."""

import os
import sys
from fnmatch import fnmatch

pattern, number = os.environ.pop("SIGNAL_AT"), int(os.environ.pop("SIGNAL"))
coming = None


def on(event: str, arguments: tuple) -> None:
    """Called by Python before it does what an auditor may want to know."""
    global pattern, coming
    if pattern is None:
        return
    if event in ("os.rename", "os.link"):  # by which files get their final names
        source, target = map(os.fsdecode, arguments[:2])
        if fnmatch(os.path.basename(target), pattern):
            coming = target
        if fnmatch(os.path.basename(source), pattern):
            coming = source
    if coming is not None and os.path.exists(coming):
        pattern = None
        os.kill(os.getpid(), number)


sys.addaudithook(on)
