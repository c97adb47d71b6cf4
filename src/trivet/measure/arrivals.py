"""When requests are meant to be sent: gaps of a chance process, run through a rate that may change with time.

A renewal process with gaps of mean 1 is drawn in "operational time", where one unit is one request; the rate's
integral turns it into seconds. So every process can follow every profile, and a constant rate is the simplest one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from trivet.errors import ConfigError

Process = Literal["poisson", "gamma", "weibull", "constant"]
CHUNK = 1024  # gaps drawn at once


def unit_gaps(process: Process, rng: np.random.Generator, *, cv: float = 1.0, shape: float = 1.0) -> Iterator[float]:
    """Gaps between arrivals with a mean of 1, without end: `cv` is for gamma, `shape` for weibull."""
    if process == "constant":
        while True:
            yield 1.0
    if process == "gamma" and not cv > 0:
        raise ConfigError(f"`cv` is {cv:g}, but it must be above 0", hint="`--arrivals constant` has no variation")
    while True:
        if process == "poisson":
            drawn = rng.exponential(1.0, CHUNK)
        elif process == "gamma":
            drawn = rng.gamma(cv**-2, cv**2, CHUNK)
        else:
            drawn = rng.weibull(shape, CHUNK) / math.gamma(1 + 1 / shape)
        yield from drawn.tolist()


@dataclass(frozen=True, slots=True, kw_only=True)
class RateProfile:
    """Requests a second as straight lines between points (seconds, rate); after the last point it stays as it is."""

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        for at_s, rate in self.points:
            if not (rate >= 0 and math.isfinite(rate)):
                raise ConfigError(f"the rate is {rate:g} requests/s at {at_s:g} s, but it must be 0 or more")
        if not self.points[-1][1] > 0:
            raise ConfigError("the rate is 0 requests/s at the end, but it must be above 0")

    def rate_at(self, time_s: float) -> float:
        """Requests a second at `time_s`; at a jump, the rate after it."""
        for (begin_s, low), (end_s, high) in zip(self.points, self.points[1:], strict=False):
            if begin_s <= time_s < end_s:
                return low + (high - low) * (time_s - begin_s) / (end_s - begin_s)
        return self.points[-1][1] if time_s >= self.points[-1][0] else self.points[0][1]

    @property
    def peak(self) -> float:
        """The highest rate."""
        return max(rate for _, rate in self.points)

    def times(self, gaps: Iterator[float]) -> Iterator[float]:
        """Seconds of each arrival, ascending: where the rate's integral reaches the sum of the gaps."""
        segments = zip(self.points, self.points[1:], strict=False)
        (begin_s, low), (end_s, high) = next(segments, (self.points[-1], (math.inf, self.points[-1][1])))
        before = 0.0  # the integral at begin_s
        target = 0.0
        for gap in gaps:
            target += gap
            while target > before + (area := _area(end_s - begin_s, low, high)):
                before += area
                last = self.points[-1]
                (begin_s, low), (end_s, high) = next(segments, (last, (math.inf, last[1])))
            yield begin_s + _solve(target - before, end_s - begin_s, low, high)


def _area(length_s: float, low: float, high: float) -> float:
    return math.inf if math.isinf(length_s) else length_s * (low + high) / 2


def _solve(area: float, length_s: float, low: float, high: float) -> float:
    """Seconds after which the integral of the line from `low` to `high` is `area`."""
    slope = 0.0 if math.isinf(length_s) else (high - low) / length_s
    if slope == 0.0:
        return area / low
    # low*t + slope*t^2/2 = area, in the form that does not cancel
    return 2 * area / (low + math.sqrt(max(low * low + 2 * slope * area, 0.0)))


def steady(rate: float) -> RateProfile:
    """The same rate all the time."""
    return RateProfile(points=((0.0, rate),))


def ramp(first: float, last: float, over_s: float, *, at_s: float = 0.0) -> RateProfile:
    """A rate that goes in a straight line from `first` at `at_s` to `last` within `over_s`, and stays there."""
    return RateProfile(points=((0.0, first), (at_s, first), (at_s + over_s, last)))


def spike(rate: float, *, factor: float = 10.0, at_s: float, for_s: float = 60.0) -> RateProfile:
    """`rate`, but `factor` times as much for `for_s` seconds from `at_s` on."""
    high, end_s = rate * factor, at_s + for_s
    return RateProfile(points=((0.0, rate), (at_s, rate), (at_s, high), (end_s, high), (end_s, rate)))
