"""What a person at the terminal sees: messages on stderr, from one process of several, above the progress bars."""

import sys

from skyreels_v2_infer.launch import Launch


def say(message: str, from_any_rank: bool = False) -> None:
    """A message for the person at the terminal, of several processes from the first; stdout is for results."""
    if Launch.for_messages().rank and not from_any_rank:
        return
    if "tqdm" in sys.modules:
        sys.modules["tqdm"].tqdm.write(message, file=sys.stderr)  # above the bars, if there are any
    else:
        print(message, file=sys.stderr)
    sys.stderr.flush()


def silent() -> bool:
    """Whether progress bars would disturb: where nobody looks, and on all ranks but the first."""
    return not sys.stderr.isatty() or Launch.for_messages().rank > 0
