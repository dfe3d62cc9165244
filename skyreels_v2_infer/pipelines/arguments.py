"""Validation of the arguments that all pipelines share."""

from __future__ import annotations

from collections.abc import Callable

import torch

from skyreels_v2_infer.plan.inputs import Inputs
from skyreels_v2_infer.plan.plan import Text


def text_settings(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds) -> dict[str, Text]:
    """`make_plan`'s prompt and negative_prompt: None where embeddings are given.

    Raises:
        ValueError: a text and its embeddings are both given; one of them would have no effect.
    """
    if prompt is not None and prompt_embeds is not None:
        raise ValueError("prompt: not together with prompt_embeds; give one of them")
    if negative_prompt and negative_prompt_embeds is not None:
        raise ValueError("negative_prompt: not together with negative_prompt_embeds; give one of them")
    negative = None if negative_prompt_embeds is not None else as_text(negative_prompt) or ""
    return {"prompt": as_text(prompt), "negative_prompt": negative}


def as_text(prompt: str | list[str] | None) -> Text:
    return tuple(prompt) if isinstance(prompt, (list, tuple)) else prompt


def inputs_of(
    prompt_embeds: torch.Tensor | None,
    negative_prompt_embeds: torch.Tensor | None,
    latents: torch.Tensor | None,
    generator: torch.Generator | None,
    callback: Callable | None,
    **pixels,
) -> Inputs:
    """What a caller gives beside the plan.

    Raises:
        ValueError: several generators.
    """
    if isinstance(generator, (list, tuple)):
        raise ValueError("generator: one for all videos of a call")
    return Inputs(
        prompt_embeds=prompt_embeds,
        negative_prompt_embeds=negative_prompt_embeds,
        latents=latents,
        generator=generator,
        callback=callback,
        **pixels,
    )


def check_seed(seed: int | None) -> int | None:
    if seed is not None and seed < 0:
        raise ValueError(f"seed {seed}: must be at least 0")
    return seed
