"""Workers that stay loaded between turns, all but one of them stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from benchmarks.peers.worker import Worker, WorkerFailed

Key = tuple[str, ...]


class Pool:
    """At most `memory_bytes` of waiting workers; who was used longest ago goes first."""

    def __init__(self, *, memory_bytes: int) -> None:
        self.memory_bytes = memory_bytes
        self._workers: dict[Key, Worker] = {}  # the longest unused first

    @contextmanager
    def use(self, key: Key, start: Callable[[], Worker]) -> Iterator[Worker]:
        """The worker of this key, running alone; started if there is none. One that fails is ended."""
        self.stop_all()
        worker = self._workers.pop(key, None)
        if worker is None:
            self._make_room()
            worker = start()
        self._workers[key] = worker
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

    def _make_room(self) -> None:
        while self._workers and sum(w.rss_bytes() for w in self._workers.values()) > self.memory_bytes:
            self._workers.pop(next(iter(self._workers))).end()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._workers:
            self._workers.popitem()[1].end()
