"""Loading, readiness, draining, stopping, busy ports."""

from __future__ import annotations

import errno
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from live_server import Server
from scripted import ByteTokenizer, ScriptedClient, scripted_backend

from engine.fake_engine import BUG, CRASH, FakeAssembled
from trivet.config import EngineConfig, ModelConfig, ServerConfig
from trivet.engine.child import ChildProcessClient
from trivet.engine.client import EngineClient
from trivet.engine.in_process import InProcessClient
from trivet.engine.restart_policy import RestartPolicy
from trivet.errors import ConfigError, ModelFormatError
from trivet.server.bind import bind
from trivet.server.lifecycle import Loaded, url_of
from trivet.server.loading import Loader
from trivet.server.milestones import Milestones


def test_health_answers_while_the_model_loads(start: Callable[..., Server]) -> None:
    go = threading.Event()
    client = ScriptedClient()

    def load() -> Loaded:
        assert go.wait(10)
        return Loaded(backend=scripted_backend(client), client=client)

    server = start(load=load, wait=False)
    with server.http() as http:
        assert http.get("/health").json()["status"] == "loading"
        assert server.told.lines == [("loading", "some/scripted")]
        waiting = http.get("/ready")
        refused = http.post("/v1/completions", json={"prompt": "a"})
        for reply in (waiting, refused):
            assert reply.status_code == 503
            assert reply.headers["retry-after"] == "1"
            assert reply.json()["error"]["code"] == "not_ready"
            assert "`scripted` is still loading" in reply.text
        go.set()
        server.wait_ready()
        assert http.get("/ready").json() == {"status": "ready", "model": "scripted"}
        assert http.get("/health").json()["status"] == "ready"
        [model] = http.get("/v1/models").json()["data"]
        assert (model["id"], model["object"], model["max_model_len"]) == ("scripted", "model", 4096)
        assert http.get("/v1/models/scripted").json() == model


def test_what_stops_the_load_stops_the_server(start: Callable[..., Server]) -> None:
    def load() -> Loaded:
        raise ModelFormatError("`x` is damaged")

    server = start(load=load, wait=False)
    server.join()
    assert isinstance(server.error, ModelFormatError)


def test_a_signal_during_the_load_stops_the_server(start: Callable[..., Server]) -> None:
    go = threading.Event()

    def load() -> Loaded:
        go.wait(10)
        raise ModelFormatError("too late")

    server = start(load=load, wait=False)
    with server.http() as http:
        assert http.get("/health").status_code == 200
    server.stop(signal.SIGINT)
    server.join()
    go.set()
    assert server.status == 130


def test_a_signal_lets_running_requests_finish(start: Callable[..., Server]) -> None:
    server = start()
    got: list[Any] = []

    def ask() -> None:
        with server.openai() as client:
            chunks = client.completions.create(model="scripted", prompt="!slow", max_tokens=25, stream=True)
            got.append("".join(chunk.choices[0].text for chunk in chunks))

    thread = threading.Thread(target=ask)
    thread.start()
    with server.http() as http:
        while http.get("/health").json()["open_requests"] == 0:
            time.sleep(0.01)
        server.stop()
        while (ready := http.get("/ready")).status_code == 200:
            time.sleep(0.01)
        refused = http.post("/v1/completions", json={"prompt": "a"})
        page = http.get("/metrics").text
    for reply in (ready, refused):
        assert reply.status_code == 503
        assert 1 <= int(reply.headers["retry-after"]) <= 30
        assert "shutting down" in reply.text
    assert 'vllm:admission_rejections_total{engine="0",model_name="scripted",reason="draining"} 1.0' in page
    thread.join()
    server.join()
    assert got == [("!slow" * 5)[:25]]
    assert server.status == 0
    assert server.client.closed.is_set()
    assert ("draining", 1) in server.told.lines and not [line for line in server.told.lines if line[0] == "cut"]


@pytest.mark.parametrize(("signals", "drain_s", "status"), [
    ([15], 0.1, 1), ([15, 15], 30.0, 1), ([2], 0.1, 130), ([2, 2], 30.0, 130), ([15, 2], 30.0, 130),
])  # fmt: skip
def test_what_does_not_finish_is_cut_off_with_an_error(
    start: Callable[..., Server], signals: list[int], drain_s: float, status: int
) -> None:
    server = start(ServerConfig(port=0, drain_s=drain_s))
    with server.openai() as client:
        stream = client.completions.create(model="scripted", prompt="!slow", max_tokens=4000, stream=True)
        assert next(iter(stream)).choices[0].text == "!"
        for number in signals:
            server.stop(number)
        with pytest.raises(openai.APIError, match="the engine was closed"):
            list(stream)
    server.join()
    assert server.status == status
    assert ("cut", 1) in server.told.lines


def test_an_idle_server_stops_at_once(start: Callable[..., Server]) -> None:
    server = start()
    with server.http() as http:
        http.get("/health")  # leaves an idle connection open
        began = time.monotonic()
        server.stop()
        server.join()
    assert server.status == 0
    assert time.monotonic() - began < 5


def test_a_busy_port_is_named(start: Callable[..., Server]) -> None:
    server = start(wait=False)
    said = f"port {server.port} on 127.0.0.1 is already in use by .* \\(process "
    with pytest.raises(ConfigError, match=said) as caught:
        bind(ServerConfig(port=server.port))
    assert caught.value.hint is not None and f"`--port {server.port + 1}`" in caught.value.hint


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("192.0.2.1", "is not an address of this machine"),
        ("no such host", "is not an address"),
        ("a..b", "is not an address"),
    ],
)
def test_an_address_that_is_not_here(host: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        bind(ServerConfig(host=host, port=0))


@pytest.mark.parametrize(
    ("number", "said"), [(errno.EACCES, "may not be opened by this user"), (errno.EMFILE, "cannot be bound: ")]
)
def test_other_reasons_not_to_bind(monkeypatch: pytest.MonkeyPatch, number: int, said: str) -> None:
    class Refusing(socket.socket):
        def bind(self, address: Any) -> None:
            raise OSError(number, "no")

    monkeypatch.setattr("trivet.server.bind.socket.socket", Refusing)
    with pytest.raises(ConfigError, match=said):
        bind(ServerConfig(port=0))


def test_the_address_to_call(monkeypatch: pytest.MonkeyPatch) -> None:
    with bind(ServerConfig(host="0.0.0.0", port=0)) as sock:
        assert url_of(sock) == f"http://127.0.0.1:{sock.getsockname()[1]}"
    with bind(ServerConfig(host="::1", port=0)) as sock:
        assert url_of(sock) == f"http://[::1]:{sock.getsockname()[1]}"


def test_health_sees_an_engine_that_no_longer_moves(start: Callable[..., Server]) -> None:
    server = start()
    with server.http() as http:
        server.client.stall()
        reply = http.get("/health")
        assert reply.status_code == 503
        assert reply.json()["status"] == "stalled"
        server.client.alive = False
        assert http.get("/health").json()["status"] == "restarting"
        ready = http.get("/ready")
        assert (ready.status_code, ready.json()["error"]["code"]) == (503, "engine_died")
        assert httpx.post(f"{server.url}/v1/completions", json={"prompt": "a"}).status_code == 200, "it may wait"


def test_health_sees_a_first_step_that_hangs(start: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    """The last snapshot says that the engine idles, and is old: what counts is the work that came since."""
    monkeypatch.setattr("trivet.server.openai.HEADERS_AFTER_S", 0.01)
    server = start(ServerConfig(port=0, stall_s=0.5))
    server.client.idle_since(time.monotonic() - 3600)
    with server.http() as http:
        assert http.get("/health").json()["status"] == "ready"
        began = time.monotonic()
        with http.stream("POST", "/v1/completions", json={"prompt": "!hang", "stream": True}):
            assert http.get("/health").status_code == 200, "that it idled for an hour says nothing"
            while (reply := http.get("/health")).status_code == 200:
                assert time.monotonic() < began + 10
                time.sleep(0.02)
        assert reply.json()["status"] == "stalled"
        assert time.monotonic() >= began + 0.5


FAKE_CHILD = Path(__file__).parent.parent / "engine" / "fake_child.py"


@pytest.mark.parametrize("in_process", [False, True])
def test_an_engine_that_is_gone_for_good_is_told_as_such(start: Callable[..., Server], in_process: bool) -> None:
    model = SimpleNamespace(generation_config={}, eos_ids=())

    def load() -> Loaded:
        config = EngineConfig(model=ModelConfig(path="fake"))
        client: EngineClient
        if in_process:
            client = InProcessClient(FakeAssembled())
        else:
            policy = RestartPolicy(max_quick_deaths=3, first_delay_s=0.01)
            client = ChildProcessClient(config, policy=policy, command=(sys.executable, str(FAKE_CHILD)))
            client.wait_ready(20)
        loader = Loader(config, model_name="fake", in_process=in_process, milestones=Milestones())
        return loader._loaded(client, model, (ByteTokenizer(), None, None))  # type: ignore[arg-type]

    server = start(load=load)
    with server.http() as http:
        for _ in range(3):
            reply = http.post("/v1/completions", json={"prompt": [BUG if in_process else CRASH], "max_tokens": 2})
            assert reply.status_code == 503
        end = time.monotonic() + 10
        while (health := http.get("/health")).status_code == 200:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert health.json()["status"] == "dead"
        for reply in (http.get("/ready"), http.post("/v1/completions", json={"prompt": [70], "max_tokens": 2})):
            assert reply.status_code == 503
            assert reply.json()["error"]["code"] == "engine_died"
            assert "retry-after" not in reply.headers, "nobody knows when"
        assert "is not started again" in http.get("/ready").text
