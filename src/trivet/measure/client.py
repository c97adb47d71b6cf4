"""The HTTP client of one worker: keep-alive connections that post a body and read a stream of events.

Our own protocol over httptools, since a general client's work for each event would itself be the load. Time is taken
once for each read of a socket, before anything of it is parsed.
"""

from __future__ import annotations

import asyncio
import math
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import cast

import httptools

from trivet.measure.answers import StreamReader, message_of_body, outcome_of_status
from trivet.measure.outcomes import Exchange, Outcome

MAX_ERROR_BYTES = 64 * 1024
MAX_TRIES = 2  # a kept connection that the server has just closed is no fault of the request


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where requests go."""

    host: str
    port: int
    tls: bool
    server_name: str  # of the certificate; `host` may be an IP address that was looked up once
    verify: bool = True

    def ssl_context(self) -> ssl.SSLContext | None:
        if not self.tls:
            return None
        context = ssl.create_default_context()
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


@dataclass(slots=True)
class ConnectionCounts:
    """What became of connections."""

    opened: int = 0
    closed_by_server: int = 0  # after an answer, though we would have kept them
    retried: int = 0  # requests sent again, because a kept connection turned out to be closed


class Client:
    """Sends exchanges; `on_done` gets each when it has an outcome."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        address: Address,
        head: bytes,
        *,
        timeout_s: float,
        on_done: Callable[[Exchange], None],
    ) -> None:
        """`head`: the request line and headers up to the value of Content-Length, which comes last."""
        self.loop = loop
        self.counts = ConnectionCounts()
        self.head = head
        self._address = address
        self._ssl = address.ssl_context()
        self._timeout_s = timeout_s
        self._on_done = on_done
        self._idle: list[Connection] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[Exchange] = set()

    def send(self, exchange: Exchange) -> None:
        """Begins; the time of it is the exchange's `sent_s`."""
        exchange.sent_s = time.monotonic()
        exchange.timer = self.loop.call_later(self._timeout_s, self._give_up, exchange, Outcome.timeout)
        self._open.add(exchange)
        self._dispatch(exchange)

    def cut_all(self) -> None:
        """Gives up what still runs."""
        for exchange in list(self._open):
            self._give_up(exchange, Outcome.cut)

    def finish(self, exchange: Exchange, outcome: Outcome, message: str = "") -> None:
        """Gives the exchange its outcome, unless it has one, and hands it back."""
        if exchange not in self._open:
            return
        self._open.remove(exchange)
        if exchange.outcome is None:
            exchange.outcome, exchange.message = outcome, message
        if exchange.timer is not None:
            exchange.timer.cancel()
        exchange.timer = exchange.connection = None
        self._on_done(exchange)

    def release(self, connection: Connection) -> None:
        """The connection can take another request."""
        self._idle.append(connection)

    def lost_idle(self, connection: Connection) -> None:
        """The server closed a connection that was kept."""
        if connection in self._idle:
            self._idle.remove(connection)
            self.counts.closed_by_server += 1

    def again(self, exchange: Exchange) -> bool:
        """Sends once more what went over a kept connection that was closed before it got there."""
        if not (exchange.reused and exchange.tries < MAX_TRIES) or exchange not in self._open:
            return False
        self.counts.retried += 1
        self._dispatch(exchange, fresh=True)
        return True

    def _dispatch(self, exchange: Exchange, *, fresh: bool = False) -> None:
        exchange.tries += 1
        if self._idle and not fresh:
            exchange.reused = True
            self._idle.pop().send(exchange)
            return
        exchange.reused = False
        task = self.loop.create_task(self._connect(exchange))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, exchange: Exchange) -> None:
        address = self._address
        try:
            _, connection = await self.loop.create_connection(
                lambda: Connection(self),
                address.host,
                address.port,
                ssl=self._ssl,
                server_hostname=address.server_name if self._ssl else None,
            )
        except OSError as error:  # ssl.SSLError is one
            self.finish(exchange, Outcome.connect, str(error))
            return
        self.counts.opened += 1
        if exchange.outcome is None:
            connection.send(exchange)
        else:  # it ran out of time meanwhile
            self.release(connection)

    def _give_up(self, exchange: Exchange, outcome: Outcome) -> None:
        if exchange.outcome is None:
            exchange.outcome = outcome
            exchange.message = f"not whole after {self._timeout_s:g} s" if outcome is Outcome.timeout else ""
        if exchange.connection is not None:
            exchange.connection.close()
        self.finish(exchange, outcome)


class Connection(asyncio.Protocol):
    """One connection; it serves one exchange after another."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None

    def send(self, exchange: Exchange) -> None:
        """Posts the exchange's body."""
        assert self._transport is not None
        self._exchange = exchange
        exchange.connection = self
        self._parser = httptools.HttpResponseParser(self)
        self._reader: StreamReader | None = None
        self._error_body = b""
        self._is_json = self._complete = self._keep_alive = self._began = False
        self._transport.write(b"%b%d\r\n\r\n%b" % (self._client.head, len(exchange.body), exchange.body))

    def close(self) -> None:
        self._exchange = None
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio.Protocol -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by class

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        if self._exchange is None:  # nothing was asked: whatever this is, nobody can use it
            self._client.lost_idle(self)
            self.close()
            return
        self._began = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:  # an error of ours
            raise
        except httptools.HttpParserError as error:
            self._break(Outcome.malformed, f"the answer is not HTTP: {error}")
            return
        if self._reader is not None:
            self._reader.end_of_read(now)
        if self._complete:
            self._end(clean=True)

    def connection_lost(self, exc: Exception | None) -> None:
        exchange = self._exchange
        if exchange is None:
            self._client.lost_idle(self)
        elif self._reader is not None:
            self._end(clean=not self._has_length)
        elif self._began:
            self._break(Outcome.died_mid_stream, "the connection was closed in the middle of the headers or an error")
        else:
            self._exchange = None
            if not self._client.again(exchange):
                self._client.finish(
                    exchange, Outcome.died_before_answer, f"the connection was closed: {exc or 'end of file'}"
                )

    # --- httptools' callbacks -------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._has_length = False
        self._retry_after = self._date = ""

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"content-type":
            self._is_json = b"json" in value
        elif name in (b"content-length", b"transfer-encoding"):
            self._has_length = True
        elif name == b"retry-after":
            self._retry_after = value.decode("latin-1")
        elif name == b"date":
            self._date = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        assert self._exchange is not None
        self._exchange.status = self._parser.get_status_code()
        self._exchange.retry_after_s = seconds_to_wait(self._retry_after, self._date)
        if self._exchange.status == 200 and not self._is_json:
            self._reader = StreamReader(self._exchange)

    def on_body(self, body: bytes) -> None:
        if self._reader is not None:
            self._reader.feed(body)
        elif len(self._error_body) < MAX_ERROR_BYTES:
            self._error_body += body

    def on_message_complete(self) -> None:
        if self._exchange is not None and self._exchange.status >= 200:  # 100 Continue is no answer
            self._complete = True
            self._keep_alive = self._parser.should_keep_alive()

    # --- ends -----------------------------------------------------------------------------------------------------

    def _end(self, *, clean: bool) -> None:
        """The answer is over: the exchange gets its outcome, the connection is kept if it can be."""
        exchange, self._exchange = self._exchange, None
        assert exchange is not None and self._transport is not None
        if self._keep_alive and not self._transport.is_closing():
            self._client.release(self)
        else:
            self._client.counts.closed_by_server += self._complete
            self._transport.abort()
        if self._reader is not None:
            self._reader.end(clean=clean)
            self._client.finish(exchange, Outcome.malformed)
        elif exchange.status == 200:
            self._client.finish(exchange, Outcome.malformed, "the answer is JSON, but a stream was asked for")
        else:
            self._client.finish(exchange, outcome_of_status(exchange.status), message_of_body(self._error_body))

    def _break(self, outcome: Outcome, message: str) -> None:
        exchange, self._exchange = self._exchange, None
        assert exchange is not None and self._transport is not None
        self._transport.abort()
        self._client.finish(exchange, outcome, message)


def seconds_to_wait(retry_after: str, date: str) -> float:
    """What a Retry-After asks for: seconds, or a moment, counted from the answer's Date; -1 if it cannot be read."""
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(retry_after) - parsedate_to_datetime(date)).total_seconds()
        except (ValueError, TypeError):
            return -1.0
        seconds = max(0.0, seconds)
    return seconds if 0 <= seconds < math.inf else -1.0
