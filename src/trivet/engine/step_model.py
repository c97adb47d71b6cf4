"""`StepModel`: how long a step will take, learned from those that ran. Only chunk sizes depend on it, never results.

    step_s = a + b * tokens + c * pairs + d * context

`a` is reading the weights, `b` the products, `c` attention of prompts (pairs: sum over their new tokens of the tokens
they attend to), `d` that of decodes (context: the tokens they attend to), whose keys are read for one token alone. The
last steps with many prompt tokens and those with few or none are kept apart, so that a long stretch of pure decoding
does not make the model forget what a prompt costs, and what is usual for one kind says nothing of the other. The fit is
of shares of a step's own time: the twentieth by which a prompt's step is off would otherwise outweigh whole tokens, and
be taken for a disturbance. Short prompts cannot tell pairs from tokens, so `c` is held small until longer ones say
otherwise.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np
from numpy.typing import NDArray

_KEPT = 48  # samples of each kind
_REFIT = 32  # new samples before the next fit; one of a prompt is enough, since the next chunk hangs on it
_MANY = 16  # prompt tokens from which on a step tells what prompts cost
_ENOUGH = 64  # prompt tokens in all, before what one costs is known: 16 by themselves take as long as 100
_USUAL = (0.01, 0.05)  # shares by which any step may be off without and with a prompt, however alike the others were
_LEAST_PAIR = 1 / 2000  # of what a token more costs: on tiles 1/1,600 (0.6 B, KV int8) and 1/4,600 (1 B)
_USUAL_PAIR = 1 / 300  # of a token's share of a prompt's step
_DOUBT = 0.1  # what a pair that costs so much adds to the squares of what steps are off by
_SCALES = np.array([1.0, 64.0, 65536.0, 4096.0])  # one unit of each feature, so that the fit is well conditioned

_Sample = tuple[float, float, float, float, float]


class StepModel:
    """A robust least-squares fit with coefficients that are never negative."""

    def __init__(self) -> None:
        # of steps with few prompt tokens and with many: (1, tokens, pairs, context, seconds)
        self._samples: tuple[deque[_Sample], deque[_Sample]] = (deque(maxlen=_KEPT), deque(maxlen=_KEPT))
        self._num_seen = 0
        self._num_new = self._num_prefill = 0
        self._base = self._per_token = self._per_pair = self._per_context = 0.0
        self._widest = 0.0  # most pairs a token of the samples

    @property
    def is_known(self) -> bool:
        """False until prompts have been computed: before that, what one costs cannot be told."""
        return self._num_prefill >= _ENOUGH

    def observe(self, tokens: int, pairs: int, context: int, seconds: float, *, num_prefill: int) -> None:
        """A step of `tokens` new tokens, of them `num_prefill` of prompts, `pairs` and `context` took `seconds`."""
        kind = int(num_prefill >= _MANY)
        self._samples[kind].append((1.0, tokens, pairs, context, max(seconds, 1e-6)))
        self._num_seen += 1
        self._num_prefill += num_prefill * kind
        self._num_new += _REFIT if kind else 1

    def predict(self, tokens: int, pairs: int, context: int) -> float:
        """Seconds that a step with so much work will take."""
        if self._num_new >= min(_REFIT, 1 + self._num_seen // 4):
            self._fit()
        return self._base + self.cost(tokens, pairs) + self._per_context * context

    def cost(self, tokens: int, pairs: int) -> float:
        """Seconds by which so much more of a prompt makes a step longer."""
        return self._per_token * tokens + self._per_pair * pairs

    def cautious_cost(self, tokens: int, pairs: int) -> float:
        """The same, with attention at no less than it usually costs until tokens with half as many pairs were seen."""
        least = self._per_token * _LEAST_PAIR if pairs > 2 * self._widest * tokens else 0.0
        return self._per_token * tokens + max(self._per_pair, least) * pairs

    def tokens_within(self, seconds: float, context: int) -> int:
        """Prompt tokens after `context` others that may be added to a step so that it takes `seconds` longer."""
        if seconds <= 0:
            return 0
        # (c / 2) n^2 + (b + c * context) n = seconds, solved so that nothing cancels
        linear = self._per_token + self._per_pair * context
        divisor = linear + math.sqrt(linear * linear + 2 * self._per_pair * seconds)
        return int(min(2 * seconds / max(divisor, 1e-12), 1e9))

    def _fit(self) -> None:
        self._num_new = 0
        kinds = [np.array(samples, np.float64).reshape(-1, 5) for samples in self._samples]
        rows = np.concatenate(kinds)
        features = rows[:, :4] / _SCALES / rows[:, 4:]
        is_prompt = np.arange(len(rows)) >= len(kinds[0])
        doubt = np.zeros(4)
        if len(kinds[1]):
            pace = _median(kinds[1][:, 4] / kinds[1][:, 1])
            self._widest = float((kinds[1][:, 2] / kinds[1][:, 1]).max())
            doubt[2] = _DOUBT / (_USUAL_PAIR * pace * _SCALES[2]) ** 2
        found = np.array([self._base, self._per_token, self._per_pair, self._per_context]) * _SCALES
        # Steps that something else disturbed get less weight: those far from the last fit, or, at first, from this one.
        for _ in range(1 if found.any() else 5):
            off = np.abs(1.0 - features @ found)
            usual = np.where(is_prompt, _usual(off[is_prompt], _USUAL[1]), _usual(off[~is_prompt], _USUAL[0]))
            found = _nonnegative_fit(features, 1.0 / (1.0 + np.square(off / (2.0 * usual))), doubt)
        self._base, self._per_token, self._per_pair, self._per_context = (found / _SCALES).tolist()


def _median(values: NDArray[np.float64]) -> float:
    """Of values that there are; the upper one of two."""
    return float(np.sort(values)[len(values) // 2])


def _usual(off: NDArray[np.float64], least: float) -> float:
    """By what share a step of these is usually off: the median, but not less than `least`."""
    return max(_median(off), least) if len(off) else least


def _nonnegative_fit(
    features: NDArray[np.float64], weights: NDArray[np.float64], doubt: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Coefficients >= 0 of a weighted least squares against 1; a negative one is set to 0 and others fitted again.

    `doubt`: by how much the square of each coefficient adds to the squares of what is off.
    """
    num = features.shape[1]
    weighted = features * weights[:, None]
    normal, right = weighted.T @ features, weighted.sum(0)
    normal.flat[:: num + 1] += doubt + 1e-6 * max(float(normal.flat[:: num + 1].sum()), 1e-12)
    active = list(range(num))
    while active:
        if len(active) == num:
            solved = np.linalg.solve(normal, right)
        else:
            solved = np.linalg.solve(normal[np.ix_(active, active)], right[active])
        if solved.min() >= 0:
            found = np.zeros(num)
            found[active] = solved
            return found
        active.pop(int(solved.argmin()))
    return np.zeros(num)


class MovingRate:
    """Events per second of busy time, where what lies `memory_s` back counts 1/e."""

    def __init__(self, memory_s: float = 10.0) -> None:
        self._memory_s = memory_s
        self._count = 0.0
        self._seconds = 0.0

    def add(self, count: float, seconds: float) -> None:
        """`count` events happened in `seconds`."""
        faded = math.exp(-seconds / self._memory_s)
        self._count = self._count * faded + count
        self._seconds = self._seconds * faded + seconds

    @property
    def per_s(self) -> float:
        """0.0 before anything was measured."""
        return self._count / self._seconds if self._seconds > 0 else 0.0
