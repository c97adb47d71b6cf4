"""What the operating system says of this machine and of the share of it that this process may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trivet.engine.cgroup import ROOT, cgroup_folders, memory_limit, read


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Counts of CPUs, and bytes of memory; None: no limit, or not known."""

    cpu: str
    num_cpus: int  # of the machine
    num_allowed: int  # by the affinity mask
    num_cores: int  # that the allowed CPUs lie on: threads of one core count once
    num_nodes: int  # of memory that the allowed CPUs lie on
    cpu_quota: float | None  # CPUs' worth of time that the cgroup grants
    memory_bytes: int
    available_bytes: int
    memory_limit_bytes: int | None  # of the cgroup


def this_machine(root: Path = ROOT) -> Machine:
    """The facts, read from /proc and /sys below `root`."""
    from trivet import _core

    memory = dict(_meminfo(root))
    allowed = os.sched_getaffinity(0)
    return Machine(
        cpu=_cpu_name(root),
        num_cpus=os.cpu_count() or 1,
        num_allowed=len(allowed),
        num_cores=int(_core.num_cores(sorted(allowed), str(root / "sys/devices/system/cpu"))),
        num_nodes=num_nodes(allowed, root),
        cpu_quota=cpu_quota(root),
        memory_bytes=memory.get("MemTotal", 0),
        available_bytes=memory.get("MemAvailable", 0),
        memory_limit_bytes=memory_limit(root),
    )


def num_nodes(cpus: set[int], root: Path = ROOT) -> int:
    """Nodes of memory (NUMA) that these CPUs lie on; 1 where the system does not tell."""
    folders = (root / "sys/devices/system/node").glob("node[0-9]*")
    return max(1, sum(any((folder / f"cpu{cpu}").exists() for cpu in cpus) for folder in folders))


def cpu_quota(root: Path = ROOT) -> float | None:
    """The least CPU time, in CPUs, that this process's cgroups grant (v2, then v1); None: no limit."""
    quotas = []
    for folder in cgroup_folders(root, "cpu"):
        quota, period = read(folder / "cpu.max").split()[:2] if (folder / "cpu.max").exists() else ("max", "1")
        if (folder / "cpu.cfs_quota_us").exists():
            quota, period = read(folder / "cpu.cfs_quota_us"), read(folder / "cpu.cfs_period_us")
        if quota.isdigit() and int(quota) > 0:
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _meminfo(root: Path) -> Iterator[tuple[str, int]]:
    for line in read(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        if rest.endswith(" kB"):
            yield name, int(rest.split()[0]) * 1024


def _cpu_name(root: Path) -> str:
    for line in read(root / "proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"
