"""Targets against each other: the same load on each in turn, round after round, and ratios with intervals.

Rounds pair the targets: what a round does to one (another tenant of the machine, a hot CPU) it does to the others.
The bootstrap draws rounds, then requests inside a round, the same for both; with few rounds its intervals are too
narrow, which is corrected with Student's t and the lost degree of freedom. "No difference" is said where the interval
holds 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trivet.measure.metrics import inter_token_latencies
from trivet.measure.results import Requests
from trivet.measure.slo import e2e_s, tpot_s, ttft_s
from trivet.measure.statistics import Z, t_quantile, weighted_quantiles

RESAMPLES = 500
RANKS = (0.5, 0.95)

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A figure of B over the same figure of A, with a 95 % interval."""

    name: str  # such as `ttft p50`
    a: float
    b: float
    ratio: float
    low: float
    high: float

    @property
    def differs(self) -> bool:
        """Whether the interval leaves 1 out."""
        return not self.low <= 1 <= self.high

    @property
    def verdict(self) -> str:
        """`no difference`, or how much more or less it is."""
        if math.isnan(self.ratio):
            return "not known"
        if not self.differs:
            return "no difference"
        return f"{abs(self.ratio - 1):.1%} {'higher' if self.ratio > 1 else 'lower'}"


def order_of_rounds(num_targets: int, num_rounds: int) -> list[list[int]]:
    """Which target comes when: forwards, then backwards, so that a steady drift favours none."""
    forwards = list(range(num_targets))
    return [forwards if i % 2 == 0 else forwards[::-1] for i in range(num_rounds)]


def compare(a: Sequence[Requests], b: Sequence[Requests], rng: np.random.Generator) -> list[Ratio]:
    """The ratios of B to A, from the counted requests of each round."""
    kinds: list[tuple[str, Callable[[Requests], list[Floats]]]] = [
        ("ttft", lambda r: _each(r, ttft_s(r))),
        ("itl", _gaps),
        ("tpot", lambda r: _each(r, tpot_s(r))),
        ("e2e", lambda r: _each(r, e2e_s(r))),
    ]
    found = []
    for name, values in kinds:
        pairs = [_paired(values(x), values(y)) for x, y in zip(a, b, strict=True)]
        found += [_ratio(f"{name} p{100 * q:.0f}", [p for p in pairs if p[0]], q, rng) for q in RANKS]
    return [*found, _answered(a, b)]


def _each(requests: Requests, values: Floats) -> list[Floats]:
    """The values of each request: one, or none if it failed."""
    good = requests.is_ok & ~np.isnan(values)
    return [values[i : i + 1] if good[i] else np.zeros(0) for i in range(len(requests))]


def _gaps(requests: Requests) -> list[Floats]:
    """The inter-token latencies of each request; those of 0, inside a read, too."""
    values, weights, owners = inter_token_latencies(requests)
    keep = requests.is_ok[owners] if len(owners) else np.zeros(0, bool)
    values, owners = (
        np.repeat(values[keep], weights[keep].astype(int)),
        np.repeat(owners[keep], weights[keep].astype(int)),
    )
    order = np.argsort(owners, kind="stable")
    return np.split(values[order], np.searchsorted(owners[order], np.arange(1, len(requests))))


def _paired(a: list[Floats], b: list[Floats]) -> tuple[list[Floats], list[Floats]]:
    """Only what both rounds have: one may have been stopped early."""
    num = min(len(a), len(b))
    return a[:num], b[:num]


def _ratio(name: str, rounds: list[tuple[list[Floats], list[Floats]]], q: float, rng: np.random.Generator) -> Ratio:
    sides = [[_Side(values) for values in pair] for pair in rounds]
    everything = [np.ones(len(pair[0]), np.int64) for pair in rounds]
    a, b = (_pooled([pair[side] for pair in sides], everything, q) for side in (0, 1))
    point = math.log(b / a) if a > 0 and b > 0 else math.nan
    drawn = []
    for _ in range(RESAMPLES):
        chosen = rng.integers(0, max(1, len(rounds)), len(rounds)).tolist()
        times = [np.bincount(rng.integers(0, n, n), minlength=n) for n in (len(rounds[i][0]) for i in chosen)]
        x, y = (_pooled([sides[i][side] for i in chosen], times, q) for side in (0, 1))
        if x > 0 and y > 0:
            drawn.append(math.log(y / x))
    if math.isnan(point) or not drawn:
        return Ratio(name=name, a=a, b=b, ratio=math.nan, low=math.nan, high=math.nan)
    low, high = np.quantile(drawn, [0.025, 0.975])
    wider = _correction(len(rounds))
    return Ratio(
        name=name, a=a, b=b, ratio=math.exp(point),
        low=math.exp(point - (point - float(low)) * wider), high=math.exp(point + (float(high) - point) * wider),
    )  # fmt: skip


class _Side:
    """One target's values in one round, sorted once."""

    def __init__(self, values: list[Floats]) -> None:
        flat = np.concatenate(values) if values else np.zeros(0)
        owners = np.repeat(np.arange(len(values)), [len(v) for v in values])
        order = np.argsort(flat, kind="stable")
        self.ordered, self.owners = flat[order], owners[order]


def _pooled(sides: Sequence[_Side], times: Sequence[NDArray[np.int64]], q: float) -> float:
    """The quantile over all rounds, each request counted as often as `times` says."""
    values = np.concatenate([side.ordered for side in sides]) if sides else np.zeros(0)
    weights = np.concatenate([t[side.owners] for side, t in zip(sides, times, strict=True)]) if sides else values
    if not weights.any():
        return math.nan
    order = np.argsort(values, kind="stable")
    return float(weighted_quantiles(values[order], weights[order], [q])[0])


def _correction(num_rounds: int) -> float:
    """By how much an interval from so few rounds is too narrow; of one round only its requests are drawn."""
    if num_rounds < 2:
        return 1.0
    return t_quantile(num_rounds - 1) / Z * math.sqrt(num_rounds / (num_rounds - 1))


def _answered(a: Sequence[Requests], b: Sequence[Requests]) -> Ratio:
    """The share of requests that were answered, with the interval of a ratio of two independent shares."""
    counts = [(int(sum(r.is_ok.sum() for r in side)), sum(len(r) for r in side)) for side in (a, b)]
    (ok_a, num_a), (ok_b, num_b) = counts
    if not (ok_a and ok_b):
        return Ratio(name="answered", a=ok_a / max(1, num_a), b=ok_b / max(1, num_b), ratio=math.nan, low=math.nan,
                     high=math.nan)  # fmt: skip
    ratio = (ok_b / num_b) / (ok_a / num_a)
    deviation = math.sqrt(max(0.0, 1 / ok_a - 1 / num_a + 1 / ok_b - 1 / num_b))
    return Ratio(
        name="answered", a=ok_a / num_a, b=ok_b / num_b, ratio=ratio,
        low=ratio * math.exp(-Z * deviation), high=ratio * math.exp(Z * deviation),
    )  # fmt: skip
