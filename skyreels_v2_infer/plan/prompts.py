"""Prompts as the text encoder reads them: normalised, and truncated at the model's limit."""

from __future__ import annotations

import html
import re
from pathlib import Path

from skyreels_v2_infer.plan.plan import Plan

TEXT_LEN = 512  # a model's limit in tokens if its config has none
SHOWN = 60  # characters of the truncated part in a message


def clean(prompt: str) -> str:
    """A prompt normalised as in training: broken Unicode repaired, HTML entities resolved, single spaces.

    Entities are resolved twice because text from the web often has them escaped twice (``&amp;quot;``).
    """
    import ftfy

    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(prompt)))).strip()


def texts_of(plan: Plan) -> list[tuple[str, str]]:
    """Each distinct text that is encoded, with the name of its flag."""
    asked = "prompt" if plan.scenes is None else "story"
    named = [(asked, window.prompt) for window in plan.windows]
    named += [("negative_prompt", window.negative_prompt) for window in plan.windows if window.is_guided]
    return [(name, text) for name, text in dict.fromkeys(named) if isinstance(text, str)]


def long_texts(plan: Plan, config: dict) -> list[tuple[str, str]]:
    """Those of `texts_of` that may be longer than the model takes: a token has a byte at least."""
    return [(name, text) for name, text in texts_of(plan) if len(text.encode()) > config.get("text_len", TEXT_LEN)]


def cut_lines(plan: Plan, tokenizer: Path, config: dict) -> list[str]:
    """A line for every text of a plan above the model's limit: how many tokens are cut off, and the words.

    Args:
        tokenizer: folder with a tokenizer.json; without that file there are no lines.
        config: of the transformer.
    """
    length = config.get("text_len", TEXT_LEN)
    long = long_texts(plan, config)
    file = tokenizer / "tokenizer.json"
    if not long or not file.is_file():
        return []
    from tokenizers import Tokenizer

    reader = Tokenizer.from_file(str(file))
    reader.no_truncation()
    reader.no_padding()
    lines = []
    for name, text in long:
        words = clean(text)
        tokens = reader.encode(words)
        if len(tokens.ids) > length:
            # The last token that the model reads is the end-of-text token.
            rest = words[tokens.offsets[length - 1][0] :].strip()
            rest = rest if len(rest) <= SHOWN else f"{rest[: SHOWN - 3]}..."
            count = f"{len(tokens.ids) - length} of {len(tokens.ids)} tokens are cut off"
            lines.append(f'--{name}: {count} (the model takes {length}), from "{rest}"')
    return lines
