"""The search for capacity, against servers that are formulas."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest

from trivet.errors import ConfigError
from trivet.measure.capacity import Capacity, Trial, find_capacity


def search(attained: Callable[[float], float], first_rate: float = 1.0, **kwargs: float) -> Capacity:
    async def measure(rate: float, confirming: bool) -> Trial:
        share = attained(rate)
        return Trial(rate=rate, attainment=share, attainment_late=share, is_confirmation=confirming)

    return asyncio.run(find_capacity(measure, first_rate=first_rate, **kwargs))


@pytest.mark.parametrize("first_rate", [0.01, 1.0, 7.3, 500.0])
def test_it_is_found_from_anywhere(first_rate: float) -> None:
    found = search(lambda rate: 1.0 if rate <= 7.3 else 0.5, first_rate)
    assert found.rate is not None and 7.3 / 1.05 <= found.rate <= 7.3
    assert found.is_bounded and found.because == ""
    assert found.trials[-1].is_confirmation and found.trials[-1].rate == found.rate
    assert len(found.trials) < 30


def test_attainment_that_falls_slowly() -> None:
    found = search(lambda rate: min(1.0, 1.3 - rate / 20), precision=0.02)  # 90 % at 8/s
    assert found.rate == pytest.approx(8, rel=0.02)


def test_a_queue_that_grows_fails_by_its_second_half() -> None:
    assert not Trial(rate=1, attainment=0.92, attainment_late=0.84).passes(0.9)
    assert Trial(rate=1, attainment=0.92, attainment_late=0.91).passes(0.9)


def test_a_simulated_queue() -> None:
    """One server, 0.1 s a request, limit 0.3 s: a deterministic queue that the search drives with real arrivals."""

    def attained(rate: float) -> float:
        arrivals = np.cumsum(np.random.default_rng(int(rate * 1000)).exponential(1 / rate, 4000))
        free = met = 0.0
        for at_s in arrivals:
            free = max(free, at_s) + 0.1
            met += free - at_s <= 0.3
        return met / len(arrivals)

    found = search(attained, precision=0.03)
    assert found.rate is not None
    # M/D/1: the wait is at most 0.2 s for 90 % at a load of about 0.61 (its distribution by Erlang's formula)
    assert 5.3 < found.rate < 6.9


def test_a_confirmation_that_fails_lowers_the_rate() -> None:
    async def measure(rate: float, confirming: bool) -> Trial:
        share = 1.0 if rate <= (9.0 if confirming else 10.0) else 0.0
        return Trial(rate=rate, attainment=share, attainment_late=share, is_confirmation=confirming)

    found = asyncio.run(find_capacity(measure, first_rate=1.0))
    assert found.rate is not None and 9.0 / 1.05 <= found.rate <= 9.0
    assert found.trials[-2].is_confirmation


@pytest.mark.parametrize("holds", [7.0, 1.0, 0.1])
def test_a_confirmation_that_fails_far_below_takes_few_runs(holds: float) -> None:
    async def measure(rate: float, confirming: bool) -> Trial:
        share = 1.0 if rate <= (holds if confirming else 10.0) else 0.0
        return Trial(rate=rate, attainment=share, attainment_late=share, is_confirmation=confirming)

    found = asyncio.run(find_capacity(measure, first_rate=1.0))
    assert found.rate is not None and holds / 1.05 <= found.rate <= holds
    assert sum(trial.is_confirmation for trial in found.trials) <= 14, "5 % a step would take up to 95"


def test_a_rate_that_is_never_confirmed_is_none() -> None:
    async def measure(rate: float, confirming: bool) -> Trial:
        share = 0.0 if confirming else 1.0 if rate <= 10 else 0.0
        return Trial(rate=rate, attainment=share, attainment_late=share, is_confirmation=confirming)

    found = asyncio.run(find_capacity(measure, first_rate=1.0, lowest_rate=0.5))
    assert found.rate is None and found.because == "rates below 0.5 requests/s were not tried"


def test_a_server_that_never_meets_its_limits() -> None:
    found = search(lambda rate: 0.2)
    assert found.rate is None and found.is_bounded


def test_a_server_that_is_never_too_slow() -> None:
    found = search(lambda rate: 1.0)
    assert not found.is_bounded and found.because == "no rate that was tried was too high"
    assert found.rate == 2.0**19


def test_a_client_that_cannot_keep_up_ends_the_search() -> None:
    async def measure(rate: float, confirming: bool) -> Trial:
        share = 1.0 if rate < 100 else 0.1
        return Trial(rate=rate, attainment=share, attainment_late=share, is_valid=rate < 100)

    found = asyncio.run(find_capacity(measure, first_rate=10.0))
    assert (found.rate, found.is_bounded) == (80.0, False)
    assert found.because == "the client could not keep up at 160 requests/s: give it more `--workers`"


def test_a_late_client_does_not_matter_where_the_limits_are_met() -> None:
    async def measure(rate: float, confirming: bool) -> Trial:
        share = 1.0 if rate <= 3 else 0.0
        return Trial(rate=rate, attainment=share, attainment_late=share, is_valid=rate > 3)

    found = asyncio.run(find_capacity(measure, first_rate=1.0))
    assert found.rate is not None and found.is_bounded


def test_a_late_client_matters_where_no_limit_counts_its_lateness() -> None:
    """With a limit on ITL alone, requests that are sent late are a lower rate, which the server meets."""

    async def measure(rate: float, confirming: bool) -> Trial:
        return Trial(rate=rate, attainment=1.0, attainment_late=1.0, is_valid=rate < 100)

    found = asyncio.run(find_capacity(measure, first_rate=10.0, counts_sending=False))
    assert (found.rate, found.is_bounded) == (80.0, False) and "could not keep up at 160" in found.because


def test_an_interrupted_search_keeps_what_it_has() -> None:
    async def measure(rate: float, confirming: bool) -> Trial | None:
        return None if rate > 3 else Trial(rate=rate, attainment=1.0, attainment_late=1.0)

    found = asyncio.run(find_capacity(measure, first_rate=1.0))
    assert (found.rate, found.is_bounded, found.because) == (2.0, False, "the search was interrupted")


@pytest.mark.parametrize("wanted", [0.0, 1.1])
def test_an_attainment_that_cannot_be(wanted: float) -> None:
    with pytest.raises(ConfigError, match="the attainment is"):
        search(lambda rate: 1.0, wanted=wanted)
