"""Bandwidth and peaks are measured: physically possible, per tier, with the interpreter free meanwhile."""

from __future__ import annotations

import itertools
import threading
import time

import numpy as np
import pytest

from trivet import _core


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_bandwidth_is_the_best_of_three_patterns(num_threads: int) -> None:
    result = _core.measure_bandwidth(8 << 20, num_threads)
    assert sorted(result["by_streams"]) == [1, 2, 4]
    assert result["gb_per_s"] == max(result["by_streams"].values())
    # Above a few hundred GB/s a core the loads would have been optimised away.
    assert all(0.001 < rate < 500 * num_threads for rate in result["by_streams"].values())


@pytest.mark.parametrize("num_bytes", [1, 4096, 12345])
def test_bandwidth_of_little_memory_can_be_asked_for(num_bytes: int) -> None:
    assert _core.measure_bandwidth(num_bytes, 1)["gb_per_s"] > 0


def test_memory_that_is_not_there_is_an_error() -> None:
    with pytest.raises(MemoryError):
        _core.measure_bandwidth(1 << 60, 1)


@pytest.mark.parametrize("kind", ["int8", "bf16"])
def test_peak_of_each_tier(isa: str, kind: str) -> None:
    rate = _core.measure_peak(kind)  # of the tier in use
    # More operations a cycle than any CPU does.
    per_cycle = {"baseline": 64, "avx2": 128, "avx512": 512, "avx512_bf16": 512, "amx": 4096}[isa]
    assert 1e8 < rate < per_cycle * 6e9


@pytest.mark.parametrize("kind,same", [("int8", "avx512_bf16"), ("bf16", "")])
def test_a_better_tier_has_no_lower_peak(kind: str, same: str) -> None:
    """`same` has the loop of the tier below it. A CPU may issue half as many instructions that do twice the work."""
    tiers = [isa for isa in _core.available_isas() if isa != same]
    rates = [max(_core.measure_peak(kind, 1, isa) for _ in range(2)) for isa in tiers]
    assert all(better > 0.9 * worse for worse, better in itertools.pairwise(rates)), rates
    assert rates[-1] > 2 * rates[0]


def test_python_runs_while_measuring() -> None:
    ticks, done = [], threading.Event()

    def tick() -> None:
        while not done.is_set():
            ticks.append(time.monotonic())
            time.sleep(0.0005)

    thread = threading.Thread(target=tick)
    thread.start()
    begin = time.monotonic()
    _core.measure_peak("int8", 1, "baseline")
    _core.measure_bandwidth(64 << 20, 1)
    end = time.monotonic()
    done.set()
    thread.join()
    assert np.count_nonzero([begin < t < end for t in ticks]) >= 3


@pytest.mark.parametrize("num_threads", [0, -1, 1024])
def test_thread_counts_that_cannot_be_are_refused(num_threads: int) -> None:
    with pytest.raises(ValueError, match=f"`num_threads` is {num_threads}, but"):
        _core.measure_bandwidth(1 << 20, num_threads)
    with pytest.raises(ValueError, match=f"`num_threads` is {num_threads}, but"):
        _core.measure_peak("int8", num_threads)


def test_other_refusals() -> None:
    with pytest.raises(ValueError, match="`num_bytes` is 0"):
        _core.measure_bandwidth(0, 1)
    with pytest.raises(ValueError, match="`kind` is 'fp4', but it must be int8 or bf16"):
        _core.measure_peak("fp4", 1)
    with pytest.raises(ValueError, match="`isa` is 'mmx', which this CPU"):
        _core.measure_peak("int8", 1, "mmx")
