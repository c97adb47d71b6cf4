"""The ASGI application: routes, the gate that every request passes, and errors in OpenAI's shape everywhere."""

from __future__ import annotations

import logging
import time
import uuid

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trivet.engine.shown import shown, shown_name
from trivet.errors import TrivetError
from trivet.server import health, openai
from trivet.server.errors import ClientLeft, MethodNotAllowed, NoSuchPath, error_body, error_headers, status_of
from trivet.server.security import check_host, check_key
from trivet.server.serving import Serving

log = logging.getLogger("trivet.server")

ROUTES = {
    "/v1/completions": (openai.completions, "POST"),
    "/v1/chat/completions": (openai.chat_completions, "POST"),
    "/v1/models": (openai.list_models, "GET"),
    "/v1/models/{model:path}": (openai.one_model, "GET"),
    "/health": (health.health, "GET"),
    "/ready": (health.ready, "GET"),
    "/metrics": (health.metrics, "GET"),
}


def make_app(serving: Serving) -> Starlette:
    """The application that serves one model."""
    app = Starlette(
        routes=[Route(path, endpoint, methods=[method]) for path, (endpoint, method) in ROUTES.items()],
        middleware=[Middleware(Gate, serving=serving)],
        exception_handlers={
            TrivetError: _on_error,
            HTTPException: _on_http_exception,
            ClientLeft: _on_client_left,
            Exception: _on_error,
        },
    )
    app.state.serving = serving
    return app


def error_response(error: BaseException) -> Response:
    return openai.json_response(error_body(error), status_of(error).http, error_headers(error))


async def _on_error(request: Request, error: Exception) -> Response:
    return error_response(error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """404 and 405 of the router, in our words."""
    assert isinstance(error, HTTPException)
    path = shown_name(request.url.path)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        response = error_response(MethodNotAllowed(f"{path} does not take {request.method}", hint=f"use {allowed}"))
        response.headers["Allow"] = allowed
        return response
    paths = ", ".join(path for path in ROUTES if "{" not in path)
    return error_response(NoSuchPath(f"there is no {path} here", hint=f"there are {paths}"))


async def _on_client_left(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; the metrics page shows it


class Gate:
    """Checks Host, Origin and key before anything is read, gives each request an id, and counts what passes."""

    def __init__(self, app: ASGIApp, *, serving: Serving) -> None:
        self._app = app
        self._serving = serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        status: int | None = None

        state = scope.setdefault("state", {})
        state["request_id"] = uuid.uuid4().hex

        async def counting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), (b"x-request-id", state["request_id"].encode())]
                message = {**message, "headers": headers}
            await send(message)

        try:
            try:
                self._check(scope)
            except TrivetError as error:
                await error_response(error)(scope, receive, counting)
            else:
                await self._app(scope, receive, counting)
        except Exception as error:  # a mistake of ours, which who stands outside of this logs
            if status is None:
                await error_response(error)(scope, receive, counting)
            raise
        finally:
            status = status or 500
            seconds = time.monotonic() - started
            handler = _handler(scope["path"])
            self._serving.metrics.http(handler, scope["method"], status, seconds)
            path = shown(scope["path"])  # quoted: it may hold line ends
            log.info("%s %s %d %.1f ms, %s", scope["method"], path, status, seconds * 1e3, state["request_id"])

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        check_host(headers, self._serving.config.host)
        if self._serving.keys and scope["path"].startswith("/v1/"):
            check_key(headers, self._serving.keys)


def _handler(path: str) -> str:
    """The route of a path, so that unknown paths cannot make metrics without bound."""
    if path in ROUTES:
        return path
    return "/v1/models/{model}" if path.startswith("/v1/models/") else "other"
