"""`StepModel`: how long a step will take, learned from those that ran. Only chunk sizes depend on it, never results.

    step_s = a + b * tokens + c * pairs        pairs = sum over new tokens of the tokens they attend to

`a` is reading the weights, `b` the products, `c` attention. The last steps with and without prompt tokens are kept
apart, so that a long stretch of pure decoding does not make the model forget what a prompt costs.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_KEPT = 48  # samples of each kind
_REFIT = 16  # new samples before the next fit
_MANY = 16  # prompt tokens from which on a step tells what prompts cost
_SCALES = np.array([1.0, 64.0, 65536.0])  # one unit of each feature, so that the fit is well conditioned


class StepModel:
    """A robust least-squares fit with coefficients that are never negative."""

    def __init__(self) -> None:
        self._samples = np.zeros((2, _KEPT, 4))  # [no prompt or some, sample, (1, tokens, pairs, seconds)]
        self._num_seen = [0, 0]
        self._num_new = 0
        self._base = self._per_token = self._per_pair = 0.0

    @property
    def is_known(self) -> bool:
        """False until a prompt has been computed: before that, what one costs cannot be told."""
        return self._num_seen[1] > 0

    def observe(self, tokens: int, pairs: int, seconds: float, *, num_prefill: int) -> None:
        """A step of `tokens` new tokens, of them `num_prefill` of prompts, and `pairs` took `seconds`."""
        kind = int(num_prefill >= _MANY)
        row = self._samples[kind, self._num_seen[kind] % _KEPT]
        row[0], row[1], row[2], row[3] = 1.0, tokens, pairs, seconds
        self._num_seen[kind] += 1
        self._num_new += 1

    def predict(self, tokens: int, pairs: int) -> float:
        """Seconds that a step with so much work will take."""
        if self._num_new >= min(_REFIT, 1 + sum(self._num_seen) // 4):
            self._fit()
        return self._base + self.cost(tokens, pairs)

    def cost(self, tokens: int, pairs: int) -> float:
        """Seconds by which so much more work makes a step longer."""
        return self._per_token * tokens + self._per_pair * pairs

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
        rows = np.concatenate([self._samples[kind, : min(seen, _KEPT)] for kind, seen in enumerate(self._num_seen)])
        features, seconds = rows[:, :3] / _SCALES, rows[:, 3]
        found = np.array([self._base, self._per_token, self._per_pair]) * _SCALES
        # Steps that something else disturbed get less weight: those far from the last fit, or, at first, from this one.
        for _ in range(1 if found.any() else 5):
            off = np.abs(seconds - features @ found)
            usual = float(np.sort(off)[len(off) // 2])
            found = _nonnegative_fit(features, seconds, 1.0 / (1.0 + np.square(off / (2.0 * usual + 1e-9))))
        self._base, self._per_token, self._per_pair = (found / _SCALES).tolist()


def _nonnegative_fit(
    features: NDArray[np.float64], seconds: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Coefficients [3] >= 0 of a weighted least squares; a negative one is set to 0 and the others fitted again."""
    weighted = features * weights[:, None]
    normal, right = weighted.T @ features, weighted.T @ seconds
    normal.flat[::4] += 1e-6 * max(float(normal.flat[::4].sum()), 1e-12)
    active = [0, 1, 2]
    while active:
        if len(active) == 3:
            solved = np.linalg.solve(normal, right)
        else:
            solved = np.linalg.solve(normal[np.ix_(active, active)], right[active])
        if solved.min() >= 0:
            found = np.zeros(3)
            found[active] = solved
            return found
        active.pop(int(solved.argmin()))
    return np.zeros(3)


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
