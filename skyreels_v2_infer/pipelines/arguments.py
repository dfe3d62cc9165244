"""Validation of the arguments that all pipelines share."""

from __future__ import annotations

import torch

from skyreels_v2_infer.plan.plan import Text


def as_text(prompt: str | list[str] | None) -> Text:
    """A prompt as plans hold it: a list becomes a tuple."""
    return tuple(prompt) if isinstance(prompt, (list, tuple)) else prompt


def negative_text(negative_prompt: str | list[str] | None, embeds: torch.Tensor | None) -> Text:
    """The negative prompt as plans hold it: None with embeddings, empty if neither is given."""
    return None if embeds is not None else as_text(negative_prompt) or ""


def check_texts(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds) -> None:
    """Raises ValueError if a text and its embeddings are both given: one of them would be ignored."""
    if prompt is not None and prompt_embeds is not None:
        raise ValueError("prompt: not together with prompt_embeds; give one of them")
    if negative_prompt and negative_prompt_embeds is not None:
        raise ValueError("negative_prompt: not together with negative_prompt_embeds; give one of them")


def check_seed(seed: int | None) -> int | None:
    if seed is not None and seed < 0:
        raise ValueError(f"seed {seed}: must be at least 0")
    return seed


def check_generator(generator: torch.Generator | None) -> torch.Generator | None:
    if isinstance(generator, (list, tuple)):
        raise ValueError("generator: one for all videos of a call")
    return generator
