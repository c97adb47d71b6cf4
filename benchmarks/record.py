"""What every benchmark shares: the machine's limits, the median of the runs, and the record that is printed."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from trivet import _core

Record = dict[str, Any]
_REPO = Path(__file__).resolve().parents[1]


def median_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """The median, and half the distance between the lowest and the highest."""
    return median(values), (max(values) - min(values)) / 2


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest value that a share `q` of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(int(q * len(ordered)), len(ordered) - 1)]


def bandwidth_gb_per_s(threads: int) -> float:
    """Bytes read from memory in a second / 10^9, best of 1, 2 and 4 streams a thread over 1 GiB, best of 5."""
    return float(_core.measure_bandwidth(1 << 30, threads)["gb_per_s"])


def peak_tops(kind: str, threads: int, isa: str = "") -> float:
    """10^12 operations a second of the innermost loop of the tier `isa` (default: the one in use), fed from L1."""
    return float(_core.measure_peak(kind, threads, isa)) * 1e-12


def limits(threads: int, isa: str = "") -> dict[str, float]:
    """What this machine can do right now with a tier; measured before and after what it is the limit of."""
    return {
        "gb_per_s": round(bandwidth_gb_per_s(threads), 2),
        "int8_tops": round(peak_tops("int8", threads, isa), 3),
        "bf16_tops": round(peak_tops("bf16", threads, isa), 3),
    }


def best_limit(before: dict[str, float], after: dict[str, float], name: str) -> float:
    """The higher of two measurements: a shared machine can only have hidden some of what it can do."""
    return max(before[name], after[name])


def environment() -> Record:
    """Where and what was measured: the commit (+ when the tree has changes), the processor."""
    return {"commit": _commit(), "cpu": _cpu(), "python": platform.python_version()}


def _commit() -> str | None:
    def git(*args: str) -> str | None:
        done = subprocess.run(["git", "-C", str(_REPO), *args], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "--short", "HEAD")
    return commit + "+" if commit and git("status", "--porcelain", "--untracked-files=no") else commit


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def show(records: list[Record], columns: Sequence[str], *, as_json: bool) -> None:
    """Prints the records: one JSON object a line, or a table of `columns`."""
    if as_json:
        for record in records:
            print(json.dumps(record))
        return
    rows = [[_cell(record.get(column)) for column in columns] for record in records]
    widths = [max(len(column), *(len(row[i]) for row in rows)) for i, column in enumerate(columns)]
    for row in [list(columns), *rows]:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if value < 1000 else f"{value:,.0f}"
    return "" if value is None else str(value)
