"""`InProcessClient`: the engine on a thread of this process."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

from trivet.config import EngineConfig
from trivet.engine.loop import EngineLoop, SteppedEngine
from trivet.engine.messages import EngineEvent, EngineInfo, EngineRequest, EngineStats
from trivet.engine.outbox import Outbox
from trivet.errors import EngineDied


class Assembled(Protocol):
    """A loaded model with what is needed to make engines on it: `engine.assemble.AssembledEngine`."""

    @property
    def info(self) -> EngineInfo: ...
    def make_engine(self) -> SteppedEngine: ...
    def close(self) -> None: ...


class InProcessClient:
    """An `EngineClient` without a process boundary: what `LLM` and `trivet run` use.

    Its threads do not cross a fork: in another process than the one that made it, every use raises EngineDied, and
    `cancel` and `close` do nothing.
    """

    def __init__(self, assembled: Assembled) -> None:
        self._assembled = assembled
        self._pid = os.getpid()
        self._listener: Callable[[list[EngineEvent]], None] = _nobody
        self._loop = EngineLoop(assembled.make_engine, self._publish)
        self._outbox: Outbox[EngineEvent] = Outbox(self._deliver, name="trivet-events")
        self._loop.start()
        self._closed = False

    @classmethod
    def open(cls, config: EngineConfig) -> InProcessClient:
        """Loads the model and starts. Raises what loading raises."""
        from trivet.engine.assemble import assemble

        return cls(assemble(config))

    @property
    def info(self) -> EngineInfo:
        self._check_process()
        return self._assembled.info

    @property
    def alive(self) -> bool:
        return self._is_here and self._loop.alive

    def set_listener(self, listener: Callable[[list[EngineEvent]], None]) -> None:
        self._listener = listener

    def submit(self, request: EngineRequest) -> None:
        """Raises ValueError if a request of this id is open."""
        self._check_process()
        self._loop.submit(request)

    def cancel(self, request_id: str, index: int | None = None) -> None:
        if self._is_here:
            self._loop.cancel(request_id, index)

    def stats(self) -> EngineStats | None:
        self._check_process()
        return self._loop.stats

    def close(self, *, drain_s: float = 0.0) -> None:
        """Finishes what runs for at most `drain_s` seconds, then stops; open requests fail with EngineDied."""
        if self._closed or not self._is_here:
            return
        self._closed = True
        if drain_s > 0:
            self._loop.drain()
            self._loop.join(drain_s)
        self._loop.stop()
        ended = self._loop.join()
        self._outbox.close()
        if ended:
            self._assembled.close()

    @property
    def _is_here(self) -> bool:
        return os.getpid() == self._pid

    def _check_process(self) -> None:
        if not self._is_here:
            raise EngineDied(
                f"this model was loaded in process {self._pid}, but it is used in process {os.getpid()}, "
                "where its threads do not run",
                hint="make the LLM after the fork, or start processes with the `spawn` method",
            )

    def _publish(self, events: list[EngineEvent]) -> None:
        self._outbox.put(events)

    def _deliver(self, events: list[EngineEvent]) -> None:
        self._listener(events)


def _nobody(events: list[EngineEvent]) -> None:
    """The listener before there is one."""
