"""The wire: offers to upgrade are declined, heads and trailers are bounded, and what is not HTTP gets an error."""

from __future__ import annotations

import json
import re
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
from live_server import Server

from trivet.config import ServerConfig
from trivet.server import protocol
from trivet.server.lifecycle import MOST_FILES, file_limit

BODY = b'{"prompt": "ab", "max_tokens": 2}'
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAA\r\n"


@contextmanager
def connected(server: Server) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        yield connection


def head(*lines: bytes, start: bytes = b"POST /v1/completions HTTP/1.1") -> bytes:
    return b"\r\n".join([start, b"Host: localhost", *lines]) + b"\r\n"


def answer(connection: socket.socket) -> tuple[int, dict[str, str], dict[str, object]]:
    """Status, headers and JSON of the next response."""
    got = b""
    while b"\r\n\r\n" not in got:
        part = connection.recv(65_536)
        assert part, f"the connection ended after {got!r}"
        got += part
    raw_head, _, body = got.partition(b"\r\n\r\n")
    first, *lines = raw_head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers["content-length"]):
        part = connection.recv(65_536)
        assert part, f"the connection ended after {got!r}"
        body += part
    found = re.match(r"HTTP/1\.1 (\d+)", first)
    assert found
    return int(found[1]), headers, json.loads(body)


@pytest.mark.parametrize("pause_s", [0.0, 0.1])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("upgrade", [H2C, b"Connection: upgrade\r\nUpgrade: websocket\r\n", b""])
def test_an_offer_to_upgrade_is_declined(server: Server, upgrade: bytes, chunked: bool, pause_s: float) -> None:
    """The body is read whether it comes with the head or after it, and so is the next request."""
    length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(BODY)
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY) if chunked else BODY
    with connected(server) as connection:
        for _ in range(2):
            connection.sendall(head(length) + upgrade + b"\r\n" + (b"" if pause_s else body))
            if pause_s:
                time.sleep(pause_s)
                connection.sendall(body)
            status, _, reply = answer(connection)
            assert (status, reply["choices"][0]["text"]) == (200, "ab")  # type: ignore[index]
        connection.sendall(head(start=b"GET /ready HTTP/1.1") + upgrade + b"\r\n")
        assert answer(connection)[2]["status"] == "ready"


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"HELO there\r\n\r\n", "not valid HTTP"),
        (head(b"Content-Length: x") + b"\r\n", "not valid HTTP"),
        (head(b"Transfer-Encoding: chunked") + b"\r\nxyz\r\n", "not valid HTTP"),
        (b"CONNECT x:1 HTTP/1.1\r\nHost: localhost\r\n\r\n", "invalid url"),
    ],
)
def test_what_is_not_http_gets_an_error_in_openais_shape(server: Server, raw: bytes, said: str) -> None:
    with connected(server) as connection:
        connection.sendall(raw)
        status, headers, reply = answer(connection)
    assert status == 400
    assert headers["content-type"] == "application/json"
    error = reply["error"]
    assert isinstance(error, dict) and set(error) == {"message", "type", "param", "code"}
    assert said in error["message"]


@pytest.mark.parametrize("start_of_trailers", [b"X-A: " + b"a" * 2**16 + b"\r\n", b"a" * 2**16])
def test_trailers_without_end_are_refused(server: Server, start_of_trailers: bytes) -> None:
    sent = 0
    with connected(server) as connection:
        connection.sendall(head(b"Transfer-Encoding: chunked") + b"\r\n5\r\nabcde\r\n0\r\n")
        with suppress(ConnectionError):
            while sent < 50 * 2**20:
                sent += connection.send(start_of_trailers)
    assert sent < 25 * 2**20, "it was cut off"


def test_small_chunks_are_no_trailers(server: Server) -> None:
    """A body of 150,000 chunks of one byte brings more than a head may have, and is read."""
    body = b'{"prompt": "ab", "max_tokens": 2, "user": "' + b"x" * 150_000 + b'"}'
    with connected(server) as connection:
        connection.sendall(head(b"Transfer-Encoding: chunked") + b"\r\n")
        connection.sendall(b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\nX-Trailer: 1\r\n\r\n")
        assert answer(connection)[0] == 200


@pytest.mark.parametrize("path", [b"/health", b"/v1/completions"])
def test_a_message_that_does_not_end(
    start: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, path: bytes
) -> None:
    monkeypatch.setattr(protocol, "MESSAGE_TIMEOUT_S", 0.3)
    server = start()
    with connected(server) as connection:
        connection.sendall(head(b"Transfer-Encoding: chunked", start=b"POST %s HTTP/1.1" % path) + b"\r\n0\r\n")
        began = time.monotonic()
        with suppress(ConnectionError):
            while time.monotonic() < began + 5:
                connection.sendall(b"X: 1\r\n")
                connection.settimeout(0.02)
                with suppress(TimeoutError):
                    if connection.recv(4096) == b"":
                        break
                connection.settimeout(10)
        assert time.monotonic() < began + 4, "the server hangs up"


def test_a_request_that_waits_for_its_turn_is_not_too_slow(
    start: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time of a pipelined body begins when the answer before it is on its way."""
    monkeypatch.setattr(protocol, "MESSAGE_TIMEOUT_S", 0.3)
    server = start()
    slow = b'{"prompt": "!slow", "max_tokens": 40}'
    first = head(b"Content-Length: %d" % len(slow)) + b"\r\n" + slow
    second = head(b"Content-Length: %d" % len(BODY)) + b"\r\n"
    with connected(server) as connection:
        connection.sendall(first + second)
        connection.settimeout(10)
        assert answer(connection)[0] == 200
        connection.sendall(BODY)
        assert answer(connection)[2]["choices"][0]["text"] == "ab"  # type: ignore[index]


def test_connections_are_bounded(start: Callable[..., Server]) -> None:
    server = start(ServerConfig(port=0, max_connections=2))
    with connected(server) as one, connected(server) as two:
        for connection in (one, two):
            connection.sendall(head(start=b"GET /ready HTTP/1.1") + b"\r\n")
            assert answer(connection)[0] == 200
        with connected(server) as three:
            status, headers, reply = answer(three)
            assert (status, headers["retry-after"]) == (503, "1")
            assert reply["error"]["code"] == "too_many_connections"  # type: ignore[index]
        two.close()
        time.sleep(0.1)
        with connected(server) as four:
            four.sendall(
                head(
                    start=b"GET /metrics HTTP/1.1",
                )
                + b"Connection: close\r\n\r\n"
            )
            page = b"".join(iter(lambda: four.recv(65_536), b""))
    assert b'reason="connections"} 1.0' in page


def test_the_limit_of_open_files_is_raised() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(300, hard), hard))
        assert file_limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(hard, MOST_FILES)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
