"""ServeGen client files: each client is a renewal process whose rate and burstiness change every ten minutes.

The published scales do not give gaps with a mean of 1/rate, so only the shape is taken from them: gaps are drawn with
a mean of 1 and run through the client's rate.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trivet.errors import TraceError
from trivet.measure.arrivals import unit_gaps
from trivet.measure.traces import SERVEGEN_HEADER, numbered_lines, seconds_of

WINDOW_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientWindow:
    """Ten minutes of one client: requests a second, and the shape of the gaps between them."""

    start_s: float
    rate: float
    pattern: str  # Gamma or Weibull
    shape: float


def read_clients(path: Path) -> dict[str, list[ClientWindow]]:
    """The windows of each client, in order of time."""
    clients: dict[str, list[ClientWindow]] = defaultdict(list)
    for number, line in numbered_lines(path):
        if line.startswith("client,"):
            continue
        fields = line.split(",")
        if len(fields) != 7:
            raise TraceError(f"{path}:{number} has {len(fields)} fields, but a ServeGen file has 7: {SERVEGEN_HEADER}")
        if fields[4] not in ("Gamma", "Weibull"):
            raise TraceError(f"{path}:{number}: `pattern` is {fields[4]!r}, but it must be Gamma or Weibull")
        rate, shape = (_positive(path, number, *pair) for pair in (("rate", fields[2]), ("param1", fields[5])))
        start_s = seconds_of(path, number, "timestamp", fields[1])
        windows = clients[fields[0]]
        if windows and start_s < windows[-1].start_s + WINDOW_S:
            raise TraceError(
                f"{path}:{number}: client {fields[0]} has a window at {start_s:g} s, but the one before begins at "
                f"{windows[-1].start_s:g} s and lasts {WINDOW_S:g} s",
                hint="sort the file by client and timestamp",
            )
        windows.append(ClientWindow(start_s=start_s, rate=rate, pattern=fields[4], shape=shape))
    if not clients:
        raise TraceError(f"{path} holds no clients")
    return dict(clients)


def covered_seconds(clients: dict[str, list[ClientWindow]]) -> float:
    """From the begin of the file's first window to the end of its last."""
    windows = [window.start_s for client in clients.values() for window in client]
    return max(windows) + WINDOW_S - min(windows)


def client_times(
    clients: dict[str, list[ClientWindow]], start_s: float, duration_s: float, *, seed: int
) -> list[tuple[float, str]]:
    """(seconds from the window's begin, client) of each request, ascending. `start_s` counts from the file's begin."""
    origin = min(windows[0].start_s for windows in clients.values()) + start_s
    streams = (
        _times(name, windows, origin, origin + duration_s, np.random.default_rng([seed, 5, index]))
        for index, (name, windows) in enumerate(sorted(clients.items()))
    )
    return [(at_s - origin, name) for at_s, name in heapq.merge(*streams)]


def _positive(path: Path, number: int, name: str, text: str) -> float:
    value = seconds_of(path, number, name, text)
    if value <= 0:
        raise TraceError(f"{path}:{number}: `{name}` is {text!r}, but it must be above 0")
    return value


def _times(
    name: str, windows: list[ClientWindow], begin_s: float, end_s: float, rng: np.random.Generator
) -> Iterator[tuple[float, str]]:
    """One client's requests. A gap that crosses into the next window goes on there at that window's rate."""
    left = rng.uniform()  # of the gap that is running when the client is first seen
    for window in windows:
        if window.start_s + WINDOW_S <= begin_s:
            continue
        if window.start_s >= end_s:
            break
        gaps = _gaps(window, rng)
        now, stop = max(window.start_s, begin_s), min(window.start_s + WINDOW_S, end_s)
        while (at_s := now + left / window.rate) < stop:
            yield at_s, name
            now, left = at_s, next(gaps)
        left -= (stop - now) * window.rate


def _gaps(window: ClientWindow, rng: np.random.Generator) -> Iterator[float]:
    if window.pattern == "Gamma":
        return unit_gaps("gamma", rng, cv=window.shape**-0.5)
    return unit_gaps("weibull", rng, shape=window.shape)
