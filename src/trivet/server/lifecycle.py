"""The life of a server: bind, load while /health already answers, serve, drain on a signal, exit."""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from trivet.config import ServerConfig
from trivet.engine.client import EngineClient
from trivet.server.milestones import Milestones

if TYPE_CHECKING:
    from trivet.server.backend import Backend
    from trivet.server.serving import Serving

EXIT_DONE, EXIT_CUT, EXIT_INTERRUPTED = 0, 1, 130
LAST_WORDS_S = 2.0  # streams that were cut get this long to send their error event
MOST_FILES = 65_536
OTHER_FILES = 128  # that are not connections: weights, libraries, the engine's socket
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What the loading thread hands over."""

    backend: Backend
    client: EngineClient


class Reporter(Protocol):
    """Who tells people what happens; the command line prints, tests listen."""

    def loading(self, model: str, url: str) -> None: ...

    def ready(self, backend: Backend, url: str) -> None: ...

    def first_token(self) -> None: ...

    def draining(self, num_open: int, seconds: float) -> None: ...

    def cut(self, num_open: int) -> None: ...


def run_server(
    config: ServerConfig,
    sock: socket.socket,
    load: Callable[[], Loaded],
    *,
    model_name: str,
    model_path: str = "",
    reporter: Reporter,
    milestones: Milestones,
    on_start: Callable[[StopSignals], None] = lambda stops: None,
) -> int:
    """Serves until a signal; the exit status. Raises what `load` raises. `on_start` gets what signals act on.

    `model_path` is what was asked for, and names the model too, unless the config has a name of its own for it.
    """
    loading = _in_thread(load)  # first: it takes longest, and runs beside the imports below
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        serving = _serving(config, model_name, model_path, reporter)
        return runner.run(_run(serving, sock, loading, reporter=reporter, milestones=milestones, on_start=on_start))


def _serving(config: ServerConfig, model_name: str, model_path: str, reporter: Reporter) -> Serving:
    from trivet.server.serving import Serving

    serving = Serving(config, model_name=model_name, model_path=model_path)
    serving.on_first_token = reporter.first_token
    return serving


async def _run(
    serving: Serving,
    sock: socket.socket,
    loading: Future[Loaded],
    *,
    reporter: Reporter,
    milestones: Milestones,
    on_start: Callable[[StopSignals], None],
) -> int:
    stops = StopSignals()
    on_start(stops)
    with stops.caught():
        async with _http(serving, sock):
            milestones.reach("http is up")
            reporter.loading(serving.model_path, url_of(sock))
            loaded = await _unless_stopped(asyncio.wrap_future(loading), stops)
            if loaded is None:
                return stops.status(cut=False)
            try:
                serving.ready(loaded.backend)
                milestones.reach("ready")
                reporter.ready(loaded.backend, url_of(sock))
                await stops.first.wait()
                return stops.status(cut=not await _drained(serving, loaded.client, stops, reporter))
            finally:
                await asyncio.to_thread(loaded.client.close)


class StopSignals:
    """SIGTERM and Ctrl-C: the first asks to finish, the second to stop at once."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        self._interrupted = False

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Takes the signals over, where this thread may."""
        loop = asyncio.get_running_loop()
        mine = threading.current_thread() is threading.main_thread()
        for number in STOP_SIGNALS if mine else ():
            loop.add_signal_handler(number, self.on_signal, number)
        try:
            yield
        finally:
            for number in STOP_SIGNALS if mine else ():
                loop.remove_signal_handler(number)

    def on_signal(self, number: int) -> None:
        self._interrupted = self._interrupted or number == signal.SIGINT
        (self.second if self.first.is_set() else self.first).set()

    def status(self, *, cut: bool) -> int:
        """130 after Ctrl-C, else 1 if requests were cut off, else 0."""
        return EXIT_INTERRUPTED if self._interrupted else EXIT_CUT if cut else EXIT_DONE


async def _unless_stopped(loading: asyncio.Future[Loaded], stops: StopSignals) -> Loaded | None:
    """What was loaded, or None if a signal came first."""
    stopped = asyncio.ensure_future(stops.first.wait())
    await asyncio.wait((loading, stopped), return_when=asyncio.FIRST_COMPLETED)
    if loading.done():
        stopped.cancel()
        return loading.result()
    return None


async def _drained(serving: Serving, client: EngineClient, stops: StopSignals, reporter: Reporter) -> bool:
    """Lets open requests finish; False if time ran out or a second signal came, and they were cut off."""
    seconds = serving.config.drain_s
    reporter.draining(serving.num_open, seconds)
    draining = asyncio.ensure_future(serving.drain(seconds))
    stopped = asyncio.ensure_future(stops.second.wait())
    await asyncio.wait((draining, stopped), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if draining.done() and draining.result():
        return True
    draining.cancel()
    reporter.cut(serving.num_open)
    await asyncio.to_thread(client.close)  # ends every open stream with an error
    await serving.drain(LAST_WORDS_S)
    return False


class _http:
    """An `async with` in which uvicorn serves `serving` on `sock`."""

    def __init__(self, serving: Serving, sock: socket.socket) -> None:
        import uvicorn

        from trivet.server.app import make_app
        from trivet.server.protocol import BoundedProtocol

        class Protocol(BoundedProtocol):
            max_connections = max(1, min(serving.config.max_connections, file_limit() - OTHER_FILES))
            on_too_many = staticmethod(partial(serving.metrics.rejected, "connections"))

        config = uvicorn.Config(
            make_app(serving), http=Protocol, ws="none", lifespan="off", log_config=None, access_log=False,
            server_header=False, timeout_keep_alive=75, timeout_graceful_shutdown=1,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._server.capture_signals = _no_signals  # type: ignore[method-assign]
        self._sock = sock
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        self._task = asyncio.ensure_future(self._server.serve(sockets=[self._sock]))
        while not self._server.started:
            if self._task.done():
                self._task.result()
            await asyncio.sleep(0.001)

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._server.should_exit = True
        with suppress(asyncio.CancelledError):
            await self._task


@contextmanager
def _no_signals() -> Iterator[None]:
    yield


def file_limit() -> int:
    """How many files this process may have open, raised to what the system lets it be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return MOST_FILES if soft == resource.RLIM_INFINITY else soft


def url_of(sock: socket.socket) -> str:
    """The address that reaches `sock` from this machine."""
    host, port = sock.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _in_thread(load: Callable[[], Loaded]) -> Future[Loaded]:
    """Runs `load` in a daemon thread: a load that hangs cannot keep the process from ending."""
    future: Future[Loaded] = Future()

    def run() -> None:
        try:
            loaded = load()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(loaded)

    threading.Thread(target=run, name="trivet-load", daemon=True).start()
    return future
