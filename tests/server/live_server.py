"""A real HTTP server in a thread, in front of a scripted engine."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
import openai
from scripted import ScriptedClient, scripted_backend

from trivet.config import ServerConfig
from trivet.server.backend import Backend
from trivet.server.bind import bind
from trivet.server.lifecycle import Loaded, StopSignals, run_server
from trivet.server.milestones import Milestones


@dataclass
class Told:
    """What a server told its reporter."""

    is_ready: threading.Event = field(default_factory=threading.Event)
    lines: list[tuple[str, object]] = field(default_factory=list)

    def loading(self, model: str, url: str) -> None:
        self.lines.append(("loading", model))

    def ready(self, backend: Backend, url: str) -> None:
        self.lines.append(("ready", url))
        self.is_ready.set()

    def first_token(self) -> None:
        self.lines.append(("first_token", None))

    def draining(self, num_open: int, seconds: float) -> None:
        self.lines.append(("draining", num_open))

    def cut(self, num_open: int) -> None:
        self.lines.append(("cut", num_open))


class Server:
    """A server on a free port; `stop` is a first or second SIGTERM."""

    def __init__(
        self,
        client: ScriptedClient,
        config: ServerConfig | None = None,
        load: Callable[[], Loaded] | None = None,
        *,
        template: bool = True,
    ) -> None:
        self.client = client
        self.told = Told()
        self.status: int | None = None
        self.error: BaseException | None = None
        self.stops: StopSignals | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._load = load or (lambda: Loaded(backend=scripted_backend(client, template=template), client=client))
        self._config = config or ServerConfig(port=0)
        self._sock = bind(self._config)
        self.port: int = self._sock.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._run)
        self._begun = threading.Event()  # the server can be stopped

    def start(self) -> Server:
        self._thread.start()
        return self

    def wait_ready(self, timeout_s: float = 20.0) -> Server:
        """Raises what ended the server, if it ended."""
        end = time.monotonic() + timeout_s
        while not self.told.is_ready.wait(0.02):
            if self.error is not None:
                raise self.error
            assert time.monotonic() < end, "the server did not become ready"
        return self

    def _run(self) -> None:
        def keep(stops: StopSignals) -> None:
            self.stops, self._loop = stops, asyncio.get_running_loop()
            self._begun.set()

        try:
            self.status = run_server(
                self._config, self._sock, self._load,
                model_name="scripted", model_path="some/scripted", reporter=self.told, milestones=Milestones(),
                on_start=keep,
            )  # fmt: skip
        except BaseException as error:
            self.error = error
            self._begun.set()

    def stop(self, number: int = 15) -> None:
        """Signals the server as soon as it takes signals: a test may be over before its thread has come so far."""
        assert self._begun.wait(20), "the server did not begin"
        assert self._loop is not None
        assert self.stops is not None
        self._loop.call_soon_threadsafe(self.stops.on_signal, number)

    def join(self, timeout_s: float = 20.0) -> None:
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), "the server did not stop"

    def close(self) -> None:
        if self._thread.is_alive():
            self.stop()
            self.stop()
        self.join()

    def http(self, **kwargs: object) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=20, **kwargs)  # type: ignore[arg-type]

    def openai(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=20)
