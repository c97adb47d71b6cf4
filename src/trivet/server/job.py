"""`Job`: one HTTP request at work: its prompts submitted, their deltas merged, everything that happens measured."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from trivet.engine.answers import Delta
from trivet.engine.async_engine import Stream
from trivet.engine.messages import FinishReason
from trivet.server.backend import Backend
from trivet.server.params import Wanted
from trivet.server.replies import Choice, PreparedPrompt, Replies, usage_of
from trivet.server.serving import Serving
from trivet.server.sse import DONE, event


class Job:
    """P prompts with n choices each, as one answer. `open`, then `whole` or `events`, and `cancel` in every case."""

    def __init__(self, serving: Serving, backend: Backend, job_id: str, arrived: float) -> None:
        self._serving = serving
        self._backend = backend
        self._id = job_id
        self._arrived = arrived  # time.monotonic
        self._streams: list[Stream] = []
        self._prompts: Sequence[PreparedPrompt] = ()
        self.choices: list[Choice] = []
        self._first_at: dict[int, float] = {}  # by choice number
        self._last_at: dict[int, float] = {}

    async def open(self, prompts: Sequence[PreparedPrompt], wanted: Wanted) -> None:
        """Submits every prompt; raises what admission says, and then none of them runs."""
        self._prompts, self._wanted = prompts, wanted
        opened = await asyncio.gather(
            *(
                self._backend.engine.submit(
                    prompt.token_ids,
                    self._wanted.sampling,
                    rest=self._wanted.rest,
                    request_id=f"{self._id}-{i}",
                    priority=wanted.priority,
                    cache_salt=wanted.cache_salt,
                    deadline_s=wanted.deadline_s,
                    prompt_only=wanted.prompt_only,
                )
                for i, prompt in enumerate(self._prompts)
            ),
            return_exceptions=True,
        )
        self._streams = [stream for stream in opened if isinstance(stream, Stream)]
        for problem in opened:
            if isinstance(problem, BaseException):
                raise problem
        for prompt, stream in zip(self._prompts, self._streams, strict=True):
            sampling = stream.request.sampling
            self._serving.metrics.request_started(n=sampling.n, max_tokens=sampling.max_tokens)
            for _ in range(sampling.n):
                self.choices.append(Choice(number=len(self.choices), prompt=prompt, seed=stream.seed))

    def cancel(self) -> None:
        """Cancels what still runs; idempotent."""
        for stream in self._streams:
            stream.cancel()

    async def whole(self, replies: Replies) -> dict[str, Any]:
        """The finished answer."""
        async with aclosing(self._deltas()) as deltas:
            async for choice, delta in deltas:
                choice.deltas.append(delta)
        choices = [replies.whole_choice(choice) for choice in self.choices]
        return replies.whole(choices, usage_of(self._prompts, self.choices))

    async def events(self, replies: Replies) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events, one part a step."""
        async with aclosing(self._deltas()) as deltas:
            async for choice, delta in deltas:
                if part := self._event(replies, choice, delta):
                    yield part
        if self._wanted.include_usage:
            yield event(replies.chunk([], usage_of(self._prompts, self.choices)))
        yield DONE

    def _event(self, replies: Replies, choice: Choice, delta: Delta) -> bytes:
        """The events of one delta; none while its text is held back and nothing else is to be told."""
        wanted = self._wanted
        usage = usage_of(self._prompts, self.choices) if wanted.usage_always else None
        made = [] if choice.opened else replies.opening(choice)
        choice.opened = True
        if delta.text or delta.finish_reason is not None or wanted.logprobs or wanted.token_ids:
            made.append(replies.piece(choice, delta))
        return b"".join(event(replies.chunk([one], usage)) for one in made)

    async def _deltas(self) -> AsyncGenerator[tuple[Choice, Delta], None]:
        n = self._wanted.sampling.n
        async with aclosing(_merged(self._streams)) as merged:
            async for i, delta in merged:
                choice = self.choices[i * n + delta.index]
                if choice.prompt_logprobs is None and (info := self._streams[i].prompt_info) is not None:
                    choice.prompt_logprobs = info.logprobs
                shown = replace(delta, text="", token_ids=[], logprobs=None) if self._wanted.prompt_only else delta
                self._observe(choice, shown)
                yield choice, shown
        self._observe_end()

    def _observe(self, choice: Choice, delta: Delta) -> None:
        now, metrics = time.monotonic(), self._serving.metrics
        choice.num_tokens += len(delta.token_ids)
        if delta.timings is not None:
            choice.num_cached_tokens = delta.timings.num_cached_tokens
        if not self._first_at:
            metrics.first_token(now - self._arrived)
            self._serving.first_token()
        if choice.number in self._last_at:
            metrics.token_gap(now - self._last_at[choice.number])
        self._first_at.setdefault(choice.number, now)
        self._last_at[choice.number] = now
        if delta.finish_reason is not None:
            choice.finish_reason = delta.finish_reason
            metrics.sequence_finished(
                FinishReason(delta.finish_reason),
                num_tokens=choice.num_tokens,
                first_to_last_s=now - self._first_at[choice.number],
                timings=delta.timings,
            )

    def _observe_end(self) -> None:
        seconds = time.monotonic() - self._arrived
        n = self._wanted.sampling.n
        for i, prompt in enumerate(self._prompts):
            choices = self.choices[i * n : (i + 1) * n]
            self._serving.metrics.request_finished(
                seconds=seconds,
                prompt_tokens=len(prompt.token_ids),
                cached_tokens=choices[0].num_cached_tokens,
                longest=max(choice.num_tokens for choice in choices),
            )


async def _merged(streams: Sequence[Stream]) -> AsyncGenerator[tuple[int, Delta], None]:
    """The deltas of all streams as they come, each with its stream's number; the first error ends it."""
    if len(streams) == 1:
        async for delta in streams[0]:
            yield 0, delta
        return
    queue: asyncio.Queue[tuple[int, Delta] | BaseException | None] = asyncio.Queue()
    tasks = [asyncio.ensure_future(_pour(i, stream, queue)) for i, stream in enumerate(streams)]
    try:
        running = len(tasks)
        while running:
            match await queue.get():
                case None:
                    running -= 1
                case BaseException() as error:
                    raise error
                case (i, delta):
                    yield i, delta
    finally:
        for task in tasks:
            task.cancel()


async def _pour(i: int, stream: Stream, queue: asyncio.Queue[tuple[int, Delta] | BaseException | None]) -> None:
    try:
        async for delta in stream:
            queue.put_nowait((i, delta))
        queue.put_nowait(None)
    except Exception as error:
        queue.put_nowait(error)
