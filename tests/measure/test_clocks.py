"""Times are those of a clock that nobody sets: the time of day is a label in the record, and nowhere else."""

from __future__ import annotations

import ast
import asyncio
import time
from pathlib import Path

import pytest

import trivet
from trivet.measure.pacer import LagMeter, Pacer, TimerFd

MEASURE = Path(trivet.__file__).parent / "measure"
WALL_CLOCK = {"time", "now", "utcnow", "today", "time_ns", "ctime", "localtime", "gmtime"}


def wall_clock_calls(path: Path) -> list[str]:
    """`time.time()`, `datetime.now()` and the like in a file."""
    return [
        f"{path.name}:{node.lineno}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in WALL_CLOCK
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id in ("time", "datetime", "date")
    ]


def test_only_the_record_looks_at_the_time_of_day() -> None:
    calls = [call for path in sorted(MEASURE.glob("*.py")) for call in wall_clock_calls(path)]
    assert len(calls) == 1 and calls[0].startswith("record.py:"), calls


def test_a_step_of_the_time_of_day_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of day jumps by an hour between two items; they come when they should by the monotonic clock."""
    came: list[float] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        pacer = Pacer(loop, lambda item: came.append(time.monotonic() - begin))
        begin = time.monotonic()
        pacer.add(begin + 0.2, "second")
        pacer.add(begin + 0.1, "first")
        monkeypatch.setattr(time, "time", lambda: 0.0)
        while len(came) < 2:
            await asyncio.sleep(0.01)
        pacer.close()

    asyncio.run(run())
    assert came[0] >= 0.1 and came[1] >= 0.2
    assert came == sorted(came)


def test_items_are_due_in_order_and_never_early() -> None:
    came: list[tuple[int, float]] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        begin = time.monotonic()
        pacer = Pacer(loop, lambda item: came.append((item, time.monotonic() - begin - item / 100)))
        for item in (5, 1, 3, 2, 4, 0):
            pacer.add(begin + item / 100, item)
        assert len(pacer) == 6
        while len(came) < 6:
            await asyncio.sleep(0.005)
        pacer.add(begin + 1000, 9)
        assert pacer.clear() == [9] and len(pacer) == 0
        pacer.close()

    asyncio.run(run())
    assert [item for item, _ in came] == [0, 1, 2, 3, 4, 5]
    assert all(late >= 0 for _, late in came)


def test_a_loop_that_is_busy_is_seen() -> None:
    async def run() -> list[float]:
        meter = LagMeter(asyncio.get_running_loop())
        await asyncio.sleep(0.05)
        time.sleep(0.1)
        await asyncio.sleep(0.05)
        meter.close()
        return list(meter.lags_s)

    lags_s = asyncio.run(run())
    assert max(lags_s) > 0.085
    assert sum(lag > 0.02 for lag in lags_s) >= 6, "each tick that was missed counts"


def test_a_timer_that_has_not_gone_off() -> None:
    timer = TimerFd()
    assert timer.read() == 0
    timer.set(0.0)
    time.sleep(0.001)
    assert timer.read() == 1
    timer.close()
