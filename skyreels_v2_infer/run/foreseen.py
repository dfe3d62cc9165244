"""Which errors are those of the machine or the input, and which are bugs, whose report needs a traceback."""

import re

FORESEEN = (OSError, MemoryError, FloatingPointError)
# Messages of errors that are the machine's, whatever their type.
OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory|can't (start|create) new thread")


def is_foreseen(error: Exception) -> bool:
    """Whether an error needs no traceback: disk, memory, or a model's output that is not finite."""
    return isinstance(error, FORESEEN) or bool(OUT_OF_MEMORY.search(str(error)))
