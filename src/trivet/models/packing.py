"""From a checkpoint folder to a `PackedModel`: from the cache if it is there and current, else packed now."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from trivet import _core, config
from trivet.errors import CacheError, ModelFormatError
from trivet.formats import cache
from trivet.formats.checkpoint import SourceIdentity, open_weights, read_json, source_identity
from trivet.formats.layout import LAYOUT_VERSION, PackedTensor
from trivet.formats.packed import Progress, VersionMismatch, damaged, open_packed_file, plan_header, write_packed
from trivet.models.hf_config import model_spec
from trivet.models.spec import ModelSpec
from trivet.models.weights import packed_shapes, plan_weights

log = logging.getLogger("trivet.packing")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedModel:
    """A packed model, memory-mapped. `buffer` is the whole file, read-only uint8; `tensors` says where things are."""

    path: Path
    buffer: NDArray[np.uint8]
    tensors: dict[str, PackedTensor]
    spec: ModelSpec
    precision: str  # bf16, int8 or int4
    group_size: int
    digest: str  # SHA-256, hex, of what was packed: equal on every machine that packed the same
    notes: tuple[str, ...]  # what was given up while packing
    source: SourceIdentity

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def open_packed(path: Path) -> PackedModel:
    """The packed file, mapped; ModelFormatError if it is damaged, VersionMismatch for another version."""
    file = open_packed_file(path)
    header = file.header
    try:
        spec = msgspec.json.decode(header.spec, type=ModelSpec)
    except msgspec.DecodeError as error:
        raise damaged(path, f"its spec cannot be read: {error}") from None
    found = {name: ("f32" if t.kind == "f32" else "linear", t.n, t.k) for name, t in header.tensors.items()}
    if found != packed_shapes(spec):
        raise damaged(path, "it has tensors that its spec does not describe, or lacks some that it does")
    return PackedModel(
        path=path,
        buffer=file.buffer,
        tensors=header.tensors,
        spec=spec,
        precision=header.precision,
        group_size=header.group_size,
        digest=header.digest,
        notes=header.notes,
        source=header.source,
    )


def pack_checkpoint(
    folder: Path,
    spec: ModelSpec,
    target: Path,
    *,
    precision: str,
    group_size: int = 32,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> PackedModel:
    """Packs the folder's weights into the file `target` (replaced only when all is written).

    ModelFormatError names what is wrong with the checkpoint, CacheError what is wrong with the disk; neither leaves
    anything behind.
    """
    plans, notes = plan_weights(spec, open_weights(folder), precision=precision, group_size=group_size)
    header = plan_header(
        plans,
        spec=spec,
        precision=precision,
        group_size=group_size if precision == "int4" else 0,
        source=source_identity(folder),
        notes=notes,
    )
    cache.check_room(target.parent, header.nbytes, folder.name)
    partial = target.with_suffix(".partial")
    try:
        write_packed(partial, header, plans, num_threads=num_threads or pack_threads(), progress=progress)
        partial.replace(target)
    except OSError as error:
        raise CacheError(
            f"{partial} could not be written: {error.strerror or error}",
            hint="make room, or set TRIVET_CACHE_DIR to a folder on another disk",
        ) from None
    finally:
        partial.unlink(missing_ok=True)
    return open_packed(target)


def pack_threads() -> int:
    """TRIVET_THREADS, else one a core, as affinity mask and CPU quota allow."""
    return config.env_threads() or int(_core.allowed_threads())


def load_packed(
    folder: Path, *, precision: str, group_size: int = 32, progress: Progress | None = None
) -> tuple[PackedModel, bool]:
    """The packed form of the checkpoint, and whether it was packed now; on a warm start no weight is read.

    A damaged or outdated cached file is packed again; one of a newer Trivet is refused (VersionMismatch).
    """
    spec = model_spec(read_json(folder / "config.json"), folder / "config.json")
    place = cache.cache_folder()
    target = place.path / cache.file_name(folder, precision, group_size)
    packed, reason = _current(target, folder, spec)
    if packed is not None:
        cache.mark_used(target)
        return _with_notes(packed, place.note), False
    cache.remove_leftovers(place.path)
    with cache.locked(target):
        packed, reason = _current(target, folder, spec)  # another process may have packed it meanwhile
        if packed is not None:
            return _with_notes(packed, place.note), False
        log.info("packing %s as %s into %s (%s)", folder, precision, target, reason)
        target.unlink(missing_ok=True)
        packed = pack_checkpoint(folder, spec, target, precision=precision, group_size=group_size, progress=progress)
        for entry in cache.evict(place.path, keep=target):
            log.info("removed %s from the cache: over its size limit", entry.path)
    return _with_notes(packed, place.note, None if reason == "first use" else f"packed again: {reason}"), True


def _current(target: Path, folder: Path, spec: ModelSpec) -> tuple[PackedModel | None, str]:
    """The cached file if it is what packing would make now; else None and why not."""
    source = source_identity(folder)
    if not target.exists():
        return None, "first use"
    try:
        packed = open_packed(target)
    except VersionMismatch as mismatch:
        if mismatch.found > LAYOUT_VERSION:
            raise
        return None, f"its packed file had layout version {mismatch.found}, this Trivet writes {LAYOUT_VERSION}"
    except ModelFormatError as error:
        return None, error.message
    if packed.source != source or packed.spec != spec:
        return None, "the checkpoint has changed"
    return packed, ""


def _with_notes(packed: PackedModel, *notes: str | None) -> PackedModel:
    return replace(packed, notes=packed.notes + tuple(note for note in notes if note))
