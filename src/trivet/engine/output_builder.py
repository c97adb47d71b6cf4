"""`OutputBuilder`: from a request's events to text."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from trivet.engine.answers import CompletionOutput, Delta, Finish, RequestOutput
from trivet.engine.failures import to_error
from trivet.engine.messages import (
    Accepted,
    EngineEvent,
    EngineRequest,
    Failed,
    FinishReason,
    PromptInfo,
    Timings,
    TokenLogprob,
    Tokens,
)
from trivet.engine.stop_strings import StopStrings
from trivet.errors import TrivetError
from trivet.models.detokenizer import Detokenizer


class TextSource(Protocol):
    """What answers need of a tokenizer."""

    def detokenizer(self, *, skip_special_tokens: bool) -> Detokenizer: ...


@dataclass(slots=True)
class _Sequence:
    """One sequence while it runs."""

    index: int
    detokenizer: Detokenizer
    stops: StopStrings | None
    min_tokens: int  # stop strings count only after so many
    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: Finish | None = None
    stop_reason: str | int | None = None
    timings: Timings | None = None
    first_token_time: float | None = None

    def add(self, event: Tokens, now: float) -> Delta:
        """The text and tokens that `event` adds, cut where a stop string begins."""
        if event.timings is not None:
            self.timings = event.timings
        if self.first_token_time is None:
            self.first_token_time = now
        text, num_used = self._decode(event.token_ids)
        if self.finish_reason is None and event.finish_reason is not None:
            text += self._flush()
        if self.finish_reason is not None:  # by a stop string, of which the engine does not know
            if self.timings is not None and event.finish_reason is None:
                self.timings = msgspec.structs.replace(self.timings, decode_s=now - self.first_token_time)
        elif event.finish_reason is not None:
            self.finish_reason = _finish(event.finish_reason)
            self.stop_reason = event.stop_id
        token_ids = event.token_ids[:num_used]
        logprobs = None if event.logprobs is None else event.logprobs[:num_used]
        self.token_ids += token_ids
        self.logprobs += logprobs or []
        self.text.append(text)
        return Delta(
            index=self.index,
            text=text,
            token_ids=token_ids,
            logprobs=logprobs,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            timings=self.timings if self.finish_reason is not None else None,
        )

    def _decode(self, token_ids: list[int]) -> tuple[str, int]:
        """Text to release and how many tokens made it; fewer than given if a stop string ended the sequence."""
        if self.stops is None:
            return self.detokenizer.add(token_ids), len(token_ids)
        released = []
        for i, token_id in enumerate(token_ids):
            piece = self.detokenizer.add([token_id])
            if len(self.token_ids) + i < self.min_tokens:
                released.append(piece)
                continue
            released.append(self._check(self.stops, piece))
            if self.finish_reason is not None:
                return "".join(released), i + 1
        return "".join(released), len(token_ids)

    def _flush(self) -> str:
        """What detokenizer and stop strings still held back, when the engine has ended the sequence."""
        rest = self.detokenizer.finish()
        if self.stops is None:
            return rest
        rest = self._check(self.stops, rest)
        return rest if self.finish_reason is not None else rest + self.stops.finish()

    def _check(self, stops: StopStrings, piece: str) -> str:
        """What of `piece`, and of what was held back, is no stop string; ends the sequence at one."""
        released = stops.add(piece)
        if stops.found is not None:
            self.finish_reason, self.stop_reason = "stop", stops.found
        return released


class OutputBuilder:
    """Takes the events of one request, gives deltas, and in the end its `RequestOutput`."""

    def __init__(
        self, request: EngineRequest, text_source: TextSource, *, prompt: str | None = None, fingerprint: str = ""
    ) -> None:
        self.request = request
        self.seed: int | None = None
        self.prompt: PromptInfo | None = None
        self.error: TrivetError | None = None
        self._prompt_text = prompt
        self._fingerprint = fingerprint
        self._submit_time = self._last_time = time.perf_counter()
        self._to_cancel: list[int] = []
        sampling = request.sampling
        include = sampling.include_stop_str_in_output
        self._sequences = [
            _Sequence(
                index=index,
                detokenizer=text_source.detokenizer(skip_special_tokens=sampling.skip_special_tokens),
                stops=StopStrings(sampling.stop, include=include) if sampling.stop else None,
                min_tokens=sampling.min_tokens,
            )
            for index in range(sampling.n)
        ]

    @property
    def accepted(self) -> bool:
        return self.seed is not None

    @property
    def finished(self) -> bool:
        """True when every sequence has a finish reason, or the request failed."""
        return self.error is not None or all(s.finish_reason is not None for s in self._sequences)

    def on_event(self, event: EngineEvent) -> Delta | None:
        """The delta that an event of this request makes, if any; a failure is kept in `error`."""
        match event:
            case Tokens():
                return self._on_tokens(event)
            case Accepted():
                self.seed = event.seed
            case PromptInfo():
                self.prompt = event
            case Failed():
                self.error = to_error(event)
            case _:
                pass
        return None

    def take_cancels(self) -> list[int]:
        """Indices of sequences that a stop string ended since the last call: the engine still runs them."""
        taken, self._to_cancel = self._to_cancel, []
        return taken

    def result(self) -> RequestOutput:
        """Everything so far."""
        timings = [s.timings for s in self._sequences if s.timings is not None]
        cached = max((t.num_cached_tokens for t in timings), default=0)
        return RequestOutput(
            request_id=self.request.request_id,
            prompt=self._prompt_text,
            prompt_token_ids=self.request.prompt_token_ids,
            prompt_logprobs=None if self.prompt is None else self.prompt.logprobs,
            outputs=[self._completion(s) for s in self._sequences],
            seed=self.seed,
            fingerprint=self._fingerprint,
            num_cached_tokens=cached if self.prompt is None else self.prompt.num_cached_tokens,
            queued_s=max((t.queued_s for t in timings), default=0.0),
            prefill_s=max((t.prefill_s for t in timings), default=0.0),
            decode_s=max((t.decode_s for t in timings), default=0.0),
            e2e_s=self._last_time - self._submit_time,
        )

    def _on_tokens(self, event: Tokens) -> Delta | None:
        sequence = self._sequences[event.index]
        if sequence.finish_reason is not None or self.error is not None:
            return None  # tokens that were under way when a stop string ended it
        self._last_time = time.perf_counter()
        delta = sequence.add(event, self._last_time)
        if delta.finish_reason is not None and event.finish_reason is None:
            self._to_cancel.append(event.index)
        return delta

    def _completion(self, sequence: _Sequence) -> CompletionOutput:
        return CompletionOutput(
            index=sequence.index,
            text="".join(sequence.text),
            token_ids=sequence.token_ids,
            logprobs=sequence.logprobs if self.request.sampling.logprobs is not None else None,
            finish_reason=sequence.finish_reason,
            stop_reason=sequence.stop_reason,
            timings=sequence.timings,
        )


def _finish(reason: FinishReason) -> Finish:
    return "stop" if reason is FinishReason.STOP else "length"
