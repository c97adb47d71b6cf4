"""Events of one `EngineClient` to many takers: each request's events go to the one that opened it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from trivet.engine.client import EngineClient
from trivet.engine.messages import EngineEvent, EngineInfo, EngineRequest, EngineStats

Deliver = Callable[[list[EngineEvent]], None]


class EventRouter:
    """Sits between a client and what shares it: blocking calls, and one or more event loops."""

    def __init__(self, client: EngineClient) -> None:
        self.client = client
        self._lock = threading.Lock()
        self._takers: dict[str, Deliver] = {}
        client.set_listener(self._on_events)

    def submit(self, request: EngineRequest, deliver: Deliver) -> None:
        """Submits; `deliver` gets each batch of events of all requests opened with it, on the client's thread.

        Raises ValueError if a request of this id is open.
        """
        with self._lock:
            if request.request_id in self._takers:
                raise ValueError(f"a request with the id {request.request_id!r} is still running")
            self._takers[request.request_id] = deliver
        try:
            self.client.submit(request)
        except BaseException:
            self.forget(request.request_id)
            raise

    def forget(self, request_id: str) -> None:
        """No more events of this request are wanted; idempotent."""
        with self._lock:
            self._takers.pop(request_id, None)

    def cancel(self, request_id: str) -> None:
        """Forgets the request and ends it in the engine; idempotent."""
        self.forget(request_id)
        self.client.cancel(request_id)

    def _on_events(self, events: list[EngineEvent]) -> None:
        batches: dict[Deliver, list[EngineEvent]] = {}
        with self._lock:
            for event in events:
                if isinstance(event, EngineStats | EngineInfo):
                    continue
                taker = self._takers.get(event.request_id)
                if taker is not None:
                    batches.setdefault(taker, []).append(event)
        for deliver, batch in batches.items():
            deliver(batch)
