"""A listener that collects events, for tests of clients."""

from __future__ import annotations

import threading
from collections.abc import Callable

from trivet.engine.messages import EngineEvent, EngineInfo, EngineRequest, EngineStats, Failed, Tokens
from trivet.engine.sampling_params import SamplingParams


def request(
    request_id: str = "r", prompt: str = "hi", *, stop_ids: tuple[int, ...] = (), **kw: object
) -> EngineRequest:
    """A resolved request of 8 tokens with the seed 7, unless said otherwise."""
    said = {"max_tokens": 8, "seed": 7, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, **kw}
    return EngineRequest(
        request_id=request_id,
        prompt_token_ids=[ord(c) for c in prompt],
        sampling=SamplingParams(**said),  # type: ignore[arg-type]
        stop_ids=list(stop_ids),
    )


class Listener:
    def __init__(self) -> None:
        self.events: list[EngineEvent] = []
        self.batches: list[int] = []
        self._changed = threading.Condition()

    def __call__(self, events: list[EngineEvent]) -> None:
        with self._changed:
            self.events += events
            self.batches.append(len(events))
            self._changed.notify_all()

    def wait(self, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, timeout_s), f"timed out; events: {self.events[-5:]}"

    def of(self, request_id: str) -> list[EngineEvent]:
        return [e for e in self.events if not isinstance(e, EngineStats | EngineInfo) and e.request_id == request_id]

    def tokens(self, request_id: str, index: int = 0) -> list[int]:
        events = [e for e in self.of(request_id) if isinstance(e, Tokens) and e.index == index]
        return [token_id for e in events for token_id in e.token_ids]

    def failed(self, request_id: str) -> Failed | None:
        return next((e for e in self.of(request_id) if isinstance(e, Failed)), None)

    def num_finished(self, request_id: str) -> int:
        return sum(isinstance(e, Tokens) and e.finish_reason is not None for e in self.of(request_id))

    def wait_finished(self, *request_ids: str, n: int = 1) -> None:
        """Waits until each has n finished sequences or has failed."""
        self.wait(lambda: all(self.num_finished(r) == n or self.failed(r) for r in request_ids))
