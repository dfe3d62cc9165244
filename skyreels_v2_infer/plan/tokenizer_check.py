"""Whether a foreign ``tokenizer.json`` can be used: tried in a process of its own, whose time and memory are limited.

Such a file may hold any regular expression, which can take for ever on a short text, and tables on which the library
ends by a panic instead of an exception.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from skyreels_v2_infer.errors import InputError

SECONDS = 8  # of processor time; umT5's, which is large, takes about one
PATIENCE = 60  # seconds altogether, on a busy machine
MEMORY = 2  # GiB; umT5's takes less than one

TRIED = f"""
import sys
sys.path = [place for place in sys.path if place]  # nothing from the folder where it is started
import json
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, ({SECONDS}, {SECONDS}))
    resource.setrlimit(resource.RLIMIT_DATA, ({MEMORY} << 30, {MEMORY} << 30))
except (ImportError, OSError, ValueError):
    pass  # not on every system
from tokenizers import Tokenizer
reader = Tokenizer.from_file(sys.argv[1])
reader.no_padding()
reader.no_truncation()
for text in json.load(sys.stdin):
    reader.encode(text)
"""


def check_tokenizer(file: Path, texts: Sequence[str], name: str, value: object) -> None:
    """Reads a tokenizer.json and encodes the texts that a run will encode.

    Args:
        name, value: of the flag that names the model.

    Raises:
        InputError: that fails, or takes too long.
    """
    command = [sys.executable, "-c", TRIED, str(file)]
    sent = json.dumps(list(texts)).encode()
    try:
        done = subprocess.run(command, input=sent, capture_output=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise InputError(name, value, f"its {file.name} takes longer than {PATIENCE} s for a prompt") from None
    if done.returncode < 0:
        legal = f"its {file.name} takes more than {SECONDS} s or {MEMORY} GiB for a prompt, or is damaged"
        raise InputError(name, value, legal)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").split("\n")
        reason = next((line for line in reversed(lines) if line.strip()), "")[:150]
        raise InputError(name, value, f"its {file.name} cannot be used ({reason})")
