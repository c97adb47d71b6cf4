"""A packed file: writing it in one pass from plans of tensors, and mapping it again (docs/design/packed-layout.md).

This file knows the container, not the model: `spec` is JSON that `trivet.models.packing` gives a meaning.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from trivet import _core
from trivet.errors import ModelFormatError
from trivet.formats.checkpoint import SourceIdentity
from trivet.formats.layout import (
    LAYOUT_VERSION,
    MAGIC,
    TENSOR_ALIGNMENT,
    Kind,
    PackedTensor,
    place,
    round_up,
)
from trivet.formats.safetensors import TensorView

PREFIX_BYTES = 24
_SYNC_BYTES = 64 * 2**20  # go to the disk together, while the next are packed
BLANK_DIGEST = "0" * 64
Progress = Callable[[int, int], None]  # (weights packed so far, of how many)


class PackedHeader(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON header of a packed file."""

    spec: msgspec.Raw
    precision: str
    group_size: int
    digest: str
    source: SourceIdentity
    notes: tuple[str, ...]
    nbytes: int  # of the whole file
    tensors: dict[str, PackedTensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedFile:
    """A mapped packed file: `buffer` is all of it, read-only uint8."""

    path: Path
    header: PackedHeader
    buffer: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """`num_rows` consecutive rows, from `first_row` on, of a source matrix [_, k]; `tensor` None: zeros."""

    tensor: TensorView | None
    first_row: int
    num_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPlan:
    """A tensor to pack: linear ones from `rows`, `f32` ones from `values`."""

    name: str
    kind: Kind
    n: int
    k: int
    group: int = 0
    rows: tuple[Rows, ...] = ()
    values: Callable[[], NDArray[np.float32]] | None = None


class VersionMismatch(ModelFormatError):
    """The packed file has another layout version; `found` says which."""

    def __init__(self, path: Path, found: int) -> None:
        super().__init__(
            f"{path} has packed layout version {found}, but this Trivet reads version {LAYOUT_VERSION}",
            hint="install the newer Trivet that wrote it, or remove it with `trivet cache clear`",
        )
        self.found = found


def _lay_out(plans: Sequence[TensorPlan], start: int) -> dict[str, PackedTensor]:
    tensors: dict[str, PackedTensor] = {}
    end = start
    for plan in plans:
        tensor = place(plan.kind, plan.n, plan.k, plan.group, round_up(end, TENSOR_ALIGNMENT))
        tensors[plan.name] = tensor
        end = tensor.offset + tensor.nbytes
    return tensors


def plan_header(
    plans: Sequence[TensorPlan],
    *,
    spec: object,
    precision: str,
    group_size: int,
    source: SourceIdentity,
    notes: Sequence[str],
) -> PackedHeader:
    """The header with every place decided and the digest blank; its `nbytes` is what the file will take."""
    start = TENSOR_ALIGNMENT
    while True:
        tensors = _lay_out(plans, start)
        last = max(tensors.values(), key=lambda t: t.offset + t.nbytes)
        header = PackedHeader(
            spec=msgspec.Raw(msgspec.json.encode(spec)),
            precision=precision,
            group_size=group_size,
            digest=BLANK_DIGEST,
            source=source,
            notes=tuple(notes),
            nbytes=last.offset + last.nbytes,
            tensors=tensors,
        )
        needed = round_up(PREFIX_BYTES + len(msgspec.json.encode(header)), TENSOR_ALIGNMENT)
        if needed <= start:
            return header
        start = needed


def write_packed(
    path: Path,
    header: PackedHeader,
    plans: Sequence[TensorPlan],
    *,
    num_threads: int,
    progress: Progress | None = None,
) -> PackedHeader:
    """Writes the file and returns its final header; the caller renames it into place.

    The space is allocated first: a disk that fills up is an OSError here, not a fault in the memory map later. The
    digest, and most of the writing to the disk, happen behind the packing, in a thread.
    """
    with path.open("w+b") as file, ThreadPoolExecutor(1) as behind:
        os.posix_fallocate(file.fileno(), 0, header.nbytes)
        buffer = np.frombuffer(_in_huge_pages(mmap.mmap(file.fileno(), header.nbytes)), np.uint8)
        digest = hashlib.sha256(msgspec.json.encode([LAYOUT_VERSION, header.spec, header.precision, header.group_size]))
        total = sum(plan.n * plan.k for plan in plans)
        done = unwritten = 0
        finishing: list[Future[None]] = []
        try:
            for plan in plans:
                tensor = header.tensors[plan.name]
                _fill(buffer, tensor, plan, num_threads)
                unwritten += tensor.nbytes
                packed = buffer.data[tensor.offset : tensor.offset + tensor.nbytes]
                finishing.append(behind.submit(_digest, digest, plan, packed))
                if unwritten >= _SYNC_BYTES:
                    finishing.append(behind.submit(os.fdatasync, file.fileno()))
                    unwritten = 0
                done += plan.n * plan.k
                if progress is not None:
                    progress(done, total)
            for finished in finishing:
                finished.result()
        except BaseException:
            behind.shutdown(cancel_futures=True)  # nobody needs the rest of a file that is thrown away
            raise
        header = msgspec.structs.replace(header, digest=digest.hexdigest())
        encoded = msgspec.json.encode(header)
        prefix = MAGIC + LAYOUT_VERSION.to_bytes(4, "little") + bytes(4) + len(encoded).to_bytes(8, "little")
        file.write(prefix + encoded)
        file.flush()
        os.fsync(file.fileno())
    return header


def _digest(digest: hashlib._Hash, plan: TensorPlan, packed: memoryview) -> None:
    digest.update(msgspec.json.encode([plan.name, plan.kind, plan.n, plan.k, plan.group]))
    digest.update(packed)


def _in_huge_pages(mapped: mmap.mmap) -> mmap.mmap:
    """The same mapping, of which nothing was touched yet: what a touch brings in comes in huge pages.

    A wish: where the system has none, or they are in the page cache in small ones already, small pages do.
    """
    with suppress(OSError):
        mapped.madvise(mmap.MADV_HUGEPAGE)
    return mapped


def _fill(buffer: NDArray[np.uint8], tensor: PackedTensor, plan: TensorPlan, num_threads: int) -> None:
    parts = {name: buffer[offset : offset + nbytes] for name, (offset, nbytes) in tensor.parts.items()}
    if plan.values is not None:
        parts["data"].view(np.float32)[:] = plan.values().reshape(-1)
        return
    row_bytes = {"f32": 4 * plan.k, "f16": 2 * plan.k, "bf16": 2 * plan.k}
    sources: list[tuple[NDArray[np.uint8] | None, str, int]] = []
    for rows in plan.rows:
        if rows.tensor is None:
            sources.append((None, "f32", rows.num_rows))
            continue
        dtype = rows.tensor.float_dtype()
        begin = rows.first_row * row_bytes[dtype]
        sources.append((rows.tensor.data[begin : begin + rows.num_rows * row_bytes[dtype]], dtype, rows.num_rows))
    if plan.kind == "bf16":
        finite = _core.pack_bf16(sources, plan.k, parts["codes"], num_threads)
    else:
        scales, colsum = parts["scales"].view(np.float32), parts["colsum"].view(np.int32)
        if plan.kind == "i8":
            finite = _core.pack_i8(sources, plan.k, parts["codes"], scales, colsum, num_threads)
        else:
            multipliers = parts["multipliers"].view(np.int8)
            finite = _core.pack_i4(
                sources, plan.k, plan.group, parts["codes"], multipliers, scales, colsum, num_threads
            )
    if not finite:
        raise _name_not_finite(plan)


def _name_not_finite(plan: TensorPlan) -> ModelFormatError:
    """Which of a plan's sources holds the value that cannot be packed."""
    tensors = [rows.tensor for rows in plan.rows if rows.tensor is not None]
    for tensor in {tensor.name: tensor for tensor in tensors}.values():
        try:
            tensor.to_float32()
        except ModelFormatError as error:
            return error
    return ModelFormatError(f"tensor `{tensors[0].name}` in {tensors[0].file} has values too large for bf16")


def damaged(path: Path, what: str) -> ModelFormatError:
    """The error for a packed file that cannot be what was written."""
    return ModelFormatError(f"packed file {path} is damaged: {what}", hint="remove it with `trivet cache clear`")


def open_packed_file(path: Path) -> PackedFile:
    """The file, mapped and checked in all but its tensors' values.

    VersionMismatch for another layout version, ModelFormatError for any damage: cut, wrong magic, bad header, places
    that do not follow from the sizes.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < PREFIX_BYTES:
                raise damaged(path, f"it has {size} bytes")
            mapped = _in_huge_pages(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise ModelFormatError(f"packed file {path} cannot be read: {error.strerror or error}") from None
    buffer = np.frombuffer(mapped, np.uint8)
    if mapped[:8] != MAGIC:
        raise damaged(path, "it does not begin with TRIVETPK")
    version = int.from_bytes(mapped[8:12], "little")
    if version != LAYOUT_VERSION:
        raise VersionMismatch(path, version)
    length = int.from_bytes(mapped[16:24], "little")
    if length > size - PREFIX_BYTES:
        raise damaged(path, f"its header has {length:,} bytes, the file {size:,}")
    try:
        header = msgspec.json.decode(mapped[PREFIX_BYTES : PREFIX_BYTES + length], type=PackedHeader)
    except msgspec.DecodeError as error:
        raise damaged(path, f"its header cannot be read: {error}") from None
    if header.nbytes != size:
        raise damaged(path, f"it has {size:,} bytes, but its header says {header.nbytes:,}")
    for name, tensor in header.tensors.items():
        if not _well_placed(tensor, size):
            raise damaged(path, f"tensor `{name}` is not where its size says")
    return PackedFile(path=path, header=header, buffer=buffer)


def _well_placed(tensor: PackedTensor, size: int) -> bool:
    if min(tensor.n, tensor.k) < 1 or tensor.offset < PREFIX_BYTES or tensor.offset % TENSOR_ALIGNMENT != 0:
        return False
    fits_group = tensor.kind != "i4" or (tensor.group in (32, 64, 128) and tensor.k % tensor.group == 0)
    expected = place(tensor.kind, tensor.n, tensor.k, tensor.group, tensor.offset)
    return fits_group and tensor == expected and tensor.offset + tensor.nbytes <= size
