"""Targets against each other: the same load on each in turn, round after round, and ratios with intervals.

Rounds pair the targets: what a round does to one (another tenant of the machine, a hot CPU) it does to the others.
The bootstrap draws rounds, the same for both, then requests inside a round: the same for both where they had as many,
else (the faster has more in a closed loop) those of each by themselves. With few rounds its intervals are too narrow,
which is corrected with Student's t and the lost degree of freedom. Throughput, attainment and goodput are one
number a round, and so are compared round by round. "No difference" is said where the interval holds 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trivet.measure.metrics import Figures, inter_token_latencies
from trivet.measure.results import Requests
from trivet.measure.slo import e2e_s, tpot_s, ttft_s
from trivet.measure.statistics import Z, num_resamples, share, t_quantile, weighted_quantiles

RANKS = (0.5, 0.95, 0.99)

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A figure of B over the same figure of A, with a 95 % interval."""

    name: str  # such as `ttft p50`
    kind: Literal["time", "share", "rate"] = "time"
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
        """`no difference`, how much more or less it is, or which of the two alone has any."""
        if math.isnan(self.ratio):
            return "not known"
        if not self.differs:
            return "no difference"
        if self.ratio == 0 or math.isinf(self.ratio):
            return "only B" if self.ratio else "only A"
        return f"{abs(self.ratio - 1):.1%} {'higher' if self.ratio > 1 else 'lower'}"


def order_of_rounds(num_targets: int, num_rounds: int) -> list[list[int]]:
    """Which target comes when: forwards, then backwards, so that a steady drift favours none."""
    forwards = list(range(num_targets))
    return [forwards if i % 2 == 0 else forwards[::-1] for i in range(num_rounds)]


def compare(a: Sequence[Requests], b: Sequence[Requests], rng: np.random.Generator) -> list[Ratio]:
    """The ratios of B's latencies, and of its answers, to A's, from the counted requests of each round."""
    kinds: list[tuple[str, Callable[[Requests], _Values]]] = [
        ("ttft", lambda r: _each(r, ttft_s(r))),
        ("itl", _gaps),
        ("tpot", lambda r: _each(r, tpot_s(r))),
        ("e2e", lambda r: _each(r, e2e_s(r))),
    ]
    nums_a, nums_b = ([len(r) for r in side] for side in (a, b))
    found = []
    for name, values in kinds:
        sides = _Side([values(r) for r in a], nums_a), _Side([values(r) for r in b], nums_b)
        found += _latency_ratios(name, *sides, rng)
    return [*found, _answered(a, b)]


def compare_rates(a: Sequence[Figures], b: Sequence[Figures]) -> list[Ratio]:
    """The ratios of what is one number a round: throughput and, where there are limits, attainment and goodput."""
    kinds: list[tuple[str, Literal["share", "rate"], Callable[[Figures], float | None]]] = [
        ("output tokens/s", "rate", lambda f: f.whole.rate(f.whole.output_tokens)),
        ("requests/s", "rate", lambda f: f.whole.rate(f.whole.requests)),
        ("attainment", "share", lambda f: f.attainment.value if f.attainment else None),
        ("goodput", "rate", lambda f: f.goodput),
    ]
    found = []
    for name, kind, value in kinds:
        pairs = [(x, y) for x, y in zip(map(value, a), map(value, b), strict=True) if x is not None and y is not None]
        if pairs:
            found.append(_ratio_of_means(name, kind, np.array(pairs)))
    return found


def _ratio_of_means(name: str, kind: Literal["share", "rate"], pairs: Floats) -> Ratio:
    """The ratio of the means over rounds, with the interval of paired rounds (the delta method, Student's t)."""
    num = len(pairs)
    a, b = (float(mean) for mean in pairs.mean(axis=0))
    if a == 0 and b == 0:
        return Ratio(name=name, kind=kind, a=a, b=b, ratio=math.nan, low=math.nan, high=math.nan)
    if a == 0:
        low = math.inf if _in_every_round(pairs[:, 1]) else 0.0
        return Ratio(name=name, kind=kind, a=a, b=b, ratio=math.inf, low=low, high=math.inf)
    if b == 0:
        high = 0.0 if _in_every_round(pairs[:, 0]) else math.inf
        return Ratio(name=name, kind=kind, a=a, b=b, ratio=0.0, low=0.0, high=high)
    ratio, half = b / a, math.inf
    if num > 1:
        off = pairs[:, 1] - ratio * pairs[:, 0]
        half = t_quantile(num - 1) * float(off.std(ddof=1)) / math.sqrt(num) / a
    return Ratio(name=name, kind=kind, a=a, b=b, ratio=ratio, low=max(0.0, ratio - half), high=ratio + half)


def _in_every_round(values: Floats) -> bool:
    """Whether more than one round has some: one alone, or some of them, may be luck."""
    return len(values) > 1 and bool((values > 0).all())


_Values = tuple[Floats, NDArray[Any], NDArray[Any]]  # values, how often each, the request that each is of


def _each(requests: Requests, values: Floats) -> _Values:
    """One value for each request, or none if it failed."""
    rows = np.flatnonzero(requests.is_ok & ~np.isnan(values))
    return values[rows], np.ones(len(rows)), rows


def _gaps(requests: Requests) -> _Values:
    """The inter-token latencies of each request; those of 0, inside a read, too."""
    values, weights, owners = inter_token_latencies(requests)
    keep = requests.is_ok[owners] if len(owners) else np.zeros(0, bool)
    return values[keep], weights[keep], owners[keep]


class _Side:
    """One target's values of all rounds, sorted once; requests are numbered through all rounds."""

    def __init__(self, rounds: Sequence[_Values], nums: Sequence[int]) -> None:
        """`nums`: how many requests each round has."""
        self.nums, self.firsts = nums, np.cumsum([0, *nums])
        numbered = [
            (values, weights, owners + first)
            for (values, weights, owners), first in zip(rounds, self.firsts[:-1], strict=True)
        ]
        values, weights, owners = (np.concatenate(parts) for parts in zip(*numbered, strict=True))
        order = np.argsort(values, kind="stable")
        self.ordered, self.weights, self.owners = values[order], weights[order], owners[order]

    def quantiles(self, times: NDArray[Any]) -> Floats:
        """RANKS of the values, each request counted as often as `times` says."""
        weights = self.weights * times[self.owners] if len(self.owners) else self.weights
        return weighted_quantiles(self.ordered, weights, RANKS) if weights.any() else np.full(len(RANKS), math.nan)


def _latency_ratios(name: str, a: _Side, b: _Side, rng: np.random.Generator) -> list[Ratio]:
    """RANKS of one kind of latency; rounds are drawn for both sides, then requests inside each."""
    num_rounds = len(a.nums)
    points = [side.quantiles(np.ones(side.firsts[-1])) for side in (a, b)]
    drawn = []
    for _ in range(num_resamples(len(a.ordered) + len(b.ordered))):
        times_a, times_b = np.zeros(a.firsts[-1]), np.zeros(b.firsts[-1])
        for i in rng.integers(0, num_rounds, num_rounds).tolist():
            times = _drawn_times(a.nums[i], rng)
            times_a[a.firsts[i] : a.firsts[i + 1]] += times
            times_b[b.firsts[i] : b.firsts[i + 1]] += times if a.nums[i] == b.nums[i] else _drawn_times(b.nums[i], rng)
        drawn.append([a.quantiles(times_a), b.quantiles(times_b)])
    wider = _correction(num_rounds)
    return [
        _interval(f"{name} p{100 * q:.0f}", float(points[0][i]), float(points[1][i]), np.array(drawn)[:, :, i], wider)
        for i, q in enumerate(RANKS)
    ]


def _drawn_times(num: int, rng: np.random.Generator) -> NDArray[Any]:
    """How often each of so many requests is drawn."""
    return np.bincount(rng.integers(0, max(1, num), num), minlength=num)


def _interval(name: str, a: float, b: float, drawn: Floats, wider: float) -> Ratio:
    """The ratio of B to A; `drawn` has (A, B) of each resample."""
    drawn = drawn[(drawn > 0).all(axis=1)]
    if not (a > 0 and b > 0 and len(drawn)):
        return Ratio(name=name, a=a, b=b, ratio=math.nan, low=math.nan, high=math.nan)
    point = math.log(b / a)
    low, high = np.quantile(np.log(drawn[:, 1] / drawn[:, 0]), [0.025, 0.975]).tolist()
    return Ratio(
        name=name, a=a, b=b, ratio=b / a,
        low=math.exp(point - (point - low) * wider), high=math.exp(point + (high - point) * wider),
    )  # fmt: skip


def _correction(num_rounds: int) -> float:
    """By how much an interval from so few rounds is too narrow; of one round only its requests are drawn."""
    if num_rounds < 2:
        return 1.0
    return t_quantile(num_rounds - 1) / Z * math.sqrt(num_rounds / (num_rounds - 1))


def _answered(a: Sequence[Requests], b: Sequence[Requests]) -> Ratio:
    """The share of requests that were answered, with the interval of a ratio of two independent shares."""
    (ok_a, num_a), (ok_b, num_b) = ((int(sum(r.is_ok.sum() for r in side)), sum(map(len, side))) for side in (a, b))
    share_a, share_b = share(ok_a, num_a), share(ok_b, num_b)
    if ok_a and ok_b:
        ratio = share_b.value / share_a.value
        wider = math.exp(Z * math.sqrt(max(0.0, 1 / ok_a - 1 / num_a + 1 / ok_b - 1 / num_b)))
        low, high = ratio / wider, ratio * wider
    elif ok_a:  # the ratio is 0, and so has no logarithm: from the ends of both intervals
        ratio, low, high = 0.0, 0.0, share_b.high / share_a.low
    elif ok_b:
        ratio, low, high = math.inf, share_b.low / share_a.high, math.inf
    else:
        ratio = low = high = math.nan
    return Ratio(name="answered", kind="share", a=share_a.value, b=share_b.value, ratio=ratio, low=low, high=high)
