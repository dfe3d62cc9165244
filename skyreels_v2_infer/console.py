"""Messages on stderr: from the first of several processes, above the progress bars."""

import sys

from skyreels_v2_infer.launch import Launch


def say(message: str, from_any_rank: bool = False) -> None:
    """Prints a message on stderr, by default on the first rank only; stdout is for results."""
    if Launch.for_messages().rank and not from_any_rank:
        return
    if "tqdm" in sys.modules:
        sys.modules["tqdm"].tqdm.write(message, file=sys.stderr)  # above any progress bars
    else:
        print(message, file=sys.stderr)
    sys.stderr.flush()


def silent() -> bool:
    """Whether to hide progress bars: stderr is no terminal, or this is not the first rank."""
    return not sys.stderr.isatty() or Launch.for_messages().rank > 0
