"""When each part of the start was done, in seconds since the process began."""

from __future__ import annotations

import os
import time
from pathlib import Path


def process_age_s() -> float:
    """Seconds since the kernel made this process, to 10 ms."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


class Milestones:
    """Named moments of the start, in the order in which they came."""

    def __init__(self) -> None:
        self._offset = process_age_s() - time.monotonic()
        self.reached: dict[str, float] = {}

    def now(self) -> float:
        """Seconds since the process began."""
        return time.monotonic() + self._offset

    def reach(self, name: str) -> None:
        self.reached[name] = self.now()
