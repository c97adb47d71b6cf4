"""`OpenRequests`: which sequences are still running, so that a failure can be told to every one of them."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import msgspec

from trivet.engine.failures import to_failed
from trivet.engine.messages import EngineEvent, Failed, Tokens


class OpenRequests:
    """Request ids and their unfinished sequences; may be used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[str, set[int]] = {}

    def __len__(self) -> int:
        return len(self._running)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._running

    def add(self, request_id: str, n: int) -> None:
        """Raises ValueError if the id is open: two requests of one id could not be told apart."""
        with self._lock:
            if request_id in self._running:
                raise ValueError(f"a request with the id {request_id!r} is still running")
            self._running[request_id] = set(range(n))

    def discard(self, request_id: str, index: int | None = None) -> None:
        """Takes out a request, or one of its sequences; idempotent."""
        with self._lock:
            self._discard(request_id, index)

    def on_events(self, events: Iterable[EngineEvent]) -> None:
        """Takes out what these events end."""
        for event in events:
            if isinstance(event, Tokens):
                if event.finish_reason is not None:
                    self.discard(event.request_id, event.index)
            elif isinstance(event, Failed):
                self.discard(event.request_id)

    def fail_all(self, error: BaseException) -> list[Failed]:
        """One `Failed` for each open request, none of which is open after."""
        template = to_failed("", error)
        with self._lock:
            ids, self._running = list(self._running), {}
        return [msgspec.structs.replace(template, request_id=request_id) for request_id in ids]

    def _discard(self, request_id: str, index: int | None) -> None:
        if index is None:
            self._running.pop(request_id, None)
            return
        running = self._running.get(request_id)
        if running is not None:
            running.discard(index)
            if not running:
                del self._running[request_id]
