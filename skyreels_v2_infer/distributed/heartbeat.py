"""Heartbeats: every rank counts up a number in the rendezvous store, and ends when another rank's number stands still.

A rank that is stopped, or whose machine is gone, breaks no connection: the others would wait for it in a collective,
where no Python runs, until that times out. A rank that is only busy (downloads, loads, writes) keeps counting, and can
be waited for as long as it takes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

BEAT = 2.0  # seconds between beats
# Seconds without a beat after which a rank counts as gone. Reading one large tensor from a slow disk can keep all
# threads of a process from running for more than a minute.
SILENCE = 180.0
ENDED = b"ended"


class Heartbeat:
    """Two daemon threads: one counts and reads the others' numbers, the other watches for how long they stand still.

    They are two because the store itself can stop answering, which blocks the first. Time in which this process did not
    run itself (it was stopped, as by Ctrl-Z, together with the others) does not count.

    Args:
        store: a connection that nobody else uses: one that waits blocks all its users.
        rank, size: of this process, and how many there are.
        lost: called once, from the second thread, with the lowest silent rank and whether this rank is the lowest that
            is left, which reports it.
    """

    def __init__(self, store, rank: int, size: int, lost: Callable[[int, bool], None]):
        self.store, self.rank, self.size, self.lost = store, rank, size, lost
        self._values: dict[int, bytes] = {}
        self._heard = dict.fromkeys((peer for peer in range(size) if peer != rank), time.monotonic())
        self._stopping = threading.Event()
        self.store.set(self._key(rank), "0")
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._beat, self._watch)]

    @staticmethod
    def _key(rank: int) -> str:
        return f"beat/{rank}"

    def start(self) -> None:
        """Begins; all ranks have to have made theirs before."""
        for thread in self._threads:
            thread.start()

    def stop(self, ended_well: bool) -> None:
        """Ends the threads; after an end that is not `ended_well` the other ranks notice that this one is silent."""
        self._stopping.set()
        if ended_well:
            self._threads[0].join(2 * BEAT)
            with suppress(Exception):  # the rank that had the store may have ended
                self.store.set(self._key(self.rank), ENDED)

    def _beat(self) -> None:
        peers = sorted(self._heard)
        keys = [self._key(peer) for peer in peers]
        count = 0
        while not self._stopping.wait(BEAT):
            count += 1
            try:
                self.store.set(self._key(self.rank), str(count))
                values = self.store.multi_get(keys)
            except Exception:  # the store is gone, and so are the others if it lasts: `_watch` notices
                continue
            for peer, value in zip(peers, values, strict=True):
                if value != self._values.get(peer):
                    self._values[peer], self._heard[peer] = value, time.monotonic()

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._stopping.wait(BEAT):
            now = time.monotonic()
            not_run = max(0.0, now - before - 2 * BEAT)
            before = now
            if not_run:
                self._heard = {peer: min(now, heard + not_run) for peer, heard in self._heard.items()}
            gone, quiet = (self._silent_since(now - limit) for limit in (SILENCE, SILENCE / 2))
            if gone:
                self.lost(min(gone), set(range(self.rank)) <= quiet)
                return

    def _silent_since(self, moment: float) -> set[int]:
        return {p for p, heard in self._heard.items() if heard < moment and self._values.get(p) != ENDED}
