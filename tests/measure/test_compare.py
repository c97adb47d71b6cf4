"""Comparisons of runs that are drawn: equal ones, different ones, and rounds that drift."""

from __future__ import annotations

import math

import numpy as np
import pytest
from requests_made import exchange, requests

from trivet.measure.compare import Ratio, compare, order_of_rounds
from trivet.measure.outcomes import Outcome
from trivet.measure.results import Requests

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
    assert len(verdicts) == 8 * 9
    assert sum(verdict != "no difference" for verdict in verdicts) <= 3, verdicts


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


def test_a_target_that_answers_nothing_is_not_compared() -> None:
    rng = np.random.default_rng(0)
    dead = requests([exchange(i, i * 0.1, 0.1, outcome=Outcome.connect) for i in range(NUM)])
    found = compare([run(rng, 1.0)], [dead], rng)
    assert {ratio.verdict for ratio in found} == {"not known"}
    assert all(math.isnan(ratio.ratio) for ratio in found)


def test_rounds_go_there_and_back() -> None:
    assert order_of_rounds(3, 3) == [[0, 1, 2], [2, 1, 0], [0, 1, 2]]
