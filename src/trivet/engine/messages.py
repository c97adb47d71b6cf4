"""The frozen messages that cross `EngineClient`: ids, arrays and enums, no shared Python object.

They are msgspec structs, so the same objects travel in-process and, as msgpack, to the engine's child process.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from trivet.engine.sampling_params import SamplingParams

MAX_DEADLINE_S = 86_400.0


class FinishReason(StrEnum):
    """Why a sequence ended, in OpenAI's words; one that cannot go on fails its request instead."""

    STOP = "stop"
    LENGTH = "length"


class Frozen(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all messages."""


class EngineRequest(Frozen, frozen=True, tag="request"):
    """A prompt of token ids and how to continue it. Everything in `sampling` is resolved: no None but seed."""

    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    stop_ids: list[int] = []  # EOS set, already empty under ignore_eos, plus sampling.stop_token_ids
    priority: int = 0  # lower runs first, as in vLLM
    cache_salt: str = ""  # part of the prefix tree's root key: tenants do not share blocks
    return_logits: bool = False  # LLM.logits: float32 logits of every prompt token
    prompt_only: bool = False  # with max_tokens 1: that token is not wanted either, so it needs no room
    deadline_s: float | None = None  # seconds from arrival in which the first token must come, else Overloaded


class Cancel(Frozen, frozen=True, tag="cancel"):
    """The client left; idempotent, unknown ids are ignored."""

    request_id: str
    index: int | None = None  # only this one of the n sequences (its text met a stop string); None: all of them


class Drain(Frozen, frozen=True, tag="drain"):
    """Take no new requests, finish what runs, then exit."""


class TokenLogprob(Frozen, frozen=True):
    """Log probability of one token at a position, with the alternatives asked for, most likely first."""

    token_id: int
    logprob: float
    rank: int
    top_ids: list[int]
    top_logprobs: list[float]


class Timings(Frozen, frozen=True):
    """Seconds, of one sequence; `prefill_s` counts from first scheduled to first token."""

    queued_s: float
    prefill_s: float
    decode_s: float
    num_cached_tokens: int
    num_preemptions: int


class Accepted(Frozen, frozen=True, tag="accepted"):
    """The request passed admission; `seed` is the one used (drawn if none was given)."""

    request_id: str
    seed: int


class Tokens(Frozen, frozen=True, tag="tokens"):
    """New tokens of one sequence of a request; the last one of a sequence has a finish reason and timings.

    The first one may carry timings too (with `decode_s` 0): what a sequence reports that a stop string ended.
    """

    request_id: str
    index: int  # which of the n
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None
    stop_id: int | None = None  # the stop token that ended it; it is not in `token_ids` of the output text
    timings: Timings | None = None


class PromptInfo(Frozen, frozen=True, tag="prompt"):
    """What was learned of the prompt: sent once, before the first Tokens, when logprobs or logits were asked for."""

    request_id: str
    num_cached_tokens: int
    logprobs: list[TokenLogprob | None] | None = None  # entry 0 is None
    logits: bytearray | None = None  # float32 [T, V], C order; the receiver's own


class Failed(Frozen, frozen=True, tag="failed"):
    """The request ended with an error; `kind` is the class name in errors.py."""

    request_id: str
    kind: str
    message: str
    hint: str | None = None
    retry_after_s: float | None = None
    param: str | None = None
    code: str | None = None


class EngineStats(Frozen, frozen=True, tag="stats"):
    """A snapshot, at most every 100 ms and after the last step before idling."""

    time_s: float  # time.monotonic of the engine's host
    num_running: int
    num_waiting: int
    kv_blocks_total: int
    kv_blocks_used: int  # held by sequences
    kv_blocks_cached: int  # held by the prefix tree only
    prefix_queries_tokens: int  # counters from here on
    prefix_hits_tokens: int
    prompt_tokens: int
    generation_tokens: int
    num_preemptions: int
    num_pauses: int  # of running streams, for a long prompt
    num_steps: int
    requests_rejected: int
    step_native_s: float  # sum
    step_host_s: float  # sum of time between native calls while there was work
    host_s_p99: float  # over the last 1000 steps
    prefill_tokens_per_s: float  # measured, moving
    decode_tokens_per_s: float


class EngineInfo(Frozen, frozen=True, tag="info"):
    """What the engine said when it was ready."""

    model_path: str
    family: str
    precision: str
    kv_dtype: str
    isa: str
    num_threads: int
    fingerprint: str  # system_fingerprint: "fp_" + hex
    vocab_size: int
    max_context: int
    block_size: int
    num_blocks: int
    max_num_seqs: int
    max_waiting: int
    weight_bytes: int
    kv_bytes: int
    notes: list[str] = []  # what was chosen or given up: fall-backs, budgets; printed at start
    timings_s: dict[str, float] = {}  # start-up, by part


EngineEvent = Accepted | Tokens | PromptInfo | Failed | EngineStats | EngineInfo
ToEngine = EngineRequest | Cancel | Drain
