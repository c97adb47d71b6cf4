"""uvicorn's HTTP/1.1 protocol, with bounds on what a request may take to come, and errors in OpenAI's shape."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum, auto
from http import HTTPStatus
from typing import Any

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from trivet.errors import TrivetError
from trivet.server.errors import BadHttp, HeadTooLarge, TooManyConnections, error_body, error_headers, status_of

MAX_HEAD_BYTES = 512 * 1024  # more than one read of the socket, so that a body in the same read does not count
HEAD_TIMEOUT_S = 30.0
MESSAGE_TIMEOUT_S = 90.0  # of a body and its trailers; who reads the body answers 408 before that
LENGTH_HEADERS = (b"content-length", b"transfer-encoding")


def reply(error: TrivetError) -> bytes:
    """A whole response that tells `error` and ends the connection, for what never reaches the application."""
    body = msgspec.json.encode(error_body(error))
    status = status_of(error).http
    headers = {"Content-Type": "application/json", **error_headers(error), "Connection": "close"}
    lines = [f"{name}: {value}" for name, value in {**headers, "Content-Length": len(body)}.items()]
    return "\r\n".join([f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *lines, "", ""]).encode() + body


TOO_LARGE = reply(
    HeadTooLarge(f"the request line and the headers, or the trailers, are larger than {MAX_HEAD_BYTES:,} bytes")
)


class _Stage(Enum):
    """What of a request is under way."""

    NONE = auto()
    HEAD = auto()
    BODY = auto()  # and the trailers after it


class BoundedProtocol(HttpToolsProtocol):
    """Without it a client may send headers or trailers for ever, and all of them are kept.

    An offer to speak another protocol (`Upgrade: h2c`, which some clients make with every request) is declined as RFC
    9110 says: by answering in this one. The parser ends at such a head, so what follows goes to a fresh one, which is
    told the length of the body.
    """

    max_connections = 4096
    on_too_many: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stage = _Stage.NONE
        self._num_messages = 0
        self._overhead_bytes = 0  # of head or trailers
        self._came_body = False
        self._resuming = False
        self._timer: asyncio.TimerHandle | None = None
        self._timed: tuple[_Stage, int] | None = None  # what the timer is for

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            self.on_too_many()
            self._hang_up(
                reply(TooManyConnections(f"{self.max_connections:,} connections are open, as many as may be"))
            )
            return
        self._stage = _Stage.HEAD
        self._set_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stage = _Stage.NONE
        self._set_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._came_body = False
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else error
            self.send_400_response(str(cause)[:100])
            return
        if self._stage is _Stage.NONE or self._came_body:
            self._overhead_bytes = 0
        else:
            self._overhead_bytes += len(data)
            if self._overhead_bytes > MAX_HEAD_BYTES:
                self._hang_up(TOO_LARGE)
        self._set_timer()

    def send_400_response(self, msg: str) -> None:
        self._hang_up(reply(BadHttp(f"the request is not valid HTTP: {msg}")))

    def _hang_up(self, last_words: bytes) -> None:
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write(last_words)  # else it would stand in the middle of an answer
        self._close()

    def _close(self) -> None:
        """Ends the connection; what still works on an answer is told as if the client had left."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    def _feed(self, data: bytes) -> None:
        """Everything in `data` to the parser, and behind each offer to upgrade to a fresh one."""
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                self._decline_upgrade()

    def _decline_upgrade(self) -> None:
        lengths = [(name, value) for name, value in self.headers if name in LENGTH_HEADERS]
        self.parser = httptools.HttpRequestParser(self)
        if hasattr(self.parser, "set_dangerous_leniencies"):
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self._resuming = True
        head = b"".join(b"%s: %s\r\n" % header for header in lengths)
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%s\r\n" % head)

    # --- the parser's callbacks ----------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._resuming:
            return
        self._stage = _Stage.HEAD
        self._num_messages += 1
        self._overhead_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._resuming:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._resuming and self._stage is _Stage.HEAD:  # trailers are for nobody here
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._resuming:
            self._resuming = False
            return
        self._stage = _Stage.BODY
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._came_body = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # only of this parser: the body is still to come
        self._stage = _Stage.NONE
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._timed = None  # what came after that request has its time from now on
        self._set_timer()

    # --- time ----------------------------------------------------------------------------------------------------

    def _set_timer(self) -> None:
        """One timer for the stage of the message that is under way, none between messages."""
        wanted = None if self._stage is _Stage.NONE else (self._stage, self._num_messages)
        if wanted == self._timed:
            return
        self._timed = wanted
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if wanted is not None:
            seconds = HEAD_TIMEOUT_S if self._stage is _Stage.HEAD else MESSAGE_TIMEOUT_S
            self._timer = self.loop.call_later(seconds, self._too_slow)

    def _too_slow(self) -> None:
        if self.pipeline or self.flow.read_paused:  # it waits for us: an answer before it is still on its way
            self._timer = self.loop.call_later(MESSAGE_TIMEOUT_S, self._too_slow)
        else:
            self._close()
