"""Texts of a plan -> prompt contexts; every distinct text is encoded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from skyreels_v2_infer.modules.transformer import PromptContext
from skyreels_v2_infer.pipelines.history import Resume
from skyreels_v2_infer.pipelines.hooks import Ranks
from skyreels_v2_infer.plan.inputs import Inputs
from skyreels_v2_infer.plan.plan import Plan, Text, WindowPlan

if TYPE_CHECKING:
    from skyreels_v2_infer.pipelines.base import VideoPipeline


AHEAD = 64  # texts of coming runs that are encoded with those of a run: 8 MB each in float32 for the published models


class TextMemory:
    """Embeddings that are kept from one run to the next, so that the texts of several runs are encoded together.

    Attributes:
        coming: texts of the runs that follow; may be changed between runs.
    """

    def __init__(self):
        self.coming: Sequence[str] = ()
        self._kept: dict[Text, torch.Tensor] = {}

    def embeds(
        self, texts: Sequence[Text], encode: Callable[[list[Text]], dict[Text, torch.Tensor]]
    ) -> dict[Text, torch.Tensor]:
        """The embeddings of all `texts`; where one is not kept, coming ones are encoded as well, and others forgotten.

        Args:
            encode: distinct texts -> embeddings on the host.
        """
        if not all(text in self._kept for text in texts):
            wanted = list(dict.fromkeys([*texts, *self.coming[:AHEAD]]))
            known = self._kept | encode([text for text in wanted if text not in self._kept])
            self._kept = {text: known[text] for text in wanted}
        return {text: self._kept[text] for text in texts}


class Texts:
    """The embeddings of all texts of a run, and the prompt contexts of the current window.

    Embeddings are small and kept. Keys and values of every block are not (0.4 GB per prompt for the 14B) and are
    computed again when the prompts change.

    Args:
        pipeline: provides the encoders and the transformer.
        plan, inputs, resume: only texts of windows that still have to be denoised are encoded.
        ranks: all ranks use rank 0's contexts.
        memory: of earlier runs; None: all texts are encoded.

    Attributes:
        batch: number of videos of the run.
    """

    def __init__(
        self,
        pipeline: VideoPipeline,
        plan: Plan,
        inputs: Inputs,
        resume: Resume,
        ranks: Ranks,
        memory: TextMemory | None = None,
    ):
        self.pipeline, self.inputs, self.ranks = pipeline, inputs, ranks
        self.memory = memory or TextMemory()
        windows = plan.windows[resume.window + (resume.latents is not None) :]
        self._features = pipeline.image_features(inputs) if windows else None
        self._embeds = self._encode(windows)
        self._made: tuple[tuple, tuple[PromptContext, PromptContext | None]] | None = None
        self.batch = max((len(self._positive(window)) for window in windows), default=1)

    def _encode(self, windows: tuple[WindowPlan, ...]) -> dict[Text, torch.Tensor]:
        """Embeddings ``[B, text_len, text_dim]`` of each distinct text, on the host."""
        texts = [window.prompt for window in windows if window.prompt is not None]
        texts += [w.negative_prompt for w in windows if w.is_guided and w.negative_prompt is not None]
        encoder, length = self.pipeline.text_encoder, self.pipeline.transformer.text_len
        if not texts:
            return {}
        if encoder is None:
            raise ValueError("prompt: this pipeline has no text encoder; give prompt_embeds")

        def encode(distinct: list[Text]) -> dict[Text, torch.Tensor]:
            with self.pipeline.encoder_at_work(encoder):
                encoded = {t: encoder.encode(list(t) if isinstance(t, tuple) else t, length) for t in distinct}
            return {text: embeds.cpu() for text, embeds in encoded.items()}

        return self.memory.embeds(list(dict.fromkeys(texts)), encode)

    def _positive(self, window: WindowPlan) -> torch.Tensor:
        if window.prompt is not None:
            return self._embeds[window.prompt].to(self.pipeline.device)
        if self.inputs.prompt_embeds is None:
            raise ValueError("prompt: give it as text, or as prompt_embeds")
        return self.inputs.prompt_embeds.to(self.pipeline.device)

    def _negative(self, window: WindowPlan) -> torch.Tensor:
        if window.negative_prompt is not None:
            return self._embeds[window.negative_prompt].to(self.pipeline.device)
        if self.inputs.negative_prompt_embeds is None:
            raise ValueError("negative_prompt: give it as text, or as negative_prompt_embeds")
        return self.inputs.negative_prompt_embeds.to(self.pipeline.device)

    def contexts(self, window: WindowPlan) -> tuple[PromptContext, PromptContext | None]:
        """Contexts of the conditional and the unconditional pass; the latter is None without guidance."""
        # Keys and values depend on the weights, and so on the strengths of LoRAs.
        key = window.prompt, window.negative_prompt, window.is_guided, window.lora_strengths
        if self._made is None or self._made[0] != key:
            self._made = None  # frees its memory before the next contexts are computed
            negative = None
            if window.is_guided:
                negative = self._negative(window)
                if len(negative) not in (1, self.batch):
                    raise ValueError(f"negative_prompt: {len(negative)} of them, but {self.batch} prompts")
                negative = self._context(negative.expand(self.batch, -1, -1))
            self._made = key, (self._context(self._positive(window)), negative)
        return self._made[1]

    def _context(self, embeds: torch.Tensor) -> PromptContext:
        features = self._features
        if features is not None:
            features = features.to(self.pipeline.device).expand(len(embeds), -1, -1)
        context = self.pipeline.transformer.prepare_context(embeds, features, self.pipeline.at_work)
        return self.ranks.agree_context(context)
