"""`/health`, `/ready` and `/metrics`."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from trivet.server.errors import error_body, error_headers, status_of
from trivet.server.metrics import CONTENT_TYPE
from trivet.server.openai import json_response
from trivet.server.serving import Serving


async def health(request: Request) -> Response:
    """200 while the process should live on, 503 when its engine has work and no longer moves."""
    serving: Serving = request.app.state.serving
    well, body = serving.health()
    return json_response(body, 200 if well else 503)


async def ready(request: Request) -> Response:
    """200 if a request would be admitted now, else 503 with the reason and when to ask again."""
    serving: Serving = request.app.state.serving
    error = serving.why_not_ready()
    if error is None:
        return json_response({"status": "ready", "model": serving.model_name})
    return json_response(error_body(error), status_of(error).http, error_headers(error))


async def metrics(request: Request) -> Response:
    """The Prometheus page."""
    serving: Serving = request.app.state.serving
    return Response(serving.metrics.page(), headers={"Content-Type": CONTENT_TYPE})
