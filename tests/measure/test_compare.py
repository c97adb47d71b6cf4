"""Comparisons of runs that are drawn: equal ones, different ones, and rounds that drift."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest
from requests_made import exchange, requests

from trivet.measure.compare import Ratio, compare, compare_rates, order_of_rounds
from trivet.measure.metrics import Figures, figures_of
from trivet.measure.outcomes import Outcome
from trivet.measure.results import Requests
from trivet.measure.slo import Slo

ROUNDS, NUM = 5, 30


def run(rng: np.random.Generator, level: float, factor: float = 1.0) -> Requests:
    """A round at a level of its own, `factor` times as slow."""
    return requests([
        exchange(i, i * 0.1, level * factor * rng.gamma(4, 0.025), (level * factor * rng.gamma(9, 0.002, 8)).tolist())
        for i in range(NUM)
    ])  # fmt: skip


def rounds(seed: int, factor: float) -> list[Ratio]:
    """What a comparison says where each round has its own weather, the same for both."""
    rng = np.random.default_rng(seed)
    levels = rng.uniform(0.7, 1.5, ROUNDS)
    a, b = ([run(rng, level, f) for level in levels] for f in (1.0, factor))
    return compare(a, b, rng)


def test_equal_targets_make_no_difference() -> None:
    """At 95 % about one figure in twenty may say otherwise; the correction for few rounds makes it fewer."""
    verdicts = [ratio.verdict for seed in range(8) for ratio in rounds(seed, 1.0)]
    assert len(verdicts) == 8 * 13
    assert sum(verdict != "no difference" for verdict in verdicts) <= 4, verdicts


def test_a_difference_is_found_under_drift() -> None:
    by_name = {ratio.name: ratio for ratio in rounds(1, 1.5)}
    for name in ("itl p50", "tpot p50", "e2e p50"):
        ratio = by_name[name]
        assert ratio.differs and ratio.low < 1.5 < ratio.high
        assert ratio.ratio == pytest.approx(1.5, rel=0.1)
        assert ratio.verdict.endswith("higher")
    assert by_name["answered"].verdict == "no difference"


def test_a_faster_target_is_lower() -> None:
    by_name = {ratio.name: ratio for ratio in rounds(2, 0.5)}
    assert by_name["tpot p50"].verdict.endswith("lower")


def test_failures_make_a_difference() -> None:
    rng = np.random.default_rng(0)
    a = [run(rng, 1.0) for _ in range(3)]
    b = [
        requests([exchange(i, i * 0.1, 0.1, outcome=Outcome.http_5xx if i % 2 else Outcome.ok) for i in range(NUM)])
        for _ in range(3)
    ]
    answered = {ratio.name: ratio for ratio in compare(a, b, rng)}["answered"]
    assert (answered.a, answered.b) == (1.0, 0.5) and answered.differs


def test_a_target_that_answers_nothing_is_not_compared_in_latency() -> None:
    rng = np.random.default_rng(0)
    dead = requests([exchange(i, i * 0.1, 0.1, outcome=Outcome.connect) for i in range(NUM)])
    for a, b, verdict in ((run(rng, 1.0), dead, "only A"), (dead, run(rng, 1.0), "only B")):
        *latencies, answered = compare([a], [b], rng)
        assert {ratio.verdict for ratio in latencies} == {"not known"}
        assert all(math.isnan(ratio.ratio) for ratio in latencies)
        assert answered.verdict == verdict
    assert {ratio.verdict for ratio in compare([dead], [dead], rng)} == {"not known"}


def figures(rng: np.random.Generator, level: float) -> Figures:
    return figures_of(run(rng, level), 0.0, Slo(limits_s={"e2e": 0.15}))


def test_rates_are_compared_round_by_round() -> None:
    rng = np.random.default_rng(3)
    a, b = ([figures(rng, level) for level in (0.9, 1.0, 1.1)] for _ in range(2))
    by_name = {ratio.name: ratio for ratio in compare_rates(a, b)}
    assert list(by_name) == ["output tokens/s", "requests/s", "attainment", "goodput"]
    assert by_name["output tokens/s"].verdict == "no difference"
    a, b = ([figures(rng, level) for _ in range(3)] for level in (0.5, 5.0))
    slow = {ratio.name: ratio for ratio in compare_rates(a, b)}
    assert slow["attainment"].verdict == slow["goodput"].verdict == "only A"


def test_the_interval_of_a_rate_is_that_of_paired_rounds() -> None:
    """B is always 1.2 times A, whatever the weather: nothing is left to chance. One round says nothing."""

    def at(rate: float) -> Figures:
        return replace(figures_of(requests([]), 0.0, None), goodput=rate)

    levels = (10.0, 17.0, 12.0)
    found = {r.name: r for r in compare_rates([at(x) for x in levels], [at(1.2 * x) for x in levels])}["goodput"]
    assert (found.low, found.ratio, found.high) == pytest.approx((1.2, 1.2, 1.2)) and found.verdict == "20.0% higher"
    alone = {r.name: r for r in compare_rates([at(10.0)], [at(12.0)])}["goodput"]
    assert alone.verdict == "no difference"


def test_a_rate_that_only_one_has() -> None:
    """With one round the interval is everything, whichever of the two has none."""

    def goodput(a: float, b: float, num_rounds: int) -> Ratio:
        sides = ([replace(figures_of(requests([]), 0.0, None), goodput=x)] * num_rounds for x in (a, b))
        return {r.name: r for r in compare_rates(*sides)}["goodput"]

    only_a, only_b = goodput(4.0, 0.0, 3), goodput(0.0, 4.0, 3)
    assert (only_a.low, only_a.ratio, only_a.high, only_a.verdict) == (0.0, 0.0, 0.0, "only A")
    assert (only_b.low, only_b.ratio, only_b.high, only_b.verdict) == (math.inf, math.inf, math.inf, "only B")
    assert goodput(4.0, 0.0, 1).verdict == goodput(0.0, 4.0, 1).verdict == "no difference"
    assert goodput(0.0, 0.0, 3).verdict == "not known"
    lucky = [replace(figures_of(requests([]), 0.0, None), goodput=x) for x in (0.01, 0.0)]
    none = [replace(figures_of(requests([]), 0.0, None), goodput=0.0)] * 2
    for sides in ((lucky, none), (none, lucky)):
        assert {r.name: r for r in compare_rates(*sides)}["goodput"].verdict == "no difference", "one round had any"


def test_requests_that_only_the_faster_target_had_count() -> None:
    """In a closed loop B answers twice as many; its second halves are slow, and are in its quantiles."""
    rng = np.random.default_rng(0)
    a = [requests([exchange(i, i * 0.1, 0.1, [0.01]) for i in range(20)]) for _ in range(3)]
    b = [
        requests([exchange(i, i * 0.1, 0.1 if i < 20 else 0.3, [0.01 if i < 20 else 0.02]) for i in range(50)])
        for _ in range(3)
    ]
    for first, second, swapped in ((a, b, False), (b, a, True)):
        by_name = {ratio.name: ratio for ratio in compare(first, second, rng)}
        for name, times in (("ttft p50", 3.0), ("itl p99", 2.0)):
            ratio = by_name[name]
            assert ratio.ratio == pytest.approx(1 / times if swapped else times)
            assert ratio.low <= ratio.ratio <= ratio.high


def test_a_long_comparison_is_quick() -> None:
    """Values are sorted once, and only their weights are drawn again."""
    rng = np.random.default_rng(0)
    rounds = [
        requests([exchange(i, i * 0.1, 0.1, rng.gamma(9, 0.002, 100).tolist()) for i in range(200)]) for _ in range(5)
    ]
    began_s = time.process_time()
    compare(rounds, rounds, rng)
    assert time.process_time() - began_s < 10


def test_rounds_go_there_and_back() -> None:
    assert order_of_rounds(3, 3) == [[0, 1, 2], [2, 1, 0], [0, 1, 2]]
