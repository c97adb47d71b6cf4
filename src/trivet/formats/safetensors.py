"""Reading safetensors: a file is 8 bytes of header length, a JSON header, and the tensors' bytes without gaps.

Read here rather than by the safetensors package for three reasons: the tensors are wanted as bytes of the memory map
(bf16 included), a warm start wants the hash of the header alone, and each damage should be named.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.errors import ModelFormatError

MAX_HEADER = 100_000_000  # as the reference implementation has it
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8, "C64": 8,
}  # fmt: skip
FLOATS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
RE_DOWNLOAD = "the file is damaged or its download was interrupted: fetch it again"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TensorView:
    """A tensor in its file: `data` is a read-only view of its bytes in the memory map."""

    name: str
    dtype: str  # as safetensors spells it: F32, BF16 ..
    shape: tuple[int, ...]
    data: NDArray[np.uint8]
    file: Path

    def float_dtype(self) -> str:
        """`f32`, `f16` or `bf16`; ModelFormatError for any other."""
        if self.dtype not in FLOATS:
            raise ModelFormatError(
                f"tensor `{self.name}` in {self.file} is {self.dtype}, but weights must be F32, F16 or BF16",
                hint="quantized checkpoints are not supported yet: use the original one",
            )
        return FLOATS[self.dtype]

    def to_float32(self) -> NDArray[np.float32]:
        """A float32 copy in the tensor's shape; ModelFormatError if a value is NaN or infinite."""
        kind = self.float_dtype()
        if kind == "bf16":
            array = (np.frombuffer(self.data, np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            array = np.frombuffer(self.data, np.float32 if kind == "f32" else np.float16).astype(np.float32)
        if not np.isfinite(array).all():
            raise not_finite(self)
        return array.reshape(self.shape)


def not_finite(tensor: TensorView) -> ModelFormatError:
    """The error for a weight that is NaN or infinite."""
    return ModelFormatError(
        f"tensor `{tensor.name}` in {tensor.file} holds NaN or infinite values",
        hint="the checkpoint is broken: a training run diverged, or the file is damaged",
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"key `{key}` twice")
        result[key] = value
    return result


def read_header(path: Path) -> tuple[bytes, int]:
    """The JSON bytes of the header and the size of the whole file; ModelFormatError if the file ends before them."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            if len(prefix) < 8:
                raise ModelFormatError(
                    f"{path} has {size} bytes, but a safetensors file begins with 8 bytes of header length",
                    hint=RE_DOWNLOAD,
                )
            length = int.from_bytes(prefix, "little")
            if length > MAX_HEADER:
                raise ModelFormatError(
                    f"{path} is not a safetensors file: its header would have {length:,} bytes", hint=RE_DOWNLOAD
                )
            header = file.read(length)
    except OSError as error:
        raise ModelFormatError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(header) < length:
        raise ModelFormatError(f"{path} has {size} bytes, but its header alone needs {8 + length}", hint=RE_DOWNLOAD)
    return header, size


def header_hash(path: Path) -> str:
    """SHA-256 of the header: names, dtypes, shapes and places of all tensors."""
    return hashlib.sha256(read_header(path)[0]).hexdigest()


def open_safetensors(path: Path) -> dict[str, TensorView]:
    """The tensors of the file as views of its memory map; ModelFormatError names the file, the tensor and the fault."""
    header, size = read_header(path)
    try:
        entries = json.loads(header.decode("utf-8"), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"the header of {path} is not valid JSON: {error}", hint=RE_DOWNLOAD) from None
    if not isinstance(entries, dict):
        raise ModelFormatError(f"the header of {path} is not a JSON object", hint=RE_DOWNLOAD)
    entries.pop("__metadata__", None)
    start = 8 + len(header)
    parsed = {name: _parse(path, name, entry) for name, entry in entries.items()}
    _check_coverage(path, parsed, size - start)
    if not parsed:
        return {}
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    buffer = np.frombuffer(mapped, np.uint8)
    return {
        name: TensorView(name=name, dtype=dtype, shape=shape, data=buffer[start + begin : start + end], file=path)
        for name, (dtype, shape, begin, end) in parsed.items()
    }


def _parse(path: Path, name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    def bad(what: str) -> ModelFormatError:
        return ModelFormatError(f"tensor `{name}` in {path} {what}", hint=RE_DOWNLOAD)

    def counts(value: Any) -> bool:
        return isinstance(value, list) and all(type(v) is int and v >= 0 for v in value)

    if not isinstance(entry, dict):
        raise bad("has no description")
    dtype: Any = entry.get("dtype")
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise bad(f"has dtype {dtype!r}, which is not known")
    if not counts(shape):
        raise bad(f"has shape {shape!r}, which is not a list of sizes")
    if not counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise bad(f"has data_offsets {offsets!r}, which are not a begin and an end")
    expected = math.prod(shape) * ITEM_BYTES[dtype]
    if offsets[1] - offsets[0] != expected:
        raise bad(f"takes {offsets[1] - offsets[0]} bytes, but {dtype} {shape} needs {expected}")
    return dtype, tuple(shape), offsets[0], offsets[1]


def _check_coverage(path: Path, parsed: dict[str, tuple[str, tuple[int, ...], int, int]], data_bytes: int) -> None:
    end = 0
    for name, (_, _, begin, stop) in sorted(parsed.items(), key=lambda item: item[1][2:]):
        if begin != end:
            what = "overlaps the one before it" if begin < end else f"leaves a gap of {begin - end} bytes before it"
            raise ModelFormatError(f"tensor `{name}` in {path} {what}", hint=RE_DOWNLOAD)
        if stop > data_bytes:
            raise ModelFormatError(
                f"tensor `{name}` ends {stop - data_bytes:,} bytes behind the end of {path}", hint=RE_DOWNLOAD
            )
        end = stop
    if end != data_bytes:
        raise ModelFormatError(
            f"{path} has {data_bytes - end:,} bytes more than its header describes", hint=RE_DOWNLOAD
        )
