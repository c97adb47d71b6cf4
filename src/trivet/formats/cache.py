"""The folder of packed files: where it is, one writer a file, room, least recently used first out.

A file is `{model}-{hash of its path}-{precision}.trivet`. While it is packed it is called `.partial` and its writer
holds a lock on `.lock`; a partial file whose lock is free was left by an interruption and is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from trivet import config
from trivet.errors import CacheError, ModelFormatError
from trivet.formats.packed import open_packed_file

log = logging.getLogger("trivet.cache")
SUFFIX = ".trivet"
HEADROOM = 32 * 2**20  # left free on the disk beyond what is packed
GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheFolder:
    """Where packed files live; `note` says so when it is a temporary place."""

    path: Path
    note: str | None = None


class CacheSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`settings.json` in the cache folder."""

    limit_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheEntry:
    """One packed file."""

    path: Path
    source: str  # the checkpoint's folder; empty if the file cannot be read
    precision: str
    nbytes: int
    last_used_s: float  # Unix time


def cache_folder() -> CacheFolder:
    """The folder, made if need be: TRIVET_CACHE_DIR, else XDG_CACHE_HOME/trivet, else ~/.cache/trivet, else temporary.

    CacheError if TRIVET_CACHE_DIR cannot be written: what was asked for by name is not replaced.
    """
    chosen = config.env("TRIVET_CACHE_DIR")
    if chosen:
        path = Path(chosen).expanduser()
        if reason := _cannot_write(path):
            raise CacheError(
                f"TRIVET_CACHE_DIR is {chosen}, which cannot be written: {reason}",
                hint="set it to a folder on a disk with room for the packed weights",
            )
        return CacheFolder(path=path)
    xdg = os.environ.get("XDG_CACHE_HOME")
    with contextlib.suppress(RuntimeError):  # no home folder
        path = (Path(xdg) if xdg and os.path.isabs(xdg) else Path.home() / ".cache") / "trivet"
        reason = _cannot_write(path)
        if reason is None:
            return CacheFolder(path=path)
    path = _temporary_folder()
    note = (
        f"packed weights are kept in {path}, which the system may empty: no cache folder can be written; "
        "set TRIVET_CACHE_DIR to keep them"
    )
    log.warning(note)
    return CacheFolder(path=path, note=note)


def _cannot_write(path: Path) -> str | None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return None
    except OSError as error:
        return error.strerror or str(error)


def _temporary_folder() -> Path:
    """One folder a user, so that starts share it; one that somebody else made is not trusted."""
    path = Path(tempfile.gettempdir()) / f"trivet-{os.getuid()}"
    with contextlib.suppress(OSError):
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022:
            return path
    return Path(tempfile.mkdtemp(prefix="trivet-"))


def file_name(source: Path, precision: str, group_size: int) -> str:
    """The name under which a checkpoint's packed form is kept."""
    resolved = str(source.resolve())
    name = re.sub(r"[^A-Za-z0-9._-]", "_", source.name or "model")[:60]
    form = f"{precision}-g{group_size}" if precision == "int4" else precision
    return f"{name}-{hashlib.sha256(resolved.encode()).hexdigest()[:12]}-{form}{SUFFIX}"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock of a packed file, which is removed on release; waits for another process that holds it."""
    lock = path.with_suffix(".lock")
    descriptor = _acquire(lock, wait=True)
    assert descriptor is not None
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)  # before the release: whoever waits sees that its file is gone and tries again
        os.close(descriptor)


def _acquire(lock: Path, *, wait: bool) -> int | None:
    """A descriptor that holds the lock; None if it is held elsewhere and `wait` is false."""
    waiting = False
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                os.close(descriptor)
                return None
            if not waiting:
                log.info("another process is packing %s: waiting for it", lock.stem)
            waiting = True
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            os.close(descriptor)
            raise CacheError(
                f"the cache folder {lock.parent} does not support locks: {error.strerror}",
                hint="set TRIVET_CACHE_DIR to a folder on a local disk",
            ) from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), lock.stat()):
                return descriptor
        os.close(descriptor)  # its owner removed it between our opening and our locking


def remove_leftovers(folder: Path) -> None:
    """Removes partial and lock files of processes that ended before they were done."""
    for lock in {path.with_suffix(".lock") for pattern in ("*.partial", "*.lock") for path in folder.glob(pattern)}:
        descriptor = _acquire(lock, wait=False)
        if descriptor is None:
            continue
        lock.with_suffix(".partial").unlink(missing_ok=True)
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def check_room(folder: Path, nbytes: int, what: str) -> None:
    """CacheError with both numbers if the disk has less than `nbytes` and some headroom."""
    free = shutil.disk_usage(folder).free
    if free < nbytes + HEADROOM:
        raise CacheError(
            f"packing {what} needs {nbytes / GIB:.2f} GiB, but {folder} has {free / GIB:.2f} GiB free",
            hint="set TRIVET_CACHE_DIR to a folder on a larger disk, or make room with `trivet cache clear`",
        )


def mark_used(path: Path) -> None:
    """Sets the file's mtime to now: what `least recently used` goes by."""
    with contextlib.suppress(OSError):
        os.utime(path)


def entries(folder: Path) -> list[CacheEntry]:
    """All packed files, most recently used first."""
    found = []
    for path in folder.glob(f"*{SUFFIX}"):
        try:
            stat_ = path.stat()
        except FileNotFoundError:  # removed meanwhile
            continue
        source = precision = ""
        with contextlib.suppress(ModelFormatError):
            header = open_packed_file(path).header
            source, precision = header.source.path, header.precision
        found.append(
            CacheEntry(path=path, source=source, precision=precision, nbytes=stat_.st_size, last_used_s=stat_.st_mtime)
        )
    return sorted(found, key=lambda entry: -entry.last_used_s)


def read_settings(folder: Path) -> CacheSettings:
    """The settings; CacheError if their file is damaged."""
    path = folder / "settings.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=CacheSettings)
    except FileNotFoundError:
        return CacheSettings()
    except (OSError, msgspec.DecodeError) as error:
        raise CacheError(f"{path} cannot be read: {error}", hint="remove it, then set the limit again") from None


def write_settings(folder: Path, settings: CacheSettings) -> None:
    """Replaces settings.json at once."""
    partial = folder / f".settings-{os.getpid()}"
    partial.write_bytes(msgspec.json.encode(settings))
    partial.replace(folder / "settings.json")


def evict(folder: Path, *, keep: Path | None = None) -> list[CacheEntry]:
    """Removes the least recently used files until the limit is kept, never `keep`; what was removed.

    A file that a running server has mapped stays readable for it: only the name goes.
    """
    limit = read_settings(folder).limit_bytes
    if limit is None:
        return []
    present = entries(folder)
    total = sum(entry.nbytes for entry in present)
    removed = []
    for entry in reversed(present):
        if total <= limit:
            break
        if entry.path != keep:
            entry.path.unlink(missing_ok=True)
            total -= entry.nbytes
            removed.append(entry)
    return removed


def clear(folder: Path) -> list[CacheEntry]:
    """Removes all packed files and leftovers; what was removed."""
    removed = entries(folder)
    for entry in removed:
        entry.path.unlink(missing_ok=True)
    remove_leftovers(folder)
    return removed
