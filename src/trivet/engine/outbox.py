"""`Outbox`: hands items to a slow taker on a thread of its own, everything that waits at once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

log = logging.getLogger("trivet")

Item = TypeVar("Item")


class Outbox(Generic[Item]):
    """`put` never waits, so that a step is never held up by who reads; the order is kept."""

    def __init__(self, deliver: Callable[[list[Item]], None], *, name: str) -> None:
        self._deliver = deliver
        self._queue: SimpleQueue[list[Item] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, items: list[Item]) -> None:
        """May be called from any thread. After `close`, delivers on the caller's thread: nothing is lost."""
        with self._lock:
            if not self._closed:
                self._queue.put(items)
                return
        self._join(None)
        self._deliver(items)

    def close(self, timeout_s: float = 5.0) -> None:
        """Delivers what was put before, then ends the thread; idempotent."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._join(timeout_s)

    def _join(self, timeout_s: float | None) -> None:
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            batch, more = self._take()
            if batch:
                try:
                    self._deliver(batch)
                except Exception:
                    log.exception("%s could not deliver %d items", self._thread.name, len(batch))
            if not more:
                return

    def _take(self) -> tuple[list[Item], bool]:
        """All that waits, at least one item; and whether more may come."""
        items = self._queue.get()
        batch: list[Item] = []
        while items is not None:
            batch += items
            try:
                items = self._queue.get_nowait()
            except Empty:
                return batch, True
        return batch, False
