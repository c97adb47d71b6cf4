"""The step model finds the coefficients that made the times, also with noise, and the rates fade as they say."""

from __future__ import annotations

import random
from statistics import median

import pytest

from trivet.engine.step_model import MovingRate, StepModel


def learned(
    base: float, per_token: float, per_pair: float, *, per_context: float = 0.0, outliers: float = 0.0
) -> StepModel:
    """A model that has seen many decode steps and some with prompts."""
    rng = random.Random(1)
    model = StepModel()
    for i in range(400):
        tokens = rng.randint(100, 500) if i % 10 == 0 else rng.randint(1, 32)
        pairs = tokens * rng.randint(100, 3000) if tokens >= 100 else 0
        context = rng.randint(0, 30_000)
        seconds = base + per_token * tokens + per_pair * pairs + per_context * context
        model.observe(
            tokens,
            pairs,
            context,
            seconds * (rng.uniform(3, 10) if rng.random() < outliers else 1.0),
            num_prefill=tokens if tokens >= 100 else 0,
        )
    return model


@pytest.mark.parametrize("outliers", [0.0, 0.2])
def test_predictions_are_those_of_the_machine(outliers: float) -> None:
    model = learned(0.02, 0.0004, 3e-8, per_context=2e-6, outliers=outliers)
    for tokens, pairs, context in [(1, 0, 500), (8, 0, 20_000), (300, 300_000, 0), (512, 1_000_000, 4000)]:
        want = 0.02 + 0.0004 * tokens + 3e-8 * pairs + 2e-6 * context
        assert model.predict(tokens, pairs, context) == pytest.approx(want, rel=0.01)


def test_a_prompt_far_from_what_decodes_say_is_no_disturbance() -> None:
    """A token of a decode costs more than one of a prompt, and four steps in five are decodes, which scatter little:
    seconds would make every step with a prompt an outlier."""
    rng = random.Random(2)
    model, errors = StepModel(), []
    for i in range(300):
        seqs = rng.randint(1, 8)
        if i % 5:
            seconds = (0.026 + 0.0012 * seqs + 0.00095 * seqs) * rng.uniform(0.99, 1.01)
            model.observe(seqs, 0, 500 * seqs, seconds, num_prefill=0)
            continue
        tokens = rng.randint(50, 505)
        pairs = tokens * rng.choice([tokens // 2, 500 + tokens // 2])
        seconds = 0.026 + 0.0012 * seqs + 0.00095 * seqs + 0.00027 * tokens + 2e-7 * pairs
        if i >= 100:
            errors.append(model.predict(tokens + seqs, pairs, 500 * seqs) / seconds - 1)
        model.observe(tokens + seqs, pairs, 500 * seqs, seconds * rng.uniform(0.9, 1.1), num_prefill=tokens)
    error = 0.2 / 12**0.5 * (4 / 48) ** 0.5  # of four numbers found from 48 samples that scatter evenly by +-10 %
    assert abs(median(errors)) <= 0.01 and max(map(abs, errors)) <= 3 * error


def test_first_prompts_after_many_equal_decodes_are_no_disturbance() -> None:
    """Decodes that are all exactly as predicted leave no deviation by which a prompt could be usual."""
    model = StepModel()
    for context in range(100, 148):
        model.observe(2, 0, context, 0.021, num_prefill=0)
        model.predict(2, 0, context)
    for tokens in (50, 100, 200, 300):
        model.observe(2 + tokens, 0, 150, 0.021 + 0.0005 * tokens, num_prefill=tokens)
    for _ in range(20):
        model.observe(50, 0, 150, 0.045, num_prefill=48)
        model.predict(50, 0, 150)
    assert model.predict(202, 0, 150) == pytest.approx(0.121, rel=0.02)


def test_the_first_prompts_are_no_disturbances_of_the_decodes_between_them() -> None:
    """Times of a 0.6 B model's first steps. The decodes, all of one token, fit a token that costs 17 ms, too."""
    model = StepModel()
    for tokens, pairs, context, seconds, num_prefill in [
        (3, 6, 0, 0.0657, 3),
        (1, 0, 4, 0.0248, 0),
        (16, 136, 0, 0.0362, 16),
        (1, 0, 17, 0.0256, 0),
        (16, 136, 0, 0.0254, 16),
        (1, 0, 17, 0.0244, 0),
        (48, 1176, 0, 0.0419, 48),
        (1, 0, 49, 0.0242, 0),
        (64, 2080, 0, 0.0412, 64),
    ]:
        model.predict(tokens, pairs, context)  # which fits what came before, as an engine does
        model.observe(tokens, pairs, context, seconds, num_prefill=num_prefill)
    assert model.is_known
    assert model.predict(65, 2080, 65) == pytest.approx(0.0433, rel=0.05)
    assert model.predict(323, 10_400, 198) == pytest.approx(0.107, rel=0.15)


def test_a_step_a_little_longer_than_usual_does_not_make_long_prompts_dear() -> None:
    """Prompts of one length cannot be told from their pairs: what a longer one is off by must not be laid to these."""
    model = StepModel()
    for i in range(60):
        model.observe(8, 0, 500 + i, 0.026, num_prefill=0)
    for _ in range(6):
        model.observe(64, 2080, 0, 0.042, num_prefill=64)
    truth = 0.026 + 0.00025 * 2048 + 2.5e-7 * 2_100_000
    assert 0.5 * truth <= model.predict(2048, 2_100_000, 0) <= truth
    model.observe(168, 12_880, 0, 0.086, num_prefill=160)  # a fifth more than 0.026 + 0.00025 * 168 + 2.5e-7 * 12,880
    assert model.predict(2048, 2_100_000, 0) <= 1.5 * truth
    for begin in range(0, 2048, 512):
        pairs = 512 * begin + 512 * 513 // 2
        model.observe(512, pairs, 0, 0.026 + 0.00025 * 512 + 2.5e-7 * pairs, num_prefill=512)
    assert model.predict(2048, 2_100_000, 0) == pytest.approx(truth, rel=0.03)


def test_cautious_costs_are_those_of_a_usual_model_until_long_prompts_were_seen() -> None:
    model = StepModel()
    for tokens in (50, 60, 70, 80, 90):
        model.observe(1, 0, 100, 0.0202, num_prefill=0)
        model.observe(tokens, tokens * tokens // 2, 0, 0.02 + 0.0002 * tokens, num_prefill=tokens)
    model.predict(1, 0, 100)
    assert model.cost(1000, 500_000) == pytest.approx(0.2, rel=0.05)
    assert model.cautious_cost(1000, 500_000) == pytest.approx(0.2 + 0.0002 / 2000 * 500_000, rel=0.05)
    for begin in (0, 500):
        model.observe(500, 500 * begin + 125_000, 0, 0.02 + 0.0002 * 500, num_prefill=500)
    model.predict(1, 0, 100)
    assert model.cautious_cost(1000, 500_000) == model.cost(1000, 500_000) == pytest.approx(0.2, rel=0.05)


def test_tokens_within_inverts_the_prediction() -> None:
    model = learned(0.02, 0.0004, 3e-7)
    base = model.predict(0, 0, 0)
    for context in (0, 100, 3000):
        fits = model.tokens_within(0.1, context)
        pairs = fits * context + fits * fits // 2
        assert model.predict(fits, pairs, 0) - base == pytest.approx(0.1, rel=0.01)
    assert model.tokens_within(0.0, 0) == model.tokens_within(-1.0, 50) == 0


def test_without_attention_cost_the_inverse_is_a_division() -> None:
    model = StepModel()
    for tokens in (1, 2, 100, 200):
        model.observe(tokens, 0, 0, 0.01 + 0.001 * tokens, num_prefill=tokens - 1)
    assert model.predict(100, 0, 0) == pytest.approx(0.11, rel=1e-3)
    assert model.tokens_within(0.05, 1000) == pytest.approx(50, abs=1)


def test_coefficients_are_never_negative() -> None:
    model = StepModel()
    for tokens in range(20, 200, 10):
        model.observe(tokens, 0, 0, 1.0 / tokens, num_prefill=tokens)  # faster with more work: nonsense
    assert model.predict(10_000, 0, 0) >= model.predict(1, 0, 0) >= 0
    assert model.tokens_within(0.1, 0) > 0


def test_nothing_is_known_before_the_first_prompt() -> None:
    model = StepModel()
    assert not model.is_known and model.predict(100, 0, 0) == 0.0
    assert model.tokens_within(1.0, 0) > 10**6
    model.observe(40, 0, 400, 0.02, num_prefill=0)
    assert not model.is_known and model.predict(40, 0, 400) == pytest.approx(0.02, rel=0.01)
    model.observe(16, 136, 0, 0.02, num_prefill=16)
    assert not model.is_known
    for _ in range(20):  # ends of prompts that were in the cache are counted with the decodes
        model.observe(15, 4000, 0, 0.02, num_prefill=15)
    assert not model.is_known
    model.observe(47, 1128, 0, 0.04, num_prefill=47)
    assert not model.is_known
    model.observe(16, 136, 0, 0.02, num_prefill=16)
    assert model.is_known


def test_a_slower_machine_is_noticed() -> None:
    model = learned(0.02, 0.0004, 3e-8)
    for _ in range(60):
        model.observe(2, 0, 1000, 0.04, num_prefill=0)
        model.observe(200, 100_000, 0, 0.04 + 0.0008 * 200, num_prefill=200)
    assert model.predict(200, 100_000, 0) == pytest.approx(0.2, rel=0.05)


def test_a_moving_rate_forgets() -> None:
    rate = MovingRate(memory_s=10.0)
    assert rate.per_s == 0.0
    for _ in range(1000):
        rate.add(5, 0.1)
    assert rate.per_s == pytest.approx(50.0)
    for _ in range(1000):
        rate.add(1, 0.1)
    assert rate.per_s == pytest.approx(10.0, rel=0.01)
