"""The session of a batch: the one of the job before as long as jobs need the same model, loaded in the same way."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from skyreels_v2_infer.distributed.team import Team
from skyreels_v2_infer.run.session import Session
from skyreels_v2_infer.weights.locate import Checkpoint

if TYPE_CHECKING:
    from skyreels_v2_infer.runtime import Placement


class Sessions:
    """Keeps one session, so that there is never more than one model in memory.

    Args:
        open_session: constructor of a session.

    Attributes:
        coming: texts of the videos that follow, see `Session`.
    """

    def __init__(self, open_session: Callable[..., Session] = Session):
        self.open_session = open_session
        self.coming: Sequence[str] = ()
        self._session: Session | None = None
        self._opened: tuple | None = None

    def open(self, checkpoint: Checkpoint, place: Placement, team: Team, **options) -> Session:
        """A session as `Session` makes it; that of the call before if it was opened with the same arguments."""
        wanted = checkpoint, place, {name: value for name, value in options.items() if name != "check"}
        if self._session is None or wanted != self._opened:
            self.close()
            self._session, self._opened = self.open_session(checkpoint, place, team, **options), wanted
        self._session.coming = self.coming
        return self._session

    def close(self) -> None:
        """Frees the model's memory."""
        self._session = self._opened = None
        free_memory()


def free_memory() -> None:
    """Frees what nothing refers to any more, on the GPU as well."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
