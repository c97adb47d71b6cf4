"""What a caller gets: `Delta` as it streams, `RequestOutput` when it is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trivet.engine.messages import Timings, TokenLogprob

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What one step added to one sequence; text may be empty while a code point or a stop string is unclear."""

    index: int  # which of the n
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None  # one for each of token_ids, where asked for
    finish_reason: Finish | None = None
    stop_reason: str | int | None = None  # the stop string or stop token that ended it
    timings: Timings | None = None  # with the finish reason


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionOutput:
    """One of the n continuations."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None
    finish_reason: Finish | None  # None: still running
    stop_reason: str | int | None
    timings: Timings | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOutput:
    """A request, answered. Seconds are the longest of its sequences; `e2e_s` counts from submit to the last token."""

    request_id: str
    prompt: str | None  # None for a prompt of token ids
    prompt_token_ids: list[int]
    prompt_logprobs: list[TokenLogprob | None] | None
    outputs: list[CompletionOutput]
    seed: int | None  # the one used, drawn if none was given
    fingerprint: str  # answers are comparable, and resumable, between equal fingerprints only
    num_cached_tokens: int  # prompt tokens whose KV was found in the prefix tree
    queued_s: float
    prefill_s: float
    decode_s: float
    e2e_s: float

    @property
    def finished(self) -> bool:
        return all(output.finish_reason is not None for output in self.outputs)
