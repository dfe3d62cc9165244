"""--prompt auto and --prompt auto:"text": the prompt is made from the given image or video."""

from __future__ import annotations

import re


def wish_in(prompt: object) -> str | None:
    """What the user adds in `prompt`, "" for ``auto`` alone; None: it is an ordinary prompt."""
    match = re.fullmatch(r"auto(?::(.*))?", prompt.strip(), re.DOTALL) if isinstance(prompt, str) else None
    return None if match is None else (match[1] or "").strip().strip("\"'“”").strip()
