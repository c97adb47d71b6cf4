"""`RowBias`: everything that is added to one sequence's logits before sampling, as one sparse list.

logit_bias, presence and frequency penalties and "no stop before min_tokens" are all bias: b[id] for few ids. Penalties
count output tokens only, as OpenAI's do.
"""

from __future__ import annotations

import numpy as np

from trivet.engine.sampling_params import SamplingParams
from trivet.engine.step import F32, I32


class RowBias:
    """The bias entries of one sequence, kept up to date token by token; each id at most once."""

    def __init__(self, sampling: SamplingParams, stop_ids: frozenset[int], vocab_size: int) -> None:
        self._presence = sampling.presence_penalty
        self._frequency = sampling.frequency_penalty
        self._base = sampling.logit_bias
        self._min_tokens = sampling.min_tokens
        self._num_outputs = 0
        self._idx: dict[int, int] = {}
        self._counts: dict[int, int] = {}
        self._ids: I32 = np.empty(16, np.int32)
        self._values: F32 = np.empty(16, np.float32)
        for token_id, value in self._base.items():
            self._set(token_id, value)
        self._forbidden = sorted(i for i in stop_ids if i < vocab_size) if self._min_tokens > 0 else []
        for token_id in self._forbidden:
            self._set(token_id, -np.inf)

    @property
    def ids(self) -> I32:
        return self._ids[: len(self._idx)]

    @property
    def values(self) -> F32:
        return self._values[: len(self._idx)]

    @property
    def is_static(self) -> bool:
        """True if no coming token changes the entries."""
        return not (self._forbidden or self._presence or self._frequency)

    def count(self, token_id: int) -> None:
        """An output token was taken."""
        self._num_outputs += 1
        if self._presence or self._frequency:
            num_seen = self._counts[token_id] = self._counts.get(token_id, 0) + 1
            penalty = self._presence + self._frequency * num_seen
            self._set(token_id, self._base.get(token_id, 0.0) - penalty)
        if self._forbidden and self._num_outputs >= self._min_tokens:
            for stop_id in self._forbidden:
                self._set(stop_id, self._base.get(stop_id, 0.0))
            self._forbidden = []

    def _set(self, token_id: int, value: float) -> None:
        at = self._idx.get(token_id)
        if at is None:
            at = self._idx[token_id] = len(self._idx)
            if at == len(self._ids):
                self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
                self._values = np.concatenate([self._values, np.empty_like(self._values)])
            self._ids[at] = token_id
        self._values[at] = value


def row_bias(sampling: SamplingParams, stop_ids: frozenset[int], vocab_size: int) -> RowBias | None:
    """The bias of a new sequence, None if it will never have any."""
    wanted = sampling.logit_bias or sampling.presence_penalty or sampling.frequency_penalty
    return RowBias(sampling, stop_ids, vocab_size) if wanted or (sampling.min_tokens and stop_ids) else None


def allowed_mask(token_ids: tuple[int, ...], vocab_size: int) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    """uint32 [ceil(vocab_size / 32)], bit (id & 31) of word (id >> 5) is set for each of `token_ids`."""
    bits = np.zeros((vocab_size + 31) // 32 * 32, np.uint8)
    bits[list(token_ids)] = 1
    return np.packbits(bits, bitorder="little").view(np.dtype("<u4")).astype(np.uint32)
