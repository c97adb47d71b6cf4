"""Native sampling against its float64 twin, its distribution, its order and tie rules, and its refusals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from guard import at_page_end
from sampler_twin import draw, noise_words, philox2x32
from trivet import _core

F32 = NDArray[np.float32]
COLUMNS = {
    "temperature": (np.float32, 1.0), "top_k": (np.int32, 0), "top_p": (np.float32, 1.0), "min_p": (np.float32, 0.0),
    "seed": (np.uint64, 0), "sample_idx": (np.int32, 0), "position": (np.int64, 0), "mask_idx": (np.int32, -1),
}  # fmt: skip

# A decision may differ from the twin's only if it was nearer than this. The native masses have a relative error of
# 2e-7 (exp) + V * 2^-42 (integers), and a fraction of two of them twice that; keys err by 1e-13.
BOUND = 5e-7


def arguments(num_rows: int, **given: Any) -> dict[str, Any]:
    """Arguments of `sample_rows` for `num_rows` rows; scalars are repeated."""
    out: dict[str, Any] = {
        name: np.broadcast_to(np.asarray(given.pop(name, default), dtype), num_rows).copy()
        for name, (dtype, default) in COLUMNS.items()
    }
    bias: dict[int, float] = given.pop("bias", {})  # the same for every row
    out["bias_starts"] = np.arange(num_rows + 1, dtype=np.int32) * len(bias)
    out["bias_ids"] = np.tile(np.array(list(bias), np.int32), num_rows)
    out["bias_values"] = np.tile(np.array(list(bias.values()), np.float32), num_rows)
    out["masks"] = np.zeros((0, 0), np.uint32)
    return out | given


def pack_mask(allowed: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """Words of 32 bits, [1, ceil(V / 32)]; the bits past V are set, and must not matter."""
    bits = np.ones(-(-allowed.size // 32) * 32, np.uint8)
    bits[: allowed.size] = allowed
    return np.packbits(bits, bitorder="little").view(np.uint32)[None]


def sample(logits: F32, **given: Any) -> list[int]:
    return [int(token) for token in _core.sample_rows(logits, **arguments(len(logits), **given))]


def normal(*shape: int, seed: int = 0, spread: float = 1.0) -> F32:
    return (np.random.default_rng(seed).standard_normal(shape) * spread).astype(np.float32)


# --- the generator ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "key", "expected"),
    [  # the known answers published with Random123
        (0, 0, 0, (0xFF1DAE59, 0x6CD10DF2)),
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, (0x2C3F628B, 0xAB4FD7AD)),
        (0x243F6A88, 0x85A308D3, 0x13198A2E, (0xDD7CE038, 0xF62A4C12)),
    ],
)
def test_twin_generator_gives_the_known_answers(low: int, high: int, key: int, expected: tuple[int, int]) -> None:
    first, second = philox2x32(np.array([low], np.uint32), high, key)
    assert (int(first[0]), int(second[0])) == expected


@pytest.mark.parametrize("vocab", [1, 2, 63, 64, 65, 1000])
@pytest.mark.parametrize(("seed", "sample_idx", "position"), [(0, 0, 0), (2**64 - 1, 127, 2**40), (7, 1, 31)])
def test_noise_of_each_tier_equals_twin(isa: str, vocab: int, seed: int, sample_idx: int, position: int) -> None:
    np.testing.assert_array_equal(
        _core.sampling_noise(seed, sample_idx, position, vocab), noise_words(seed, sample_idx, position, vocab)
    )


def test_noise_is_uniform_and_rows_are_independent() -> None:
    words = np.stack(
        [
            _core.sampling_noise(seed, idx, position, 4096)
            for seed in (0, 1, 2**63)
            for idx in (0, 1)
            for position in (0, 1, 2, 1000)
        ]
    )
    u = (words + 0.5) * 2.0**-32
    counts = np.bincount((u.reshape(-1) * 256).astype(int), minlength=256)
    assert chi_square(counts, np.full(256, 1 / 256)) < chi_square_limit(255)
    correlation = np.corrcoef(u) - np.eye(len(u))
    assert np.abs(correlation).max() < 5 / math.sqrt(4096)  # 5 standard errors
    lagged = [np.corrcoef(u[:, :-lag].reshape(-1), u[:, lag:].reshape(-1))[0, 1] for lag in (1, 2, 16, 64)]
    assert np.abs(lagged).max() < 5 / math.sqrt(u.size)
    ones = np.unpackbits(words.view(np.uint8)).reshape(-1, 32).mean(axis=0)
    assert np.abs(ones - 0.5).max() < 5 * 0.5 / math.sqrt(words.size)


# --- the draw -----------------------------------------------------------------------------------------------------

FILTERS: list[dict[str, Any]] = [
    {}, {"temperature": 0.7}, {"temperature": 0.0}, {"temperature": 1e-30}, {"temperature": 100.0}, {"top_k": 1},
    {"top_k": 7}, {"top_k": 200}, {"top_p": 0.5}, {"top_p": 0.95}, {"top_p": 1e-6}, {"top_p": 0.99}, {"min_p": 0.1},
    {"min_p": 1.0}, {"top_k": 20, "top_p": 0.8, "min_p": 0.05, "temperature": 0.7}, {"top_k": 300, "top_p": 0.9},
]  # fmt: skip


def assert_same_draws(logits: F32, **given: Any) -> None:
    """Every row's token is the twin's, but for decisions nearer than BOUND, of which there are hardly any."""
    positions = np.arange(len(logits))
    tokens = sample(logits, position=positions, seed=5, **given)
    twin = [draw(row, position=int(p), seed=5, **given) for row, p in zip(logits, positions, strict=True)]
    assert all(mine == theirs for mine, (theirs, margin) in zip(tokens, twin, strict=True) if margin > BOUND)
    assert sum(margin <= BOUND for _, margin in twin) <= 1 + len(logits) // 50


@pytest.mark.parametrize("given", FILTERS, ids=str)
@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
def test_draws_equal_twin(isa: str, spread: float, given: dict[str, Any]) -> None:
    for vocab in (1, 2, 63, 64, 65, 257, 1000, 5000):
        assert_same_draws(normal(12, vocab, seed=vocab, spread=spread), **given)


@pytest.mark.parametrize("given", [{}, {"top_k": 50}, {"top_k": 5000}, {"top_p": 0.9}, {"min_p": 0.02}], ids=str)
@pytest.mark.parametrize("spread", [0.0, 0.01, 2.0])
def test_draws_equal_twin_on_a_large_vocabulary(spread: float, given: dict[str, Any]) -> None:
    assert_same_draws(normal(2, 151936, spread=spread), **given)


@settings(max_examples=150, deadline=None)
@for_all(data=st.data())
def test_filters_bias_and_masks_together_equal_twin(data: st.DataObject) -> None:
    vocab = data.draw(st.integers(1, 200))
    values = st.sampled_from([-np.inf, -30.0, -2.0, -0.0, 0.0, 0.5, 1.0, 1.0, 3.0, 3.4e38, -3.4e38])  # many ties
    values = data.draw(st.sampled_from([values, st.floats(-5, 5, width=32)]))
    logits = np.array(data.draw(st.lists(values, min_size=vocab, max_size=vocab)), np.float32)
    bias = st.sampled_from([-np.inf, -100.0, 1.5, 100.0])
    given: dict[str, Any] = {
        "temperature": float(np.float32(data.draw(st.sampled_from([0.0, 1e-45, 1e-3, 0.3, 1.0, 2.5, 100.0])))),
        "top_k": data.draw(st.sampled_from([0, 1, 2, 5, 64, 1000])),
        "top_p": data.draw(st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.01])),
        "min_p": data.draw(st.sampled_from([0.0, 0.001, 0.1, 0.7, 1.0])),
        "seed": data.draw(st.integers(0, 2**64 - 1)),
        "sample_idx": data.draw(st.integers(0, 127)),
        "position": data.draw(st.integers(0, 2**31)),
        "bias": data.draw(st.dictionaries(st.integers(0, vocab - 1), bias, max_size=5)),
    }  # fmt: skip
    mask: NDArray[np.bool_] | None = None
    masks: dict[str, Any] = {}
    if data.draw(st.booleans()):
        mask = np.array(data.draw(st.lists(st.booleans(), min_size=vocab, max_size=vocab)))
        masks = {"masks": pack_mask(mask), "mask_idx": 0}
    token, margin = draw(logits, mask=mask, **given)
    assert margin <= BOUND or sample(logits[None], **given, **masks) == [token]


def chi_square(counts: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    expected = probabilities * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def chi_square_limit(freedom: int) -> float:
    """What chi-square exceeds once in 10,000 times (Wilson and Hilferty's approximation)."""
    return freedom * (1 - 2 / (9 * freedom) + 3.719 * math.sqrt(2 / (9 * freedom))) ** 3


@pytest.mark.parametrize("varied", ["position", "seed", "sample_idx"])
@pytest.mark.parametrize("temperature", [0.6, 1.0, 3.0])
def test_tokens_are_drawn_with_their_softmax_probability(varied: str, temperature: float) -> None:
    row = normal(90, seed=3, spread=1.5)
    draws = 40_000
    tokens = sample(np.tile(row, (draws, 1)), temperature=temperature, **{varied: np.arange(draws)})
    weights = np.exp(row.astype(np.float64) / float(np.float32(temperature)))
    p = weights / weights.sum()
    seldom = p * draws < 10  # pooled into one cell
    cells = np.append(p[~seldom], p[seldom].sum())
    counts = np.bincount(tokens, minlength=row.size)
    counts = np.append(counts[~seldom], counts[seldom].sum())
    used = cells > 0
    assert chi_square(counts[used], cells[used]) < chi_square_limit(int(used.sum()) - 1)


# --- order, ties and limits ---------------------------------------------------------------------------------------


def test_greedy_takes_the_lowest_of_equal_ids() -> None:
    logits = np.full((3, 200), -1, np.float32)
    logits[0, [150, 70, 199]] = 2.0
    logits[1, 5], logits[1, 9] = -0.0, 0.0
    assert sample(logits, temperature=0) == [70, 5, 0]


def drawn(logits: F32, draws: int = 400, **given: Any) -> set[int]:
    return set(sample(np.tile(logits, (draws, 1)), position=np.arange(draws), **given))


def test_top_k_keeps_the_lower_ids_of_a_tie() -> None:
    logits = np.zeros(300, np.float32)
    logits[[250, 100]] = 0.5
    assert drawn(logits, top_k=4) == {0, 1, 100, 250}
    assert drawn(logits, top_k=1) == {100}


def test_top_p_is_the_smallest_likely_set_that_reaches_it() -> None:
    logits = np.log(np.array([0.1, 0.2, 0.4, 0.2, 0.1], np.float32))
    assert drawn(logits, top_p=0.39) == {2}
    assert drawn(logits, top_p=0.41) == {1, 2}
    assert drawn(logits, top_p=0.61) == {1, 2, 3}
    assert drawn(logits, top_p=0.81) == {0, 1, 2, 3}
    assert drawn(logits, top_p=0.9999999) == {0, 1, 2, 3, 4}
    assert drawn(np.zeros(8, np.float32), top_p=0.5) == {0, 1, 2, 3}  # exactly reached by four, ties to the lower id


def test_top_p_counts_the_mass_that_top_k_left() -> None:
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    assert drawn(logits, top_k=2, top_p=0.6) == {0, 1}  # 0.4 of 0.7 is not 0.6
    assert drawn(logits, top_k=2, top_p=0.55) == {0}


def test_top_p_counts_at_the_temperature() -> None:
    logits = np.log(np.array([0.6, 0.3, 0.1], np.float32))
    assert drawn(logits, top_p=0.55, temperature=1.0) == {0}
    assert drawn(logits, top_p=0.55, temperature=10.0) == {0, 1}


def test_min_p_is_relative_to_the_most_likely() -> None:
    logits = np.log(np.array([0.5, 0.26, 0.24], np.float32))
    assert drawn(logits, min_p=0.5) == {0, 1}
    assert drawn(logits, min_p=1.0) == {0}


def test_bias_moves_forbids_and_decides() -> None:
    logits = normal(100)
    best = int(logits.argmax())
    assert sample(logits[None], temperature=0, bias={best: -np.inf}) == [int(np.argsort(logits)[-2])]
    assert sample(logits[None], temperature=0, bias={17: 100.0}) == [17]
    assert drawn(logits, draws=50, bias={17: 100.0}) == {17}


@pytest.mark.parametrize("vocab", [31, 32, 33, 64, 100])
def test_mask_allows_only_its_tokens(vocab: int) -> None:
    allowed = np.zeros(vocab, bool)
    allowed[[0, vocab // 2, vocab - 1]] = True
    tokens = drawn(normal(vocab, spread=0.1), masks=pack_mask(allowed), mask_idx=0)
    assert tokens == {0, vocab // 2, vocab - 1}


def test_each_row_has_its_own_mask_and_bias() -> None:
    logits = np.zeros((3, 40), np.float32)
    masks = np.concatenate([pack_mask(np.arange(40) == 39), pack_mask(np.arange(40) == 3)])
    given = arguments(
        3,
        temperature=0,
        masks=masks,
        mask_idx=[1, -1, 0],
        bias_starts=np.array([0, 0, 2, 2], np.int32),
        bias_ids=np.array([8, 20], np.int32),
        bias_values=np.array([1, 2], np.float32),
    )
    assert _core.sample_rows(logits, **given).tolist() == [3, 20, 39]


def test_no_temperature_overflows() -> None:
    logits = np.array([[-3.4e38, 3.4e38, 3.3e38]], np.float32)
    for temperature in (1e-45, 1e-38, 1e-6, 1.0, 100.0):
        assert sample(logits, temperature=temperature, top_p=0.9, min_p=0.1) == [1]


def test_what_cannot_be_drawn_from_is_minus_one() -> None:
    logits = normal(8, 70)
    logits[0, 69] = np.nan
    logits[1, 3] = np.inf
    logits[2] = -np.inf
    for temperature in (0.0, 1.0):
        assert sample(logits, temperature=temperature)[:3] == [-1, -1, -1]
        assert min(sample(logits, temperature=temperature)[3:]) >= 0
    nothing = pack_mask(np.zeros(70, bool))
    assert sample(logits[3:4], masks=nothing, mask_idx=0) == [-1]
    assert sample(logits[3:4], bias={1: np.inf}) == sample(logits[3:4], bias={1: np.nan}) == [-1]
    assert sample(logits[:1], masks=pack_mask(np.arange(70) < 60), mask_idx=0) == [-1]  # a masked NaN is still one
    assert sample(np.full((1, 2), 3e38, np.float32), bias={0: 3e38}) == [-1]


def test_a_row_does_not_depend_on_the_others() -> None:
    logits = normal(32, 1000)
    given = arguments(
        32,
        temperature=np.linspace(0, 2, 32),
        top_k=np.arange(32) % 7,
        top_p=np.linspace(0.3, 1, 32),
        min_p=np.linspace(0.2, 0, 32),
        seed=np.arange(32),
        position=np.arange(32) * 3,
    )
    together = _core.sample_rows(logits, **given)
    for r in range(32):
        alone = {name: a[r : r + 1] for name, a in given.items() if name in COLUMNS}
        assert sample(logits[r : r + 1], **alone) == [together[r]]


@pytest.mark.parametrize("vocab", [1, 3, 15, 16, 17, 63, 64, 65, 127, 1000])
def test_nothing_is_read_past_the_logits_or_written_to_them(vocab: int) -> None:
    logits = at_page_end(normal(2, vocab))
    before = logits.copy()
    for given in FILTERS:
        sample(logits, **given, bias={vocab - 1: 1.0}, masks=at_page_end(pack_mask(np.ones(vocab, bool))), mask_idx=0)
        sample(logits, **given)
    _core.log_probs(logits[1], vocab - 1, 5)
    np.testing.assert_array_equal(logits, before)


# --- what the binding refuses -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(COLUMNS))
def test_wrong_length_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` has length 3, expected one value a row"):
        _core.sample_rows(normal(2, 10), **arguments(2) | {name: np.zeros(3, COLUMNS[name][0])})


@pytest.mark.parametrize("name", sorted(COLUMNS))
def test_wrong_dtype_is_refused_not_converted(name: str) -> None:
    with pytest.raises(TypeError):
        _core.sample_rows(normal(2, 10), **arguments(2) | {name: np.zeros(2, np.float64)})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bias_starts": np.zeros(2, np.int32)}, "`bias_starts` has length 2"),
        ({"bias_starts": np.array([0, 1, 1], np.int32)}, "`bias_starts` must rise"),
        ({"bias_starts": np.array([0, 1, 0], np.int32)}, "`bias_starts` must rise"),
        ({"bias_starts": np.array([-1, 0, 0], np.int32)}, "`bias_starts` must rise"),
        ({"bias_ids": np.zeros(1, np.int32)}, "`bias_ids` has length 1"),
        ({"bias_ids": np.array([10], np.int32), "bias_values": np.zeros(1, np.float32)}, "token 10, but the vocab"),
        ({"bias_ids": np.array([-1], np.int32), "bias_values": np.zeros(1, np.float32)}, "token -1"),
        ({"mask_idx": np.array([0, -1], np.int32)}, "`mask_idx` of row 0 is 0, but there are 0 masks"),
        ({"mask_idx": np.array([-1, -2], np.int32)}, "`mask_idx` of row 1 is -2"),
        ({"masks": np.zeros((1, 2), np.uint32)}, "`masks` has length 2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _core.sample_rows(normal(2, 10), **arguments(2) | given)


def test_an_empty_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="`logits` has length 0"):
        _core.sample_rows(np.zeros((2, 0), np.float32), **arguments(2))


# --- log probabilities --------------------------------------------------------------------------------------------


def error_bound(row: F32) -> float:
    """Of log(sum of exp): exp 2e-7, its argument's rounding, three float additions; then the result's rounding."""
    y = row.astype(np.float64) - row.max()
    p = np.exp(y) / np.exp(y).sum()
    half_ulp = 2.0**-24
    arguments_ = half_ulp * float((p * np.abs(np.where(p > 0, y, 0))).sum())
    return 2e-7 + arguments_ + 3 * half_ulp + half_ulp * float(np.abs(y).max() + math.log(row.size))


@pytest.mark.parametrize("spread", [0.0, 1.0, 10.0])
@pytest.mark.parametrize("vocab", [1, 5, 64, 65, 4095, 4096, 4097, 50_000])
def test_log_probs_equal_reference(vocab: int, spread: float) -> None:
    row = normal(vocab, seed=vocab, spread=spread)
    x = row.astype(np.float64)
    reference = x - (x.max() + math.log(np.exp(x - x.max()).sum()))
    order = np.lexsort((np.arange(vocab), -row))
    for token in {0, vocab // 2, vocab - 1, int(row.argmax())}:
        logprob, rank, ids, values = _core.log_probs(row, token, 20)
        assert abs(logprob - reference[token]) <= error_bound(row)
        assert rank == 1 + np.count_nonzero(row > row[token])
        found = min(20, vocab)
        assert ids[:found].tolist() == order[:20].tolist()
        assert np.abs(values[:found] - reference[order[:20]]).max() <= error_bound(row)
        assert ids[found:].tolist() == [-1] * (20 - found)
        assert np.all(values[found:] == -np.inf)


def test_log_prob_of_a_forbidden_token_is_minus_infinity() -> None:
    row = np.array([0.0, -np.inf, 0.0], np.float32)
    logprob, rank, ids, values = _core.log_probs(row, 1, 3)
    assert (logprob, rank, ids.tolist()) == (-np.inf, 3, [0, 2, -1])
    assert values.tolist() == [pytest.approx(-math.log(2)), pytest.approx(-math.log(2)), -np.inf]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_log_probs_of_a_broken_row_are_nan(bad: float) -> None:
    logprob, rank, ids, values = _core.log_probs(np.array([0, bad], np.float32), 0, 2)
    assert math.isnan(logprob)
    assert (rank, ids.tolist()) == (0, [-1, -1])
    assert np.isnan(values).all()


def test_log_probs_refuse_what_is_out_of_range() -> None:
    for token in (-1, 4):
        with pytest.raises(ValueError, match=f"`id` is {token}, but the vocabulary has 4"):
            _core.log_probs(normal(4), token, 0)
    with pytest.raises(ValueError, match="`num_top` is -1"):
        _core.log_probs(normal(4), 0, -1)
    wide: Any = np.zeros(4)
    with pytest.raises(TypeError):
        _core.log_probs(wide, 0, 0)
