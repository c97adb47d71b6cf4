"""Quantiles and shares with the intervals that chance alone would give them.

What is drawn again by the bootstrap is whole requests: the gaps inside one answer are not independent of each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
Z = 1.959963984540054  # of the normal distribution at that confidence
RESAMPLED_ITEMS = 2e7  # bounds the time: at most 1000 resamples, fewer of many items, at least 100

# Student's t at 97.5 %, by degrees of freedom from 1; from the last on, the normal distribution is near enough.
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure with its 95 % interval; NaN where there is nothing to take it from."""

    value: float
    low: float
    high: float


NOTHING = Estimate(value=math.nan, low=math.nan, high=math.nan)


def weighted_quantiles(ordered: Floats, weights: NDArray[Any], qs: Sequence[float]) -> Floats:
    """For each q, the smallest of the ordered values that a share q of the weight does not exceed."""
    total = np.cumsum(weights)
    # the small step down keeps 0.95 * 100 from being 95.00000000000001
    found = np.searchsorted(total, np.asarray(qs) * total[-1] * (1 - 1e-12), side="left")
    return np.asarray(ordered[np.minimum(found, len(ordered) - 1)])


def estimate_quantiles(
    values: Floats,
    qs: Sequence[float],
    rng: np.random.Generator,
    *,
    owners: NDArray[Any] | None = None,
    weights: NDArray[Any] | None = None,
) -> list[Estimate]:
    """Each quantile of the values with its bootstrap interval; `owners` says which request each value is of."""
    if not len(values):
        return [NOTHING] * len(qs)
    owners = np.arange(len(values)) if owners is None else owners
    weights = np.ones(len(values)) if weights is None else weights
    order = np.argsort(values, kind="stable")
    ordered, owners, weights = values[order], owners[order], weights[order]
    num = int(owners.max()) + 1
    point = weighted_quantiles(ordered, weights, qs)
    drawn = []
    for _ in range(num_resamples(len(values))):
        times = np.bincount(rng.integers(0, num, num), minlength=num)
        drawn_weights = weights * times[owners]
        if drawn_weights.any():
            drawn.append(weighted_quantiles(ordered, drawn_weights, qs))
    low, high = np.quantile(np.array(drawn), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return [Estimate(value=float(v), low=float(a), high=float(b)) for v, a, b in zip(point, low, high, strict=True)]


def num_resamples(num_values: int) -> int:
    """How often to draw again: 100 to 1000 times."""
    return int(min(1000, max(100, RESAMPLED_ITEMS // max(1, num_values))))


def share(met: int, total: int) -> Estimate:
    """met/total with Wilson's interval, which holds for few requests and near 0 and 1."""
    if total == 0:
        return NOTHING
    p = met / total
    scale = 1 / (1 + Z**2 / total)
    centre = scale * (p + Z**2 / (2 * total))
    half = scale * Z * math.sqrt(p * (1 - p) / total + Z**2 / (4 * total**2))
    return Estimate(value=p, low=max(0.0, centre - half), high=min(1.0, centre + half))


def t_quantile(degrees: int) -> float:
    """Student's t at 97.5 %; infinite without a degree of freedom."""
    if degrees < 1:
        return math.inf
    return T_975[degrees - 1] if degrees <= len(T_975) else Z
