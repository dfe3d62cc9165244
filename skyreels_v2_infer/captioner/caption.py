"""Clips -> structural captions: asks a captioner, and asks again where an answer is of no use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from skyreels_v2_infer.captioner.answer import Answer, parse
from skyreels_v2_infer.chat.reply import Reply

if TYPE_CHECKING:
    import numpy as np

MOST_TOKENS = 2048  # of an answer, as published
ATTEMPTS = 3


class Captioner(Protocol):
    """A model that answers a question about clips: `qwen.QwenCaptioner`, or one behind an endpoint."""

    def describe(self, clips: Sequence[np.ndarray], question: str, tokens: int, attempt: int) -> list[Reply]:
        """One answer for each clip.

        Args:
            clips: each uint8 RGB ``[16, H, W, 3]``.
            tokens: limit on those of an answer.
            attempt: from 0, which is as published; at a higher one answers vary.
        """

    def free(self) -> None:
        """Frees its memory; it cannot be used afterwards."""


def structural_captions(
    captioner: Captioner,
    clips: Sequence[np.ndarray],
    question: str,
    tokens: int = MOST_TOKENS,
    check: Callable[[], object] = lambda: None,
) -> list[Answer]:
    """One answer for each clip; where it has no caption, repeats itself or was cut off, the last one of `ATTEMPTS`.

    Args:
        check: called between attempts; raises once the process has to stop.
    """
    answers: dict[int, Answer] = {}
    for attempt in range(ATTEMPTS):
        asked = [i for i in range(len(clips)) if i not in answers or answers[i].retry]
        if not asked:
            break
        check()
        replies = captioner.describe([clips[i] for i in asked], question, tokens, attempt)
        answers |= {i: answer_in(reply) for i, reply in zip(asked, replies, strict=True)}
    return [answers[i] for i in range(len(clips))]


def answer_in(reply: Reply) -> Answer:
    """What becomes of a reply; one that was refused is not asked for again."""
    if reply.refused:
        return Answer("", reason=reply.refused, final=True)
    return parse(reply.text, reply.cut_off)
