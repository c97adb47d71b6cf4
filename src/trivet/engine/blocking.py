"""`BlockingEngine`: requests to an `EngineClient` from code without an event loop. What `LLM` is built on."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from queue import SimpleQueue

from trivet.engine.answers import Delta
from trivet.engine.messages import EngineEvent, EngineInfo, EngineStats
from trivet.engine.output_builder import OutputBuilder
from trivet.engine.router import EventRouter


class BlockingEngine:
    """Many requests at a time from one thread; several threads may call at once."""

    def __init__(self, router: EventRouter, *, max_open_seqs: int) -> None:
        """At most `max_open_seqs` sequences of one call are in the engine: a long list waits here, not there."""
        self._router = router
        self._max_open_seqs = max_open_seqs

    def run(self, builders: Sequence[OutputBuilder]) -> Generator[tuple[int, Delta], None, None]:
        """(number in the list, delta) as they come, until every request has ended. Raises the first failure.

        Whatever ends it early (a failure, Ctrl-C, `close()` of the iterator) cancels what is still running.
        """
        events: SimpleQueue[list[EngineEvent]] = SimpleQueue()
        deliver = events.put
        waiting = deque(enumerate(builders))
        running: dict[str, tuple[int, OutputBuilder]] = {}
        num_seqs = 0
        try:
            while waiting or running:
                while waiting and (not running or num_seqs + waiting[0][1].request.sampling.n <= self._max_open_seqs):
                    number, builder = waiting.popleft()
                    running[builder.request.request_id] = number, builder
                    num_seqs += builder.request.sampling.n
                    self._router.submit(builder.request, deliver)
                for event in events.get():
                    if isinstance(event, EngineStats | EngineInfo) or event.request_id not in running:
                        continue
                    number, builder = running[event.request_id]
                    delta = self._on_event(builder, event)
                    if builder.finished:
                        del running[event.request_id]
                        num_seqs -= builder.request.sampling.n
                    if delta is not None:
                        yield number, delta
        finally:
            for request_id in running:
                self._router.cancel(request_id)

    def _on_event(self, builder: OutputBuilder, event: EngineEvent) -> Delta | None:
        delta = builder.on_event(event)
        request_id = builder.request.request_id
        still_running = builder.take_cancels()
        if builder.error is not None:
            raise builder.error
        if builder.finished:
            (self._router.cancel if still_running else self._router.forget)(request_id)
        else:
            for index in still_running:
                self._router.client.cancel(request_id, index)
        return delta
