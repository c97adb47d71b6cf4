"""The instrument as one: against a server with a known schedule, its figures are right.

Both share the machine with whatever else runs. A run that the instrument itself calls invalid is repeated; where it
calls three in a row invalid, the machine cannot be used for this, and the test fails with that reason: it has proved
nothing. A run that it calls valid must be right.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_driving import only_run

Scripted = Callable[..., str]
ATTEMPTS = 3
TOLERANCE_S = 0.002
TTFT_S = [0.030 + 0.0005 * k for k in range(80)]
ITL_S, TOKENS = 0.010, 16
QUANTILES = {"p50": 0.5, "p95": 0.95}


def valid_run(folder: Path, url: str, **options: Any) -> dict[str, Any]:
    """The first run that is valid by its own account."""
    reasons: list[str] = []
    for attempt in range(ATTEMPTS):
        run = only_run(folder, url, seed=attempt, **options)
        if run["valid"]:
            return run
        reasons += run["invalid_because"]
    pytest.fail(f"this machine is too busy to measure on: {reasons[-1]}")


@pytest.mark.slow
def test_figures_are_right_at_200_requests_a_second(tmp_path: Path, scripted: Scripted) -> None:
    url = scripted(ttft_s=TTFT_S, itl_s=ITL_S)
    run = valid_run(tmp_path, url, rate=200.0, duration="6s", warmup="1s", output_tokens=str(TOKENS))
    assert run["failures"] == {} and run["answered"] == run["requests"] > 1000
    assert run["itl_s"]["num"] == run["answered"] * (TOKENS - 1)
    decode_s = (TOKENS - 1) * ITL_S
    for name, q in QUANTILES.items():
        ttft_s = float(np.quantile(TTFT_S, q))
        truth = {"ttft_s": ttft_s, "itl_s": ITL_S, "tpot_s": ITL_S, "e2e_s": ttft_s + decode_s}
        for kind, expected in truth.items():
            measured = run[kind][name]["value"]
            assert abs(measured - expected) < TOLERANCE_S, f"{kind} {name} is {measured} s, but it is {expected} s"
    client = run["client"]
    assert client["cpu_share_busiest"] * client["workers"] < 0.6, "of one core"
    assert run["throughput"]["requests_per_s"] == pytest.approx(200, rel=0.1)


STALL: dict[str, Any] = {"ttft_s": [0.01], "itl_s": 0.001, "stall_at_s": 1.0, "stall_for_s": 2.0}


def test_a_stall_shows_in_an_open_loop(tmp_path: Path, scripted: Scripted) -> None:
    """What was meant to be sent during the 2 s waited for their end: 100 of 200 requests, for a second on average."""
    run = only_run(tmp_path, scripted(**STALL), rate=50.0, arrivals="constant", duration="4s", warmup="0")
    assert run["ttft_s"]["p99"]["value"] == pytest.approx(1.97, abs=0.2)
    assert 0.5 < run["ttft_s"]["mean"] < 0.8


def test_a_closed_loop_hides_the_same_stall(tmp_path: Path, scripted: Scripted) -> None:
    """It waits with the server, and so it sends one request instead of a hundred while nothing goes on."""
    run = only_run(tmp_path, scripted(**STALL), rate=0, concurrency=1, duration="6s", warmup="0")
    assert run["answered"] > 105, "or the one that waited would be the p99"
    assert run["ttft_s"]["p99"]["value"] < 0.5 and run["e2e_s"]["p99"]["value"] < 0.5


@pytest.mark.slow
def test_a_lagging_client_calls_its_run_invalid(tmp_path: Path, scripted: Scripted) -> None:
    """20,000 requests a second are more than one process can send in time."""
    url = scripted(ttft_s=[0.001], itl_s=0.0001)
    run = only_run(tmp_path, url, rate=20_000.0, duration="1s", output_tokens="2", workers=1)
    assert not run["valid"]
    assert any(word in " ".join(run["invalid_because"]) for word in ("late at", "of a core"))
