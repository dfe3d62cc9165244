"""What a language model answers, and the interface of everything that gives such answers."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Reply(NamedTuple):
    """An answer; `cut_off`: whether it ended because of the limit on tokens; `refused`: why there is none, else ""."""

    text: str
    cut_off: bool
    refused: str = ""


class Talker(Protocol):
    """A chat model, wherever it runs: `chat.local.Chat`, `chat.endpoint.Endpoint`."""

    def say(self, user: str = "", system: str = "", tokens: int = 512, stop: str | None = None) -> Reply:
        """The answer to a conversation of a system turn and a user turn; an empty text: no such turn.

        Args:
            tokens: limit on those of the answer.
            stop: the answer ends before this text.
        """

    def free(self) -> None:
        """Frees its memory; it cannot be used afterwards."""
