"""The cgroups of this process, and the memory they grant."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def cgroup_folders(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's cgroup and of all above it up to the mount, in v2 and in v1, below `root`.

    They need not exist: a container sees its own cgroup as the mount, but may be told the path that the host knows.
    """
    for line in read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, found, path = rest.partition(":")
        if not found:
            continue
        if controllers == "":
            top = root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            top = root / "sys/fs/cgroup" / controller
        else:
            continue
        parts = [part for part in path.split("/") if part]
        if ".." in parts:  # it lies outside of what this process can see
            parts = []
        yield from (top.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1))


def memory_limit(root: Path = ROOT) -> int | None:
    """The least memory, in bytes, that this process's cgroups grant (v2, then v1); None: no limit."""
    limits = []
    for folder in cgroup_folders(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = read(folder / name)
            if text.isdigit() and int(text) < 2**60:  # v1 writes a huge number for "none"
                limits.append(int(text))
    return min(limits, default=None)


def read(path: Path) -> str:
    """The stripped text of a file, empty if it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
