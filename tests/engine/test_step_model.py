"""The step model finds the coefficients that made the times, also with noise, and the rates fade as they say."""

from __future__ import annotations

import random

import pytest

from trivet.engine.step_model import MovingRate, StepModel


def learned(base: float, per_token: float, per_pair: float, *, outliers: float = 0.0) -> StepModel:
    """A model that has seen many decode steps and some with prompts."""
    rng = random.Random(1)
    model = StepModel()
    for i in range(400):
        tokens = rng.randint(100, 500) if i % 10 == 0 else rng.randint(1, 32)
        pairs = tokens * rng.randint(100, 3000)
        seconds = base + per_token * tokens + per_pair * pairs
        model.observe(
            tokens,
            pairs,
            seconds * (rng.uniform(3, 10) if rng.random() < outliers else 1.0),
            num_prefill=tokens if tokens >= 100 else 0,
        )
    return model


@pytest.mark.parametrize("outliers", [0.0, 0.2])
def test_predictions_are_those_of_the_machine(outliers: float) -> None:
    model = learned(0.02, 0.0004, 3e-8, outliers=outliers)
    for tokens, pairs in [(1, 500), (8, 20_000), (300, 300_000), (512, 1_000_000)]:
        want = 0.02 + 0.0004 * tokens + 3e-8 * pairs
        assert model.predict(tokens, pairs) == pytest.approx(want, rel=0.01)


def test_tokens_within_inverts_the_prediction() -> None:
    model = learned(0.02, 0.0004, 3e-7)
    base = model.predict(0, 0)
    for context in (0, 100, 3000):
        fits = model.tokens_within(0.1, context)
        pairs = fits * context + fits * fits // 2
        assert model.predict(fits, pairs) - base == pytest.approx(0.1, rel=0.01)
    assert model.tokens_within(0.0, 0) == model.tokens_within(-1.0, 50) == 0


def test_without_attention_cost_the_inverse_is_a_division() -> None:
    model = StepModel()
    for tokens in (1, 2, 100, 200):
        model.observe(tokens, 0, 0.01 + 0.001 * tokens, num_prefill=tokens - 1)
    assert model.predict(100, 0) == pytest.approx(0.11, rel=1e-3)
    assert model.tokens_within(0.05, 1000) == pytest.approx(50, abs=1)


def test_coefficients_are_never_negative() -> None:
    model = StepModel()
    for tokens in range(20, 200, 10):
        model.observe(tokens, 0, 1.0 / tokens, num_prefill=tokens)  # faster with more work: nonsense
    assert model.predict(10_000, 0) >= model.predict(1, 0) >= 0
    assert model.tokens_within(0.1, 0) > 0


def test_nothing_is_known_before_the_first_prompt() -> None:
    model = StepModel()
    assert not model.is_known and model.predict(100, 0) == 0.0
    assert model.tokens_within(1.0, 0) > 10**6
    model.observe(40, 400, 0.02, num_prefill=0)
    assert not model.is_known and model.predict(40, 400) == pytest.approx(0.02, rel=0.01)
    model.observe(100, 5000, 0.1, num_prefill=100)
    assert model.is_known


def test_a_slower_machine_is_noticed() -> None:
    model = learned(0.02, 0.0004, 3e-8)
    for _ in range(60):
        model.observe(2, 1000, 0.04, num_prefill=0)
        model.observe(200, 100_000, 0.04 + 0.0008 * 200, num_prefill=200)
    assert model.predict(200, 100_000) == pytest.approx(0.2, rel=0.05)


def test_a_moving_rate_forgets() -> None:
    rate = MovingRate(memory_s=10.0)
    assert rate.per_s == 0.0
    for _ in range(1000):
        rate.add(5, 0.1)
    assert rate.per_s == pytest.approx(50.0)
    for _ in range(1000):
        rate.add(1, 0.1)
    assert rate.per_s == pytest.approx(10.0, rel=0.01)
