"""The slow twin of the native sampler: NumPy in float64, sorted where the native code cuts.

    token, margin = draw(logits, temperature=0.7, top_p=0.9, seed=1, position=12)

`margin` is how far the decision was from another one: the distance between the two best keys, or, if nearer, of a
filter's bound from where the mass or probability crossed it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15
_ALL = 2**64 - 1


def _mix64(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _ALL
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _ALL
    return z ^ (z >> 31)


def philox2x32(
    counter_lo: NDArray[np.uint32], counter_hi: int, key: int, rounds: int = 10
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Both output words of Philox2x32 for counters (counter_lo[i], counter_hi) under one key."""
    low, high = counter_lo.astype(np.uint64), np.full(counter_lo.shape, counter_hi, np.uint64)
    for r in range(rounds):
        product = low * np.uint64(0xD256D193)
        round_key = np.uint64((key + r * 0x9E3779B9) & 0xFFFFFFFF)
        low, high = (product >> np.uint64(32)) ^ round_key ^ high, product & np.uint64(0xFFFFFFFF)
    return low.astype(np.uint32), high.astype(np.uint32)


def noise_words(seed: int, sample_idx: int, position: int, vocab: int) -> NDArray[np.uint32]:
    """The 32 random bits of every token of one row, uint32 [V]."""
    h = _mix64((seed + _GOLDEN) & _ALL)
    h = _mix64((h + sample_idx + _GOLDEN) & _ALL)
    h = _mix64((h + position + _GOLDEN) & _ALL)
    words = philox2x32(np.arange((vocab + 1) // 2, dtype=np.uint32), h >> 32, h & 0xFFFFFFFF)
    return np.stack(words, axis=1).reshape(-1)[:vocab]


def gumbel(words: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Standard Gumbel noise, float64."""
    u = (words.astype(np.float64) + 0.5) * 2.0**-32
    noise: NDArray[np.float64] = -np.log(-np.log1p(u - 1.0))
    return noise


def biased(logits: NDArray[np.float32], bias: dict[int, float] | None, mask: NDArray[np.bool_] | None) -> Any:
    """Logits with mask and bias, float32 [V]."""
    x = logits.copy()
    if mask is not None:
        x[~mask] = -np.inf
    for token, value in (bias or {}).items():
        x[token] += np.float32(value)
    return x


def draw(  # one row's whole story
    logits: NDArray[np.float32],
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
    sample_idx: int = 0,
    position: int = 0,
    bias: dict[int, float] | None = None,
    mask: NDArray[np.bool_] | None = None,
) -> tuple[int, float]:
    """(token, margin); token -1 for a row that has none."""
    if not np.all(logits < np.inf):
        return -1, np.inf
    x = biased(logits, bias, mask)
    if not np.all(x < np.inf) or np.all(x == -np.inf):
        return -1, np.inf
    if temperature == 0:
        return int(np.argmax(x)), np.inf
    with np.errstate(over="ignore"):
        y = ((x - x.max()) / np.float32(temperature)).astype(np.float64)
    order = np.lexsort((np.arange(x.size), -x))  # likely first, ties to the lower id
    order = order[: np.count_nonzero(x > -np.inf)]
    margin = np.inf
    if top_k > 0:
        order = order[:top_k]
    if np.float32(top_p) < 1:
        mass = np.cumsum(np.exp(y[order]))
        distance = mass / mass[-1] - float(np.float32(top_p))
        margin = float(np.abs(distance).min())
        order = order[: int(np.searchsorted(distance, 0.0)) + 1]
    if min_p > 0:
        distance = y[order] - np.log(float(np.float32(min_p)))
        if min_p < 1:  # at 1 the most likely token sits on the bound, exactly
            margin = min(margin, float(np.abs(distance).min()))
        order = order[(distance >= 0) | (order == order[0])]
    keys = y + gumbel(noise_words(seed, sample_idx, position, x.size))
    left = np.sort(order)
    best = left[np.argmax(keys[left])]
    others = keys[left][left != best]
    return int(best), min(margin, float(keys[best] - others.max()) if others.size else np.inf)
