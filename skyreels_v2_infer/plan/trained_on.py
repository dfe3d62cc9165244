"""What a model was trained on, if its folder says so: words and sizes outside of that are named before a run."""

from __future__ import annotations

import json
import re
from pathlib import Path

from skyreels_v2_infer.errors import printable
from skyreels_v2_infer.media.files import read_small
from skyreels_v2_infer.plan.plan import Plan
from skyreels_v2_infer.plan.prompts import clean, texts_of

# In a model's folder: {"words": [...], "height": 64, "width": 64, "see": "docs/world.md"}. Small models
# know few words and one size, and anything else becomes a video all the same, of nothing in particular.
FILE = "trained_on.json"
SHOWN = 8  # words in a line
WORD = re.compile(r"\w+(?:['’]\w+)*")


def outside(plan: Plan, folder: Path) -> list[str]:
    """A line about words, and one about the size, that the model does not know; empty if its folder does not say.

    Args:
        folder: of the model, with its tokenizer.
    """
    try:
        about = json.loads(read_small(folder / FILE))
        words, see = frozenset(map(str, about["words"])), printable(str(about["see"]))[:100]
        height, width = int(about["height"]), int(about["width"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return []
    return [*unknown_words(plan, words, see), *other_size(plan, height, width)]


def unknown_words(plan: Plan, words: frozenset[str], see: str) -> list[str]:
    """At most one line, with the words of all texts of the plan that are not in `words`."""
    found: dict[str, None] = {}
    flags: dict[str, None] = {}
    for flag, text in texts_of(plan):
        for word in WORD.findall(clean(text)):
            if word.lower() not in words:
                found[word] = flags[flag] = None
    if not found:
        return []
    shown = ", ".join(f'"{word[:40]}"' for word in [*found][:SHOWN])
    more = f" and {len(found) - SHOWN} more" * (len(found) > SHOWN)
    names = ", ".join(f"--{flag}" for flag in flags)
    return [f"{names}: this model was not trained on {shown}{more}, and makes something else; {see} has its words"]


def other_size(plan: Plan, height: int, width: int) -> list[str]:
    """At most one line, if the video has another size than those of training."""
    if (plan.height, plan.width) == (height, width):
        return []
    asked = f"{plan.height}x{plan.width}"
    return [f"{asked}: this model was trained on {height}x{width} only; expect no usable video of another size"]
