"""The packed layout in NumPy, straight from docs/design/packed-layout.md: what kernels and packer are tested with."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def bf16(x: Array) -> Array:
    """uint16 bits of float32 values, round half to even (no NaN)."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(h: Array) -> Array:
    return (h.astype(np.uint32) << 16).view(np.float32)


def _padded(w: Array, k_unit: int) -> Array:
    n, k = w.shape
    out = np.zeros((-(-n // 16) * 16, -(-k // k_unit) * k_unit), w.dtype)
    out[:n, :k] = w
    return out


def pack_bf16(w: Array) -> Array:
    """uint8 codes of float32 w [N, K], rounded to bf16."""
    p = _padded(bf16(w), 32)
    np_, kp = p.shape
    return aligned(p.reshape(np_ // 16, 16, kp // 32, 16, 2).transpose(0, 2, 3, 1, 4))


def pack_i8(w8: Array) -> tuple[Array, Array]:
    """(uint8 codes, colsum) of int8 w8 [N, K]."""
    p = _padded(w8, 64)
    np_, kp = p.shape
    return aligned(p.reshape(np_ // 16, 16, kp // 64, 16, 4).transpose(0, 2, 3, 1, 4)), p.astype(np.int32).sum(
        1, dtype=np.int32
    )


def pack_i4(q: Array, m: Array) -> tuple[Array, Array, Array]:
    """(uint8 codes, int8 multipliers, colsum) of int8 q [N, K] in -8..7 and int8 m [N, ceil(K / 32)]."""
    p = _padded(q, 64)
    np_, kp = p.shape
    mult = np.ones((np_, kp // 32), np.int8)
    mult[: m.shape[0], : m.shape[1]] = m
    colsum = (p.astype(np.int32) * np.repeat(mult, 32, 1)).sum(1, dtype=np.int32)
    nib = (p + 8).astype(np.uint8).reshape(np_ // 16, 16, kp // 64, 2, 8, 4).transpose(3, 0, 2, 4, 1, 5)
    codes = nib[0] | (nib[1] << 4)
    return aligned(codes), aligned(mult.reshape(np_ // 16, 16, kp // 32).transpose(0, 2, 1)).view(np.int8), colsum


def aligned(a: Array) -> Array:
    """A flat uint8 copy whose address is a multiple of 64 and which ends where an unreadable page begins, if it can.

    Every packed part is a multiple of 64 bytes, so both hold at once.
    """
    from guard import at_page_end

    flat = np.ascontiguousarray(a).view(np.uint8).reshape(-1)
    return at_page_end(flat)
