"""From a request body to `SamplingParams`: both dialects of logprobs, `max_tokens` and stops brought together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from trivet.engine.defaults import Rest
from trivet.engine.messages import MAX_DEADLINE_S
from trivet.engine.sampling_params import SamplingParams
from trivet.engine.shown import shown
from trivet.errors import InvalidRequest
from trivet.server.bodies import Body, ChatBody, CompletionBody

MAX_LOGPROBS = 20
MAX_PRIORITY = 1_000_000
MAX_ID_DIGITS = 12

# fields that mean the same in the body and in SamplingParams
_SAME = (
    "n", "min_tokens", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "seed",
    "ignore_eos", "include_stop_str_in_output", "skip_special_tokens",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to generate, and what of it to send back."""

    sampling: SamplingParams
    rest: Rest  # what `max_tokens=None` means
    logprobs: bool = False
    echo: bool = False
    prompt_only: bool = False  # echo with max_tokens 0: the prompt's log probabilities, and no output
    token_ids: bool = False
    stream: bool = False
    include_usage: bool = False
    usage_always: bool = False
    priority: int = 0
    cache_salt: str = ""
    deadline_s: float | None = None


def completion_wanted(body: CompletionBody, vocab_size: int) -> Wanted:
    """What a completion body asks for; raises InvalidRequest naming the field."""
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise InvalidRequest(
            f"`best_of` is {body.best_of}, but it must be equal to `n` ({body.n or 1}): nothing is generated to be "
            "thrown away",
            param="best_of",
        )
    echo = bool(body.echo)
    prompt_only = echo and body.max_tokens == 0
    if body.logprobs is not None and not 0 <= body.logprobs <= MAX_LOGPROBS:
        raise _out_of_range("logprobs", body.logprobs)
    sampling = _sampling(
        body,
        vocab_size,
        max_tokens=1 if prompt_only else body.max_tokens,
        logprobs=body.logprobs,
        prompt_logprobs=body.logprobs if echo else None,
    )
    return Wanted(
        sampling=sampling,
        rest="completion",
        logprobs=body.logprobs is not None,
        echo=echo,
        prompt_only=prompt_only,
        **_delivery(body),
    )


def chat_wanted(body: ChatBody, vocab_size: int) -> Wanted:
    """What a chat body asks for; raises InvalidRequest naming the field."""
    if None not in (body.max_tokens, body.max_completion_tokens) and body.max_tokens != body.max_completion_tokens:
        raise InvalidRequest(
            f"`max_tokens` is {body.max_tokens} and `max_completion_tokens` is {body.max_completion_tokens}, but they "
            "are two names of one thing",
            hint="send `max_completion_tokens` alone",
            param="max_tokens",
        )
    top = body.top_logprobs
    if top is not None and not 0 <= top <= MAX_LOGPROBS:
        raise _out_of_range("top_logprobs", top)
    if top is not None and not body.logprobs:
        raise InvalidRequest("`top_logprobs` needs `logprobs` to be true", param="top_logprobs")
    max_tokens = body.max_completion_tokens if body.max_tokens is None else body.max_tokens
    sampling = _sampling(body, vocab_size, max_tokens=max_tokens, logprobs=(top or 0) if body.logprobs else None)
    return Wanted(sampling=sampling, rest="context", logprobs=bool(body.logprobs), **_delivery(body))


def _delivery(body: Body) -> dict[str, Any]:
    options = body.stream_options
    if options is not None and not body.stream:
        raise InvalidRequest("`stream_options` is only allowed with `stream` true", param="stream_options")
    _check_turn(body.priority, body.deadline_s)
    always = options is not None and bool(options.continuous_usage_stats)
    return {
        "token_ids": bool(body.return_token_ids),
        "stream": bool(body.stream),
        "include_usage": options is not None and bool(options.include_usage),
        "usage_always": always,
        "priority": body.priority or 0,
        "cache_salt": body.cache_salt or "",
        "deadline_s": body.deadline_s,
    }


def _check_turn(priority: int | None, deadline_s: float | None) -> None:
    """Raises InvalidRequest for a priority beyond all others, or a deadline that is past, or beyond a day."""
    if priority is not None and abs(priority) > MAX_PRIORITY:
        raise InvalidRequest(
            f"`priority` is {priority}, but it must be between -{MAX_PRIORITY:,} and {MAX_PRIORITY:,}", param="priority"
        )
    if deadline_s is not None and not 0 < deadline_s <= MAX_DEADLINE_S:
        raise InvalidRequest(
            f"`deadline_s` is {deadline_s:g}, but it must be above 0 seconds and at most {MAX_DEADLINE_S:,.0f}",
            param="deadline_s",
        )


def _sampling(body: Body, vocab_size: int, *, max_tokens: int | None, **logprobs: Any) -> SamplingParams:
    said: dict[str, Any] = {name: value for name in _SAME if (value := getattr(body, name)) is not None}
    if body.stop is not None:
        said["stop"] = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)
    for name in ("stop_token_ids", "allowed_token_ids"):
        ids = getattr(body, name)
        if ids is not None:
            _check_ids(name, ids, vocab_size)
            said[name] = tuple(ids)
    if body.top_k is not None:
        said["top_k"] = min(body.top_k, vocab_size)  # that many are all
    if body.logit_bias:
        said["logit_bias"] = _logit_bias(body.logit_bias, vocab_size)
    return SamplingParams(max_tokens=max_tokens, **said, **logprobs)


def _logit_bias(bias: dict[str, float], vocab_size: int) -> dict[int, float]:
    for key in bias:
        if not (len(key) <= MAX_ID_DIGITS and key.isascii() and key.isdigit()):
            raise InvalidRequest(f"`logit_bias` has the key {shown(key)}, but keys are token ids", param="logit_bias")
    by_id = {int(key): value for key, value in bias.items()}
    _check_ids("logit_bias", by_id, vocab_size)
    return by_id


def _check_ids(name: str, ids: Iterable[int], vocab_size: int) -> None:
    for token_id in ids:
        if not 0 <= token_id < vocab_size:
            raise InvalidRequest(
                f"`{name}` holds token id {token_id}, but the model knows the ids 0 to {vocab_size - 1:,}", param=name
            )


def _out_of_range(name: str, value: int) -> InvalidRequest:
    return InvalidRequest(f"`{name}` is {value}, but it must be between 0 and {MAX_LOGPROBS}", param=name)
