"""A server that is measured: where it is, what it serves, and what it lets a client ask for."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from trivet import __version__
from trivet.errors import ConfigError, TargetError
from trivet.measure.answers import message_of_body
from trivet.measure.client import Address

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 60.0  # a cold model may take long for its first token
USER_AGENT = f"trivet-bench/{__version__}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """An entry of /v1/models."""

    name: str
    max_len: int | None = None  # tokens of prompt and answer together
    root: str | None = None  # the checkpoint, where the server tells it
    owner: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """An address, the key for it, and where it leads to once that is known."""

    url: str  # ends in /v1, or whatever stands in its place
    address: Address
    path: str
    api_key: str | None = field(default=None, repr=False)

    @property
    def is_local(self) -> bool:
        """Whether it is this machine, by its address."""
        return self.address.host.startswith("127.") or self.address.host in ("::1", "localhost")

    def headers(self) -> dict[str, str]:
        made = {"User-Agent": USER_AGENT, "Content-Type": "application/json"}
        return made if self.api_key is None else {**made, "Authorization": f"Bearer {self.api_key}"}

    def head(self, endpoint: str) -> bytes:
        """Request line and headers of a post, up to the value of Content-Length."""
        scheme_port = 443 if self.address.tls else 80
        name = f"[{self.address.server_name}]" if ":" in self.address.server_name else self.address.server_name
        host = name if self.address.port == scheme_port else f"{name}:{self.address.port}"
        lines = [f"POST {self.path}/{endpoint} HTTP/1.1", f"Host: {host}", "Accept: text/event-stream"]
        lines += [f"{name}: {value}" for name, value in self.headers().items()]
        return "\r\n".join([*lines, "Content-Length: "]).encode("latin-1")


def parse_target(url: str, *, api_key: str | None = None, verify: bool = True) -> Target:
    """The target that a URL names, with or without /v1. ConfigError if it is no URL."""
    whole = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(whole)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"the target is {url!r}, but it must be a URL", hint="such as http://127.0.0.1:8000")
    if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
        raise ConfigError("`--api-key` holds a character that cannot stand in a header")
    path = parts.path.rstrip("/")
    path = path if path.rpartition("/")[2] == "v1" else f"{path}/v1"
    tls = parts.scheme == "https"
    return Target(
        url=f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{path}",
        address=Address(
            host=parts.hostname, port=port or (443 if tls else 80), tls=tls, server_name=parts.hostname, verify=verify
        ),
        path=path,
        api_key=api_key,
    )


def connected(target: Target) -> Target:
    """The target with the IP address that answered, so that names are looked up once. TargetError if none does."""
    address = target.address
    try:
        with socket.create_connection((address.host, address.port), CONNECT_TIMEOUT_S) as sock:
            return replace(target, address=replace(address, host=sock.getpeername()[0]))
    except OSError as error:
        reason = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise TargetError(
            f"{target.url} cannot be reached: {reason}", hint="is the server running there? `trivet serve` starts one"
        ) from None


def ask(target: Target, method: Literal["GET", "POST"], what: str, body: Any = None) -> tuple[int, bytes]:
    """Status and body of one request, outside of any measurement. TargetError if there is no answer."""
    address = target.address
    context = address.ssl_context()
    connection: http.client.HTTPConnection
    if context is not None:
        connection = http.client.HTTPSConnection(
            address.server_name, address.port, timeout=ANSWER_TIMEOUT_S, context=context
        )
    else:
        connection = http.client.HTTPConnection(address.server_name, address.port, timeout=ANSWER_TIMEOUT_S)
    try:
        raw = None if body is None else msgspec.json.encode(body)
        connection.request(method, f"{target.path}/{what}", raw, target.headers())
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        reason = f"no answer within {ANSWER_TIMEOUT_S:g} s" if isinstance(error, TimeoutError) else repr(error)
        hint = None
        if isinstance(error, ssl.SSLError):
            hint = "`--insecure` does not check the certificate" if address.tls else "is it an http:// address?"
        raise TargetError(f"{target.url}/{what} does not answer: {reason}", hint=hint) from None
    finally:
        connection.close()


def served_models(target: Target) -> list[ServedModel]:
    """What /v1/models lists; none if the server has no such page."""
    status, body = ask(target, "GET", "models")
    if status in (401, 403):
        raise TargetError(
            f"{target.url} asks for a key: {message_of_body(body)}", hint="give one of its keys with `--api-key`"
        )
    if status == 404:
        return []
    if status != 200:
        raise TargetError(f"{target.url}/models answers {status}: {message_of_body(body)}")
    try:
        return [_served(entry) for entry in msgspec.json.decode(body)["data"]]
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
        raise TargetError(
            f"{target.url}/models does not answer with a list of models: {body[:80]!r}",
            hint="is this the address of an OpenAI-compatible server?",
        ) from None


def choose_model(target: Target, models: Sequence[ServedModel], wanted: str | None) -> ServedModel:
    """The model that is asked for, else the only one. TargetError lists those there are."""
    listed = ", ".join(model.name for model in models) or "none"
    if wanted is None:
        if len(models) == 1:
            return models[0]
        raise TargetError(f"{target.url} serves these models: {listed}", hint="choose one with `--model`")
    for model in models:
        if model.name == wanted:
            return model
    if not models:  # it has no list, so only a request can tell
        return ServedModel(name=wanted)
    raise TargetError(f"{target.url} does not serve the model `{wanted}`", hint=f"it serves: {listed}")


def _served(entry: Mapping[str, Any]) -> ServedModel:
    max_len, root, owner = entry.get("max_model_len"), entry.get("root"), entry.get("owned_by")
    return ServedModel(
        name=str(entry["id"]),
        max_len=max_len if isinstance(max_len, int) else None,
        root=root if isinstance(root, str) else None,
        owner=owner if isinstance(owner, str) else None,
    )
