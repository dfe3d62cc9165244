"""Qwen2.5-VL, of which SkyCaptioner-V1 is one, loaded by transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from skyreels_v2_infer.captioner.pixels import patches_of, tokens_of
from skyreels_v2_infer.chat.foreign import bounded_generation, conversation, without_remarks
from skyreels_v2_infer.chat.local import (
    answering,
    check_file_of,
    config_and_tokenizer,
    empty_memory,
    loading,
    reply_of,
    whole,
)
from skyreels_v2_infer.chat.reply import Reply
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.hub import only_local

if TYPE_CHECKING:
    import numpy as np
    import torch

VIDEO = 2  # kind of a token in mm_token_type_ids
# Seconds between two grids of frames: the temporal patch (2) over 2 frames per second, whatever the clip's length.
# Without it, or with video metadata without a rate, transformers 5 assumes 24 frames per second, which puts the 8
# grids at positions 0 0 0 0 0 0 1 1 instead of 0 2 4 ... 14.
SECONDS_PER_GRID = 1.0
# Whatever the model's generation_config.json says: the published script did not use it.
ALWAYS = {"num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
ALWAYS |= {"temperature": None, "top_p": None, "top_k": None}
# How an answer is chosen, by attempt. The published temperature, 0.05, is all but greedy; greedy is repeatable.
CHOICES = (
    {"do_sample": False},
    {"do_sample": False, "repetition_penalty": 1.05},
    {"do_sample": True, "temperature": 0.7, "top_p": 0.9},
)
SEED = 0  # of the attempt that draws


class QwenCaptioner:
    """A captioner on this machine, see `caption.Captioner`.

    Args:
        model: hub id or folder of a Qwen2.5-VL.
        flag: that names it, for messages.
        device_map: see transformers; "auto" fills all GPUs, then host memory.

    Raises:
        InputError: the model cannot be loaded, or is no Qwen2.5-VL.
    """

    def __init__(self, model: str, flag: str = "model_id", device_map: str = "auto"):
        from transformers import Qwen2_5_VLForConditionalGeneration

        self.name, self.flag = model, flag
        self._asked: dict[str, list[int]] = {}  # tokens of a conversation with one token for the video, by question
        with loading(flag, model), without_remarks():
            local = only_local(model, flag)
            self.config, self.tokenizer = config_and_tokenizer(model, flag, local)
            if self.config.model_type != "qwen2_5_vl":
                raise InputError(flag, model, f"must be a Qwen2.5-VL (this is {self.config.model_type})")
            kinds = {"dtype": "auto", "device_map": device_map, "trust_remote_code": False, "local_files_only": local}
            kinds["output_loading_info"] = True
            loaded = Qwen2_5_VLForConditionalGeneration.from_pretrained(model, config=self.config, **kinds)
            self.model = whole(loaded, flag, model).eval()
            self.vocabulary = self.config.get_text_config().vocab_size
            # The model's own could ask for other ways of decoding, packages and any amount of memory.
            self.model.generation_config = bounded_generation(self.model.generation_config, self.vocabulary)
        if self.tokenizer.chat_template is None:
            raise InputError(flag, model, "its tokenizer has no chat template")
        self._check_ids([self._padding()])

    def describe(self, clips: Sequence[np.ndarray], question: str, tokens: int, attempt: int = 0) -> list[Reply]:
        """One answer for each clip, see `caption.Captioner`."""
        import torch

        inputs = {name: value.to(self.model.device) for name, value in self.inputs(clips, question).items()}
        inputs["pixel_values_videos"] = inputs["pixel_values_videos"].to(self.model.dtype)
        choice = ALWAYS | CHOICES[min(attempt, len(CHOICES) - 1)]
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices), answering(self.flag, self.name):
            torch.manual_seed(SEED)
            told = self.model.generate(
                **inputs, max_new_tokens=tokens, pad_token_id=self._padding(), eos_token_id=self._ends(), **choice
            )
        length = inputs["input_ids"].shape[1]
        return [reply_of(answer[length:], self.tokenizer, tokens) for answer in told]

    def inputs(self, clips: Sequence[np.ndarray], question: str) -> dict[str, torch.Tensor]:
        """What the model reads for a batch of clips: tokens padded on the left, patches of all clips one after another.

        pixel_values_videos is float32 ``[patches, 1176]``, video_grid_thw ``[clips, 3]``.
        """
        import numpy as np
        import torch

        patches, grids = zip(*(patches_of(clip) for clip in clips), strict=True)
        rows = [self.tokens_of(question, tokens_of(grid)) for grid in grids]
        length = max(map(len, rows))
        ids = torch.full((len(rows), length), self._padding())
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, length - len(row) :] = torch.tensor(row)
            mask[i, length - len(row) :] = 1
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "mm_token_type_ids": torch.where(ids == self.config.video_token_id, VIDEO, 0),
            "pixel_values_videos": torch.from_numpy(np.concatenate(patches)),
            "video_grid_thw": torch.tensor(grids),
            "second_per_grid_ts": torch.full((len(rows),), SECONDS_PER_GRID),
        }

    def tokens_of(self, question: str, video_tokens: int) -> list[int]:
        """The conversation's tokens: a user's turn with the video and then the question."""
        if question not in self._asked:
            parts = [{"type": "video"}, {"type": "text", "text": question}]
            talk = [{"role": "user", "content": parts}]
            text = conversation(self.tokenizer, [talk], self.flag, self.name)
            check_file_of(self.name, [text], self.flag)
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            self._check_ids(ids)
            self._asked[question] = ids
        ids, video = self._asked[question], self.config.video_token_id
        if ids.count(video) != 1:
            raise InputError(
                self.flag, self.name, f"its chat template has {ids.count(video)} places for a video, not 1"
            )
        place = ids.index(video)
        return [*ids[:place], *[video] * video_tokens, *ids[place + 1 :]]

    def _check_ids(self, ids: Sequence[int | None]) -> None:
        if not all(isinstance(token, int) and 0 <= token < self.vocabulary for token in ids):
            raise InputError(self.flag, self.name, "its tokenizer belongs to another model")

    def _padding(self) -> int:
        found = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if found is None else found

    def _ends(self) -> list[int] | int | None:
        return self.model.generation_config.eos_token_id or self.tokenizer.eos_token_id

    def free(self) -> None:
        """Frees the model's memory; it cannot be used afterwards."""
        del self.model
        empty_memory()
