"""Row operations: against float64, and to the bit across tiers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from packing import bf16, from_bf16

from guard import at_page_end
from trivet import _core

Array = NDArray[Any]
SIZES = [1, 2, 15, 16, 17, 63, 64, 65, 128, 129, 576, 1000]
EPS = np.finfo(np.float32).eps


def row(n: int, seed: int = 0) -> np.ndarray:
    return at_page_end(np.random.default_rng([seed, n]).standard_normal(n).astype(np.float32))


@pytest.mark.parametrize("n", SIZES)
def test_rms_norm(isa: str, n: int) -> None:
    x, w, out = row(n), row(n, 1), at_page_end(np.empty(n, np.float32))
    _core.kernels.rms_norm(x, w, 1e-5, out)
    x64 = x.astype(np.float64)
    want = x64 / np.sqrt(np.mean(x64**2) + np.float32(1e-5)) * w
    assert np.all(np.abs(out - want) <= (n / 128 + 6) * EPS * np.abs(want) + 1e-30)
    inplace = at_page_end(x)
    _core.kernels.rms_norm(inplace, w, 1e-5, inplace)
    assert inplace.tobytes() == out.tobytes()


@pytest.mark.parametrize("n", SIZES)
def test_quantize(isa: str, n: int) -> None:
    x, out = row(n), at_page_end(np.full(-(-n // 64) * 64, 99, np.int8))
    scale = _core.kernels.quantize(x, out)
    absmax = np.abs(x).max()
    assert scale == np.float32(absmax) / np.float32(127)
    assert np.array_equal(out[:n], np.rint(x * (np.float32(127) / absmax)).astype(np.int8))
    assert not out[n:].any()


@pytest.mark.parametrize("n", SIZES)
def test_quantizing_bf16_is_quantizing_its_floats(isa: str, n: int) -> None:
    """Wherever the largest number stands, of either sign."""
    for at in {0, n // 2, n - 1}:
        x = bf16(row(n))
        x[at] = bf16(np.full(1, -7.0 if at % 2 else 7.0, np.float32))[0]
        codes, want = at_page_end(np.full(-(-n // 64) * 64, 99, np.int8)), np.zeros(-(-n // 64) * 64, np.int8)
        assert _core.kernels.quantize_bf16(at_page_end(x), codes) == _core.kernels.quantize(from_bf16(x), want)
        assert codes.tobytes() == want.tobytes()


@pytest.mark.parametrize("at", [0, 17, 63, 70])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows_in_the_scale(isa: str, at: int, value: float) -> None:
    """Or a damaged row would be taken for one of zeros, and a token be sampled from it."""
    x = np.ones(71, np.float32)
    x[at] = value
    assert not np.isfinite(_core.kernels.quantize(x, np.zeros(128, np.int8)))
    assert not np.isfinite(_core.kernels.quantize_bf16(bf16(x), np.zeros(128, np.int8)))


def test_quantize_of_zeros_is_zeros(isa: str) -> None:
    out = np.full(64, 99, np.int8)
    assert _core.kernels.quantize(np.zeros(40, np.float32), out) == 0.0
    assert not out.any()


@pytest.mark.parametrize("n", SIZES)
def test_to_bf16(isa: str, n: int) -> None:
    x, out = row(n), at_page_end(np.full(-(-n // 32) * 32, 99, np.uint16))
    _core.kernels.to_bf16(x, out)
    assert np.array_equal(out[:n], bf16(x))
    assert not out[n:].any()


def test_to_bf16_keeps_nan_infinity_and_ties(isa: str) -> None:
    x = np.array([np.nan, np.inf, -np.inf, -0.0, 1.00390625, 1.01171875, 3.4e38, 1e-40], np.float32)
    out = np.zeros(32, np.uint16)
    _core.kernels.to_bf16(x, out)
    assert np.isnan((out[:1].astype(np.uint32) << 16).view(np.float32))
    assert out[1:8].tolist() == [0x7F80, 0xFF80, 0x8000, 0x3F80, 0x3F82, 0x7F80, 0x0001]


def turned(n: int, norm: bool) -> tuple[Array, bytes, Array]:
    """A head of n numbers as f32, its bf16 bits as bytes, and both in float64."""
    x, angle = at_page_end(bf16(row(n))), np.random.default_rng(n).uniform(0, 6, n // 2)
    cos, sin = at_page_end(np.cos(angle).astype(np.float32)), at_page_end(np.sin(angle).astype(np.float32))
    weight, out = at_page_end(row(n, 1)), at_page_end(np.zeros(n, np.float32))
    half = _core.kernels.turn(x, weight if norm else None, 1e-6, cos, sin, out)
    wide = from_bf16(x).astype(np.float64)
    if norm:
        wide = wide / np.sqrt((wide**2).mean() + 1e-6) * weight
    a, b = wide[: n // 2], wide[n // 2 :]
    return out, half, np.concatenate([a * cos - b * sin, b * cos + a * sin])


HEAD_DIMS = [2, 6, 30, 32, 34, 64, 96, 128, 256]


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("n", HEAD_DIMS)
def test_heads_are_normed_and_turned(isa: str, n: int, norm: bool) -> None:
    got, half, want = turned(n, norm)
    scale = np.abs(want).max()
    assert np.all(np.abs(got - want) <= (8 + n if norm else 4) * EPS * scale)
    assert np.array_equal(np.frombuffer(half, np.uint16), bf16(got))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("n", HEAD_DIMS)
def test_every_tier_turns_heads_to_the_same_bits(n: int, norm: bool) -> None:
    before, seen = _core.isa(), set()
    try:
        for tier in _core.available_isas():
            _core.set_isa(tier)
            got, half, _ = turned(n, norm)
            seen.add((got.tobytes(), half))
    finally:
        _core.set_isa(before)
    assert len(seen) == 1


def test_a_head_of_wrong_sizes_is_refused() -> None:
    x, cos, out = bf16(row(64)), row(32), np.zeros(64, np.float32)
    for bad in [(x, None, cos[:31], cos, out), (x, None, cos, cos, out[:63]), (x, row(63), cos, cos, out)]:
        with pytest.raises(ValueError):
            _core.kernels.turn(bad[0], bad[1], 1e-6, bad[2], bad[3], bad[4])


@pytest.mark.parametrize("n", SIZES)
def test_every_tier_gives_the_same_bits(n: int) -> None:
    before, seen = _core.isa(), set()
    try:
        for tier in _core.available_isas():
            _core.set_isa(tier)
            norm, codes, half = (
                np.empty(n, np.float32),
                np.zeros(-(-n // 64) * 64, np.int8),
                np.zeros(-(-n // 32) * 32, np.uint16),
            )
            _core.kernels.rms_norm(row(n), row(n, 1), 1e-6, norm)
            scale = _core.kernels.quantize(norm, codes)
            _core.kernels.to_bf16(norm, half)
            seen.add((norm.tobytes(), codes.tobytes(), half.tobytes(), scale))
    finally:
        _core.set_isa(before)
    assert len(seen) == 1
