"""`EngineClient`: the only way to reach the engine. In-process and child-process clients keep the same promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from trivet.engine.messages import EngineEvent, EngineInfo, EngineRequest, EngineStats


class EngineClient(Protocol):
    """Requests in, events out.

    Promises: every submitted request gets one `Accepted` or `Failed` quickly (admission does not wait for a step);
    then, for an accepted one, `Tokens` until each of its n sequences has a finish reason, or one `Failed`.
    After `cancel` no further event of that request need be awaited. Events of a request come in order.
    """

    @property
    def info(self) -> EngineInfo: ...

    @property
    def alive(self) -> bool:
        """False while the engine is dead or restarting."""
        ...

    def set_listener(self, listener: Callable[[list[EngineEvent]], None]) -> None:
        """`listener` is called with each batch of events, on the client's own thread; set before the first submit."""
        ...

    def submit(self, request: EngineRequest) -> None: ...

    def cancel(self, request_id: str, index: int | None = None) -> None:
        """Ends a request, or only the sequence `index` of its n; unknown ids are ignored."""
        ...

    def stats(self) -> EngineStats | None:
        """The latest snapshot, None before the first."""
        ...

    def close(self, *, drain_s: float = 0.0) -> None:
        """Finish running requests for at most `drain_s` seconds, then stop; idempotent."""
        ...
