"""What the HTTP side says when it cannot answer: one table from error class to status, and OpenAI's error body."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from trivet.errors import (
    ConfigError,
    ContextTooLong,
    EngineDied,
    EngineGone,
    InvalidRequest,
    NotReady,
    Overloaded,
    TrivetError,
    UnsupportedCpu,
)

RESTART_RETRY_S = 2.0  # a warm restart of the engine takes about a second


class ModelNotFound(InvalidRequest):
    """The request names a model that is not served here."""


class NoSuchPath(InvalidRequest):
    """No route has this path."""


class MethodNotAllowed(InvalidRequest):
    """The path exists, but not with this method."""


class BadHttp(InvalidRequest):
    """What came is not HTTP/1.1."""


class HeadTooLarge(InvalidRequest):
    """The request line and headers, or the trailers, are larger than is read."""


class BodyTooLarge(InvalidRequest):
    """The request body is larger than `server.max_body_bytes`."""


class BodyTooSlow(InvalidRequest):
    """The request body did not arrive in time."""


class UnsupportedEncoding(InvalidRequest):
    """The request body is compressed."""


class Unauthorized(InvalidRequest):
    """The request carries none of the accepted keys."""


class ForbiddenHost(InvalidRequest):
    """A loopback server was addressed by a name that is not loopback: DNS rebinding, or a page of another origin."""


class TooManyConnections(Overloaded):
    """As many connections are open as may be."""


class ClientLeft(Exception):
    """The client closed the connection before the answer was complete: nobody is left to be told."""


class Status(NamedTuple):
    """The HTTP status of an error class, with the `type` and `code` of OpenAI's error body."""

    http: int
    type: str
    code: str | None


STATUS: dict[type[BaseException], Status] = {
    ModelNotFound: Status(404, "invalid_request_error", "model_not_found"),
    NoSuchPath: Status(404, "invalid_request_error", "unknown_url"),
    MethodNotAllowed: Status(405, "invalid_request_error", "method_not_allowed"),
    BadHttp: Status(400, "invalid_request_error", "invalid_http"),
    HeadTooLarge: Status(431, "invalid_request_error", "head_too_large"),
    BodyTooLarge: Status(413, "invalid_request_error", "body_too_large"),
    BodyTooSlow: Status(408, "invalid_request_error", "body_too_slow"),
    UnsupportedEncoding: Status(415, "invalid_request_error", "unsupported_encoding"),
    Unauthorized: Status(401, "authentication_error", "invalid_api_key"),
    ForbiddenHost: Status(403, "permission_error", "forbidden_host"),
    ContextTooLong: Status(400, "invalid_request_error", "context_length_exceeded"),
    InvalidRequest: Status(400, "invalid_request_error", None),
    ConfigError: Status(400, "invalid_request_error", None),
    UnsupportedCpu: Status(400, "invalid_request_error", "unsupported_cpu"),
    NotReady: Status(503, "service_unavailable", "not_ready"),
    TooManyConnections: Status(503, "service_unavailable", "too_many_connections"),
    Overloaded: Status(429, "rate_limit_error", "overloaded"),
    EngineDied: Status(503, "engine_error", "engine_died"),
    TrivetError: Status(500, "server_error", None),
    BaseException: Status(500, "server_error", "internal_error"),
}


def status_of(error: BaseException) -> Status:
    """The row of `STATUS` for the nearest class of `error`."""
    return next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)


def error_body(error: BaseException) -> dict[str, Any]:
    """OpenAI's `{"error": {...}}`; an error that is not ours tells nothing of its inside."""
    status = status_of(error)
    if isinstance(error, TrivetError):
        message = error.message if error.hint is None else f"{error.message}; {error.hint}"
    else:
        message = "something went wrong inside the server; its log has the details"
    param = error.param if isinstance(error, InvalidRequest) else None
    code = (error.code if isinstance(error, InvalidRequest) else None) or status.code
    return {"error": {"message": message, "type": status.type, "param": param, "code": code}}


def error_headers(error: BaseException) -> dict[str, str]:
    """Headers that belong to an error: 429 and 503 carry `Retry-After`, in whole seconds, at least one."""
    match error:
        case Overloaded():
            return {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
        case EngineGone():
            return {}  # nobody knows when
        case EngineDied():
            return {"Retry-After": str(math.ceil(RESTART_RETRY_S))}
        case Unauthorized():
            return {"WWW-Authenticate": "Bearer"}
        case BodyTooLarge() | BodyTooSlow():
            return {"Connection": "close"}
    return {}
