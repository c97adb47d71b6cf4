"""Products of packed weights: against float64, and to the bit across tiers and row counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from packing import bf16, from_bf16, pack_bf16, pack_i4, pack_i8

from guard import at_page_end
from trivet import _core

Array = NDArray[Any]
NONE_I8, NONE_F32, NONE_I32 = np.zeros(0, np.int8), np.zeros(0, np.float32), np.zeros(0, np.int32)
ROWS = [1, 2, 3, 4, 5, 15, 16, 17, 32, 33, 49]
SHAPES = [(16, 64), (1, 2), (15, 31), (17, 33), (33, 65), (64, 128), (80, 320), (130, 96), (37, 1000), (300, 1000)]


def rows_of(x: Array, unit: int) -> Array:
    """x padded to a multiple of 32 rows and `unit` columns, at the end of a page, as bytes."""
    t, k = x.shape
    out = np.zeros((-(-t // 32) * 32, -(-k // unit) * unit), x.dtype)
    out[:t, :k] = x
    out[t:] = 77  # rows past the end are read by tiles but never used
    return at_page_end(out.view(np.uint8))


class Case:
    """One random weight matrix of a kind, its activations, and its exact product."""

    def __init__(self, kind: str, n: int, k: int, rows: int, seed: int = 0) -> None:
        rng = np.random.default_rng([seed, n, k])
        self.kind, self.n, self.k = kind, n, k
        np_ = -(-n // 16) * 16
        self.multipliers, self.scales, self.colsum = NONE_I8, NONE_F32, NONE_I32
        x = rng.standard_normal((rows, k)).astype(np.float32)
        if kind == "bf16":
            w = from_bf16(bf16(rng.standard_normal((n, k)).astype(np.float32)))
            self.codes = pack_bf16(w)
            x = from_bf16(bf16(x))
            self.x, self.x_scales = rows_of(bf16(x), 32), NONE_F32
            self.exact = x.astype(np.float64) @ w.astype(np.float64).T
            # f32 sums of K terms in chains: eps * K * sum |x w|
            self.bound = k * np.finfo(np.float32).eps * (np.abs(x).astype(np.float64) @ np.abs(w).astype(np.float64).T)
            return
        if kind == "i8":
            w8 = rng.integers(-127, 128, (n, k)).astype(np.int8)
            self.codes, self.colsum = pack_i8(w8)
        else:
            q = rng.integers(-7, 8, (n, k)).astype(np.int8)
            m = (rng.integers(1, 17, (n, -(-k // 32))) * rng.choice([-1, 1], (n, -(-k // 32)))).astype(np.int8)
            self.codes, self.multipliers, self.colsum = pack_i4(q, m)
            w8 = q * np.repeat(m, 32, 1)[:, :k]
        x8 = rng.integers(-127, 128, (rows, k)).astype(np.int8)
        self.scales = at_page_end(np.ones(np_, np.float32) * rng.uniform(0.001, 0.02, np_).astype(np.float32))
        self.x_scales = at_page_end(rng.uniform(0.001, 0.1, rows).astype(np.float32))
        self.x = rows_of(x8, 64)
        exact = x8.astype(np.int64) @ w8.astype(np.int64).T
        self.exact = exact * self.scales[:n].astype(np.float64) * self.x_scales[:, None].astype(np.float64)
        self.bound = 4 * np.finfo(np.float32).eps * np.abs(self.exact) + 1e-30  # three roundings

    def run(self, rows: int, epilogue: str = "store", bias: Array | None = None, out: Array | None = None) -> Array:
        if out is None:
            out = np.full((rows, self.n), np.nan, np.float32)
        _core.kernels.linear(
            self.kind, self.codes, self.multipliers, self.scales, self.colsum, bias, self.n, self.k, self.x,
            self.x_scales, rows, epilogue, out,
        )  # fmt: skip
        return out


@pytest.mark.parametrize("kind", ["bf16", "i8", "i4"])
@pytest.mark.parametrize("n,k", SHAPES)
def test_product_equals_float64_within_its_error(isa: str, kind: str, n: int, k: int) -> None:
    for rows in ROWS:
        case = Case(kind, n, k, rows)
        y = case.run(rows)
        assert np.all(np.abs(y - case.exact) <= case.bound)


@pytest.mark.parametrize("kind", ["bf16", "i8", "i4"])
@pytest.mark.parametrize("n,k", SHAPES)
def test_every_tier_and_row_count_gives_the_same_bits(kind: str, n: int, k: int) -> None:
    case = Case(kind, n, k, max(ROWS))
    before = _core.isa()
    try:
        for tier in _core.available_isas():
            _core.set_isa(_core.twin_of(tier))
            want = case.run(max(ROWS))
            _core.set_isa(tier)
            for rows in ROWS:
                assert case.run(rows).tobytes() == want[:rows].tobytes(), f"{tier} differs at {rows} rows"
    finally:
        _core.set_isa(before)


@pytest.mark.parametrize("kind", ["bf16", "i8", "i4"])
def test_rows_may_lie_apart(isa: str, kind: str) -> None:
    """What stands between them is not used, by kernels of few rows, of a tile of rows, and of many."""
    case = Case(kind, 64, 200, 70)
    want = {rows: case.run(rows).tobytes() for rows in (1, 3, 9, 20, 70)}
    near = case.x
    case.x = at_page_end(np.full((near.shape[0], near.shape[1] + 64), 255, np.uint8))
    case.x[:, : near.shape[1]] = near
    for rows, wanted in want.items():
        assert case.run(rows).tobytes() == wanted


def test_every_tier_of_this_cpu_passes_its_self_test() -> None:
    """One that does not is off, and then nothing here would try it."""
    assert not [note for note in _core.isa_notes() if "self-test" in note]


@pytest.mark.parametrize("kind", ["bf16", "i8", "i4"])
def test_bias_and_adding_to_the_output(isa: str, kind: str) -> None:
    case = Case(kind, 37, 96, 20)
    bias = np.linspace(-2, 2, 37).astype(np.float32)
    plain, start = case.run(20), np.full((20, 37), 3.0, np.float32)
    assert np.array_equal(case.run(20, bias=bias), plain + bias)
    assert np.array_equal(case.run(20, "add", bias, start.copy()), start + (plain + bias))


@pytest.mark.parametrize("kind", ["bf16", "i8", "i4"])
def test_gate_and_up_panels_make_silu_mul(isa: str, kind: str) -> None:
    for rows in (1, 4, 7, 16, 33):
        case = Case(kind, 96, 128, rows)
        plain = case.run(rows).astype(np.float64).reshape(rows, 3, 2, 16)
        gate, up = plain[:, :, 0], plain[:, :, 1]
        want = (gate / (1 + np.exp(-gate)) * up).reshape(rows, 48)
        got = from_bf16(case.run(rows, "silu_mul", out=np.zeros((rows, 48), np.uint16)))
        assert np.all(np.abs(got - want) <= (2**-8 + 1e-6) * np.abs(want) + 1e-30)


@pytest.mark.parametrize("kind", ["bf16", "i8", "i4"])
@pytest.mark.parametrize("n,k", SHAPES)
def test_what_is_stored_as_bf16_is_the_product_rounded(isa: str, kind: str, n: int, k: int) -> None:
    for rows in (1, 5, 16, 33, 100):
        case = Case(kind, n, k, rows)
        out = np.zeros((rows, n + 32), np.uint16)
        case.run(rows, "store_bf16", np.linspace(-2, 2, n).astype(np.float32), out)
        plain = case.run(rows, bias=np.linspace(-2, 2, n).astype(np.float32))
        assert out[:, :n].tobytes() == bf16(plain).tobytes()
        assert not out[:, n:].any(), "columns past N were written"


@pytest.mark.parametrize("kind", ["bf16", "i8", "i4"])
@pytest.mark.parametrize("n,k", [(96, 128), (32, 64), (160, 100), (64, 1000), (160, 1000)])
@pytest.mark.parametrize("biased", [False, True])
def test_every_tier_writes_the_same_whatever_follows_the_product(kind: str, n: int, k: int, biased: bool) -> None:
    """For every epilogue and row count: the amx tier finishes whole blocks by code of its own."""
    rows = max(ROWS)
    case, bias = Case(kind, n, k, rows), np.linspace(-9, 9, n).astype(np.float32) if biased else None
    before = _core.isa()

    def all_of(num: int) -> list[bytes]:
        start = np.linspace(-1, 1, num * (n + 16)).astype(np.float32).reshape(num, n + 16)
        half, gated = np.zeros((num, n + 32), np.uint16), np.zeros((num, n // 2 + 32), np.uint16)
        case.run(num, "add", bias, start)
        case.run(num, "store_bf16", bias, half)
        case.run(num, "silu_mul", bias, gated)
        return [out.tobytes() for out in (start, half, gated)]

    try:
        for tier in _core.available_isas()[1:]:
            _core.set_isa(_core.twin_of(tier))
            want = {num: all_of(num) for num in ROWS}
            _core.set_isa(tier)
            for num in ROWS:
                assert all_of(num) == want[num], f"{tier} differs at {num} rows"
    finally:
        _core.set_isa(before)


@pytest.mark.parametrize("kind", ["bf16", "i8", "i4"])
@pytest.mark.parametrize("n", [176, 170])
def test_every_tier_adds_and_rounds_the_same_where_the_last_panel_is_odd(kind: str, n: int) -> None:
    """Eleven panels and enough K that tiles finish one group of panels wholly beside the next."""
    case, before = Case(kind, n, 1000, 32), _core.isa()

    def all_of(num: int) -> list[bytes]:
        added, rounded = np.full((num, n + 16), 0.5, np.float32), np.zeros((num, n + 32), np.uint16)
        case.run(num, "add", out=added)
        case.run(num, "store_bf16", out=rounded)
        return [added.tobytes(), rounded.tobytes()]

    try:
        for tier in _core.available_isas()[1:]:
            _core.set_isa(_core.twin_of(tier))
            want = {num: all_of(num) for num in (5, 9, 16, 32)}
            _core.set_isa(tier)
            for num, wanted in want.items():
                assert all_of(num) == wanted, f"{tier} differs at {num} rows"
    finally:
        _core.set_isa(before)


@pytest.mark.parametrize("kind", ["bf16", "i8", "i4"])
@pytest.mark.parametrize(
    "n,k,num", [(96, 8200, 150), (80, 3000, 350), (32, 17000, 70), (192, 3000, 540), (560, 4200, 260), (32, 33000, 32)]
)
def test_every_tier_takes_rows_in_batches(kind: str, n: int, k: int, num: int) -> None:
    """At most 63 rows of 8,200 numbers go at once in int8, 127 in int4; 174 and 348 of 3,000, 32 and 64 of 17,000.

    Tiles slice what is more than 1 MiB of rows, up to 256 rows and 16 pairs of panels at a time, but 32 rows of int4.
    80 outputs are an odd number of panels. The binding says if a kernel leaves its scratch.
    """
    case, bias = Case(kind, n, k, num), np.linspace(-9, 9, n).astype(np.float32)
    before = _core.isa()

    def all_of() -> list[bytes]:
        start, half = np.full((num, n + 16), 0.5, np.float32), np.zeros((num, n + 32), np.uint16)
        gated = np.zeros((num, n // 2 + 32), np.uint16)
        case.run(num, "add", bias, start)
        case.run(num, "store_bf16", bias, half)
        if n % 32 == 0:
            case.run(num, "silu_mul", bias, gated)
        return [case.run(num).tobytes(), start.tobytes(), half.tobytes(), gated.tobytes()]

    try:
        for tier in _core.available_isas()[1:]:
            _core.set_isa(_core.twin_of(tier))
            want = all_of()
            _core.set_isa(tier)
            assert all_of() == want, tier
    finally:
        _core.set_isa(before)


@pytest.mark.parametrize("rows", [1, 2, 6, 20, 40])
def test_int8_extremes_are_exact(isa: str, rows: int) -> None:
    """Sums of two products of +-127 would pass 16 bits if one factor were unsigned: nothing saturates on the way."""
    k = 512
    w8 = np.array([[127] * k, [-127] * k, [127, -127] * (k // 2), [127, 127, -127, -127] * (k // 4)], np.int8)
    codes, colsum = pack_i8(w8)
    x8 = np.vstack([w8] * 10)[:rows]
    out = np.zeros((rows, 4), np.float32)
    _core.kernels.linear(
        "i8", codes, NONE_I8, np.ones(16, np.float32), colsum, None, 4, k, rows_of(x8, 64), np.ones(rows, np.float32),
        rows, "store", out,
    )  # fmt: skip
    assert np.array_equal(out, x8.astype(np.int64) @ w8.astype(np.int64).T)


def test_int4_extremes_are_exact(isa: str) -> None:
    """m * q reaches -120, 112 and 120 (m in +-16): nothing saturates on the way, also with activations of +-127."""
    q = np.array([[-8] * 64, [7] * 64, [-7] * 64, [-8] * 64, [7] * 64], np.int8)
    m = np.array([[15, 15], [16, 16], [16, 1], [-15, -15], [-16, -1]], np.int8)
    codes, multipliers, colsum = pack_i4(q, m)
    x8 = np.vstack([np.full(64, 127, np.int8), np.full(64, -127, np.int8)])
    scales = np.ones(16, np.float32)
    for rows in (2, 5, 40):
        x = rows_of(np.vstack([x8] * 20)[:rows], 64)
        out = np.zeros((rows, 5), np.float32)
        _core.kernels.linear(
            "i4", codes, multipliers, scales, colsum, None, 5, 64, x, np.ones(rows, np.float32), rows, "store", out
        )
        w8 = q.astype(np.int64) * np.repeat(m, 32, 1)
        assert np.array_equal(out, np.vstack([x8] * 20)[:rows].astype(np.int64) @ w8.T)
