"""What comes back: events of a stream, to counts of tokens and the times of the reads that brought them.

The truth is the read: all that one read brings has come at the same moment. How many tokens an event carries is taken
from the first of these that the server gives: the ids of its tokens, a usage that goes up, else 1 where there is text.
"""

from __future__ import annotations

from typing import Any

import msgspec

from trivet.measure.outcomes import Exchange, Outcome
from trivet.measure.sse import EventScanner, EventTooLong


class Delta(msgspec.Struct):
    """What a chat chunk adds."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Any] | None = None


class Choice(msgspec.Struct):
    """One choice of a chunk, of either endpoint."""

    text: str | None = None
    delta: Delta | None = None
    token_ids: list[int] | None = None
    finish_reason: str | None = None


class PromptDetails(msgspec.Struct):
    """Part of `usage`."""

    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    """The server's own count of tokens."""

    prompt_tokens: int = -1
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None


class Chunk(msgspec.Struct):
    """The data of one event."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(Chunk).decode


class StreamReader:
    """Reads the stream of one answer into its `Exchange`."""

    __slots__ = (
        "_counted", "_ended_s", "_exchange", "_finished", "_invisible", "_new", "_scanner", "_usage_tokens", "done"
    )  # fmt: skip

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._scanner = EventScanner()
        self._finished = False  # a finish_reason was there
        self.done = False  # [DONE] was there, or an error: nothing more counts
        self._ended_s = -1.0  # the read that brought the first of these two
        self._new = 0  # tokens of the read that is running
        self._counted = 0  # tokens so far
        self._usage_tokens = 0  # the server's last word on it
        self._invisible = 0  # tokens that have brought no text yet

    def feed(self, piece: bytes) -> None:
        """Takes a piece of the body; what is wrong with it becomes the exchange's outcome."""
        try:
            for data in self._scanner.feed(piece):
                if self.done:
                    return
                self._event(data)
        except EventTooLong as error:
            self._fail(Outcome.malformed, str(error))

    def end_of_read(self, now: float) -> None:
        """Everything that this read brought has been fed: its tokens came at `now`."""
        if self._ended_s < 0 and (self._finished or self.done):
            self._ended_s = now
            if self._counted:  # the last tokens need not bring text
                self._count(0)
        if not self._new:
            return
        exchange = self._exchange
        exchange.num_reads += 1
        exchange.num_tokens += self._new
        if exchange.first_s < 0:
            exchange.first_s = now
            exchange.first_tokens = self._new
        else:
            exchange.gaps.append(now - exchange.last_s)
            exchange.gap_tokens.append(self._new)
        exchange.last_s = now
        self._new = 0

    def end(self, *, clean: bool) -> None:
        """The body has ended; `clean`: as HTTP says it should."""
        if self._exchange.outcome is not None:
            return
        if not (self.done or (self._finished and clean and self._scanner.is_between_events)):
            self._fail(Outcome.died_mid_stream, "the stream ended without a finish_reason and without [DONE]")
        elif self._exchange.first_s < 0:
            self._fail(Outcome.no_tokens, "the answer is whole, but has no tokens")
        else:
            if self._usage_tokens > self._exchange.num_tokens:  # some were never seen: they came until the answer's end
                self._exchange.last_s = max(self._exchange.last_s, self._ended_s)
            self._exchange.num_tokens = self._usage_tokens or self._exchange.num_tokens
            self._exchange.outcome = Outcome.ok

    def _event(self, data: bytes) -> None:
        if data == b"[DONE]":
            self.done = True
            return
        try:
            chunk = _decode(data)
        except msgspec.DecodeError as error:
            self._fail(Outcome.malformed, f"an event is not a completion chunk: {error}: {data[:80]!r}")
            return
        if chunk.error is not None:
            self._fail(Outcome.error_event, message_of(chunk.error))
            return
        if chunk.usage is not None:
            self._take_usage(chunk.usage)
        for choice in chunk.choices:
            self._take_choice(choice, chunk.usage)

    def _take_usage(self, usage: Usage) -> None:
        exchange = self._exchange
        exchange.prompt_tokens = usage.prompt_tokens
        if usage.completion_tokens is not None:
            self._usage_tokens = usage.completion_tokens
        if usage.prompt_tokens_details is not None and usage.prompt_tokens_details.cached_tokens is not None:
            exchange.cached_tokens = usage.prompt_tokens_details.cached_tokens

    def _take_choice(self, choice: Choice, usage: Usage | None) -> None:
        if choice.finish_reason is not None:
            self._finished = True
        visible = bool(choice.text) or bool(choice.delta and _has_content(choice.delta))
        if choice.token_ids is not None:
            num = len(choice.token_ids)
        elif usage is not None and usage.completion_tokens is not None:
            num = max(0, usage.completion_tokens - self._counted - self._invisible)
        else:
            num = int(visible)
        if self._exchange.kept is not None:
            self._keep(choice)
        if visible or choice.token_ids:
            self._count(num)
        else:  # a piece of a character, or the end: it counts with the next text, or with the finish_reason
            self._invisible += num

    def _count(self, num: int) -> None:
        """The running read brings `num` tokens, and those before them that brought no text."""
        num += self._invisible
        self._invisible = 0
        self._exchange.num_events += bool(num)
        self._counted += num
        self._new += num

    def _keep(self, choice: Choice) -> None:
        """Notes the answer: a chat's next turn begins with it."""
        assert self._exchange.kept is not None
        if choice.token_ids:
            self._exchange.kept.extend(choice.token_ids)
        elif choice.text:
            self._exchange.kept.append(choice.text)
        elif choice.delta and choice.delta.content:
            self._exchange.kept.append(choice.delta.content)

    def _fail(self, outcome: Outcome, message: str) -> None:
        self.done = True
        self._exchange.outcome = outcome
        self._exchange.message = message


def _has_content(delta: Delta) -> bool:
    return bool(delta.content or delta.reasoning or delta.reasoning_content or delta.tool_calls)


def outcome_of_status(status: int) -> Outcome:
    """What an HTTP status that is not 200 means."""
    if status == 429:
        return Outcome.http_429
    if status == 404:
        return Outcome.wrong_model
    if status >= 400:
        return Outcome.http_5xx if status >= 500 else Outcome.http_4xx
    return Outcome.http_3xx if status >= 300 else Outcome.malformed


def message_of(error: Any) -> str:
    """The text of an OpenAI error object, or of whatever stands in its place."""
    if isinstance(error, dict):
        inner = error.get("error", error)
        if isinstance(inner, dict):
            inner = inner.get("message") or inner.get("detail") or inner
        error = inner
    return str(error)[:300]


def message_of_body(body: bytes) -> str:
    """What a server says in the body of an error."""
    try:
        return message_of(msgspec.json.decode(body))
    except msgspec.DecodeError:
        return body[:300].decode(errors="replace").strip()
