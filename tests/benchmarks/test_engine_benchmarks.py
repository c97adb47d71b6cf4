"""The engine's benchmarks run from end to end on a tiny checkpoint and print whole records."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.engine import decode, host_time, itl_target, prefill, start
from benchmarks.make_checkpoint import SHAPES, make_checkpoint, tensors
from benchmarks.step_log import Step

from benchmarks import record, step_log

LIMITS = {"gb_per_s": 20.0, "int8_tops": 4.0, "bf16_tops": 2.0}
EVERY_RECORD = {"bench", "model", "precision", "value", "spread", "unit", "commit", "cpu"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint("tiny", folder)
    return str(folder)


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], checkpoint: str
) -> Callable[..., list[dict[str, Any]]]:
    """Runs a benchmark's `main` with arguments and --json; returns its records."""
    for module in (decode, prefill):  # a whole GiB is read for the real ones
        monkeypatch.setattr(module, "limits", lambda threads: dict(LIMITS))

    def call(module: Any, *arguments: str) -> list[dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", ["bench", checkpoint, *arguments, "--json"])
        module.main()
        records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert all(r.keys() >= EVERY_RECORD for r in records)
        return records

    return call


def test_decode_states_its_share_of_the_bandwidth(run: Callable[..., list[dict[str, Any]]]) -> None:
    records = run(decode, "--streams", "1,3", "--runs", "2", "--tokens", "100", "--prompt", "40")
    assert [r["batch"] for r in records] == [1, 3]
    for r in records:
        assert r["bench"] == "engine.decode"
        assert r["value"] > 0 and len(r["runs"]) == 2
        assert r["mbu"] == pytest.approx(r["gb_per_s"] / LIMITS["gb_per_s"], abs=1e-3)
        assert 0 < r["host_p50_ms"] <= r["host_p99_ms"]
    assert len({r["logits_crc32"] for r in records}) == 1
    # Each step of one stream reads the int8 weights (a byte each, some scales) and about 90 positions of KV.
    config = SHAPES["tiny"].config
    weights = sum(math.prod(shape) for _, shape, deviation in tensors(config) if deviation)
    kv = 90 * config["num_hidden_layers"] * config["num_key_value_heads"] * 2 * 32 * 2  # head width 16, stored as 32
    step_bytes = records[0]["gb_per_s"] * 1e9 / records[0]["value"]
    assert 1.0 <= step_bytes / (weights + kv) < 2.5  # gb_per_s is rounded to 0.01


def test_prefill_states_its_share_of_the_peak(run: Callable[..., list[dict[str, Any]]]) -> None:
    [one, two] = run(prefill, "--tokens", "64,130", "--runs", "2", "--chunk", "64")
    assert [one["prompt"], two["prompt"]] == [64, 130]
    config = SHAPES["tiny"].config
    embedding = config["vocab_size"] * config["hidden_size"]
    body = sum(math.prod(shape) for _, shape, deviation in tensors(config) if deviation) - embedding
    assert one["tops"] == pytest.approx(one["value"] * 2 * body * 1e-12, abs=1e-4)
    assert one["share"] == pytest.approx(one["tops"] / LIMITS["int8_tops"], abs=1e-4)
    assert one["ttft_s"] > 64 / one["value"] * 0.5


def test_bf16_is_held_against_the_bf16_peak(run: Callable[..., list[dict[str, Any]]]) -> None:
    [only] = run(prefill, "--tokens", "32", "--runs", "1", "--precision", "bf16")
    assert (only["precision"], only["peak_tops"]) == ("bf16", LIMITS["bf16_tops"])


def test_start_counts_from_a_new_process(run: Callable[..., list[dict[str, Any]]]) -> None:
    records = run(start, "--runs", "1")
    assert [r["bench"] for r in records] == ["engine.start.run", "engine.start.serve"]
    assert all(0.05 < r["value"] < 60 for r in records)


def test_start_says_which_command_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "trivet_command", lambda: [sys.executable, "-c", "import sys; sys.exit(3)"])
    with pytest.raises(RuntimeError, match="ended with 3"):
        start.time_run("nowhere", [])


def test_a_server_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import server_process

    monkeypatch.setattr(server_process, "trivet_command", lambda: [sys.executable, "-c", "import sys; sys.exit(3)"])
    with pytest.raises(RuntimeError, match="ended with 3 before it was ready"), server_process.serve("nowhere"):
        pass


def test_host_time_is_read_alone_and_beside_large_bodies(run: Callable[..., list[dict[str, Any]]]) -> None:
    alone, beside = run(host_time, "--streams", "2", "--tokens", "400", "--megabytes", "0.2")
    assert (alone["other_client"], alone["bodies_posted"]) == ("none", 0)
    assert beside["other_client"] == "0.2 MB bodies" and beside["bodies_posted"] > 0
    assert alone["value"] > 0 and beside["value"] > 0


# --- the arithmetic they share ------------------------------------------------------------------------------------


def step(begin_s: float, end_s: float, num_tokens: int, num_seqs: int) -> Step:
    return Step(begin_s=begin_s, end_s=end_s, num_tokens=num_tokens, num_seqs=num_seqs, context_tokens=0)


def test_only_whole_decode_steps_count() -> None:
    steps = [step(0, 1, 40, 2), step(1.5, 2, 2, 2), step(2.25, 3, 3, 2), step(3.5, 4, 2, 2), step(4, 5, 1, 1)]
    assert step_log.decode_steps(steps, 2) == [steps[1], steps[3]]
    assert step_log.host_times(steps) == [0.5, 0.25, 0.5, 0]


def test_median_spread_and_quantiles() -> None:
    assert record.median_and_spread([5.0, 1.0, 2.0]) == (2.0, 2.0)
    values = list(np.arange(100.0))
    assert (record.quantile(values, 0.5), record.quantile(values, 0.99), record.quantile([7.0], 0.99)) == (50, 99, 7)


def test_limits_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "bandwidth_gb_per_s", lambda threads: 1.0)  # tests/native/test_measure.py has the real
    measured = record.limits(1)
    assert measured.keys() == LIMITS.keys() and all(value > 0 for value in measured.values())
    monkeypatch.setattr(record, "peak_tops", lambda kind, threads, isa: {"avx2": 2.0}[isa])
    assert record.limits(1, "avx2") == {"gb_per_s": 1.0, "int8_tops": 2.0, "bf16_tops": 2.0}
    assert record.best_limit({"gb_per_s": 1.0}, {"gb_per_s": 2.0}, "gb_per_s") == 2.0


def test_table_has_a_row_for_each_record(capsys: pytest.CaptureFixture[str]) -> None:
    records: list[record.Record] = [{"value": 12345.6, "unit": "tok/s"}, {"value": 0.12345, "unit": None}]
    record.show(records, ("value", "unit"), as_json=False)
    assert capsys.readouterr().out.splitlines() == [" value   unit", "12,346  tok/s", "0.1235"]


def test_a_pause_makes_one_long_gap_and_quarters_none() -> None:
    paused, in_quarters = (itl_target.measured(2000, 0.2, max_pause_s) for max_pause_s in (None, 0.0))
    assert (paused["num_long"], in_quarters["num_long"]) == (1, 0)
    assert paused["first_s"] < 0.8 * in_quarters["first_s"]
