"""`EngineLoop`: the thread that owns one engine, steps it while there is work and sleeps when there is none."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from trivet.engine.failures import to_failed
from trivet.engine.messages import Accepted, Cancel, EngineEvent, EngineRequest, EngineStats, Failed
from trivet.engine.open_requests import OpenRequests
from trivet.errors import EngineDied, EngineGone, NotReady

log = logging.getLogger("trivet")

STATS_INTERVAL_S = 0.1
IDLE_S = 0.25  # without work, before the engine gets ready for more
MAX_FAILED_STEPS = 3  # in a row, each on a fresh engine; then the loop gives up


class Gate(Protocol):
    """Who decides at once, on any thread, whether a request is taken: `engine.admission.Admission`."""

    def check(self, request: EngineRequest) -> Accepted | Failed: ...
    def forget(self, request_id: str) -> None: ...


class SteppedEngine(Protocol):
    """What the loop drives: `engine.engine.Engine`."""

    @property
    def admission(self) -> Gate: ...
    @property
    def has_work(self) -> bool: ...
    def add(self, request: EngineRequest) -> None: ...
    def cancel(self, request_id: str, index: int | None = None) -> None: ...
    def step(self, take_in: Callable[[], None] | None = None) -> list[EngineEvent]: ...
    def prepare(self) -> bool: ...
    def stats(self) -> EngineStats: ...


class EngineLoop:
    """Requests in from any thread, events out through `publish`, in batches, never under a lock."""

    def __init__(
        self,
        make_engine: Callable[[], SteppedEngine],
        publish: Callable[[list[EngineEvent]], None],
        *,
        is_replaced: bool = False,
        idle_s: float = IDLE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`is_replaced`: when it breaks, another process takes over. `idle_s`: so long without work, it prepares."""
        self._make_engine = make_engine
        self._publish = publish
        self._is_replaced = is_replaced
        self._idle_s = idle_s
        self._clock = clock
        self._engine = make_engine()
        self._open = OpenRequests()
        self._inbox: deque[tuple[SteppedEngine, EngineRequest] | Cancel] = deque()  # with the engine that admitted it
        self._changing = threading.Lock()  # so that what one engine admits is failed with it
        self._wakeup = threading.Condition()
        self._draining = False
        self._stopping = False
        self._broken = False
        self._ended = False
        self._stats: EngineStats | None = None
        self._stats_time = float("-inf")
        self._thread = threading.Thread(target=self._run, name="trivet-engine", daemon=True)

    @property
    def alive(self) -> bool:
        """True while requests are served."""
        return self._thread.is_alive() and not self._broken

    @property
    def broken(self) -> bool:
        """True after it gave up: a new process may do better."""
        return self._broken

    @property
    def stats(self) -> EngineStats | None:
        """The latest snapshot, None before the thread has begun."""
        return self._stats

    def start(self) -> None:
        self._thread.start()

    def submit(self, request: EngineRequest) -> None:
        """Decides on the caller's thread and publishes the verdict at once; the engine sees what was accepted.

        Raises ValueError if a request of this id is open.
        """
        if self._draining or self._stopping or not self.alive:
            self._publish([to_failed(request.request_id, self._closed_error())])
            return
        with self._changing:
            engine = self._engine
            self._open.add(request.request_id, request.sampling.n)
            verdict = self._verdict(engine, request)
        if isinstance(verdict, Failed):
            self._open.discard(request.request_id)
            self._publish([verdict])
            return
        self._publish([verdict])
        self._send((engine, request))

    def _verdict(self, engine: SteppedEngine, request: EngineRequest) -> Accepted | Failed:
        if self._ended:  # in between: the thread may have failed what was open before this was
            return to_failed(request.request_id, self._closed_error())
        try:
            return engine.admission.check(request)
        except Exception as error:
            log.exception("admission of request %s failed", request.request_id)
            return to_failed(request.request_id, error)

    def cancel(self, request_id: str, index: int | None = None) -> None:
        """Ends a request, or one of its sequences; unknown ids are ignored."""
        self._open.discard(request_id, index)
        self._send(Cancel(request_id=request_id, index=index))

    def drain(self) -> None:
        """Takes no new requests; the thread ends when those it has are done."""
        self._draining = True
        self._wake()

    def stop(self) -> None:
        """The thread ends after the step it is in; what is still open fails with EngineDied."""
        self._stopping = True
        self._wake()

    def join(self, timeout_s: float | None = None) -> bool:
        """True if the thread has ended within `timeout_s` seconds."""
        if threading.current_thread() is not self._thread and self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _send(self, command: tuple[SteppedEngine, EngineRequest] | Cancel) -> None:
        with self._wakeup:
            self._inbox.append(command)
            self._wakeup.notify()

    def _wake(self) -> None:
        with self._wakeup:
            self._wakeup.notify()

    def _closed_error(self) -> Exception:
        if self._broken and self._is_replaced:
            return EngineDied("the engine stopped after repeated failures and is started again", hint="send it again")
        if self._broken:
            return EngineGone("the engine stopped after repeated failures", hint="see the log, then restart it")
        return NotReady("the engine is closing and takes no new requests", retry_after_s=1.0)

    def _run(self) -> None:
        num_failed = 0
        try:
            self._publish([self._take_stats()])
            while self._wait():
                try:
                    self._turn()
                    num_failed = 0
                except Exception as error:
                    num_failed += 1
                    self._recover(error, give_up=num_failed >= MAX_FAILED_STEPS)
        finally:
            self._ended = True
            self._publish(list(self._open.fail_all(EngineDied("the engine was closed while this request was open"))))

    def _wait(self) -> bool:
        """Sleeps until there is something to do; False: the thread shall end."""
        may_prepare, quiet_s = True, self._idle_s
        while not self._is_called_within(quiet_s if may_prepare else None):
            may_prepare, quiet_s = self._prepare(), 0.0
        return not self._stopping and (bool(self._inbox) or self._engine.has_work)

    def _prepare(self) -> bool:
        try:
            return self._engine.prepare()
        except Exception:  # nobody waits for it: what comes is served without
            log.exception("the engine could not get ready ahead")
            return False

    def _is_called_within(self, timeout_s: float | None) -> bool:
        """Whether there is something to do, or a reason to end, within so many seconds; None: sleeps until there is."""
        with self._wakeup:
            return self._wakeup.wait_for(
                lambda: self._stopping or self._draining or bool(self._inbox) or self._engine.has_work, timeout_s
            )

    def _turn(self) -> None:
        """Takes in what came, runs one step, publishes what came out."""
        engine = self._engine
        self._empty_inbox()
        events = engine.step(self._empty_inbox) if engine.has_work else []
        self._open.on_events(events)
        if not engine.has_work or self._clock() - self._stats_time >= STATS_INTERVAL_S:
            events = [*events, self._take_stats()]
        if events:
            self._publish(events)

    def _empty_inbox(self) -> None:
        engine = self._engine
        while self._inbox:
            command = self._inbox.popleft()
            if isinstance(command, Cancel):
                engine.cancel(command.request_id, command.index)
            elif command[0] is engine:  # what another one admitted has failed with it
                self._take_in(engine, command[1])

    def _take_stats(self) -> EngineStats:
        self._stats, self._stats_time = self._engine.stats(), self._clock()
        return self._stats

    def _take_in(self, engine: SteppedEngine, request: EngineRequest) -> None:
        if request.request_id not in self._open:  # cancelled before it began
            engine.admission.forget(request.request_id)
            return
        try:
            engine.add(request)
        except Exception as error:
            log.exception("request %s could not be queued", request.request_id)
            engine.cancel(request.request_id)
            engine.admission.forget(request.request_id)
            self._open.discard(request.request_id)
            self._publish([to_failed(request.request_id, error)])

    def _recover(self, error: Exception, *, give_up: bool) -> None:
        """Goes on with a fresh engine, and then fails every open request with the error's name.

        In this order, because who hears of a failure may send the request again at once.
        """
        log.error("an engine step failed; %d open requests end with it", len(self._open), exc_info=error)
        engine = None if give_up else self._make_anew()
        if engine is None and not self._is_replaced:
            error = EngineGone(
                f"the engine failed with {type(error).__name__}: {error}, and stops after repeated failures",
                hint="see the log, then restart it",
            )
        with self._changing:
            if engine is None:
                self._broken = self._stopping = True
            else:
                self._engine = engine
            failures = self._open.fail_all(error)
        self._publish(list(failures))

    def _make_anew(self) -> SteppedEngine | None:
        try:
            return self._make_engine()
        except Exception:
            log.exception("the engine could not be made anew")
            return None
