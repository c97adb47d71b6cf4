"""Who may ask: the Host and Origin check of loopback servers, bearer keys, and limits on the body."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers
from starlette.types import Receive

from trivet.engine.shown import shown
from trivet.errors import Overloaded
from trivet.server.errors import BodyTooLarge, BodyTooSlow, ClientLeft, ForbiddenHost, Unauthorized, UnsupportedEncoding

BODY_TIMEOUT_S = 60.0  # a body arrives in this time, else 408


def is_loopback(host: str) -> bool:
    """True if `host` (a name or an address, brackets allowed) can only be this machine."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name.split("%")[0]).is_loopback
    except ValueError:
        return False


def host_of(value: str) -> str:
    """The host of a `Host` header or an origin: `[::1]:8000` gives `::1`, `http://localhost:3` gives `localhost`."""
    value = value.split("://", 1)[-1]
    if value.startswith("["):
        return value[1:].split("]", 1)[0]
    return value.rsplit(":", 1)[0] if value.count(":") == 1 else value


def check_host(headers: Headers, bound: str) -> None:
    """Raises ForbiddenHost if a loopback server is addressed by, or called from a page of, another name.

    A page of any site can have its own name resolve to 127.0.0.1 (DNS rebinding) and then read our answers; the
    browser still sends that name as `Host`. A page can also post blindly; the browser then sends its `Origin`.
    """
    if not is_loopback(bound):
        return
    host = headers.get("host")  # browsers always send it; a health check of HTTP/1.0 may not
    if host is not None and not is_loopback(host_of(host)):
        raise ForbiddenHost(
            f"this server is bound to {bound} and answers to loopback names only, but `Host` is {shown(host)}",
            hint="call it as localhost, or bind another address with `--host` and set `--api-key`",
        )
    origin = headers.get("origin")
    if origin is not None and not is_loopback(host_of(origin)):
        raise ForbiddenHost(
            f"this server is bound to {bound}, and pages of {shown(origin)} may not call it",
            hint="no other origin is allowed (CORS is off)",
        )


def check_key(headers: Headers, keys: Iterable[bytes]) -> None:
    """Raises Unauthorized unless the bearer token is one of `keys`; a wrong key takes as long as a right one."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthorized("no API key was given", hint="send `Authorization: Bearer KEY`")
    sent = token.strip().encode("latin-1", "replace")
    matches = [hmac.compare_digest(sent, key) for key in keys]
    if not any(matches):
        raise Unauthorized("the API key is not one that this server accepts")


class BodyBudget:
    """How many bytes of request bodies may be in memory together."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used = 0

    @contextmanager
    def hold(self) -> Iterator[Callable[[int], None]]:
        """Gives a function that takes so many bytes, or raises Overloaded; what was taken is given back at the end."""
        held = 0

        def take(num_bytes: int) -> None:
            nonlocal held
            if self.used + num_bytes > self.max_bytes:
                raise Overloaded(
                    f"request bodies of {self.used:,} bytes are being read, and at most {self.max_bytes:,} may be"
                )
            self.used += num_bytes
            held += num_bytes

        try:
            yield take
        finally:
            self.used -= held


async def read_body(
    headers: Headers, receive: Receive, *, max_bytes: int, take: Callable[[int], None] = lambda num_bytes: None
) -> bytes:
    """The whole request body; `take` is told of each part, and may refuse it.

    Raises BodyTooLarge before reading it where its length is announced, BodyTooSlow, UnsupportedEncoding, ClientLeft.
    """
    encoding = headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise UnsupportedEncoding(f"the body is encoded as {shown(encoding)}, but it must not be compressed")
    announced = headers.get("content-length", "")
    if announced.isdigit() and int(announced) > max_bytes:
        raise _too_large(f"{int(announced):,} bytes", max_bytes)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientLeft
                part = message.get("body", b"")
                size += len(part)
                if size > max_bytes:
                    raise _too_large(f"more than {max_bytes:,} bytes", max_bytes)
                take(len(part))
                parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise BodyTooSlow(f"the body did not arrive within {BODY_TIMEOUT_S:g} s ({size:,} bytes came)") from None


def _too_large(what: str, max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the request body has {what}, but at most {max_bytes:,} are accepted")
