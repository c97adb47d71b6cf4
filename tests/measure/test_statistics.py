"""Quantiles, intervals and shares against closed forms and against their own promise: 95 of 100 hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trivet.measure.statistics import (
    NOTHING,
    Z,
    estimate_quantiles,
    num_resamples,
    share,
    t_quantile,
    weighted_quantiles,
)


def test_a_quantile_is_the_smallest_value_that_the_share_does_not_exceed() -> None:
    values = np.arange(1.0, 101.0)
    assert list(weighted_quantiles(values, np.ones(100), (0.5, 0.9, 0.95, 0.99, 1.0))) == [50, 90, 95, 99, 100]
    assert list(weighted_quantiles(np.array([1.0, 2.0]), np.array([99, 1]), (0.5, 0.99, 0.995))) == [1, 1, 2]


def test_weights_are_repetitions() -> None:
    rng = np.random.default_rng(0)
    values, times = np.sort(rng.normal(size=50)), rng.integers(0, 5, 50)
    qs = (0.1, 0.5, 0.9, 0.99)
    repeated = np.repeat(values, times)
    assert list(weighted_quantiles(values, times, qs)) == list(weighted_quantiles(repeated, np.ones(len(repeated)), qs))


def test_the_interval_of_a_median_is_that_of_order_statistics() -> None:
    """The median of n values lies between the order statistics n/2 -+ z sqrt(n)/2, whatever their distribution."""
    n = 2000
    values = np.sort(np.random.default_rng(1).exponential(size=n))
    [estimate] = estimate_quantiles(values, [0.5], np.random.default_rng(2))
    low, high = (values[round(n / 2 + sign * Z * math.sqrt(n) / 2)] for sign in (-1, 1))
    assert estimate.low == pytest.approx(low, rel=0.02)
    assert estimate.high == pytest.approx(high, rel=0.02)
    assert estimate.low < estimate.value < estimate.high


def test_about_95_of_100_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(3)
    truth = math.log(2)  # the median of the exponential distribution
    found = [estimate_quantiles(rng.exponential(size=60), [0.5], rng)[0] for _ in range(100)]
    assert 88 <= sum(e.low <= truth <= e.high for e in found) <= 100


def test_values_of_one_request_are_drawn_together() -> None:
    """100 requests of 50 equal gaps are 100 values, not 5000: the interval is as wide as of 100."""
    rng = np.random.default_rng(4)
    each = rng.normal(10, 1, 100)
    gaps, owners = np.repeat(each, 50), np.repeat(np.arange(100), 50)
    [together] = estimate_quantiles(gaps, [0.5], np.random.default_rng(5), owners=owners)
    [alone] = estimate_quantiles(each, [0.5], np.random.default_rng(5))
    [naive] = estimate_quantiles(gaps, [0.5], np.random.default_rng(5))
    assert together.high - together.low == pytest.approx(alone.high - alone.low, rel=0.2)
    assert naive.high - naive.low < 0.5 * (together.high - together.low)


def test_nothing_gives_nothing() -> None:
    assert estimate_quantiles(np.zeros(0), [0.5, 0.9], np.random.default_rng(0)) == [NOTHING, NOTHING]
    assert share(0, 0) is NOTHING


def test_many_values_are_resampled_less_often() -> None:
    assert [num_resamples(n) for n in (0, 100, 40_000, 10**7)] == [1000, 1000, 500, 100]


@pytest.mark.parametrize(
    ("met", "total", "low", "high"),
    [(10, 10, 0.7225, 1.0), (0, 10, 0.0, 0.2775), (50, 100, 0.4038, 0.5962), (90, 100, 0.8256, 0.9448)],
)
def test_wilson(met: int, total: int, low: float, high: float) -> None:
    """Against published values of Wilson's score interval."""
    found = share(met, total)
    assert (found.value, found.low, found.high) == pytest.approx((met / total, low, high), abs=1e-4)


def test_t_quantiles() -> None:
    assert t_quantile(1) == pytest.approx(math.tan(math.pi * 0.475), rel=1e-3)  # one degree is the Cauchy distribution
    assert t_quantile(2) == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)), rel=1e-3)
    assert t_quantile(0) == math.inf and t_quantile(1000) == Z
    assert [t_quantile(n) for n in range(1, 40)] == sorted((t_quantile(n) for n in range(1, 40)), reverse=True)
