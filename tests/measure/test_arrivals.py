"""Arrival processes: their means, their variation, and rates that change."""

from __future__ import annotations

from itertools import islice, takewhile

import numpy as np
import pytest

from trivet.errors import ConfigError
from trivet.measure.arrivals import Process, RateProfile, ramp, spike, steady, unit_gaps

NUM = 50_000


def gaps(process: Process, **kwargs: float) -> np.ndarray:  # type: ignore[type-arg]
    return np.array(list(islice(unit_gaps(process, np.random.default_rng(1), **kwargs), NUM)))


@pytest.mark.parametrize(
    ("process", "kwargs", "cv"),
    [
        ("poisson", {}, 1.0), ("constant", {}, 0.0), ("gamma", {"cv": 2.0}, 2.0), ("gamma", {"cv": 0.5}, 0.5),
        ("weibull", {"shape": 1.0}, 1.0), ("weibull", {"shape": 2.0}, 0.5227),
    ],
)  # fmt: skip
def test_gaps_have_a_mean_of_one_and_the_variation_asked_for(
    process: Process, kwargs: dict[str, float], cv: float
) -> None:
    drawn = gaps(process, **kwargs)
    deviation = max(cv, 1e-9)
    assert drawn.mean() == pytest.approx(1, abs=5 * deviation / NUM**0.5)
    assert drawn.std() == pytest.approx(cv, rel=0.05, abs=1e-9)


def test_poisson_counts_vary_as_their_mean() -> None:
    times = np.array(list(islice(steady(20.0).times(unit_gaps("poisson", np.random.default_rng(2))), NUM)))
    counts = np.bincount(times.astype(int))[:-1]
    assert counts.mean() == pytest.approx(20, rel=0.05)
    assert counts.var() / counts.mean() == pytest.approx(1, rel=0.1)  # index of dispersion of a Poisson process


def test_constant_arrivals_are_exact() -> None:
    times = list(islice(steady(4.0).times(unit_gaps("constant", np.random.default_rng(0))), 4))
    assert times == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_a_ramp_follows_its_integral() -> None:
    """From 0 to 10/s in 10 s, then 10/s: after t seconds t^2/2 requests have come."""
    times = list(islice(ramp(1e-9, 10.0, 10.0).times(unit_gaps("constant", np.random.default_rng(0))), 150))
    assert times[17] == pytest.approx(6.0, rel=1e-6)  # 18 = 6^2 / 2
    assert times[49] == pytest.approx(10.0, rel=1e-6)
    assert np.diff(times[50:]) == pytest.approx(np.full(99, 0.1))


def test_a_ramp_goes_down_as_well() -> None:
    times = list(islice(ramp(10.0, 2.0, 10.0).times(unit_gaps("constant", np.random.default_rng(0))), 80))
    assert times[59] == pytest.approx(10.0)
    assert times[69] == pytest.approx(15.0)


def test_a_spike_is_ten_times_the_rate_for_a_minute() -> None:
    profile = spike(2.0, at_s=30.0)
    counted = np.array(
        list(takewhile(lambda t: t < 150, profile.times(unit_gaps("constant", np.random.default_rng(0)))))
    )
    assert [int(((counted >= a) & (counted < b)).sum()) for a, b in ((0, 30), (30, 90), (90, 150))] == pytest.approx(
        [60, 1200, 120], abs=1
    )
    assert (profile.rate_at(29.9), profile.rate_at(30.0), profile.rate_at(89.9), profile.rate_at(90.0)) == (
        2,
        20,
        20,
        2,
    )


def test_bursts_follow_a_spike_too() -> None:
    times = spike(5.0, factor=4.0, at_s=50.0, for_s=50.0).times(unit_gaps("gamma", np.random.default_rng(3), cv=2.0))
    counted = np.array(list(takewhile(lambda t: t < 100, times)))
    ratio = (counted >= 50).sum() / (counted < 50).sum()
    assert ratio == pytest.approx(4, rel=0.4)


def test_the_same_seed_gives_the_same_times() -> None:
    def times(seed: int) -> list[float]:
        return list(islice(steady(3.0).times(unit_gaps("poisson", np.random.default_rng(seed))), 100))

    assert times(5) == times(5) != times(6)


@pytest.mark.parametrize(
    ("points", "said"),
    [
        (((0.0, -1.0),), "the rate is -1 requests/s at 0 s, but it must be 0 or more"),
        (((0.0, float("nan")),), "the rate is nan"),
        (((0.0, 1.0), (5.0, 0.0)), "the rate is 0 requests/s at the end"),
    ],
)
def test_a_rate_that_cannot_be(points: tuple[tuple[float, float], ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RateProfile(points=points)


def test_a_variation_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="`cv` is 0, but it must be above 0"):
        next(unit_gaps("gamma", np.random.default_rng(0), cv=0.0))
