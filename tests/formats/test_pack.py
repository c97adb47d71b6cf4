"""The native packer against its NumPy twin, and against the layout as `trivet.formats.unpack` reads it."""

from __future__ import annotations

import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from quantizer_twin import float_group_error, integer_multiplier_error, quantize_i8, to_bf16

from checkpoints import make_checkpoint
from guard import at_page_end
from steps import logits_of, make_runner
from trivet import _core
from trivet.formats.layout import Kind, PackedTensor, place
from trivet.formats.unpack import dequantize, part, unpack_codes

F32 = NDArray[np.float32]
DTYPES = ("f32", "f16", "bf16")


def as_bytes(w: F32, dtype: str = "f32") -> NDArray[np.uint8]:
    """The matrix as the file holds it, behind it an unreadable page."""
    stored: NDArray[Any] = w if dtype == "f32" else to_bf16(w) if dtype == "bf16" else w.astype(np.float16)
    return at_page_end(np.ascontiguousarray(stored).reshape(-1).view(np.uint8))


def rounded_to(w: F32, dtype: str) -> F32:
    """What is left of float32 values after storing them as dtype."""
    if dtype == "bf16":
        return (to_bf16(w).astype(np.uint32) << 16).view(np.float32)
    return w.astype(np.float16).astype(np.float32) if dtype == "f16" else w


def pack(
    kind: Kind, sources: list[Any], n: int, k: int, group: int = 0, *, threads: int = 1
) -> tuple[NDArray[np.uint8], PackedTensor, bool]:
    """(buffer, tensor, whether all was finite); the buffer is filled with rubbish first."""
    tensor = place(kind, n, k, group, 0)
    buffer = np.full(tensor.nbytes, 0xA5, np.uint8)
    codes = part(buffer, tensor, "codes", np.uint8)
    if kind == "bf16":
        return buffer, tensor, _core.pack_bf16(sources, k, codes, threads)
    scales, colsum = part(buffer, tensor, "scales", np.float32), part(buffer, tensor, "colsum", np.int32)
    if kind == "i8":
        return buffer, tensor, _core.pack_i8(sources, k, codes, scales, colsum, threads)
    multipliers = part(buffer, tensor, "multipliers", np.int8)
    return buffer, tensor, _core.pack_i4(sources, k, group, codes, multipliers, scales, colsum, threads)


def normal(n: int, k: int, seed: int = 0) -> F32:
    return np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)


SHAPES = [(1, 1), (15, 31), (16, 32), (17, 33), (16, 64), (33, 65), (40, 130), (48, 192)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_bf16_is_exact(n: int, k: int, dtype: str) -> None:
    w = normal(n, k)
    buffer, tensor, finite = pack("bf16", [(as_bytes(w, dtype), dtype, n)], n, k)
    assert finite
    np.testing.assert_array_equal(unpack_codes(buffer, tensor), to_bf16(rounded_to(w, dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_i8_equals_the_twin(n: int, k: int, dtype: str) -> None:
    w = normal(n, k)
    w[0] *= 1e-20 if dtype != "f16" else 1e-6
    buffer, tensor, finite = pack("i8", [(as_bytes(w, dtype), dtype, n)], n, k)
    codes, scales = quantize_i8(rounded_to(w, dtype))
    assert finite
    np.testing.assert_array_equal(unpack_codes(buffer, tensor), codes)
    np.testing.assert_array_equal(part(buffer, tensor, "scales", np.float32)[:n], scales)
    np.testing.assert_array_equal(part(buffer, tensor, "colsum", np.int32)[:n], codes.sum(1, dtype=np.int32))


def test_every_float16_value_is_read() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    values = every[np.isfinite(every)]
    w = np.resize(values, (16, 3968))
    buffer, tensor, finite = pack("bf16", [(w.reshape(-1).view(np.uint8), "f16", 16)], 16, 3968)
    assert finite
    np.testing.assert_array_equal(unpack_codes(buffer, tensor), to_bf16(w.astype(np.float32)))


@pytest.mark.parametrize("kind", ["i8", "i4"])
def test_rounding_is_half_to_even(kind: Kind) -> None:
    w = np.zeros((1, 64), np.float32)
    w[0, :8] = [127, 0.5, 1.5, 2.5, -0.5, -1.5, 126.5, -127]
    buffer, tensor, _ = pack(kind, [(as_bytes(w), "f32", 1)], 1, 64, 32 if kind == "i4" else 0)
    if kind == "i8":
        assert unpack_codes(buffer, tensor)[0, :8].tolist() == [127, 0, 2, 2, 0, -2, 126, -127]
    else:
        assert np.abs(dequantize(buffer, tensor) - w).max() <= 127 / 13  # half of the coarsest sensible step


@pytest.mark.parametrize("kind", ["bf16", "i8", "i4"])
def test_pads_and_null_rows_are_zero(kind: Kind) -> None:
    """Rows 0..9 and 26..29 come from sources, 10..25 are null, 30 and 31 pad the panel; K = 96 pads to 128."""
    w = normal(14, 96)
    sources = [(as_bytes(w[:10]), "f32", 10), (None, "f32", 16), (as_bytes(w[10:], "bf16"), "bf16", 4)]
    group = 32 if kind == "i4" else 0
    buffer, tensor, finite = pack(kind, sources, 30, 96, group)
    assert finite
    padded = PackedTensor(kind=kind, n=32, k=128 if kind != "bf16" else 96, group=group, offset=0,
                          nbytes=tensor.nbytes, parts=tensor.parts)  # fmt: skip
    everything = dequantize(buffer, padded)
    assert not everything[10:26].any() and not everything[30:].any() and not everything[:, 96:].any()
    whole, whole_tensor, _ = pack(kind, [(as_bytes(w[:10]), "f32", 10)], 10, 96, group)
    np.testing.assert_array_equal(everything[:10, :96], dequantize(whole, whole_tensor))
    if kind != "bf16":
        scales, colsum = part(buffer, tensor, "scales", np.float32), part(buffer, tensor, "colsum", np.int32)
        assert (scales[10:26] == 1).all() and (scales[30:] == 1).all()
        np.testing.assert_array_equal(colsum, unpack_codes(buffer, padded).sum(1, dtype=np.int32))
    if kind == "i4":
        multipliers = part(buffer, tensor, "multipliers", np.int8).reshape(2, 4, 16)
        assert (multipliers[:, 3] == 1).all() and (multipliers[1, :, 14:] == 1).all()


@pytest.mark.parametrize("group", [32, 64, 128])
def test_i4_keeps_its_bounds(group: int) -> None:
    w = np.random.default_rng(1).standard_t(3, (33, 384)).astype(np.float32)
    w[:, 128:256] *= 0.001
    w[5, 7] = -1e4
    buffer, tensor, finite = pack("i4", [(as_bytes(w), "f32", 33)], 33, 384, group)
    assert finite
    w8 = unpack_codes(buffer, tensor).astype(np.int32)
    multipliers = part(buffer, tensor, "multipliers", np.int8).reshape(3, 12, 16).transpose(0, 2, 1).reshape(48, 12)
    assert multipliers.min() >= -16 and multipliers.max() <= 16 and multipliers.all()
    assert np.abs(w8).max() <= 120
    per_group = multipliers.reshape(48, 384 // group, group // 32)
    assert (per_group == per_group[:, :, :1]).all()
    np.testing.assert_array_equal(part(buffer, tensor, "colsum", np.int32)[:33], w8.sum(1))
    assert (part(buffer, tensor, "scales", np.float32) > 0).all()


def matrices() -> dict[str, F32]:
    rng = np.random.default_rng(2)
    return {
        "normal": rng.standard_normal((96, 1024)).astype(np.float32),
        "student-t": rng.standard_t(4, (96, 1024)).astype(np.float32),
        "column-scaled": (rng.standard_normal((96, 1024)) * np.exp(rng.normal(0, 0.5, 1024))).astype(np.float32),
    }


@pytest.mark.parametrize("name", matrices())
@pytest.mark.parametrize(("group", "most"), [(32, 1.08), (64, 1.035), (128, 1.02)])
def test_i4_error_is_close_to_float_group_scales(group: int, most: float, name: str) -> None:
    w = matrices()[name]
    buffer, tensor, _ = pack("i4", [(as_bytes(w), "f32", 96)], 96, 1024, group)
    error = float(((dequantize(buffer, tensor).astype(np.float64) - w) ** 2).sum())
    assert error <= most * float_group_error(w, group)


def test_i4_error_is_close_to_an_exhaustive_search() -> None:
    for w in matrices().values():
        few = w[:24, :512]
        buffer, tensor, _ = pack("i4", [(as_bytes(few), "f32", 24)], 24, 512, 32)
        error = float(((dequantize(buffer, tensor).astype(np.float64) - few) ** 2).sum())
        assert error <= 1.02 * integer_multiplier_error(few, 32)


def hard_rows(k: int) -> F32:
    """[32, k]: also groups of next to nothing, of one value, of halves between two codes, and rows of heavy tails."""
    values = np.arange(1, 32 * k + 1, dtype=np.uint32) * np.uint32(2654435761)
    w = ((values >> 8).astype(np.float32) / np.float32(1 << 23) - 1).reshape(32, k)
    w[8:16] = w[8:16] * w[8:16] * w[8:16]
    w[16:, :32] *= np.float32(1e-5)
    w[17], w[18], w[19, ::2] = 0, 3.0, 0
    w[20] = np.round(w[20] * 4) / 4
    w[21] = 1 / w[21]
    return w


# k, group: of the bytes that the search in plain C++ made of `hard_rows`, before it was compiled for each tier
CHECKSUMS = {
    (32, 32): 0x04D1BF11, (96, 32): 0xAB596E76, (384, 128): 0x29BF52BE, (1024, 32): 0xB0AE774A, (1024, 64): 0x2190D216,
}  # fmt: skip


@pytest.mark.parametrize(("k", "group"), CHECKSUMS)
def test_i4_bytes_stay_what_they_were(k: int, group: int) -> None:
    buffer, *_ = pack("i4", [(as_bytes(hard_rows(k)), "f32", 32)], 32, k, group)
    assert zlib.crc32(buffer.tobytes()) == CHECKSUMS[k, group]


def test_i4_is_the_same_in_every_tier() -> None:
    w = np.concatenate([*(m[:16] for m in matrices().values()), hard_rows(1024)])
    before = _core.isa()
    packed = {}
    try:
        for tier in _core.available_isas():
            _core.set_isa(tier)
            packed[tier] = [
                pack("i4", [(as_bytes(w), "f32", 80)], 80, 1024, group)[0].tobytes() for group in (32, 64, 128)
            ]
    finally:
        _core.set_isa(before)
    assert {tier for tier, ours in packed.items() if ours != packed["baseline"]} == set()


@pytest.mark.parametrize("exponent", [-90, -60, 60, 120])
def test_i4_does_not_depend_on_the_size_of_the_weights(exponent: int) -> None:
    """By powers of two exactly: squares neither vanish nor overflow."""
    w = normal(16, 128)
    buffer, tensor, _ = pack("i4", [(as_bytes(w), "f32", 16)], 16, 128, 32)
    scaled, *_ = pack("i4", [(as_bytes(w * np.float32(2.0**exponent)), "f32", 16)], 16, 128, 32)
    np.testing.assert_array_equal(unpack_codes(scaled, tensor), unpack_codes(buffer, tensor))


@pytest.mark.parametrize("kind", ["i8", "i4"])
def test_rows_of_next_to_nothing_are_zero(kind: Kind) -> None:
    w = normal(16, 64) * np.float32(1e-35)
    buffer, tensor, finite = pack(kind, [(as_bytes(w), "f32", 16)], 16, 64, 32 if kind == "i4" else 0)
    assert finite and not unpack_codes(buffer, tensor).any()


def test_i4_of_zeros_and_of_one_value() -> None:
    w = np.zeros((3, 64), np.float32)
    w[1, 40] = -0.75
    w[2] = 3.0
    buffer, tensor, finite = pack("i4", [(as_bytes(w), "f32", 3)], 3, 64, 32)
    assert finite
    np.testing.assert_allclose(dequantize(buffer, tensor), w, rtol=1e-6)


@pytest.mark.parametrize("kind", ["bf16", "i8", "i4"])
def test_bytes_do_not_depend_on_threads(kind: Kind) -> None:
    w = normal(200, 256)
    group = 64 if kind == "i4" else 0
    one, *_ = pack(kind, [(as_bytes(w), "f32", 200)], 200, 256, group, threads=1)
    for threads in (2, 5):
        many, *_ = pack(kind, [(as_bytes(w), "f32", 200)], 200, 256, group, threads=threads)
        np.testing.assert_array_equal(one, many)


@pytest.mark.parametrize("kind", ["i8", "i4"])
def test_denormals_of_float16_count_on_threads_that_were_in_a_step(kind: Kind, tmp_path: Path) -> None:
    """Steps leave the pool's threads with denormals flushed."""
    logits_of(make_runner(make_checkpoint(tmp_path / "m"), threads=2), [1, 2, 3], [3])
    w = normal(4096, 64) * np.float32(1e-5)
    group = 32 if kind == "i4" else 0
    alone, together = (
        pack(kind, [(as_bytes(w, "f16"), "f16", 4096)], 4096, 64, group, threads=threads)[0] for threads in (1, 2)
    )
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["bf16", "i8", "i4"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_is_found(kind: Kind, dtype: str, bad: float) -> None:
    w = normal(20, 64)
    w[18, 63] = bad
    truncated = (w.view(np.uint32) >> 16).astype(np.uint16)
    forms: dict[str, NDArray[Any]] = {"f32": w, "f16": w.astype(np.float16), "bf16": truncated}
    sources = [(forms[dtype].reshape(-1).view(np.uint8), dtype, 20)]
    assert pack(kind, sources, 20, 64, 32 if kind == "i4" else 0)[2] is False


def test_float32_too_large_for_bf16_is_found() -> None:
    w = np.full((1, 32), np.finfo(np.float32).max, np.float32)
    assert pack("bf16", [(as_bytes(w), "f32", 1)], 1, 32)[2] is False


def test_sources_may_be_unaligned() -> None:
    w = normal(16, 64)
    raw = np.concatenate([np.zeros(1, np.uint8), w.reshape(-1).view(np.uint8)])
    buffer, tensor, _ = pack("i8", [(raw[1:], "f32", 16)], 16, 64)
    np.testing.assert_array_equal(unpack_codes(buffer, tensor), quantize_i8(w)[0])


def test_bindings_refuse_what_does_not_fit() -> None:
    w = as_bytes(normal(16, 64))
    codes, floats, ints = np.zeros(1024, np.uint8), np.zeros(16, np.float32), np.zeros(16, np.int32)
    good = [(w, "f32", 16)]
    assert _core.pack_i8(good, 64, codes, floats, ints, 1)
    refused: list[tuple[list[Any], str]] = [
        ([], "no sources"), ([(w, "f64", 16)], "f64"), ([(w, "f32", 15)], "4096 bytes, expected 3840"),
        ([(w, "f32", 0)], "num_rows"), ([(w, "f32")], "a source is"),
    ]  # fmt: skip
    for sources, what in refused:
        with pytest.raises(ValueError, match=what):
            _core.pack_i8(sources, 64, codes, floats, ints, 1)
    with pytest.raises(TypeError, match="uint8"):
        _core.pack_i8([(w.view(np.float32), "f32", 16)], 64, codes, floats, ints, 1)
    with pytest.raises(TypeError, match="incompatible"):
        _core.pack_i8(good, 64, codes, floats.astype(np.float64), ints, 1)
    with pytest.raises(ValueError, match="codes has 1000 elements, expected 1024"):
        _core.pack_i8(good, 64, codes[:1000], floats, ints, 1)
    with pytest.raises(ValueError, match="scales has 15"):
        _core.pack_i8(good, 64, codes, floats[:15], ints, 1)
    with pytest.raises(ValueError, match="codes has 1024 elements, expected 2048"):
        _core.pack_bf16(good, 64, codes, 1)
    with pytest.raises(ValueError, match="k must be"):
        _core.pack_bf16(good, 0, codes, 1)
    for k, group in ((64, 48), (64, 128), (80, 32)):
        with pytest.raises(ValueError, match=f"group is {group}"):
            _core.pack_i4([(as_bytes(normal(16, k)), "f32", 16)], k, group, codes, codes.view(np.int8), floats, ints, 1)


OUT_OF_MEMORY = """
import resource
import numpy as np
from trivet import _core

k, rows = 1 << 17, 64
codes = {kind: np.zeros(rows * k * size // 2, np.uint8) for kind, size in (("bf16", 4), ("i8", 2), ("i4", 1))}
scales, colsum = np.zeros(rows, np.float32), np.zeros(rows, np.int32)
multipliers = np.zeros(rows * k // 32, np.int8)
def pack(kind, k, rows):
    sources, n = [(None, "f32", rows)], rows
    out = codes[kind][: rows * k * {"bf16": 4, "i8": 2, "i4": 1}[kind] // 2]
    if kind == "bf16":
        return _core.pack_bf16(sources, k, out, 4)
    if kind == "i8":
        return _core.pack_i8(sources, k, out, scales[:rows], colsum[:rows], 4)
    return _core.pack_i4(sources, k, 32, out, multipliers[: rows * k // 32], scales[:rows], colsum[:rows], 4)
for kind in codes:
    assert pack(kind, 64, 64)  # the pool has its threads now
soft, hard = resource.getrlimit(resource.RLIMIT_AS)
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 20), hard))
failed = []
for kind in codes:
    try:
        pack(kind, k, rows)
    except MemoryError:
        failed.append(kind)
resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
assert all(pack(kind, 64, 64) for kind in codes)
print(*failed)
"""


def test_running_out_of_memory_is_an_error_and_packing_goes_on_after() -> None:
    done = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "bf16 i8 i4\n", "")


def test_bindings_refuse_sums_that_int32_cannot_hold() -> None:
    k = 133_145
    kp = 133_184
    codes, floats, ints = np.zeros(16 * kp, np.uint8), np.zeros(16, np.float32), np.zeros(16, np.int32)
    with pytest.raises(ValueError, match="k is 133145, but int8 weights need one of at most 133144"):
        _core.pack_i8([(None, "f32", 16)], k, codes, floats, ints, 1)
    multipliers = np.zeros(16 * 133_184 // 32, np.int8)
    with pytest.raises(ValueError, match="k is 133184, but int4 weights need one of at most 133144"):
        _core.pack_i4([(None, "f32", 16)], 133_184, 32, codes[: 8 * kp], multipliers, floats, ints, 1)
    assert _core.pack_i8([(None, "f32", 16)], 133_144, codes[: 16 * 133_184], floats, ints, 1)
