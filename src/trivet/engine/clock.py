"""Time as a parameter: whoever needs the time is given a `Clock`, so that tests run hours in milliseconds."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """Seconds since some fixed moment, never going back; `time.monotonic` is one."""

    def __call__(self) -> float: ...
