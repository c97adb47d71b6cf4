"""Attention of one item, and writing keys and values: against NumPy, and alike to the bit in all tiers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from packing import bf16, from_bf16

from guard import at_page_end
from trivet import _core

Array = NDArray[Any]
BLOCK, STEP, TILE = 32, 128, 32
LOG2E = np.float32(1.44269504)


def woven(keys: Array, values: Array, n: int) -> Array:
    """Keys and values [BLOCK, Pp] in the order of a block, n numbers of a key or keys of a value together."""
    pp = keys.shape[1]
    k = keys.reshape(BLOCK // 16, 16, pp // n, n).transpose(0, 2, 1, 3)
    v = values.reshape(BLOCK // n, n, pp).transpose(0, 2, 1)
    return np.concatenate([k.reshape(-1), v.reshape(-1)])


class Cache:
    """Random keys and values in shuffled blocks that end where memory does; slots past the last hold numbers."""

    def __init__(
        self, keys: int, pp: int, int8: bool, *, seed: int = 0, extreme: bool = False, given: Array | None = None
    ) -> None:
        """`given`: these keys, bf16 numbers [keys, pp], keys a multiple of BLOCK."""
        rng = np.random.default_rng([seed, keys, pp])
        num = -(-keys // BLOCK)
        self.int8, self.pp, self.table = int8, pp, rng.permutation(num).astype(np.int32)
        blocks = []
        for b in range(num):
            shape = (BLOCK, pp)
            if int8:
                codes = [rng.integers(-127, 128, shape) for _ in "kv"]
                if extreme:
                    codes = [np.where(c < 0, -127, 127) for c in codes]
                scales = rng.uniform(0.01, 0.03, (2, BLOCK)).astype(np.float32)
                for c in codes:
                    c[max(keys - b * BLOCK, 0) :] = 127  # 0xff as it is stored
                blocks.append((*codes, *scales))
            else:
                k, v = (from_bf16(bf16(rng.standard_normal(shape).astype(np.float32))) for _ in "kv")
                blocks.append((k if given is None else given[b * BLOCK : (b + 1) * BLOCK], v))
        self.k = np.concatenate([b[0] for b in blocks])[:keys].astype(np.float64)
        self.v = np.concatenate([b[1] for b in blocks])[:keys].astype(np.float64)
        self.k_scale = np.concatenate([b[2] for b in blocks])[:keys].astype(np.float64) if int8 else np.ones(keys)
        self.v_scale = np.concatenate([b[3] for b in blocks])[:keys].astype(np.float64) if int8 else np.ones(keys)
        stored = [b""] * num
        for b, place in zip(blocks, self.table, strict=True):
            if int8:
                codes_of = (woven(b[0], b[1], 4) + 128).astype(np.uint8)
                stored[place] = codes_of.tobytes() + b[2].tobytes() + b[3].tobytes()
            else:
                stored[place] = bf16(woven(b[0], b[1], 2).astype(np.float32)).tobytes()
        self.bytes = at_page_end(np.frombuffer(b"".join(stored), np.uint8))

    def attend(self, q: Array, position: Array, cuts: list[int]) -> tuple[Array, Array, Array]:
        rows = len(position)
        padded = np.full((TILE, self.pp), 0x7FC1, np.uint16)  # rows past the last are readable, and no numbers
        padded[:rows] = q
        out, top, total = (np.full(s, np.nan, np.float32) for s in ((TILE, self.pp), TILE, TILE))
        _core.kernels.attend(
            at_page_end(padded), position.astype(np.int32), self.table, self.bytes, BLOCK, self.int8, np.float32(0.125),
            np.array(cuts, np.int32), out, top, total,
        )  # fmt: skip
        return out[:rows], top[:rows], total[:rows]

    def exact(self, q: Array, position: Array) -> Array:
        """Attention in float64 without any rounding of weights; beside int8 keys, queries are rounded to int8."""
        numbers = from_bf16(q)
        if self.int8:
            most = np.maximum(np.abs(numbers).max(1, keepdims=True), np.float32(1e-30))
            numbers = np.rint(numbers * (np.float32(127) / most)) * (most.astype(np.float64) / 127)
        s = numbers.astype(np.float64) @ self.k.T * self.k_scale * 0.125
        s[np.arange(len(self.k)) > position[:, None]] = -np.inf
        e = np.exp(s - s.max(1, keepdims=True))
        return np.asarray((e * self.v_scale) @ self.v / e.sum(1, keepdims=True))


def queries(rows: int, keys: int, pp: int, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng([seed, rows, keys, pp])
    position = rng.integers(0, keys, rows)
    position[rng.integers(rows)] = keys - 1
    return bf16(rng.standard_normal((rows, pp)).astype(np.float32)), position


def bits(parts: Iterable[Array]) -> list[bytes]:
    return [p.tobytes() for p in parts]


WIDTHS = [32, 64, 96, 128, 160, 256]
CASES = [(1, 1), (1, 31), (2, 33), (3, 128), (4, 129), (5, 65), (15, 97), (16, 127), (17, 200), (31, 64), (32, 300)]


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("pp", WIDTHS)
def test_every_tier_is_near_float64_and_has_the_bits_of_its_twin(isa: str, int8: bool, pp: int) -> None:
    """int8: a step's weights are cut at 2^-17 of their largest. What those of 128 keys lose so is less than 1e-3 of a
    row, and a power of 2 is near to 1.1e-4. bf16: weights are rounded to 2^-9."""
    for rows, keys in CASES:
        cache = Cache(keys, pp, int8)
        q, position = queries(rows, keys, pp)
        got = cache.attend(q, position, [keys])
        want = cache.exact(q, position)
        error = np.abs(got[0] / got[2][:, None] - want).max() / np.abs(cache.v * cache.v_scale[:, None]).max()
        assert error <= (1e-3 if int8 else 4e-3), (rows, keys, error)
        _core.set_isa(_core.twin_of(isa))
        assert bits(cache.attend(q, position, [keys])) == bits(got), (rows, keys)
        _core.set_isa(isa)


@pytest.mark.parametrize("int8", [False, True])
def test_a_row_does_not_depend_on_its_neighbours_nor_on_cuts(isa: str, int8: bool) -> None:
    for pp in (96, 128):
        cache = Cache(300, pp, int8)
        q, position = queries(32, 300, pp)
        whole = cache.attend(q, position, [300])
        assert bits(cache.attend(q, position, [128, 300])) == bits(whole)
        assert bits(cache.attend(q, position, [128, 256, 300])) == bits(whole)
        for rows in ([0], [3, 17], [5, 6, 7, 8, 9], list(range(20))):
            end = int(position[rows].max()) + 1  # a step that nobody sees is not looked at
            alone = cache.attend(q[rows], position[rows], [end])
            assert bits(alone) == bits(p[rows] for p in whole), (pp, rows)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("rows", [2, 20])
def test_keys_past_the_last_looked_at_do_not_count(isa: str, rows: int, int8: bool) -> None:
    """A row that sees more than it is given: as one that sees just those."""
    cache = Cache(224, 64, int8)
    q, _ = queries(rows, 224, 64)
    got = cache.attend(q, np.full(rows, 223), [96])
    assert bits(got) == bits(cache.attend(q, np.full(rows, 95), [96]))


@pytest.mark.parametrize("rows", [4, 20])
def test_sums_of_extremes_do_not_overflow(isa: str, rows: int) -> None:
    """All codes 127 or -127, all queries as large as they get, all weights equal: int32 holds it at the widest head."""
    cache = Cache(256, 256, True, extreme=True)
    q = bf16(np.sign(cache.k[:rows]).astype(np.float32) * 0.01)  # equal magnitudes: all bits are full
    position = np.full(rows, 255)
    got, want = cache.attend(q, position, [256]), cache.exact(q, position)
    assert np.abs(got[0] / got[2][:, None] - want).max() <= 1e-3 * np.abs(want).max()
    zero = cache.attend(np.zeros_like(q), position, [256])  # every key as likely
    mean = (cache.v * cache.v_scale[:, None]).mean(0)
    assert np.abs(zero[0] / zero[2][:, None] - mean).max() <= 1e-3 * np.abs(cache.v * cache.v_scale[:, None]).max()


def test_all_tiers_move_the_maximum_at_the_same_scores(isa: str) -> None:
    """The second step's scores lie above the first one's by 8 in powers of 2, to within two places of a float32:
    whether the maximum moves is a matter of how the difference is rounded. A score is the sum of three bf16 numbers."""
    rng = np.random.default_rng(7)
    border = np.float32(8 / (0.125 * np.log2(np.e)))
    q = np.zeros((1, 32), np.uint16)
    q[0, :3] = bf16(np.ones(3, np.float32))
    for _ in range(60):
        first = np.float32(rng.uniform(-30, 30))
        keys = np.zeros((256, 32), np.float32)
        for step, score in enumerate((first, first + border * np.float32(1 + rng.integers(-3, 4) * 2.0**-24))):
            left = score
            for part in range(3):
                keys[128 * step : 128 * step + 128, part] = from_bf16(bf16(np.array([left])))[0]
                left = left - keys[128 * step, part]
        cache = Cache(256, 32, False, given=keys)
        got = bits(cache.attend(q, np.array([255]), [256]))
        _core.set_isa(_core.twin_of(isa))
        assert bits(cache.attend(q, np.array([255]), [256])) == got, first
        _core.set_isa(isa)


@pytest.mark.parametrize("cuts", [[100, 200], [128, 128], [0, 128], [-128, 128], [256]])
def test_cuts_that_are_no_steps_are_refused(cuts: list[int]) -> None:
    cache = Cache(200, 32, True)
    with pytest.raises(ValueError, match="cuts must"):
        cache.attend(*queries(1, 200, 32), cuts)


@pytest.mark.parametrize("bad", [0x7FC0, 0x7F80, 0xFF80])  # NaN, infinity, -infinity
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("rows", [6, 20, 32])
def test_a_query_that_is_no_number_harms_itself_alone(isa: str, rows: int, int8: bool, bad: int) -> None:
    cache = Cache(200, 64, int8)
    q, position = queries(rows, 200, 64)
    clean = cache.attend(q, position, [200])
    q[2, 5] = bad
    got = cache.attend(q, position, [200])
    assert not np.all(np.isfinite(got[0][2] / got[2][2]))
    others = [r for r in range(rows) if r != 2]
    assert bits(p[others] for p in got) == bits(p[others] for p in clean)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("head_dim", [6, 30, 64, 80, 128])
def test_tokens_are_written_to_their_slots_and_nowhere_else(isa: str, int8: bool, head_dim: int) -> None:
    rng = np.random.default_rng(head_dim)
    pp = -(-head_dim // 32) * 32
    keys = np.zeros((BLOCK, pp), np.float32)
    values = np.zeros((BLOCK, pp), np.float32)
    keys[:, :head_dim] = rng.standard_normal((BLOCK, head_dim))
    values[:, :head_dim] = from_bf16(bf16(rng.standard_normal((BLOCK, head_dim)).astype(np.float32)))
    if int8:
        parts = []
        for x in (keys, values):
            most = np.abs(x).max(1, keepdims=True)
            parts.append((np.rint(x * (np.float32(127) / most)) + 128, (most / np.float32(127))[:, 0]))
        codes = woven(parts[0][0], parts[1][0], 4).astype(np.uint8)
        want = codes.tobytes() + parts[0][1].tobytes() + parts[1][1].tobytes()
    else:
        want = bf16(woven(from_bf16(bf16(keys)), values, 2)).tobytes()
    written = np.zeros(len(want), bool)  # pads, which nobody reads as numbers, may be written or not
    real = np.zeros((BLOCK, pp), bool)
    real[:, :head_dim] = True
    mask = woven(real, real, 4 if int8 else 2)
    written[: mask.size * (1 if int8 else 2)] = np.repeat(mask, 1 if int8 else 2)
    written[mask.size * (1 if int8 else 2) :] = True
    for cuts in ([16], [1] * 16, [3, 4, 5, 4], [4, 4, 4, 4], [2, 14]):
        block = at_page_end(np.full(len(want), 0xAB, np.uint8))
        for group in (16, 0):
            slot = group
            for n in cuts:
                before = block.copy()
                _core.kernels.write_kv(
                    block, BLOCK, head_dim, int8, slot, np.ascontiguousarray(keys[slot : slot + n]),
                    bf16(np.ascontiguousarray(values[slot : slot + n])),
                )  # fmt: skip
                rows = np.zeros((BLOCK, pp), bool)
                rows[slot : slot + n] = True
                mine = np.repeat(woven(rows, rows, 4 if int8 else 2), 1 if int8 else 2)
                if int8:
                    mine = np.concatenate([mine, *(np.repeat(rows[:, 0], 4) for _ in "kv")])
                assert np.array_equal(block[~mine], before[~mine]), (cuts, slot)
                slot += n
        got, expected = block[written], np.frombuffer(want, np.uint8)[written]
        assert np.array_equal(got, expected), cuts
