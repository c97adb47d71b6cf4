"""A client that leaves, at any moment, takes its request with it; one that is slow holds up nobody."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress

import openai
import pytest
from live_server import Server
from starlette.types import Message

from trivet.errors import EngineDied
from trivet.server import protocol, security, sse


@contextmanager
def posted(server: Server, body: dict[str, object], path: str = "/v1/completions") -> Iterator[socket.socket]:
    """A raw connection on which the request was sent."""
    raw = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(raw)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head.encode() + raw)
        yield connection


def eventually(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.01)


def num_open(server: Server) -> int:
    with server.http() as http:
        return int(http.get("/health").json()["open_requests"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["!hang", "!slow", ["!slow a", "!slow b", "!hang"]])
def test_leaving_cancels(server: Server, prompt: object, stream: bool) -> None:
    before = len(server.client.cancelled)
    with posted(server, {"prompt": prompt, "max_tokens": 4000, "stream": stream, "n": 2}) as connection:
        eventually(lambda: num_open(server) == 1)
        if stream and prompt == "!slow":
            assert b"data: " in connection.recv(4096) + connection.recv(4096)
    many = len(prompt) if isinstance(prompt, list) else 1
    eventually(lambda: len(server.client.cancelled) == before + many)
    eventually(lambda: num_open(server) == 0)


def test_leaving_while_sending_the_body(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{")
        eventually(lambda: num_open(server) == 1)
    eventually(lambda: num_open(server) == 0)


def test_closing_an_openai_stream_cancels(client: openai.OpenAI, server: Server) -> None:
    before = len(server.client.cancelled)
    stream = client.completions.create(model="scripted", prompt="!slow", max_tokens=4000, stream=True)
    next(iter(stream))
    stream.close()
    eventually(lambda: len(server.client.cancelled) == before + 1)


def test_a_client_that_does_not_read_is_dropped(start: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "SEND_TIMEOUT_S", 0.2)
    server = start()
    with posted(server, {"prompt": "x", "max_tokens": 4000, "stream": True, "n": 4, "logprobs": 20}) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        eventually(lambda: num_open(server) == 1)
        eventually(lambda: num_open(server) == 0, 20)


def test_a_slow_reader_gets_everything(server: Server) -> None:
    with posted(server, {"prompt": "x", "max_tokens": 400, "stream": True, "logprobs": 20}) as connection:
        connection.settimeout(10)
        got = b""
        while not got.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
            part = connection.recv(20_000)
            assert part, "the stream ended early"
            got += part
            time.sleep(0.001)
    assert got.count(b'"token_logprobs"') == 400


def test_silence_is_bridged_by_comments(start: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trivet.server.openai.HEADERS_AFTER_S", 0.05)
    monkeypatch.setattr(sse, "KEEP_ALIVE_S", 0.05)
    server = start()
    with server.http() as http:
        text = http.post("/v1/completions", json={"prompt": "!late", "max_tokens": 2, "stream": True}).text
    assert text.startswith(": waiting\n\n")
    assert text.endswith("data: [DONE]\n\n")
    with server.openai() as client:
        chunks = client.completions.create(model="scripted", prompt="!late", max_tokens=2, stream=True)
        assert "".join(chunk.choices[0].text for chunk in chunks) == "!l"


def test_a_body_that_does_not_come(start: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "BODY_TIMEOUT_S", 0.1)
    server = start()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{")
        reply = connection.recv(4096)
    assert b" 408 " in reply
    assert b"did not arrive within 0.1 s (1 bytes came)" in reply


def test_an_error_after_the_headers_is_an_event(start: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trivet.server.openai.HEADERS_AFTER_S", 0.01)
    server = start()
    with server.openai() as client:
        stream = client.completions.create(model="scripted", prompt="!die !late", max_tokens=9, stream=True)
        with pytest.raises(openai.APIError, match="ended by SIGSEGV"):
            list(stream)


def test_an_error_counts_as_such_though_the_client_leaves_on_hearing_of_it() -> None:
    happened: list[str] = []
    left = asyncio.Event()

    async def events() -> AsyncGenerator[bytes, None]:
        yield sse.event({"text": "a"})
        raise EngineDied("it is dead")

    async def receive() -> Message:
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if b"it is dead" in message.get("body", b""):
            happened.append("told")
            left.set()
            await asyncio.sleep(0.1)  # time enough to hear that the client left

    async def serve() -> None:
        closing = AsyncExitStack()
        closing.callback(happened.append, "closed")
        stream = sse.EventStream(events(), closing=closing, on_error=lambda error: happened.append(f"counted {error}"))
        await stream({}, receive, send)

    asyncio.run(serve())
    assert happened == ["counted it is dead", "told", "closed"], "who hears of it may look at the metrics at once"


@pytest.mark.parametrize("head", [b"GET /", b"GET / HTTP/1.1\r\nX: ", b"GET / HTTP/1.1\r\nX: a\r\nY"])
def test_a_head_without_end_is_refused(server: Server, head: bytes) -> None:
    sent, got = 0, b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head)
        with suppress(ConnectionError):
            while sent < 50 * 2**20:
                sent += connection.send(b"a" * 2**18)
                connection.settimeout(0.01)
                with suppress(TimeoutError):
                    got += connection.recv(4096)
                connection.settimeout(10)
    assert sent < 25 * 2**20, "it was cut off"
    assert got in (b"", protocol.TOO_LARGE), "the reply may be lost in the reset"


def test_a_head_that_does_not_come(start: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.1)
    server = start()
    for sent in (b"", b"GET /health HT"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(sent)
            assert connection.recv(100) == b"", "the server hangs up"
    with server.http() as http:
        http.get("/health")
        time.sleep(0.2)
        assert http.get("/health").status_code == 200, "an idle connection is not a head under way"
