"""`Serving`: what the handlers of one server share: the engine once it is ready, the phase, the open requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum

from trivet.config import ServerConfig
from trivet.engine.shown import shown_name
from trivet.errors import EngineDied, EngineGone, NotReady, Overloaded, TrivetError
from trivet.server.backend import Backend
from trivet.server.errors import ModelNotFound
from trivet.server.metrics import Metrics
from trivet.server.security import BodyBudget

UPLOADING = 16  # requests that may be open beyond those that run and wait: their bodies are still being read


class Phase(Enum):
    """Where the server is in its life."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"


class Serving:
    """One served model. Handlers ask `admit()` for the backend; signals call `drain()`."""

    def __init__(self, config: ServerConfig, *, model_name: str, model_path: str = "") -> None:
        self.config = config
        self.model_name = model_name
        self.model_path = model_path or model_name
        self._names = {model_name} if config.served_model_name else {model_name, self.model_path}
        self.created = int(time.time())
        self.metrics = Metrics(model_name)
        self.keys = tuple(key.encode() for key in config.api_keys)
        self.bodies = BodyBudget(config.max_bodies_bytes)
        self.num_open = 0
        self.backend: Backend | None = None
        self.first_token_at: float | None = None  # time.time() of the first token this server gave
        self.on_first_token: Callable[[], None] | None = None
        self._draining = False
        self._drain_until = 0.0
        self._idle = asyncio.Event()
        self._idle.set()

    def ready(self, backend: Backend) -> None:
        """The model is loaded: requests are admitted from now on."""
        self.backend = backend
        self.metrics.engine_ready(backend.info, backend.stats, backend.num_restarts)

    @property
    def phase(self) -> Phase:
        if self._draining:
            return Phase.DRAINING
        return Phase.READY if self.backend is not None else Phase.LOADING

    def refusal(self) -> TrivetError | None:
        """Why a request would be refused now, None if it would be handed to the engine."""
        if self._draining:
            left = max(1.0, self._drain_until - time.monotonic())
            return NotReady("the server is shutting down and takes no new requests", retry_after_s=left)
        if self.backend is None:
            return NotReady(f"`{self.model_name}` is still loading", hint="ask /ready", retry_after_s=1.0)
        return None

    def why_not_ready(self) -> TrivetError | None:
        """The same, and also an engine that is gone, or being started again: requests may wait for it, /ready not."""
        refusal = self.refusal()
        if refusal is not None or self.backend is None:
            return refusal
        if self.backend.gave_up():
            return EngineGone(
                "the engine died and is not started again", hint="its log says why; then restart the server"
            )
        if not self.backend.alive:
            return EngineDied("the engine died and is being started again")
        return None

    @contextmanager
    def admit(self) -> Iterator[Backend]:
        """The backend, while the request counts as open. Raises NotReady or Overloaded, with when to come back."""
        if (error := self.refusal()) is not None:
            self.metrics.rejected(self.phase.value)
            raise error
        assert self.backend is not None
        info = self.backend.info
        if self.num_open >= info.max_num_seqs + info.max_waiting + UPLOADING:
            self.metrics.rejected("open_requests")
            raise Overloaded(f"{self.num_open:,} requests are open, which is as many as can run, wait and be read")
        self.num_open += 1
        self._idle.clear()
        try:
            yield self.backend
        finally:
            self.num_open -= 1
            if self.num_open == 0:
                self._idle.set()

    def first_token(self) -> None:
        """Notes when this server gave its first token ever."""
        if self.first_token_at is None:
            self.first_token_at = time.time()
            if self.on_first_token is not None:
                self.on_first_token()

    def check_model(self, name: str | None) -> None:
        """Raises ModelNotFound, listing what is served, unless `name` is served here or was not given."""
        if name is not None and name not in self._names:
            raise ModelNotFound(
                f"the model `{shown_name(name)}` is not served here", hint=f"served: `{self.model_name}`", param="model"
            )

    async def drain(self, seconds: float) -> bool:
        """Refuses new requests and waits for the open ones; False if some were still open after `seconds`."""
        self._draining = True
        self._drain_until = time.monotonic() + seconds
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def health(self) -> tuple[bool, dict[str, object]]:
        """Whether the process should live on, and what is known of the engine's progress."""
        body: dict[str, object] = {"status": self.phase.value, "model": self.model_name, "open_requests": self.num_open}
        if self.backend is None:
            return True, body
        body["engine_alive"] = self.backend.alive
        body["engine_restarts"] = self.backend.num_restarts()
        if self._draining:
            return True, body
        if self.backend.gave_up():
            body["status"] = "dead"
            return False, body
        if not self.backend.alive:
            body["status"] = "restarting"
            return True, body
        stats = self.backend.stats()
        busy_since = self.backend.engine.busy_since
        moments = [] if busy_since is None else [busy_since]
        if stats is not None:
            moments.append(stats.time_s)
            body |= {"running": stats.num_running, "waiting": stats.num_waiting, "steps": stats.num_steps}
        if not moments:
            return True, body
        age = time.monotonic() - max(moments)  # work that came after the last snapshot counts from when it came
        body["last_progress_s"] = round(age, 3)
        is_busy = busy_since is not None or (stats is not None and stats.num_running + stats.num_waiting > 0)
        if is_busy and age > self.config.stall_s:
            body["status"] = "stalled"
            return False, body
        return True, body
