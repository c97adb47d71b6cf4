"""From packed bytes back to plain arrays, in NumPy: plainly right, slow, and what tests compare the core with."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.formats.layout import PackedTensor, padded_k, round_up


def part(buffer: NDArray[np.uint8], tensor: PackedTensor, name: str, dtype: Any) -> NDArray[Any]:
    """A view of one part, one-dimensional."""
    offset, nbytes = tensor.parts[name]
    return buffer[offset : offset + nbytes].view(dtype)


def unpack_codes(buffer: NDArray[np.uint8], tensor: PackedTensor) -> NDArray[Any]:
    """The stored numbers without their pads, [n, k]: uint16 of `bf16`, int8 of `i8`; of `i4` int8 multiplier * q."""
    n, k = tensor.n, tensor.k
    np_, kp = round_up(n, 16), padded_k(tensor.kind, k)
    if tensor.kind == "bf16":
        tiles = part(buffer, tensor, "codes", np.uint16).reshape(np_ // 16, kp // 32, 16, 16, 2)
        return np.ascontiguousarray(tiles.transpose(0, 3, 1, 2, 4).reshape(np_, kp)[:n, :k])
    if tensor.kind == "i8":
        tiles = part(buffer, tensor, "codes", np.int8).reshape(np_ // 16, kp // 64, 16, 16, 4)
        return np.ascontiguousarray(tiles.transpose(0, 3, 1, 2, 4).reshape(np_, kp)[:n, :k])
    if tensor.kind != "i4":
        raise ValueError(f"a tensor of kind {tensor.kind} has no codes")
    nibbles = part(buffer, tensor, "codes", np.uint8).reshape(np_ // 16, kp // 64, 8, 16, 4)
    q = np.stack([nibbles & 15, nibbles >> 4], axis=2).astype(np.int8) - 8  # [NB, kb, half, r, c, e]
    codes = q.transpose(0, 4, 1, 2, 3, 5).reshape(np_, kp)
    multipliers = part(buffer, tensor, "multipliers", np.int8).reshape(np_ // 16, kp // 32, 16)
    per_column = multipliers.transpose(0, 2, 1).reshape(np_, kp // 32).repeat(32, axis=1)
    return np.ascontiguousarray((codes * per_column)[:n, :k])


def dequantize(buffer: NDArray[np.uint8], tensor: PackedTensor) -> NDArray[np.float32]:
    """The tensor as float32 [n, k] ([n] for a vector), as the core computes with it."""
    if tensor.kind == "f32":
        data = part(buffer, tensor, "data", np.float32)
        return data.copy() if tensor.k == 1 else data.reshape(tensor.n, tensor.k).copy()
    codes = unpack_codes(buffer, tensor)
    if tensor.kind == "bf16":
        return (codes.astype(np.uint32) << 16).view(np.float32)
    scales = part(buffer, tensor, "scales", np.float32)[: tensor.n]
    return np.asarray(codes.astype(np.float32) * scales[:, None], np.float32)
