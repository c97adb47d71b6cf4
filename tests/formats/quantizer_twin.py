"""The packer's arithmetic in NumPy: plainly right, slow. int8 must agree to the bit, int4 in squared error."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


def to_bf16(x: F32) -> NDArray[np.uint16]:
    """The nearest bf16, half to even, as bits."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def quantize_i8(w: F32) -> tuple[NDArray[np.int8], F32]:
    """(codes [N, K], scales [N]): scale = absmax / 127, codes rounded half to even, zeros with scale 1."""
    top = np.abs(w).max(axis=1)
    scales = np.where(top < 1e-30, np.float32(1), top / np.float32(127)).astype(np.float32)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(top < 1e-30, np.float32(0), np.float32(127) / top).astype(np.float32)
    return np.rint(w * inverse[:, None]).astype(np.int8), scales


def group_error(w: NDArray[Any], step: NDArray[Any], low: NDArray[Any] | int = -8) -> NDArray[Any]:
    """Squared error of each group [.., group] at its step [..], codes low..7."""
    q = np.clip(np.rint(w / step[..., None]), low, 7)
    return np.asarray(((w - q * step[..., None]) ** 2).sum(-1))


def float_group_error(w: NDArray[Any], group: int) -> float:
    """Squared error with one float16 scale a group, the best of 60 clips and of both signs."""
    groups = w.astype(np.float64).reshape(len(w), -1, group)
    top = np.maximum(np.abs(groups).max(-1), 1e-30)
    steps = [(top / d).astype(np.float16).astype(np.float64) for d in np.geomspace(6.5, 12, 60)]
    return float(np.min([group_error(groups, s) for step in steps for s in (step, -step)], axis=0).sum())


def integer_multiplier_error(w: NDArray[Any], group: int) -> float:
    """Squared error with a multiplier +-1..16 a group and one scale a row: all multipliers at 80 scales a row."""
    groups = w.astype(np.float64).reshape(len(w), -1, group)
    top = np.abs(groups).max(axis=(1, 2))
    best = np.full(len(w), np.inf)
    for d in np.geomspace(50, 250, 80):  # the largest group's absmax over the scale
        scale = top / d
        errors = np.full(groups.shape[:2], np.inf)
        for m in range(1, 17):
            step = np.broadcast_to((m * scale)[:, None], groups.shape[:2])
            for signed in (step, -step):
                errors = np.minimum(errors, group_error(groups, signed, -7 if m == 16 else -8))
        best = np.minimum(best, errors.sum(1))
    return float(best.sum())
