"""From "these sequences run so many tokens" to a `StepBatch`.

What changes rarely is kept between steps: `Slots` has one row a running sequence with its block table and its sampling
settings, and the arrays that depend only on which rows are sampled are made again only when those change.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trivet.engine.sequence import OpenRequest, Sequence
from trivet.engine.step import F32, I32, U32, U64, StepBatch

_NO_IDS: I32 = np.zeros(0, np.int32)
_NO_ROWS: I32 = np.zeros(0, np.int32)


class Slots:
    """A row for each running sequence: block table int32 [num_slots, max_blocks], unused entries -1, and sampling."""

    def __init__(self, num_slots: int, max_blocks: int) -> None:
        self.num_seated = 0  # ever; changes whenever a row changes hands
        self.tables: I32 = np.full((num_slots, max_blocks), -1, np.int32)
        self.temperature: F32 = np.zeros(num_slots, np.float32)
        self.top_k: I32 = np.zeros(num_slots, np.int32)
        self.top_p: F32 = np.ones(num_slots, np.float32)
        self.min_p: F32 = np.zeros(num_slots, np.float32)
        self.seed: U64 = np.zeros(num_slots, np.uint64)
        self.sample_idx: I32 = np.zeros(num_slots, np.int32)
        self.num_logprobs: I32 = np.full(num_slots, -1, np.int32)
        self._free = list(range(num_slots - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def seat(self, seq: Sequence) -> None:
        """Gives a sequence a row, with its block table and sampling settings in it."""
        slot = seq.slot = self._free.pop()
        self.num_seated += 1
        sampling = seq.request.message.sampling
        self.tables[slot, : len(seq.blocks)] = seq.blocks
        self.temperature[slot] = 1.0 if sampling.temperature is None else sampling.temperature
        self.top_k[slot] = max(sampling.top_k or 0, 0)
        self.top_p[slot] = 1.0 if sampling.top_p is None else sampling.top_p
        self.min_p[slot] = sampling.min_p or 0.0
        self.seed[slot] = seq.request.seed
        self.sample_idx[slot] = seq.index
        self.num_logprobs[slot] = -1 if sampling.logprobs is None else sampling.logprobs

    def unseat(self, seq: Sequence) -> None:
        """Takes the row back."""
        self.tables[seq.slot, : len(seq.blocks)] = -1
        self._free.append(seq.slot)


@dataclass(slots=True)
class _SampleRows:
    """What depends only on which slots are sampled."""

    slots: list[int]
    num_seated: int
    temperature: F32
    top_k: I32
    top_p: F32
    min_p: F32
    seed: U64
    sample_idx: I32
    num_logprobs: I32
    mask_idx: I32
    masks: U32
    has_bias: bool
    bias: tuple[I32, I32, F32] | None  # None: changes with every token


@dataclass(slots=True)
class Prepared:
    """A batch, and whose its rows are."""

    batch: StepBatch
    sampled: list[Sequence]  # [R]
    scored: list[tuple[OpenRequest, int]]  # request and how many of the Q score rows are its, in order
    logits: list[tuple[OpenRequest, int]]  # the same of the L logits rows


class BatchBuilder:
    """Makes `StepBatch`es out of sequences that have a slot."""

    def __init__(self, slots: Slots, vocab_size: int) -> None:
        self._slots = slots
        self._no_masks: U32 = np.zeros((0, (vocab_size + 31) // 32), np.uint32)
        self._no_bias: list[I32] = [np.zeros(n + 1, np.int32) for n in range(slots.num_free + 1)]
        self._one_each: I32 = np.arange(slots.num_free + 1, dtype=np.int32)
        self._no_values: F32 = np.zeros(0, np.float32)
        self._rows: _SampleRows | None = None

    def build(self, seqs: list[Sequence], chunks: list[int]) -> Prepared:
        """The batch in which sequence `seqs[i]` runs its next `chunks[i]` tokens."""
        num_seqs = len(seqs)
        sampled = [seq for seq, chunk in zip(seqs, chunks, strict=True) if seq.num_computed + chunk == seq.num_tokens]
        if max(chunks) == 1:
            token_ids = np.array([seq.tokens.item(seq.num_computed) for seq in seqs], np.int32)
            seq_starts = self._one_each[: num_seqs + 1]
        else:
            token_ids = np.concatenate(
                [seq.tokens[seq.num_computed : seq.num_computed + n] for seq, n in zip(seqs, chunks, strict=True)]
            )
            seq_starts = np.zeros(num_seqs + 1, np.int32)
            np.cumsum(chunks, out=seq_starts[1:])
        if len(sampled) == num_seqs:
            sample_rows = seq_starts[1:] - 1
        else:
            ends = zip(seqs, chunks, seq_starts[1:].tolist(), strict=True)
            sample_rows = np.array(
                [end - 1 for seq, n, end in ends if seq.num_computed + n == seq.num_tokens], np.int32
            )
        num_blocks = max([len(seq.blocks) for seq in seqs])
        tables = self._slots.tables[:, :num_blocks].take([seq.slot for seq in seqs], axis=0)
        rows = self._sample_rows(sampled)
        bias = rows.bias or self._bias(sampled)
        scores, score_ids, score_k, logits, scored, wanted = self._prompt_rows(seqs, chunks, seq_starts)
        batch = StepBatch(
            token_ids=token_ids,
            seq_starts=seq_starts,
            context_lens=np.array([seq.num_computed + n for seq, n in zip(seqs, chunks, strict=True)], np.int32),
            block_tables=tables,
            sample_rows=sample_rows,
            temperature=rows.temperature,
            top_k=rows.top_k,
            top_p=rows.top_p,
            min_p=rows.min_p,
            seed=rows.seed,
            sample_idx=rows.sample_idx,
            bias_starts=bias[0],
            bias_ids=bias[1],
            bias_values=bias[2],
            mask_idx=rows.mask_idx,
            masks=rows.masks,
            num_logprobs=rows.num_logprobs,
            score_rows=scores,
            score_ids=score_ids,
            score_num_logprobs=score_k,
            logits_rows=logits,
            hidden_rows=_NO_ROWS,
        )
        return Prepared(batch, sampled, scored, wanted)

    def _sample_rows(self, sampled: list[Sequence]) -> _SampleRows:
        slots, which = self._slots, [seq.slot for seq in sampled]
        rows = self._rows
        if rows is not None and rows.slots == which and rows.num_seated == slots.num_seated:
            if rows.has_bias and rows.bias is None and all(s.bias is None or s.bias.is_static for s in sampled):
                rows.bias = self._bias(sampled)
            return rows
        idx = np.array(which, np.intp)
        mask_idx = np.full(len(which), -1, np.int32)
        masks: list[U32] = []
        for row, seq in enumerate(sampled):
            if seq.request.mask is not None:
                mask_idx[row] = len(masks)
                masks.append(seq.request.mask)
        has_bias = any(seq.bias is not None for seq in sampled)
        self._rows = rows = _SampleRows(
            slots=which,
            num_seated=slots.num_seated,
            temperature=slots.temperature[idx],
            top_k=slots.top_k[idx],
            top_p=slots.top_p[idx],
            min_p=slots.min_p[idx],
            seed=slots.seed[idx],
            sample_idx=slots.sample_idx[idx],
            num_logprobs=slots.num_logprobs[idx],
            mask_idx=mask_idx,
            masks=np.stack(masks) if masks else self._no_masks,
            has_bias=has_bias,
            bias=None if has_bias else (self._no_bias[len(which)], _NO_IDS, self._no_values),
        )
        return rows

    def _bias(self, sampled: list[Sequence]) -> tuple[I32, I32, F32]:
        """(starts int32 [R + 1], ids, values): the bias entries of all rows, one row after the other."""
        starts = np.zeros(len(sampled) + 1, np.int32)
        biases = [seq.bias for seq in sampled]
        np.cumsum([0 if bias is None else len(bias.ids) for bias in biases], out=starts[1:])
        found = [bias for bias in biases if bias is not None]
        return starts, np.concatenate([b.ids for b in found]), np.concatenate([b.values for b in found])

    def _prompt_rows(
        self, seqs: list[Sequence], chunks: list[int], seq_starts: I32
    ) -> tuple[I32, I32, I32, I32, list[tuple[OpenRequest, int]], list[tuple[OpenRequest, int]]]:
        """Rows of prompts whose log probabilities or logits are asked for and have not come yet."""
        if not any([seq.request.wants_prompt for seq in seqs]):
            return _NO_ROWS, _NO_IDS, _NO_IDS, _NO_ROWS, [], []
        scored: list[tuple[OpenRequest, int]] = []
        wanted: list[tuple[OpenRequest, int]] = []
        score_rows, score_ids, score_k, logits_rows = [_NO_ROWS], [_NO_IDS], [_NO_IDS], [_NO_ROWS]
        for i, (seq, chunk) in enumerate(zip(seqs, chunks, strict=True)):
            request = seq.request
            if not request.wants_prompt or seq.index or request.num_scored == seq.num_prompt:
                continue
            to_row = int(seq_starts[i]) - seq.num_computed
            first, end = max(seq.num_computed, request.num_scored), min(seq.num_computed + chunk, seq.num_prompt)
            num_top = request.message.sampling.prompt_logprobs
            last = min(end, seq.num_prompt - 1)
            if num_top is not None and last > first:
                score_rows.append(np.arange(first + to_row, last + to_row, dtype=np.int32))
                score_ids.append(seq.tokens[first + 1 : last + 1])
                score_k.append(np.full(last - first, num_top, np.int32))
                scored.append((request, last - first))
            if request.message.return_logits and end > first:
                logits_rows.append(np.arange(first + to_row, end + to_row, dtype=np.int32))
                wanted.append((request, end - first))
        if not scored and not wanted:
            return _NO_ROWS, _NO_IDS, _NO_IDS, _NO_ROWS, scored, wanted
        return (
            np.concatenate(score_rows),
            np.concatenate(score_ids),
            np.concatenate(score_k),
            np.concatenate(logits_rows),
            scored,
            wanted,
        )
