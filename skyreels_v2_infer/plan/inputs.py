"""Inputs for executing a plan: decoded and fitted pixels, and what only Python callers can pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Inputs:
    """Inputs of one run. Pixels are uint8 RGB, fitted to the video's height and width.

    Attributes:
        image, end_image: ``[H, W, 3]``.
        prefix: the newest frames of the video that is continued ``[T, H, W, 3]``, at least as many as the plan's first
            window uses as history.
        prompt_embeds, negative_prompt_embeds: text embeddings ``[B, L, text_dim]`` in place of the plan's prompts.
        latents: initial noise of the first window ``[B, 16, F, H/8, W/8]``.
        generator: draws all noise, in the order in which it is needed; used in place of the plan's seed.
        callback: ``(pipeline, row, timesteps [F], {"latents": ...}) -> dict or None``, called after every row; latents
            in the dict replace those of the run.
    """

    image: np.ndarray | None = None
    end_image: np.ndarray | None = None
    prefix: np.ndarray | None = None
    prompt_embeds: Any = None
    negative_prompt_embeds: Any = None
    latents: Any = None
    generator: Any = None
    callback: Callable | None = None
