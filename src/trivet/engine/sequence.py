"""`Sequence` and `OpenRequest`: what the engine knows of a token stream while it is open.

There are no phases. A sequence has known tokens (prompt and outputs so far) and a number of computed ones that catches
up with them, chunk by chunk; whenever it has caught up, the last row gives the next token. A prompt that is prefilled,
one token of decoding, a prefix that was found in the cache and a sequence that comes back after preemption are all the
same thing.

While a step runs, the next one is already planned: tokens count as computed once the step that computes them is
submitted, and a token that it will sample is `pending`, a number that stands for it.
"""

from __future__ import annotations

from enum import Enum

import numpy as np

from trivet.engine.messages import EngineRequest, FinishReason, Timings, TokenLogprob
from trivet.engine.prefix_tree import Parent
from trivet.engine.row_bias import allowed_mask, row_bias
from trivet.engine.step import I32, U32

_FIRST_ROOM = 256  # output tokens for which room is made at once


class SequenceState(Enum):
    """Where a sequence is."""

    HELD = "held"  # waits for sequence 0 of its request to compute the prompt that they share
    WAITING = "waiting"
    RUNNING = "running"  # has a slot and blocks
    DONE = "done"


class Sequence:
    """One token stream: its tokens, how many of them are computed, and the blocks that hold them."""

    __slots__ = (
        "__weakref__",
        "bias",
        "blocks",
        "epoch",
        "first_token_s",
        "index",
        "most_tokens",
        "num_cached",
        "num_computed",
        "num_in_tree",
        "num_pending",
        "num_preemptions",
        "num_prompt",
        "num_tokens",
        "parent",
        "rank",
        "refused_at",
        "request",
        "scheduled_s",
        "slot",
        "state",
        "tokens",
    )  # fmt: skip

    def __init__(self, request: OpenRequest, index: int, vocab_size: int) -> None:
        self.request = request
        self.index = index
        self.rank = (request.message.priority, request.arrival_no, index)  # the smaller one runs first
        self.state = SequenceState.WAITING if index == 0 else SequenceState.HELD
        self.num_prompt = self.num_tokens = len(request.prompt)
        self.most_tokens = self.num_prompt + request.max_tokens
        self.num_pending = 0  # the last so many tokens are being sampled
        self.tokens: I32 = np.empty(self.num_prompt + min(request.max_tokens, _FIRST_ROOM), np.int32)
        self.tokens[: self.num_prompt] = request.prompt
        self.bias = row_bias(request.message.sampling, request.stop_ids, vocab_size)
        # While it runs:
        self.slot = 0  # its row in `Slots`
        self.blocks: list[int] = []
        self.num_computed = 0
        self.num_in_tree = 0  # the first so many of `blocks` are nodes of the prefix tree
        self.parent: Parent = request.root  # the last of them
        self.epoch = 0  # of the tree, when it began to run
        self.refused_at: tuple[int, int, int] | None = None  # what the pool was like when it had no room
        # What is told in the end, in seconds of the engine's clock:
        self.scheduled_s: float | None = None
        self.first_token_s: float | None = None
        self.num_cached = 0
        self.num_preemptions = 0

    @property
    def num_known(self) -> int:
        return self.num_tokens - self.num_pending

    @property
    def num_outputs(self) -> int:
        return self.num_known - self.num_prompt

    @property
    def is_spent(self) -> bool:
        """The last token that it may have is being sampled."""
        return self.num_tokens >= self.most_tokens

    @property
    def needs_tokens(self) -> bool:
        """Its next token cannot be sampled before the last one is known."""
        return self.bias is not None and not self.bias.is_static

    def expect(self, row: int) -> None:
        """Row `row` of the step that was submitted last samples its next token."""
        if self.num_tokens == len(self.tokens):
            self.tokens = np.concatenate([self.tokens, np.empty_like(self.tokens)])
        self.tokens[self.num_tokens] = -1 - row
        self.num_tokens += 1
        self.num_pending += 1

    def settle(self, token_id: int) -> None:
        """The first pending token is known."""
        self.tokens[self.num_known] = token_id
        self.num_pending -= 1
        if self.bias is not None:
            self.bias.count(token_id)

    def forget_pending(self) -> None:
        """What is being sampled will not be taken."""
        self.num_tokens = self.num_known
        self.num_pending = 0

    def finish_reason(self, token_id: int) -> FinishReason | None:
        """Whether the sampled `token_id`, not yet settled, ends the sequence, and why."""
        if token_id in self.request.stop_ids:
            return FinishReason.STOP
        if self.num_known + 1 >= self.most_tokens:
            return FinishReason.LENGTH
        return None

    def timings(self, now: float) -> Timings:
        """Seconds from arrival to being scheduled, to the first token, to `now`."""
        arrival_s = self.request.arrival_s
        scheduled_s = arrival_s if self.scheduled_s is None else self.scheduled_s
        first_token_s = now if self.first_token_s is None else self.first_token_s
        return Timings(
            queued_s=scheduled_s - arrival_s,
            prefill_s=first_token_s - scheduled_s,
            decode_s=now - first_token_s,
            num_cached_tokens=self.num_cached,
            num_preemptions=self.num_preemptions,
        )


class OpenRequest:
    """A request between `add` and its last event, with what its sequences share."""

    __slots__ = (
        "arrival_no", "arrival_s", "is_leader_muted", "logits", "mask", "max_tokens", "message", "num_logits",
        "num_open", "num_scored", "prompt", "root", "scores", "seed", "sequences", "stop_ids", "wants_prompt",
    )  # fmt: skip

    def __init__(
        self,
        message: EngineRequest,
        *,
        seed: int,
        arrival_s: float,
        arrival_no: int,
        numerics: str,
        max_context: int,
        vocab_size: int,
    ) -> None:
        self.message = message
        self.seed = seed
        self.arrival_s = arrival_s
        self.arrival_no = arrival_no
        self.prompt: I32 = np.array(message.prompt_token_ids, np.int32)
        self.root = f"{numerics}/{message.cache_salt}"
        self.stop_ids = frozenset(message.stop_ids)
        sampling = message.sampling
        room = max_context - len(self.prompt)
        self.max_tokens = room if sampling.max_tokens is None else sampling.max_tokens
        allowed = sampling.allowed_token_ids
        self.mask: U32 | None = None if allowed is None else allowed_mask(allowed, vocab_size)
        self.wants_prompt = message.return_logits or sampling.prompt_logprobs is not None
        self.num_scored = 0  # prompt rows whose logits or log probabilities have come
        self.logits: bytearray | None = None  # float32 [T, V], made with the first rows
        self.num_logits = 0  # rows of it that have come
        self.scores: list[TokenLogprob | None] = [None]
        self.sequences = [Sequence(self, index, vocab_size) for index in range(sampling.n)]
        self.num_open = sampling.n
        self.is_leader_muted = False  # sequence 0 was cancelled while the others still need its prompt

    @property
    def leader(self) -> Sequence:
        """Sequence 0, which computes the prompt for all."""
        return self.sequences[0]
