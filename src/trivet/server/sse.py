"""Server-sent events to a client that may be slow, or leave."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, aclosing
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from trivet.errors import TrivetError
from trivet.server.errors import ClientLeft, error_body

log = logging.getLogger("trivet.server")

SEND_TIMEOUT_S = 300.0  # a client that takes nothing for this long is dropped
KEEP_ALIVE_S = 15.0  # after this much silence a comment is sent, so that proxies keep the connection
END = {"type": "http.response.body", "body": b"", "more_body": False}
DONE = b"data: [DONE]\n\n"
COMMENT = b": waiting\n\n"

T = TypeVar("T")


def event(body: Mapping[str, Any]) -> bytes:
    """One event that carries JSON."""
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


async def or_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns or raises; if the client leaves first, `work` is cancelled and ClientLeft raised."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientLeft
    finally:
        watcher.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Sends what `events` yields; an error in mid-stream becomes an error event, after which the stream ends.

    `closing` is closed in every case, also when the client leaves: it cancels the request. `on_error` hears of an error
    of `events` before the client does, which may leave, or look at the metrics, as soon as it is told.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        closing: AsyncExitStack,
        on_error: Callable[[Exception], None],
    ) -> None:
        self.status_code = 200
        self.background = None
        self._events = events
        self._closing = closing
        self._on_error = on_error
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with self._closing, aclosing(self._events):
                await or_disconnect(receive, self._send_all(send))
        except (ClientLeft, TrivetError):
            pass  # it was told, or nobody is left to be told; the metrics have it
        except TimeoutError:
            log.warning("a client took nothing for %g s and was dropped", SEND_TIMEOUT_S)
        except Exception:
            log.exception("a stream ended with an error")

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        keeper = _KeepAlive(send)
        try:
            async for part in self._events:
                await keeper.send(part)
        except TimeoutError:  # the client takes nothing, so it takes no error either
            raise
        except Exception as error:
            self._on_error(error)
            await keeper.send(event(error_body(error)))
            await keeper.close()
            await send(END)
            raise
        finally:
            await keeper.close()  # before the end: a comment behind it would be no part of the answer
        await send(END)


class _KeepAlive:
    """Sends parts, and a comment whenever nothing was sent for `KEEP_ALIVE_S`."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._sent = asyncio.get_running_loop().time()
        self._task = asyncio.ensure_future(self._keep())

    async def send(self, part: bytes) -> None:
        async with asyncio.timeout(SEND_TIMEOUT_S):
            await self._send({"type": "http.response.body", "body": part, "more_body": True})
        self._sent = asyncio.get_running_loop().time()

    async def _keep(self) -> None:
        while True:
            silent = asyncio.get_running_loop().time() - self._sent
            if silent >= KEEP_ALIVE_S:
                await self.send(COMMENT)
                silent = 0.0
            await asyncio.sleep(KEEP_ALIVE_S - silent)

    async def close(self) -> None:
        """Returns when nothing more is sent; raises nothing, since who sends the next part sees the same."""
        self._task.cancel()
        await asyncio.wait((self._task,))
        if not self._task.cancelled():
            self._task.exception()  # a client that took no comment: it is retrieved, so that nobody logs it
