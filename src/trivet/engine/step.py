"""The seam between engine and compute: `StepBatch` in, `StepResult` out, both arrays only.

T tokens in the step, S sequences, R rows that ask for something, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]
F32 = NDArray[np.float32]
U32 = NDArray[np.uint32]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """One transformer step over S sequences, each with a run of consecutive new tokens."""

    token_ids: I32  # [T], the new tokens of sequence 0, then 1, ...; -1 - r: what row r of the step before will sample
    seq_starts: I32  # [S + 1], sequence s has rows seq_starts[s]:seq_starts[s + 1]; at least one each
    context_lens: I32  # [S], tokens of the sequence after this step (cached + new): row r has position
    #                    context_lens[s] - (seq_starts[s + 1] - r)
    block_tables: I32  # [S, B], block ids; entry j holds positions j*block_size..; unused entries -1
    # --- rows that get a sample; the sampled token stands at position(row) + 1 --------------------------------
    sample_rows: I32  # [R], row indices into T, ascending
    temperature: F32  # [R], 0: greedy
    top_k: I32  # [R], 0: all
    top_p: F32  # [R]
    min_p: F32  # [R]
    seed: U64  # [R]
    sample_idx: I32  # [R], which of the n sequences of the request
    bias_starts: I32  # [R + 1], CSR of logit bias, added before the temperature; -inf forbids
    bias_ids: I32
    bias_values: F32
    mask_idx: I32  # [R], row of `masks`, -1: every token is allowed
    masks: U32  # [M, ceil(V / 32)], bit (id & 31) of word (id >> 5)
    num_logprobs: I32  # [R], -1: none; 0: of the sampled token; k: also of the k most likely. Of the raw logits
    # --- rows whose prompt log probabilities are asked for (echo) ---------------------------------------------
    score_rows: I32  # [Q], row indices
    score_ids: I32  # [Q], the token whose log probability is asked for (the next prompt token)
    score_num_logprobs: I32  # [Q], 0: of that token; k: also of the k most likely
    # --- rows whose full logits, or final hidden state, are asked for -----------------------------------------
    logits_rows: I32  # [L]
    hidden_rows: I32  # [E]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What a step gives back; row order is the batch's."""

    sampled_ids: I32  # [R]; -1: the logits of this row were not finite, the sequence must fail
    logprobs: F32  # [R], of the sampled token; 0 where not asked for
    top_ids: I32  # [R, k_max], -1 padded; ties to the lower id
    top_logprobs: F32  # [R, k_max]
    ranks: I32  # [R], 1 + number of tokens with a higher logit; 0 where not asked for
    score_logprobs: F32  # [Q]
    score_top_ids: I32  # [Q, kq_max]
    score_top_logprobs: F32  # [Q, kq_max]
    score_ranks: I32  # [Q]
    logits: F32  # [L, V]
    hidden: F32  # [E, D]
    start_s: float  # when the computing began and ended, in seconds of the monotonic clock
    end_s: float

    @property
    def native_s(self) -> float:
        """Seconds that the step took."""
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a runner can do; the engine sizes itself from it."""

    block_size: int  # tokens per block
    num_blocks: int
    max_tokens_per_step: int
    max_seqs_per_step: int
    vocab_size: int
    max_context: int  # tokens
    numerics: str  # artifact digest + precision + KV type + tier + kernel revision, hex
    max_under_way: int = 1  # steps that may be submitted and not yet collected; they run in order


class Runner(Protocol):
    """What computes. `submit` starts a step, `collect` waits for the oldest of those under way."""

    @property
    def capabilities(self) -> Capabilities: ...

    def submit(self, batch: StepBatch) -> int:
        """A handle for `collect`. Raises ValueError for a batch whose shapes do not fit (an engine bug)."""
        ...

    def wait(self, handle: int, timeout_s: float) -> bool:
        """Whether the step is done within so many seconds."""
        ...

    def collect(self, handle: int) -> StepResult: ...

    def prepare(self, num_used: int, num_ahead: int | None = None) -> bool:
        """Gets a little memory beyond the blocks below `num_used` ready, for some ms; False: there was nothing to do.

        `num_ahead`: a step is under way, which uses no others, and so many blocks are enough; None: nothing runs.
        """
        ...

    def drop(self) -> None:
        """Waits for the steps under way and forgets what they gave."""
        ...

    def close(self) -> None: ...
