"""`Admission`: whether a request is taken, decided at once, on the thread that received it.

It never waits for a step: the engine's thread reports what it did, this side only counts. Three kinds of answer:

- `Failed` with InvalidRequest or ContextTooLong: it can never be served, and the message has both numbers;
- `Failed` with Overloaded: it would wait too long, by the rates measured so far, and `retry_after_s` says when not;
- `Accepted`, with the seed that will be used.
"""

from __future__ import annotations

import math
import secrets
import threading
from dataclasses import dataclass

from trivet.config import SchedulerConfig
from trivet.engine.clock import Clock
from trivet.engine.failures import to_failed
from trivet.engine.messages import MAX_DEADLINE_S, Accepted, EngineRequest, Failed
from trivet.engine.step import Capabilities
from trivet.errors import ContextTooLong, InvalidRequest, Overloaded, TrivetError

_MAX_LOGITS_BYTES = 2 * 2**30  # of one request that asks for logits


def check_possible(request: EngineRequest, capabilities: Capabilities) -> None:
    """Raises InvalidRequest or ContextTooLong for what can never be served, however idle the engine is."""
    sampling, vocab_size = request.sampling, capabilities.vocab_size
    prompt_len = len(request.prompt_token_ids)
    if prompt_len == 0:
        raise InvalidRequest("the prompt has no tokens, but it needs at least 1", param="prompt")
    least, most = min(request.prompt_token_ids), max(request.prompt_token_ids)
    if least < 0 or most >= vocab_size:
        wrong = least if least < 0 else most
        raise InvalidRequest(f"the prompt has token id {wrong}, but ids are 0 to {vocab_size - 1}", param="prompt")
    room = capabilities.max_context - prompt_len
    if (request.return_logits or request.prompt_only) and sampling.max_tokens == 1:
        room += 1  # only the prompt is computed: the token drawn after it needs no place
    max_tokens = max(room, 1) if sampling.max_tokens is None else sampling.max_tokens
    if max_tokens > room:
        raise ContextTooLong(
            f"the prompt has {prompt_len:,} tokens and asks for up to {max_tokens:,} more, "
            f"but the context holds {capabilities.max_context:,}",
            hint="shorten the prompt, lower `max_tokens`, or load the model with a larger `--max-context`",
            param="prompt" if prompt_len >= capabilities.max_context else "max_tokens",
            code="context_length_exceeded",
        )
    num_blocks = -(-(prompt_len + max_tokens - 1) // capabilities.block_size)
    if num_blocks > capabilities.num_blocks:
        raise ContextTooLong(
            f"the prompt has {prompt_len:,} tokens and asks for up to {max_tokens:,} more, "
            f"but the KV cache holds {capabilities.num_blocks * capabilities.block_size:,}",
            hint="shorten the prompt, lower `max_tokens`, or give the cache more with `--memory`",
            param="max_tokens",
            code="context_length_exceeded",
        )
    _check_sampling(request, vocab_size)
    deadline_s = request.deadline_s
    if deadline_s is not None and not 0 < deadline_s <= MAX_DEADLINE_S:
        raise InvalidRequest(
            f"`deadline_s` is {deadline_s:g}, but it must be above 0 seconds and at most {MAX_DEADLINE_S:,.0f}",
            param="deadline_s",
        )
    logits_bytes = 4 * prompt_len * vocab_size
    if request.return_logits and logits_bytes > _MAX_LOGITS_BYTES:
        raise InvalidRequest(
            f"the logits of {prompt_len:,} tokens take {logits_bytes:,} bytes, but at most {_MAX_LOGITS_BYTES:,} "
            "are given back",
            hint="ask for fewer tokens at a time",
            param="prompt",
        )


def _check_sampling(request: EngineRequest, vocab_size: int) -> None:
    sampling = request.sampling
    for param, ids in (("logit_bias", sampling.logit_bias), ("allowed_token_ids", sampling.allowed_token_ids or ())):
        wrong = next((i for i in ids if not 0 <= i < vocab_size), None)
        if wrong is not None:
            raise InvalidRequest(f"`{param}` has token id {wrong}, but ids are 0 to {vocab_size - 1}", param=param)
    if sampling.allowed_token_ids is None:
        return
    if not sampling.allowed_token_ids:
        raise InvalidRequest(
            "`allowed_token_ids` is empty, but it must allow at least one token", param="allowed_token_ids"
        )
    if sampling.min_tokens and set(sampling.allowed_token_ids) <= set(request.stop_ids):
        raise InvalidRequest(
            f"`min_tokens` is {sampling.min_tokens}, but `allowed_token_ids` allows only tokens that stop",
            param="min_tokens",
        )


@dataclass(slots=True)
class _Entry:
    """An open request: what the engine's thread needs of the decision, and what is still to be computed."""

    seed: int
    arrival_s: float
    num_uncomputed: int
    num_seqs: int
    is_waiting: bool = True


class Admission:
    """Counts of what waits and the rates at which it is worked off; thread-safe, and never slow."""

    def __init__(self, config: SchedulerConfig, capabilities: Capabilities, clock: Clock) -> None:
        self._config = config
        self._capabilities = capabilities
        self._clock = clock
        self._lock = threading.Lock()
        self._open: dict[str, _Entry] = {}
        self._num_waiting = 0
        self._num_waiting_seqs = 0  # each of them needs a slot, whichever request it belongs to
        self._num_uncomputed = 0  # prompt tokens of open requests
        self._num_free_slots = min(config.max_num_seqs, capabilities.max_seqs_per_step)
        self._prefill_per_s = 0.0
        self._finished_per_s = 0.0
        self._num_rejected = 0

    # --- the client's side ----------------------------------------------------------------------------------------

    def check(self, request: EngineRequest) -> Accepted | Failed:
        """Accepted, and counted as waiting until the engine ends it; or Failed, and forgotten."""
        try:
            check_possible(request, self._capabilities)
            return self._admit(request)
        except TrivetError as error:
            return to_failed(request.request_id, error)

    def forget(self, request_id: str) -> None:
        """The request is over; idempotent."""
        with self._lock:
            entry = self._open.pop(request_id, None)
            if entry is not None:
                self._no_longer_waits(entry, entry.num_seqs)
                self._num_uncomputed -= entry.num_uncomputed

    @property
    def num_rejected(self) -> int:
        """Requests refused because of load, ever."""
        return self._num_rejected

    @property
    def num_open(self) -> int:
        return len(self._open)

    def _admit(self, request: EngineRequest) -> Accepted:
        prompt_len, num_seqs = len(request.prompt_token_ids), request.sampling.n
        said = request.sampling.seed
        seed = secrets.randbits(53) if said is None else said  # readers of JSON keep 53 bits of a number exactly
        with self._lock:
            if request.request_id in self._open:
                raise InvalidRequest(
                    f"`request_id` is {request.request_id!r}, but a request of that name is open", param="request_id"
                )
            try:
                self._check_load(prompt_len, num_seqs, request.deadline_s)
            except Overloaded:
                self._num_rejected += 1
                raise
            self._open[request.request_id] = _Entry(seed & (2**64 - 1), self._clock(), prompt_len, num_seqs)
            self._num_waiting += 1
            self._num_waiting_seqs += num_seqs
            self._num_uncomputed += prompt_len
        return Accepted(request_id=request.request_id, seed=seed)

    def _check_load(self, prompt_len: int, num_seqs: int, deadline_s: float | None) -> None:
        config = self._config
        wait_s = self._wait_s()
        num_queued = self._num_waiting_seqs - self._num_free_slots
        if num_queued + (num_seqs if num_queued > 0 else 1) > config.max_waiting:
            many = f" with {self._num_waiting_seqs} sequences" if self._num_waiting_seqs > self._num_waiting else ""
            raise Overloaded(
                f"{self._num_waiting} requests{many} are waiting, but at most {config.max_waiting} may",
                hint="come back later, or raise `--max-waiting`",
                retry_after_s=_whole_seconds(wait_s / max(self._num_waiting_seqs, 1)),
            )
        if wait_s > config.max_wait_s:
            raise Overloaded(
                f"the request would wait {wait_s:.1f} s by the measured rate, but at most {config.max_wait_s:g} s are "
                "allowed",
                retry_after_s=_whole_seconds(wait_s - config.max_wait_s),
            )
        if deadline_s is not None:
            own_s = prompt_len / self._prefill_per_s if self._prefill_per_s else 0.0
            if wait_s + own_s > deadline_s:
                raise Overloaded(
                    f"the first token would come after {wait_s + own_s:.2f} s by the measured rate, but the request "
                    f"allows {deadline_s:g} s",
                    retry_after_s=_whole_seconds(wait_s + own_s - deadline_s),
                )

    def _wait_s(self) -> float:
        """Seconds until a new request's own prompt would be begun; 0.0 while nothing has been measured."""
        by_tokens = self._num_uncomputed / self._prefill_per_s if self._prefill_per_s else 0.0
        num_queued = self._num_waiting_seqs + 1 - self._num_free_slots
        by_slots = num_queued / self._finished_per_s if num_queued > 0 and self._finished_per_s else 0.0
        return max(by_tokens, by_slots)

    # --- the engine's side ----------------------------------------------------------------------------------------

    def decision(self, request_id: str) -> tuple[int, float]:
        """(seed, arrival in seconds of the clock) of an accepted request. Raises KeyError for another."""
        with self._lock:
            entry = self._open[request_id]
            return entry.seed, entry.arrival_s

    def progress(self, request_id: str, num_uncomputed: int) -> None:
        """So many tokens of the request's prompt are still to be computed."""
        with self._lock:
            entry = self._open.get(request_id)
            if entry is None:
                return
            self._num_uncomputed -= entry.num_uncomputed - num_uncomputed
            entry.num_uncomputed = num_uncomputed

    def started(self, request_id: str) -> None:
        """One of its sequences runs for the first time."""
        with self._lock:
            entry = self._open.get(request_id)
            if entry is not None and entry.num_seqs > 0:
                self._no_longer_waits(entry, 1)

    def _no_longer_waits(self, entry: _Entry, num_seqs: int) -> None:
        self._num_waiting_seqs -= num_seqs
        entry.num_seqs -= num_seqs
        if entry.is_waiting:
            self._num_waiting -= 1
            entry.is_waiting = False

    def report(self, *, num_free_slots: int, prefill_per_s: float, finished_per_s: float) -> None:
        """After each step: sequences that could start now, and the measured rates (0.0: not measured yet).

        Prompt tokens computed, and sequences finished, a second.
        """
        with self._lock:
            self._num_free_slots = num_free_slots
            self._prefill_per_s = prefill_per_s
            self._finished_per_s = finished_per_s


def _whole_seconds(seconds: float) -> float:
    return float(max(1, math.ceil(seconds)))
