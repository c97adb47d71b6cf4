"""Calls at exact times on an event loop, from a Linux timerfd: the loop's own timers are rounded to milliseconds.

The clock is CLOCK_MONOTONIC, which is `time.monotonic` and the same in every process: setting the time of day changes
nothing here.
"""

from __future__ import annotations

import asyncio
import ctypes
import heapq
import os
import time
from array import array
from collections.abc import Callable
from itertools import count
from typing import Any

_CLOCK_MONOTONIC, _TFD_NONBLOCK, _TFD_CLOEXEC, _TFD_TIMER_ABSTIME = 1, 0o4000, 0o2000000, 1


class _Times(ctypes.Structure):
    """`struct itimerspec`."""

    _fields_ = (
        ("interval_s", ctypes.c_long), ("interval_ns", ctypes.c_long), ("at_s", ctypes.c_long), ("at_ns", ctypes.c_long)
    )  # fmt: skip


class TimerFd:
    """A descriptor that can be read once its time has come."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self._libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_NONBLOCK | _TFD_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")

    def set(self, at_s: float, every_s: float = 0.0) -> None:
        """Goes off at `at_s`, then every `every_s` unless that is 0; a time that has passed goes off at once."""
        at, every = max(1, int(at_s * 1e9)), int(every_s * 1e9)
        times = _Times(every // 10**9, every % 10**9, at // 10**9, at % 10**9)
        if self._libc.timerfd_settime(self.fd, _TFD_TIMER_ABSTIME, ctypes.byref(times), None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def read(self) -> int:
        """How often it went off since it was read last."""
        try:
            return int.from_bytes(os.read(self.fd, 8), "little")
        except BlockingIOError:
            return 0

    def close(self) -> None:
        os.close(self.fd)


class Pacer:
    """Calls `on_due(item)` when each item's time has come, in order of time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_due: Callable[[Any], None]) -> None:
        self._loop = loop
        self._on_due = on_due
        self._heap: list[tuple[float, int, Any]] = []
        self._order = count()
        self._timer = TimerFd()
        loop.add_reader(self._timer.fd, self._fire)

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, at_s: float, item: Any) -> None:
        """Makes `item` due at `at_s`."""
        heapq.heappush(self._heap, (at_s, next(self._order), item))
        if self._heap[0][0] == at_s:
            self._timer.set(at_s)

    def clear(self) -> list[Any]:
        """Forgets what is not due yet, and returns it."""
        items, self._heap = [item for _, _, item in self._heap], []
        return items

    def close(self) -> None:
        self._loop.remove_reader(self._timer.fd)
        self._timer.close()

    def _fire(self) -> None:
        self._timer.read()
        while self._heap and self._heap[0][0] <= time.monotonic():
            self._on_due(heapq.heappop(self._heap)[2])
        if self._heap:
            self._timer.set(self._heap[0][0])


class LagMeter:
    """How late the loop gets to things: a tick every 10 ms, and how long after its time the loop came to it."""

    EVERY_S = 0.01

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.lags_s = array("d")
        self._loop = loop
        self._timer = TimerFd()
        self._due_s = time.monotonic() + self.EVERY_S
        loop.add_reader(self._timer.fd, self._tick)
        self._timer.set(self._due_s, self.EVERY_S)

    def _tick(self) -> None:
        missed = self._timer.read()
        if missed:
            late = time.monotonic() - self._due_s
            self.lags_s.extend(max(0.0, late - i * self.EVERY_S) for i in range(missed))
            self._due_s += missed * self.EVERY_S

    def close(self) -> None:
        self._loop.remove_reader(self._timer.fd)
        self._timer.close()
