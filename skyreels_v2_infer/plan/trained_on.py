"""What a model was trained on, if its folder says so: words and sizes outside of that are named before a run."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path

from skyreels_v2_infer.errors import printable
from skyreels_v2_infer.media.files import read_small
from skyreels_v2_infer.plan.plan import Plan
from skyreels_v2_infer.plan.prompts import clean, texts_of

# In a model's folder: {"words": [...], "never": ["blue background", ...], "but": ["navy blue background", ...],
# "height": 64, "width": 64, "see": "docs/world.md"}. Small models know few words, not in all combinations (`never`, but
# not as part of one in `but`), and one size; anything else becomes a video all the same, of nothing in particular.
FILE = "trained_on.json"
SHOWN = 8  # words in a line
Phrases = Sequence[list[str]]  # each a list of words


def outside(plan: Plan, folder: Path) -> list[str]:
    """A line about words, and one about the size, that the model does not know; empty if its folder does not say.

    Args:
        folder: of the model, with its tokenizer.
    """
    try:
        about = json.loads(read_small(folder / FILE))
        words, see = frozenset(map(str, about["words"])), printable(str(about["see"]))[:100]
        never, but = ([str(phrase).split() for phrase in about.get(name, ())] for name in ("never", "but"))
        height, width = int(about["height"]), int(about["width"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return []
    return [*unknown_words(plan, words, never, but, see), *other_size(plan, height, width)]


def unknown_words(plan: Plan, words: Collection[str], never: Phrases, but: Phrases, see: str) -> list[str]:
    """At most one line, with all that the plan's texts have of words that are not in `words`, and of phrases in
    `never`."""
    found: dict[str, None] = {}
    flags: dict[str, None] = {}
    for flag, text in texts_of(plan):
        given = words_in(clean(text))
        strange = [word for word in given if word.lower() not in words]
        for clause in re.split("[.,:;!?]", clean(text).lower()):
            strange += phrases_in(words_in(clause), never, but)
        if not given and text.strip():
            strange = [text.strip()]
        for word in strange:
            found[word] = flags[flag] = None
    if not found:
        return []
    shown = ", ".join(f'"{word[:40]}"' for word in [*found][:SHOWN])
    more = f" and {len(found) - SHOWN} more" * (len(found) > SHOWN)
    names = ", ".join(f"--{flag}" for flag in flags)
    return [f"{names}: this model was not trained on {shown}{more}, and makes something else; {see} has its words"]


def words_in(text: str) -> list[str]:
    """The words of a text, and its pictograms, in order; without punctuation."""
    parts: list[tuple[str | None, str]] = []
    for character in text:
        category = unicodedata.category(character)
        kind = "word" if category[0] in "LN" or character == "_" else None
        if category == "So":
            kind = "pictogram"
        elif character in "'\u2019" or category[0] == "M" or category in ("Cf", "Sk"):  # within a word or pictogram
            kind = parts[-1][0] if parts else None
        if parts and parts[-1][0] == kind:
            parts[-1] = kind, parts[-1][1] + character
        else:
            parts.append((kind, character))
    return [found for kind, part in parts if kind is not None and (found := part.strip("'\u2019"))]


def phrases_in(words: list[str], phrases: Phrases, but: Phrases) -> list[str]:
    """Those of `phrases` that are in a text, except as parts of those in `but`."""
    covered = {place for phrase in but for place in places_of(words, phrase)}
    return [" ".join(phrase) for phrase in phrases if not covered.issuperset(places_of(words, phrase))]


def places_of(words: list[str], phrase: list[str]) -> set[int]:
    """Indices of the words of a text that belong to a phrase."""
    length = len(phrase)
    starts = (i for i in range(len(words) - length + 1) if words[i : i + length] == phrase) if phrase else ()
    return {i + k for i in starts for k in range(length)}


def other_size(plan: Plan, height: int, width: int) -> list[str]:
    """At most one line, if the video has another size than those of training."""
    if (plan.height, plan.width) == (height, width):
        return []
    asked = f"{plan.height}x{plan.width}"
    return [f"{asked}: this model was trained on {height}x{width} only; expect no usable video of another size"]
