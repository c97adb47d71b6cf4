"""The packed layout (docs/design/packed-layout.md): what a packed tensor is and where its parts go."""

from __future__ import annotations

from typing import Literal

import msgspec

MAGIC = b"TRIVETPK"
LAYOUT_VERSION = 2
TENSOR_ALIGNMENT = 4096  # of a tensor, from the file's start
PART_ALIGNMENT = 64
PANEL = 16  # output rows of a panel

Kind = Literal["f32", "bf16", "i8", "i4"]


class PackedTensor(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor of a packed file; offsets count from the file's start.

    A linear tensor is [n, k]; an `f32` one is a vector [n] (k = 1) or a table [n, k]. `group` is 0 except for `i4`.
    """

    kind: Kind
    n: int
    k: int
    group: int = 0
    offset: int
    nbytes: int
    parts: dict[str, tuple[int, int]]  # part -> (offset, nbytes)


def round_up(count: int, multiple: int) -> int:
    """The least multiple of `multiple` that is at least `count`."""
    return -(-count // multiple) * multiple


def padded_k(kind: Kind, k: int) -> int:
    """Kp: K with its padding, in values."""
    return round_up(k, {"f32": 1, "bf16": 32, "i8": 64, "i4": 64}[kind])


def part_sizes(kind: Kind, n: int, k: int) -> dict[str, int]:
    """Bytes of each part, in the order in which they are stored."""
    if kind == "f32":
        return {"data": 4 * n * k}
    np, kp = round_up(n, PANEL), padded_k(kind, k)
    if kind == "bf16":
        return {"codes": 2 * np * kp}
    sizes = {"codes": np * kp if kind == "i8" else np * kp // 2}
    if kind == "i4":
        sizes["multipliers"] = np * kp // 32
    return sizes | {"scales": 4 * np, "colsum": 4 * np}


def place(kind: Kind, n: int, k: int, group: int, offset: int) -> PackedTensor:
    """The tensor whose first part starts at `offset`, which must be a multiple of TENSOR_ALIGNMENT."""
    assert offset % TENSOR_ALIGNMENT == 0
    parts: dict[str, tuple[int, int]] = {}
    end = offset
    for part, nbytes in part_sizes(kind, n, k).items():
        start = round_up(end, PART_ALIGNMENT)
        parts[part] = (start, nbytes)
        end = start + nbytes
    return PackedTensor(kind=kind, n=n, k=k, group=group, offset=offset, nbytes=end - offset, parts=parts)


def choose_group(k: int, group_size: int) -> int:
    """The largest of `group_size` and the smaller of 128, 64, 32 that divides k; 0 if none does."""
    return next((g for g in (128, 64, 32) if g <= group_size and k % g == 0), 0)
