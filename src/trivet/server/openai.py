"""The OpenAI API: parse, tokenize, hand to the engine, answer. A request's way starts here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, contextmanager
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from trivet.errors import NotReady, Overloaded
from trivet.server.backend import Backend
from trivet.server.bodies import Body, ChatBody, CompletionBody, parse, prompts_of
from trivet.server.errors import ClientLeft
from trivet.server.job import Job
from trivet.server.logprobs import TokenTexts
from trivet.server.messages import chat_messages, template_variables
from trivet.server.params import Wanted, chat_wanted, completion_wanted
from trivet.server.replies import ChatReplies, CompletionReplies, PreparedPrompt, Replies
from trivet.server.security import read_body
from trivet.server.serving import Serving
from trivet.server.sse import EventStream, or_disconnect

HEADERS_AFTER_S = 5.0  # a stream's status waits this long for the first token, so that early errors keep their status

Prepare = Callable[[Backend, Any], tuple[list[PreparedPrompt], Wanted]]


async def completions(request: Request) -> Response:
    """`POST /v1/completions`."""
    return await _answer(request, CompletionBody, _prepare_completion, CompletionReplies, "cmpl")


async def chat_completions(request: Request) -> Response:
    """`POST /v1/chat/completions`."""
    return await _answer(request, ChatBody, _prepare_chat, ChatReplies, "chatcmpl")


async def list_models(request: Request) -> Response:
    """`GET /v1/models`."""
    return json_response({"object": "list", "data": [_model(request.app.state.serving)]})


async def one_model(request: Request) -> Response:
    """`GET /v1/models/{id}`; a name may hold slashes."""
    serving: Serving = request.app.state.serving
    serving.check_model(request.path_params["model"])
    return json_response(_model(serving))


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), status, headers, "application/json")


async def _answer(
    request: Request, cls: type[Body], prepare: Prepare, make_replies: type[Replies], prefix: str
) -> Response:
    serving: Serving = request.app.state.serving
    job_id = request.state.request_id = f"{prefix}-{request.state.request_id}"
    arrived = time.monotonic()
    async with AsyncExitStack() as stack:
        backend = stack.enter_context(serving.admit())
        count = stack.enter_context(_failures_counted(serving))
        prompts, wanted = await _understood(request, serving, backend, cls, prepare)
        replies = make_replies(
            reply_id=job_id,
            created=int(time.time()),
            model=serving.model_name,
            fingerprint=backend.info.fingerprint,
            texts=TokenTexts(backend.tokenizer),
            wanted=wanted,
        )
        job = Job(serving, backend, job_id, arrived)
        stack.callback(job.cancel)
        await or_disconnect(request.receive, job.open(prompts, wanted))
        if not wanted.stream:
            return json_response(await or_disconnect(request.receive, job.whole(replies)))
        events = job.events(replies)
        first = asyncio.ensure_future(anext(events))
        stack.callback(first.cancel)
        await or_disconnect(request.receive, _started(first))

        def failed(error: Exception) -> None:
            count(error)
            job.cancel()

        return EventStream(_from(first, events), closing=stack.pop_all(), on_error=failed)
    raise AssertionError("no exit stack swallows exceptions here")


async def _understood(
    request: Request, serving: Serving, backend: Backend, cls: type[Body], prepare: Prepare
) -> tuple[list[PreparedPrompt], Wanted]:
    """What the body asks for. The body itself does not outlive this."""
    with serving.bodies.hold() as take:
        raw = await read_body(request.headers, request.receive, max_bytes=serving.config.max_body_bytes, take=take)

        def understood() -> tuple[list[PreparedPrompt], Wanted]:
            body = parse(raw, cls, backend.info)
            serving.check_model(body.model)
            return prepare(backend, body)

        return await backend.off_loop(len(raw), understood)


def _prepare_completion(backend: Backend, body: CompletionBody) -> tuple[list[PreparedPrompt], Wanted]:
    wanted = completion_wanted(body, backend.info.vocab_size)
    prepared = []
    for prompt in prompts_of(body, backend.info.vocab_size):
        if isinstance(prompt, str):
            ids = backend.tokenizer.encode(prompt)
            prepared.append(
                PreparedPrompt(
                    token_ids=ids, text=prompt if wanted.echo else "", num_unwritten=backend.num_special_before(ids)
                )
            )
        else:
            text = backend.tokenizer.decode(prompt) if wanted.echo else ""
            prepared.append(PreparedPrompt(token_ids=prompt, text=text, skips_special=True))
    return prepared, wanted


def _prepare_chat(backend: Backend, body: ChatBody) -> tuple[list[PreparedPrompt], Wanted]:
    wanted = chat_wanted(body, backend.info.vocab_size)
    ids = backend.encode_chat(chat_messages(body.messages), template_variables(body.chat_template_kwargs or {}))
    return [PreparedPrompt(token_ids=ids)], wanted


async def _started(first: asyncio.Future[bytes]) -> None:
    """Returns when the first part is there, or after `HEADERS_AFTER_S`; raises what ended the stream before it."""
    await asyncio.wait((first,), timeout=HEADERS_AFTER_S)
    if first.done():
        first.result()


async def _from(first: asyncio.Future[bytes], events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(events):
        yield await first
        async for part in events:
            yield part


@contextmanager
def _failures_counted(serving: Serving) -> Iterator[Callable[[Exception], None]]:
    """Counts how the request ends, once; what is given counts an error at once."""
    counted = False

    def count(error: Exception) -> None:
        nonlocal counted
        if counted:
            return
        counted = True
        if isinstance(error, ClientLeft):
            serving.metrics.cancelled()
            return
        if isinstance(error, Overloaded):
            serving.metrics.rejected("not_ready" if isinstance(error, NotReady) else "capacity")
        serving.metrics.failed(error)

    try:
        yield count
    except Exception as error:
        count(error)
        raise


def _model(serving: Serving) -> dict[str, Any]:
    made: dict[str, Any] = {
        "id": serving.model_name,
        "object": "model",
        "created": serving.created,
        "owned_by": "trivet",
    }
    if serving.backend is not None:
        made["max_model_len"] = serving.backend.info.max_context
    return made
