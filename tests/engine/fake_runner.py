"""A `Runner` whose tokens depend on everything that a real one reads, so that a scheduling mistake changes output.

It keeps a 64-bit number per KV slot. What is written at position p is a hash of the token, of p and of all the numbers
that the block table says stand before it; the sampled token is a hash of that number and of the row's settings. A stale
block, a wrong table, a block shared between different texts or a skipped token changes every token that follows, just
as it would with real keys and values, and a batch that breaks the contract of step.py raises.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, fields, replace

import numpy as np

from trivet.engine.step import Capabilities, StepBatch, StepResult

_MASK = 2**64 - 1


def mix(*values: int) -> int:
    """A 64-bit hash of some integers (splitmix64 steps)."""
    state = 0x9E3779B97F4A7C15
    for value in values:
        state = (state ^ (value & _MASK)) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ (state >> 29)) * 0x94D049BB133111EB & _MASK
        state ^= state >> 32
    return state


class FakeClock:
    """A clock that somebody else moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Cost:
    """Seconds of a step: base + per_token * tokens + per_pair * attention pairs."""

    base: float = 0.010
    per_token: float = 0.0005
    per_pair: float = 0.0


@dataclass
class FakeRunner:
    """See above. `batches` keeps the last ones; `damage` makes these batch rows not finite.

    `fail_next` is raised by `submit`, `fail_computing` by the `collect` of the step that is submitted next.
    """

    num_blocks: int = 64
    block_size: int = 32
    vocab_size: int = 50
    max_context: int = 512
    max_tokens_per_step: int = 4096
    max_seqs_per_step: int = 64
    max_under_way: int = 1
    clock: FakeClock = field(default_factory=FakeClock)
    cost: Cost = field(default_factory=Cost)
    fail_next: Exception | None = None
    fail_computing: Exception | None = None
    damage: set[int] = field(default_factory=set)
    batches: list[StepBatch] = field(default_factory=list)
    prepared: list[int] = field(default_factory=list)  # what `prepare` was called with while nothing ran
    prepared_busy: list[tuple[int, int]] = field(default_factory=list)  # and while a step was under way
    fail_preparing: Exception | None = None

    def __post_init__(self) -> None:
        self._kv = np.arange(self.num_blocks * self.block_size, dtype=np.uint64) * np.uint64(0x1234567)
        self._weights = np.arange(self.max_context, dtype=np.uint64) * np.uint64(2) + np.uint64(0xABCDEF1)
        self._results: deque[tuple[int, StepResult | Exception]] = deque()  # of the steps under way
        self._handle = 0
        self._sampled: list[int] = []  # by the step submitted last

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            block_size=self.block_size,
            num_blocks=self.num_blocks,
            max_tokens_per_step=self.max_tokens_per_step,
            max_seqs_per_step=self.max_seqs_per_step,
            vocab_size=self.vocab_size,
            max_context=self.max_context,
            numerics="00ff",
            max_under_way=self.max_under_way,
        )

    def close(self) -> None:
        """Nothing to give back."""

    def submit(self, batch: StepBatch) -> int:
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            raise error
        assert len(self._results) < self.max_under_way, "too many steps are under way"
        ids = [self._sampled[-1 - i] if i < 0 else i for i in batch.token_ids.tolist()]
        batch = replace(batch, token_ids=np.array([max(i, 0) for i in ids], np.int32))
        check_batch(batch, self.capabilities)
        self.batches = [*self.batches[-50:], batch]
        failure, self.fail_computing = self.fail_computing, None
        before = self._kv.copy()
        result = self._run(batch)
        if failure is not None:
            self._kv = before
        self._sampled = result.sampled_ids.tolist()
        self._handle += 1
        self._results.append((self._handle, failure or result))
        return self._handle

    def wait(self, handle: int, timeout_s: float) -> bool:
        assert handle == self._results[0][0] and timeout_s > 0
        return True

    def collect(self, handle: int) -> StepResult:
        oldest, result = self._results.popleft()
        assert handle == oldest
        if isinstance(result, Exception):
            raise result
        return result

    def prepare(self, num_used: int, num_ahead: int | None = None) -> bool:
        is_busy = num_ahead is not None
        assert len(self._results) == is_busy, "what `num_ahead` says of steps under way"
        if is_busy and self.fail_preparing is not None:
            raise self.fail_preparing
        if num_ahead is None:
            self.prepared.append(num_used)
            return len(self.prepared) < 3
        self.prepared_busy.append((num_used, num_ahead))
        return len(self.prepared_busy) < 3

    def drop(self) -> None:
        self._results.clear()

    def _run(self, batch: StepBatch) -> StepResult:
        hidden = np.zeros(len(batch.token_ids), np.uint64)
        positions = np.zeros(len(batch.token_ids), np.int64)
        num_pairs = 0
        for s in range(len(batch.context_lens)):
            first, end = int(batch.seq_starts[s]), int(batch.seq_starts[s + 1])
            context = int(batch.context_lens[s])
            at = np.arange(context)
            slots = batch.block_tables[s, at // self.block_size].astype(np.int64) * self.block_size
            slots += at % self.block_size
            done = context - (end - first)
            digest = int((self._kv[slots[:done]] * self._weights[:done]).sum()) & _MASK
            for row in range(first, end):
                position = done + row - first
                value = mix(int(batch.token_ids[row]), position, digest)
                self._kv[slots[position]] = value
                digest = (digest + value * int(self._weights[position])) & _MASK
                hidden[row], positions[row] = value, position
                num_pairs += position + 1
        seconds = self.cost.base + self.cost.per_token * len(batch.token_ids) + self.cost.per_pair * num_pairs
        self.clock.now += seconds
        return self._answer(batch, hidden, positions, seconds)

    def _logits(self, hidden: int) -> np.ndarray:
        spread = np.arange(self.vocab_size, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(hidden)
        spread ^= spread >> np.uint64(31)
        spread *= np.uint64(0xBF58476D1CE4E5B9)
        return ((spread >> np.uint64(40)).astype(np.float32) / 2**22).astype(np.float32)  # 0 .. 4

    def _answer(self, batch: StepBatch, hidden: np.ndarray, positions: np.ndarray, seconds: float) -> StepResult:
        num_rows = len(batch.sample_rows)
        k_max = max([0, *batch.num_logprobs.tolist()])
        sampled, lps, ranks = np.zeros(num_rows, np.int32), np.zeros(num_rows, np.float32), np.zeros(num_rows, np.int32)
        top_ids, top_lps = np.full((num_rows, k_max), -1, np.int32), np.zeros((num_rows, k_max), np.float32)
        for r, row in enumerate(batch.sample_rows.tolist()):
            raw = self._logits(int(hidden[row]))
            sampled[r] = self._sample(batch, r, raw, int(positions[row]) + 1)
            k = int(batch.num_logprobs[r])
            if sampled[r] >= 0 and k >= 0:
                lps[r], ranks[r], top_ids[r, :k], top_lps[r, :k] = score(raw, int(sampled[r]), k)
        kq_max = max([0, *batch.score_num_logprobs.tolist()])
        num_scores = len(batch.score_rows)
        q_lps, q_ranks = np.zeros(num_scores, np.float32), np.zeros(num_scores, np.int32)
        q_ids, q_top = np.full((num_scores, kq_max), -1, np.int32), np.zeros((num_scores, kq_max), np.float32)
        for q, row in enumerate(batch.score_rows.tolist()):
            k = int(batch.score_num_logprobs[q])
            raw = self._logits(int(hidden[row]))
            q_lps[q], q_ranks[q], q_ids[q, :k], q_top[q, :k] = score(raw, int(batch.score_ids[q]), k)
        logits = [self._logits(int(hidden[row])) for row in batch.logits_rows.tolist()]
        return StepResult(
            sampled_ids=sampled,
            logprobs=lps,
            top_ids=top_ids,
            top_logprobs=top_lps,
            ranks=ranks,
            score_logprobs=q_lps,
            score_top_ids=q_ids,
            score_top_logprobs=q_top,
            score_ranks=q_ranks,
            logits=np.array(logits, np.float32).reshape(-1, self.vocab_size),
            hidden=np.zeros((0, 1), np.float32),
            start_s=self.clock.now - seconds,
            end_s=self.clock.now,
        )

    def _sample(self, batch: StepBatch, r: int, raw: np.ndarray, position: int) -> int:
        if int(batch.sample_rows[r]) in self.damage:
            return -1
        logits = raw.copy()
        span = slice(int(batch.bias_starts[r]), int(batch.bias_starts[r + 1]))
        logits[batch.bias_ids[span]] += batch.bias_values[span]
        if batch.mask_idx[r] >= 0:
            ids = np.arange(self.vocab_size)
            bits = batch.masks[batch.mask_idx[r], ids >> 5] >> (ids & 31).astype(np.uint32) & 1
            logits[bits == 0] = -np.inf
        if not np.any(logits > -np.inf):
            return -1
        if batch.temperature[r] > 0:
            settings = [batch.temperature[r], batch.top_p[r], batch.min_p[r]]
            noise = mix(
                int(batch.seed[r]),
                int(batch.sample_idx[r]),
                position,
                int(batch.top_k[r]),
                *(int(np.float32(x).view(np.uint32)) for x in settings),
            )
            logits += self._logits(noise)
        return int(np.argmax(logits))


def score(raw: np.ndarray, token_id: int, k: int) -> tuple[float, int, np.ndarray, np.ndarray]:
    """(log probability of a token, its rank, the k most likely ids, their log probabilities)."""
    lps = raw - np.log(np.exp(raw.astype(np.float64)).sum())
    top = np.argsort(-lps, kind="stable")[:k].astype(np.int32)
    return float(lps[token_id]), 1 + int((raw > raw[token_id]).sum()), top, lps[top].astype(np.float32)


_DTYPES = {"seed": np.uint64, "masks": np.uint32}
_FLOATS = {"temperature", "top_p", "min_p", "bias_values"}


def check_batch(batch: StepBatch, capabilities: Capabilities) -> None:
    """Raises AssertionError for a batch that is not as step.py has it."""
    for f in fields(batch):
        array = getattr(batch, f.name)
        assert array.dtype == _DTYPES.get(f.name, np.float32 if f.name in _FLOATS else np.int32), f.name
        assert array.flags.c_contiguous, f.name
    num_tokens, num_seqs, num_rows = len(batch.token_ids), len(batch.context_lens), len(batch.sample_rows)
    size = capabilities.block_size
    assert 0 < num_tokens <= capabilities.max_tokens_per_step and 0 < num_seqs <= capabilities.max_seqs_per_step
    assert batch.seq_starts[0] == 0 and batch.seq_starts[-1] == num_tokens and len(batch.seq_starts) == num_seqs + 1
    chunks = np.diff(batch.seq_starts)
    assert (chunks >= 1).all() and (batch.context_lens >= chunks).all()
    assert (batch.context_lens <= capabilities.max_context).all()
    assert ((batch.token_ids >= 0) & (batch.token_ids < capabilities.vocab_size)).all()
    assert batch.block_tables.shape[0] == num_seqs
    written: set[int] = set()
    read: set[int] = set()
    for s in range(num_seqs):
        table, context = batch.block_tables[s].tolist(), int(batch.context_lens[s])
        num_used = -(-context // size)
        assert all(0 <= b < capabilities.num_blocks for b in table[:num_used]), table
        assert len(set(table[:num_used])) == num_used, "a block is twice in a table"
        first_written = (context - int(chunks[s])) // size
        mine = set(table[first_written:num_used])
        assert not mine & written and not mine & read, "a block is written while somebody else has it"
        assert not set(table[:first_written]) & written, "a block is read while somebody else writes it"
        written |= mine
        read |= set(table[:first_written])
    for name in ("temperature", "top_k", "top_p", "min_p", "seed", "sample_idx", "mask_idx", "num_logprobs"):
        assert len(getattr(batch, name)) == num_rows, name
    assert (np.diff(batch.sample_rows) > 0).all() and (batch.sample_rows < num_tokens).all()
    assert len(batch.bias_starts) == num_rows + 1 and batch.bias_starts[-1] == len(batch.bias_ids)
    assert len(batch.bias_ids) == len(batch.bias_values)
    for r in range(num_rows):
        ids = batch.bias_ids[batch.bias_starts[r] : batch.bias_starts[r + 1]].tolist()
        assert len(set(ids)) == len(ids), "an id is biased twice"
    assert batch.masks.shape[1] == (capabilities.vocab_size + 31) // 32
    assert (batch.mask_idx < len(batch.masks)).all()
    assert len(batch.score_ids) == len(batch.score_rows) == len(batch.score_num_logprobs)
