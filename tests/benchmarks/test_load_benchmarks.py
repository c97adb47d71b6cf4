"""The benchmarks around `trivet bench`: a replay from end to end on a tiny load, and the arithmetic of a comparison."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.peers import load_generators, paced_server
from benchmarks.server import azure_windows
from benchmarks.server_process import Server, started

import trivet

TRACE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,480,16
2023-11-16 18:17:04.0319600,318,8
2023-11-16 18:17:04.5019600,110,40
2023-11-16 18:27:05.9799600,110,4
"""


def test_a_window_of_a_trace_is_replayed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], cache_dir: Path
) -> None:
    (tmp_path / "azure_llm_2023_conv.csv").write_text(TRACE)
    monkeypatch.setattr(azure_windows, "RESULTS", tmp_path / "results")
    flags = [
        "--model",
        "demo-small",
        "--only",
        "conv",
        "--start",
        "0",
        "--seconds",
        "2",
        "--time-scale",
        "2",
        "--json",
        "--slo",
        "ttft=60s",
    ]
    monkeypatch.setattr(sys, "argv", ["azure_windows", "--traces", str(tmp_path), *flags])
    azure_windows.main()
    [record] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (record["bench"], record["model"]) == ("server.azure_conv", "demo-small")
    assert record["requests"] == record["answered"] == 3, "one second of the trace, in two"
    assert record["value"] > 0 and record["attainment"] == 1.0
    whole = json.loads((tmp_path / "results" / "azure_conv_demo-small.json").read_text())
    assert whole["runs"][0]["load"]["trace"]["time_scale"] == 2.0


def test_a_replay_that_cannot_be_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    args = argparse.Namespace(
        start=0, seconds=1.0, time_scale=1.0, length_scale=1.0, max_input=9, max_output=9, slo="ttft=1s"
    )
    with pytest.raises(RuntimeError, match="ended with 2"):
        azure_windows.replay("http://127.0.0.1:9", tmp_path / "absent.csv", args)
    assert "cannot be read" in capfd.readouterr().err


def guidellm_benchmark(ttft_ms: float) -> dict[str, Any]:
    """The part of guidellm's JSON that is looked at."""

    def summary(value: float) -> dict[str, Any]:
        return {"successful": {"mean": value, "percentiles": {"p50": value, "p95": 2 * value}}}

    return {
        "metrics": {
            "time_to_first_token_ms": summary(ttft_ms), "inter_token_latency_ms": summary(10.0),
            "request_latency": summary(0.5), "output_tokens_per_second": summary(99.0),
            "request_totals": {"successful": 7},
        }
    }  # fmt: skip


def test_guidellm_s_figures_become_seconds() -> None:
    figures = load_generators.figures_of_guidellm(guidellm_benchmark(50.0))
    assert figures == pytest.approx({
        "ttft p50": 0.05, "ttft p95": 0.1, "tpot p50": 0.01, "tpot p95": 0.02, "e2e p50": 0.5, "e2e p95": 1.0,
        "output tok/s": 99.0, "answered": 7,
    })  # fmt: skip


def test_the_ratio_is_that_of_the_medians() -> None:
    theirs = [load_generators.figures_of_guidellm(guidellm_benchmark(ms)) for ms in (50.0, 40.0, 60.0)]
    ours = [
        {name: 1.1 * value for name, value in figures.items()} | {load_generators.LAG: 0.0004} for figures in theirs
    ]
    args = argparse.Namespace(rate=5.0, requests=10, prompt=8, output=8, model="demo")
    *records, worst = load_generators.compare(ours, theirs, args)
    assert {record["value"] for record in records} == {1.1}
    assert {record["lag_p99_s"] for record in records} == {0.0004}
    assert worst["value"] == 0.1 and not worst["within"]
    assert records[0]["guidellm"] == 0.05 and records[0]["spread"] == pytest.approx(0.0, abs=1e-4)


def test_a_run_that_is_invalid_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[str] = []
    valid_from = 2

    def run(command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        seeds.append(command[command.index("--seed") + 1])
        is_valid = len(seeds) >= valid_from
        figure = {rank: {"value": 0.1} for rank in load_generators.RANKS}
        record = {
            "valid": is_valid, "answered": 7, "throughput": {"output_tokens_per_s": 99.0},
            "client": {"sending_lag_s": {"p99": 0.001}}, "ttft_s": figure, "tpot_s": figure, "e2e_s": figure,
        }  # fmt: skip
        return subprocess.CompletedProcess(command, 0 if is_valid else 1, json.dumps({"runs": [record]}), "late")

    monkeypatch.setattr(load_generators.subprocess, "run", run)
    args = argparse.Namespace(rate=5.0, requests=10, prompt=8, output=8, tokenizer=Path("t"))
    server = Server(url="http://h", started_s=0.0, ready={})
    assert load_generators.run_ours(server, args, 1)["answered"] == 7
    assert len(set(seeds)) == 2, "other words: the first ones may be cached"
    seeds.clear()
    valid_from = 99
    with pytest.raises(RuntimeError, match="ended with 1"):
        load_generators.run_ours(server, args, 1)
    assert len(seeds) == load_generators.ATTEMPTS


def test_the_paced_server_keeps_its_schedule(cache_dir: Path) -> None:
    tokenizer = Path(trivet.__file__).parent / "bundled" / "demo"
    args = argparse.Namespace(rate=5.0, requests=5, prompt=16, output=5, tokenizer=tokenizer)
    slower = 8  # a run is valid where the client is late by little of these times, and a busy machine makes it late
    command = [sys.executable, "-m", "benchmarks.peers.paced_server", str(tokenizer), str(slower)]
    with started(command) as server:
        figures = load_generators.run_ours(server, args, 1)
    assert figures["answered"] == 5
    assert slower * paced_server.TTFT_S[2] <= figures["ttft p50"] < slower * paced_server.TTFT_S[2] + 0.2
    assert abs(figures["tpot p50"] / (slower * paced_server.ITL_S) - 1) < 0.2
