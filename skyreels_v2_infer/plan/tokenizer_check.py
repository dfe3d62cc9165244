"""Whether a foreign ``tokenizer.json`` can be used: tried in a process of its own, whose time and memory are limited.

Such a file may hold any regular expression, which can take for ever on a short text, and tables on which the library
ends by a panic instead of an exception.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.limited import LimitError, Limits, ProgramError, run_limited

LIMITS = Limits(seconds=8, patience=60, gib=2)  # umT5's, which is large, takes about one second and less than one GiB
IMPORTS = "import json\nfrom tokenizers import Tokenizer"
SHORTEST = 64  # tokens, the least that a run truncates at; what is left over is put together as well
TRIED = f"""
reader = Tokenizer.from_file(sys.argv[1])
reader.no_padding()
reader.no_truncation()
texts = json.load(sys.stdin)
for text in texts:
    reader.encode(text)
reader.enable_truncation({SHORTEST})
for text in texts:
    reader.encode(text)
"""


def check_tokenizer(file: Path, texts: Sequence[str], name: str, value: object) -> None:
    """Reads a tokenizer.json and encodes the texts that a run will encode.

    Args:
        name, value: of the flag that names the model.

    Raises:
        InputError: that fails, or takes too long.
    """
    try:
        run_limited(IMPORTS, TRIED, LIMITS, json.dumps(list(texts)).encode(), [str(file)])
    except LimitError as error:
        raise InputError(name, value, f"its {file.name} takes {error} for a prompt, or is damaged") from None
    except ProgramError as error:
        raise InputError(name, value, f"its {file.name} cannot be used ({error})") from None
