"""Workers that stay loaded between turns, all but one of them stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

import psutil

from benchmarks.peers.worker import Worker, WorkerFailed

Key = tuple[str, ...]


def available_bytes() -> int:
    """What may still be used without swapping."""
    return int(psutil.virtual_memory().available)


class Pool:
    """Workers that wait are ended while memory is short for the next one; who was used longest ago goes first.

    It is short, too, where it would be once all have come to what they need: caches fill with the work.
    """

    def __init__(self, *, available_bytes: Callable[[], int] = available_bytes) -> None:
        self._available_bytes = available_bytes
        self._total_bytes = available_bytes()
        self._needs: dict[Key, int] = {}
        self._workers: dict[Key, Worker] = {}  # the longest unused first

    @contextmanager
    def use(self, key: Key, start: Callable[[], Worker], *, need_bytes: int = 0) -> Iterator[Worker]:
        """The worker of this key, running alone; started, with so much memory free, if there is none.

        One that fails is ended.
        """
        self.stop_all()
        worker = self._workers.pop(key, None)
        if worker is None:
            self._make_room(need_bytes)
            worker = start()
        self._workers[key] = worker
        self._needs[key] = max(need_bytes, self._needs.get(key, 0))
        worker.resume()
        try:
            yield worker
        except WorkerFailed:
            self._workers.pop(key).end()
            raise
        worker.stop()

    def stop_all(self) -> None:
        for worker in self._workers.values():
            worker.stop()

    def _make_room(self, need_bytes: int) -> None:
        while self._workers and need_bytes > min(self._available_bytes(), self._total_bytes - self._promised()):
            self._workers.pop(next(iter(self._workers))).end()

    def _promised(self) -> int:
        return sum(self._needs[key] for key in self._workers)

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._workers:
            self._workers.popitem()[1].end()
