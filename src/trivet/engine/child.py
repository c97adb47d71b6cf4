"""`ChildProcessClient`: the engine in a process of its own, started again when it dies."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from enum import Enum, auto

import msgspec

from trivet.config import EngineConfig
from trivet.engine.child_process import COMMAND, EngineProcess
from trivet.engine.failures import to_error, to_failed
from trivet.engine.messages import Cancel, Drain, EngineEvent, EngineInfo, EngineRequest, EngineStats, Failed
from trivet.engine.open_requests import OpenRequests
from trivet.engine.outbox import Outbox
from trivet.engine.restart_policy import RestartPolicy
from trivet.errors import EngineDied, EngineGone, NotReady, TrivetError

log = logging.getLogger("trivet")

STARTING_RETRY_S = 5.0  # how long a first start takes is not known
EXIT_TIMEOUT_S = 5.0  # from hang-up to the end of the process


class ChildState(Enum):
    """Where the engine's process is in its life."""

    STARTING = auto()  # for the first time
    READY = auto()
    RESTARTING = auto()  # it died; requests wait for the next one, within bounds
    GAVE_UP = auto()  # the first start failed, or it died too often: a person has to look
    CLOSED = auto()


class ChildProcessClient:
    """An `EngineClient` whose engine cannot take this process down with it.

    The constructor returns at once; `wait_ready` says when the model is loaded, or why it is not. When the process
    dies, open requests fail with EngineDied and it is started again after `RestartPolicy`'s pause; what is submitted
    meanwhile waits for at most `policy.hold_s`. No more requests wait for a start than may wait in the engine. One
    thread starts the process, reads its events and outlives it.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        policy: RestartPolicy | None = None,
        command: tuple[str, ...] = COMMAND,
    ) -> None:
        self._config = config
        self._policy = policy or RestartPolicy()
        self._command = command
        self._max_held = max(1, config.scheduler.max_waiting)  # requests that may wait for a start
        self._listener: Callable[[list[EngineEvent]], None] = _nobody
        self._events: Outbox[EngineEvent] = Outbox(self._deliver, name="trivet-events")
        self._open = OpenRequests()
        self._changed = threading.Condition()  # guards what follows
        self._state = ChildState.STARTING
        self._process: EngineProcess | None = None
        self._held: list[EngineRequest] = []
        self._info: EngineInfo | None = None
        self._stats: EngineStats | None = None
        self._error: TrivetError | None = None  # why it gave up
        self._start_s = 0.0  # how long the latest start took
        self._next_start = 0.0  # monotonic time of the next restart
        self._num_restarts = 0
        self._supervisor = threading.Thread(target=self._supervise, name="trivet-supervisor", daemon=True)
        self._supervisor.start()

    @property
    def state(self) -> ChildState:
        return self._state

    @property
    def alive(self) -> bool:
        return self._state is ChildState.READY

    @property
    def pid(self) -> int | None:
        """The process id of the engine, None while there is none."""
        process = self._process
        return None if process is None else process.pid

    @property
    def num_restarts(self) -> int:
        """Times the process was started again after it died."""
        return self._num_restarts

    @property
    def info(self) -> EngineInfo:
        """What the latest process that became ready said. Raises EngineDied before the first."""
        if self._info is None:
            raise self._error or EngineDied("the engine is still starting", hint="call `wait_ready()` first")
        return self._info

    def wait_ready(self, timeout_s: float | None = None) -> EngineInfo:
        """Waits for the (re)start. Raises why it failed, or EngineDied after `timeout_s` seconds."""
        waiting = (ChildState.STARTING, ChildState.RESTARTING)
        with self._changed:
            if not self._changed.wait_for(lambda: self._state not in waiting, timeout_s):
                raise EngineDied(f"the engine was not ready after {timeout_s:g} s")
            if self._state is ChildState.READY:
                return self.info
            raise self._refusal()

    def set_listener(self, listener: Callable[[list[EngineEvent]], None]) -> None:
        self._listener = listener

    def submit(self, request: EngineRequest) -> None:
        """Never waits. Raises ValueError if a request of this id is open."""
        with self._changed:
            refusal = self._refuse_or_none()
            if refusal is None:
                self._open.add(request.request_id, request.sampling.n)
                if self._state is ChildState.READY and self._process is not None:
                    self._process.put([request])
                else:
                    self._held.append(request)
        if refusal is not None:
            self._events.put([to_failed(request.request_id, refusal)])

    def cancel(self, request_id: str, index: int | None = None) -> None:
        with self._changed:
            self._open.discard(request_id, index)
            if index is None:
                self._held = [held for held in self._held if held.request_id != request_id]
            if self._state is not ChildState.RESTARTING and self._process is not None:
                self._process.put([Cancel(request_id=request_id, index=index)])

    def stats(self) -> EngineStats | None:
        return self._stats

    def close(self, *, drain_s: float = 0.0) -> None:
        """Finishes what runs for at most `drain_s` seconds, then stops; open requests fail with EngineDied.

        When it returns the process is gone, also if another thread was the first to call it.
        """
        with self._changed:
            was_closed = self._state is ChildState.CLOSED
            drain = drain_s > 0 and self._state is ChildState.READY
            self._state = ChildState.CLOSED
            process = self._process
            self._changed.notify_all()
        if was_closed:
            self._supervisor.join()
            return
        if process is not None:
            if drain:
                process.put([Drain()])
                self._supervisor.join(drain_s)
            process.hang_up()
        self._supervisor.join()
        self._fail_open(EngineDied("the engine was closed while this request was open"))
        self._events.close()

    # --- the supervisor's thread -----------------------------------------------------------------------------

    def _supervise(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: Ctrl-C is never the child's, from birth
        quick_deaths = 0
        while True:
            served_s, reason = self._live()
            if self._state is ChildState.CLOSED:
                return
            quick_deaths = quick_deaths + 1 if served_s < self._policy.quick_death_s else 0
            is_over = self._info is None or isinstance(reason, EngineGone)
            delay_s = None if is_over else self._policy.delay_s(quick_deaths)
            self._mourn(reason, quick_deaths, delay_s)
            if delay_s is None or not self._pause(delay_s):
                return

    def _live(self) -> tuple[float, TrivetError]:
        """Runs one process from start to death. Returns how long it served, and how it ended."""
        born = time.monotonic()
        try:
            process = EngineProcess(self._config, self._command)
        except OSError as error:
            return 0.0, EngineDied(f"the engine process could not be started: {error}")
        with self._changed:
            self._process = process
            if self._state is ChildState.CLOSED:
                process.hang_up()
        ready: float | None = None
        failure: TrivetError | None = None
        try:
            while (events := process.receive()) is not None:
                for event in events:
                    if isinstance(event, EngineInfo):
                        if (failure := self._why_not_the_same(event)) is not None:
                            process.hang_up()
                            break
                        ready = time.monotonic()
                        self._become_ready(process, event, start_s=ready - born)
                    elif isinstance(event, EngineStats):
                        self._stats = event
                    elif isinstance(event, Failed) and not event.request_id:
                        failure = to_error(event)
                self._open.on_events(events)
                self._events.put(events)
        except msgspec.MsgspecError as error:
            failure = EngineDied(f"the engine process sent what is not a message: {error}")
        end = process.end(EXIT_TIMEOUT_S)
        return (0.0 if ready is None else time.monotonic() - ready), failure or EngineDied(f"the engine process {end}")

    def _why_not_the_same(self, info: EngineInfo) -> EngineGone | None:
        """An error if a restart came back as another model than the one whose name and tokenizer are in use."""
        before = self._info
        if before is None or _identity(before) == _identity(info):
            return None
        return EngineGone(
            f"the engine was started again and came back as another model: {_identity(info)} instead of "
            f"{_identity(before)}",
            hint=f"{info.model_path} was changed while it was served: restart Trivet",
        )

    def _become_ready(self, process: EngineProcess, info: EngineInfo, *, start_s: float) -> None:
        with self._changed:
            self._info, self._start_s = info, start_s
            if self._state is not ChildState.CLOSED:
                self._state = ChildState.READY
                process.put(list(self._held))
                self._held = []
            self._changed.notify_all()

    def _mourn(self, reason: TrivetError, quick_deaths: int, delay_s: float | None) -> None:
        """Tells everybody, and says when the next one comes."""
        told = f"{reason.message} while this request was open"
        error: TrivetError = EngineDied(told, hint="send it again")
        if delay_s is None:
            error = EngineGone(told, hint="the engine is not started again: see the log, then restart Trivet")
        with self._changed:
            failed = self._open.fail_all(error)  # not whoever comes once the state says that requests are held
            self._process = None
            self._stats = None  # of the dead
            self._held = []
            if self._state is not ChildState.CLOSED:
                if delay_s is None:
                    self._state = ChildState.GAVE_UP
                    self._error = self._last_words(reason, quick_deaths)
                else:
                    self._state = ChildState.RESTARTING
                    self._next_start = time.monotonic() + delay_s
            self._changed.notify_all()
        if self._info is not None:  # a first start that fails is told by `wait_ready`
            log.error("%s%s", reason.message, f"; starting again in {delay_s:g} s" if delay_s is not None else "")
        if failed:
            self._events.put(list(failed))

    def _last_words(self, reason: TrivetError, quick_deaths: int) -> TrivetError:
        if self._info is None or isinstance(reason, EngineGone):
            return reason
        return EngineGone(
            f"the engine process died {quick_deaths} times in a row, the last time because {reason.message}",
            hint="it is not started again: see the log, then restart Trivet",
        )

    def _pause(self, delay_s: float) -> bool:
        """Waits before a restart; False: closed meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: self._state is ChildState.CLOSED, delay_s)
            if self._state is ChildState.CLOSED:
                return False
            self._num_restarts += 1
        hold = threading.Timer(self._policy.hold_s, self._stop_holding, (self._num_restarts,))
        hold.daemon = True
        hold.start()
        return True

    def _stop_holding(self, restart: int) -> None:
        """A restart took longer than requests may wait: what waits is refused."""
        with self._changed:
            if self._num_restarts != restart or self._state is not ChildState.RESTARTING:
                return
            held, self._held = self._held, []
        error = NotReady("the engine is restarting, and it takes longer than usual", retry_after_s=self._wait_s())
        for request in held:
            self._open.discard(request.request_id)
        self._events.put([to_failed(request.request_id, error) for request in held])

    def _deliver(self, events: list[EngineEvent]) -> None:
        self._listener(events)

    def _fail_open(self, error: TrivetError) -> None:
        failed = self._open.fail_all(error)
        if failed:
            self._events.put(list(failed))

    # --- what a submit is told while there is no engine ------------------------------------------------------

    def _refuse_or_none(self) -> TrivetError | None:
        match self._state:
            case ChildState.READY:
                return None
            case ChildState.STARTING:
                if len(self._held) < self._max_held:
                    return None
            case ChildState.RESTARTING:
                if self._wait_s() <= self._policy.hold_s and len(self._held) < self._max_held:
                    return None
        return self._refusal()

    def _refusal(self) -> TrivetError:
        match self._state:
            case ChildState.CLOSED:
                return NotReady("the engine is closing and takes no new requests", retry_after_s=1.0)
            case ChildState.GAVE_UP:
                return self._error or EngineGone("the engine process is dead")
            case ChildState.STARTING:
                message = f"the engine is starting, and {len(self._held)} requests wait for it already"
                return NotReady(message, retry_after_s=STARTING_RETRY_S)
            case _:
                return NotReady("the engine is restarting", retry_after_s=max(1.0, self._wait_s()))

    def _wait_s(self) -> float:
        """Seconds until the next process should be ready, by how long the latest start took."""
        return max(0.0, self._next_start - time.monotonic()) + self._start_s


def _identity(info: EngineInfo) -> str:
    """What must not change from one process to the next."""
    return f"{info.fingerprint} with {info.vocab_size:,} token ids and a context of {info.max_context:,}"


def _nobody(events: list[EngineEvent]) -> None:
    """The listener before there is one."""
