"""`AsyncEngine`: an `EngineClient` and a tokenizer, for asyncio. What the HTTP server is built on.

    engine = AsyncEngine(client, tokenizer, defaults)    # used from one event loop

    async with await engine.submit(prompt_ids, params, rest="context") as stream:
        stream.request_id, stream.seed
        async for delta in stream:                       # Delta(index, text, token_ids, logprobs, finish_reason, ...)
            ...
        stream.prompt_info                               # PromptInfo | None: prompt logprobs, cached tokens
        output = stream.result()                         # RequestOutput of everything so far

    async for delta in engine.generate(prompt_ids, params):    # the same in one, for simple callers
        ...
    output = await engine.complete(prompt_ids, params)         # all of it: a RequestOutput

`submit` waits for admission, not for a step, and raises what was wrong before the first token: InvalidRequest,
ContextTooLong, Overloaded, EngineDied. The iteration may raise EngineDied or Overloaded (a deadline passed).
Leaving the `async with` block, `aclose()`, cancelling the task that iterates, or dropping the stream cancels the
request in the engine. Events hop from the client's thread into the event loop once a batch (one step), not once a
request. `prompt_ids` are final: BOS and templates are the caller's business.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TypedDict, Unpack
from weakref import WeakValueDictionary

from trivet.engine.answers import Delta, RequestOutput
from trivet.engine.client import EngineClient
from trivet.engine.defaults import Rest, SamplingDefaults, make_request
from trivet.engine.messages import EngineEvent, EngineInfo, EngineRequest, EngineStats, PromptInfo
from trivet.engine.output_builder import OutputBuilder, TextSource
from trivet.engine.router import EventRouter
from trivet.engine.sampling_params import SamplingParams
from trivet.errors import TrivetError


class RequestOptions(TypedDict, total=False):
    """What may be said of a request beside its prompt and its sampling."""

    rest: Rest  # what `max_tokens=None` means: "completion" 16 tokens, "context" the rest of the context
    prompt: str | None  # the text of the prompt, only passed on to the `RequestOutput`
    request_id: str | None  # drawn if None
    priority: int  # lower runs first
    cache_salt: str  # prefixes are shared only between requests of one salt
    prompt_only: bool  # with max_tokens 1: that token is not wanted either, so it needs no room
    deadline_s: float | None  # from now until the first token, else Overloaded


class AsyncEngine:
    """Requests from one event loop to one engine."""

    def __init__(
        self,
        client: EngineClient,
        tokenizer: TextSource,
        defaults: SamplingDefaults,
        *,
        router: EventRouter | None = None,
    ) -> None:
        self.client = client
        self.defaults = defaults
        self._tokenizer = tokenizer
        self._router = router or EventRouter(client)
        self._streams: WeakValueDictionary[str, Stream] = WeakValueDictionary()  # a dropped stream cancels itself
        self._loop: asyncio.AbstractEventLoop | None = None
        self._busy_since = 0.0

    @property
    def info(self) -> EngineInfo:
        return self.client.info

    @property
    def alive(self) -> bool:
        return self.client.alive

    @property
    def num_open(self) -> int:
        """Streams that are neither finished nor cancelled."""
        return len(self._streams)

    @property
    def busy_since(self) -> float | None:
        """time.monotonic of when the first of the open streams came to an idle engine, None while none is open."""
        return self._busy_since if self._streams else None

    def stats(self) -> EngineStats | None:
        return self.client.stats()

    async def submit(
        self, prompt_token_ids: list[int], sampling: SamplingParams, **options: Unpack[RequestOptions]
    ) -> Stream:
        """The stream of an admitted request.

        Raises InvalidRequest, ContextTooLong, Overloaded or EngineDied; ValueError for a `request_id` that is open.
        """
        request = make_request(
            options.get("request_id") or uuid.uuid4().hex,
            prompt_token_ids,
            sampling,
            self.defaults,
            rest=options.get("rest", "completion"),
            priority=options.get("priority", 0),
            cache_salt=options.get("cache_salt", ""),
            prompt_only=options.get("prompt_only", False),
            deadline_s=options.get("deadline_s"),
        )
        stream = self._open(request, options.get("prompt"))
        try:
            await stream._admission()
        except BaseException:
            stream.cancel()
            raise
        return stream

    async def generate(
        self, prompt_token_ids: list[int], sampling: SamplingParams, **options: Unpack[RequestOptions]
    ) -> AsyncIterator[Delta]:
        """Deltas until every sequence has ended; errors are those of `submit`."""
        async with await self.submit(prompt_token_ids, sampling, **options) as stream:
            async for delta in stream:
                yield delta

    async def complete(
        self, prompt_token_ids: list[int], sampling: SamplingParams, **options: Unpack[RequestOptions]
    ) -> RequestOutput:
        """The whole answer; errors are those of `submit`."""
        async with await self.submit(prompt_token_ids, sampling, **options) as stream:
            async for _ in stream:
                pass
            return stream.result()

    def _open(self, request: EngineRequest, prompt: str | None) -> Stream:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._streams:
                raise RuntimeError("an AsyncEngine serves one event loop, but another one has open streams on it")
            self._loop = loop
        builder = OutputBuilder(request, self._tokenizer, prompt=prompt, fingerprint=self.info.fingerprint)
        self._router.submit(request, self._deliver)
        stream = Stream(self, builder)
        if not self._streams:
            self._busy_since = time.monotonic()
        self._streams[request.request_id] = stream  # in time: events come by way of the event loop
        return stream

    def _deliver(self, events: list[EngineEvent]) -> None:
        """On the client's thread: one hop into the event loop for the whole batch."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            try:
                loop.call_soon_threadsafe(self._on_events, events)
            except RuntimeError:  # the loop closed in between: nobody is left to read
                return

    def _on_events(self, events: list[EngineEvent]) -> None:
        for event in events:
            if isinstance(event, EngineStats | EngineInfo):
                continue
            stream = self._streams.get(event.request_id)
            if stream is not None:
                stream._on_event(event)

    def _close_stream(self, request_id: str, *, cancel: bool) -> None:
        self._streams.pop(request_id, None)
        if cancel:
            self._router.cancel(request_id)
        else:
            self._router.forget(request_id)


class Stream:
    """Deltas of one request, by `async for`; one reader."""

    def __init__(self, engine: AsyncEngine, builder: OutputBuilder) -> None:
        self._engine = engine
        self._builder = builder
        self._deltas: deque[Delta] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False

    @property
    def request(self) -> EngineRequest:
        """The request as it was submitted, with everything resolved."""
        return self._builder.request

    @property
    def request_id(self) -> str:
        return self._builder.request.request_id

    @property
    def seed(self) -> int:
        """The seed in use; drawn at admission if none was given."""
        assert self._builder.seed is not None, "a Stream is handed out after admission"
        return self._builder.seed

    @property
    def prompt_info(self) -> PromptInfo | None:
        """Prompt logprobs and cached tokens, where asked for; there before the first delta."""
        return self._builder.prompt

    def result(self) -> RequestOutput:
        """Everything that has arrived so far, also what was not yet iterated over."""
        return self._builder.result()

    def cancel(self) -> None:
        """Ends the request in the engine; idempotent. What arrived can still be read."""
        self._close(cancel=not self._builder.finished)

    async def aclose(self) -> None:
        self.cancel()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Delta:
        while not self._deltas:
            if self._builder.error is not None:
                raise self._builder.error
            if self._closed:
                raise StopAsyncIteration
            try:
                await self._wake()
            except asyncio.CancelledError:
                self.cancel()
                raise
        return self._deltas.popleft()

    async def _admission(self) -> None:
        while not self._builder.accepted:
            if self._builder.error is not None:
                raise self._builder.error
            await self._wake()

    async def _wake(self) -> None:
        """Returns when an event has come."""
        assert self._waiter is None, "a Stream has one reader"
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _on_event(self, event: EngineEvent) -> None:
        try:
            delta = self._builder.on_event(event)
        except Exception as error:  # a tokenizer that cannot decode must not stop the other streams
            self._builder.error = TrivetError(f"the answer could not be decoded: {type(error).__name__}: {error}")
            self._close(cancel=True)
            self._resolve()
            return
        if delta is not None:
            self._deltas.append(delta)
        still_running = self._builder.take_cancels()
        if self._builder.finished:
            self._close(cancel=bool(still_running))
        else:
            for index in still_running:
                self._engine.client.cancel(self.request_id, index)
        self._resolve()

    def _resolve(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _close(self, *, cancel: bool) -> None:
        if not self._closed:
            self._closed = True
            self._engine._close_stream(self.request_id, cancel=cancel)

    def __del__(self) -> None:
        self._close(cancel=not self._builder.finished)
