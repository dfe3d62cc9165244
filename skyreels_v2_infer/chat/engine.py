"""A model that vLLM runs in this process, with the settings of the published scripts (vLLM 0.8.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from skyreels_v2_infer.chat.foreign import conversation
from skyreels_v2_infer.chat.local import check_file_of, config_and_tokenizer, empty_memory, loading
from skyreels_v2_infer.chat.reply import Reply
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.hub import only_local

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class EngineSettings:
    """memory: share of a GPU's that vLLM takes. length: of a conversation with its answer, in tokens."""

    memory: float
    length: int
    temperature: float


CAPTIONS = EngineSettings(memory=0.6, length=31920, temperature=0.05)
FUSION = EngineSettings(memory=0.9, length=4096, temperature=0.1)
FRAMES_PER_SECOND = 2.0  # what the processor assumes of a clip: 1.0 seconds for each of its grids


class Engine:
    """A chat model, see `Talker`, that also sees clips, see `captioner.caption.Captioner`.

    Args:
        model: hub id or folder.
        flag: that names it, for messages.
        parallel: GPUs that share it.

    Raises:
        InputError: the model cannot be loaded, or is no chat model.
    """

    def __init__(self, model: str, flag: str, settings: EngineSettings, parallel: int = 1):
        from vllm import LLM

        self.name, self.flag, self.settings, self._checked = model, flag, settings, ""
        with loading(flag, model):
            _, self.tokenizer = config_and_tokenizer(model, flag, only_local(model, flag))
            self.llm = LLM(
                model=model,
                tensor_parallel_size=parallel,
                gpu_memory_utilization=settings.memory,
                max_model_len=settings.length,
                trust_remote_code=False,
            )
        if self.tokenizer.chat_template is None:
            raise InputError(flag, model, "is no chat model: its tokenizer has no chat template")

    def say(self, user: str = "", system: str = "", tokens: int = 512, stop: str | None = None) -> Reply:
        turns = [("system", system), ("user", user)]
        text = self._text([{"role": role, "content": text} for role, text in turns if text])
        return self._generated([text], tokens, self.settings.temperature, stop)[0]

    def describe(self, clips: Sequence[np.ndarray], question: str, tokens: int, attempt: int = 0) -> list[Reply]:
        """One answer for each clip."""
        text = self._text([{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}])
        requests = [
            {
                "prompt": text,
                "multi_modal_data": {"video": clip},
                "mm_processor_kwargs": {"fps": FRAMES_PER_SECOND},
            }
            for clip in clips
        ]
        return self._generated(requests, tokens, 0.35 * attempt or self.settings.temperature)

    def _text(self, talk: list[dict]) -> str:
        text = conversation(self.tokenizer, [talk], self.flag, self.name)
        if text != self._checked:  # the same for all clips
            check_file_of(self.name, [text], self.flag)
            self._checked = text
        return text

    def _generated(
        self, requests: Sequence[Any], tokens: int, temperature: float, stop: str | None = None
    ) -> list[Reply]:
        from vllm import SamplingParams

        how = SamplingParams(temperature=temperature, max_tokens=tokens, stop=None if stop is None else [stop])
        told = self.llm.generate(list(requests), how, use_tqdm=False)
        answers = [one.outputs[0] for one in told]  # in the order of the requests
        return [Reply(answer.text, answer.finish_reason == "length") for answer in answers]

    def free(self) -> None:
        """Frees the model's memory; it cannot be used afterwards."""
        del self.llm
        empty_memory()
