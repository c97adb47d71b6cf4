"""CpuRunner's own errors, and what its fingerprint depends on."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints import make_checkpoint
from steps import batch_of_one, logits_of, make_runner
from trivet import _core
from trivet.engine.cpu_runner import choose_isa, choose_threads, thread_notes
from trivet.engine.step import StepBatch
from trivet.errors import ConfigError, UnsupportedCpu

VOCAB = 320


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("runner") / "m")


def test_two_steps_may_be_under_way_and_are_collected_in_order(folder: Path) -> None:
    runner = make_runner(folder)
    with pytest.raises(ValueError, match="no step 1 to collect"):
        runner.collect(1)
    first = runner.submit(batch_of_one([1, 2], 0, VOCAB, [0]))
    second = runner.submit(batch_of_one([3], 2, VOCAB, [0]))
    with pytest.raises(ValueError, match="two steps are under way: collect one first"):
        runner.submit(batch_of_one([4], 3, VOCAB, [0]))
    with pytest.raises(ValueError, match=f"no step {second} to collect"):
        runner.collect(second)
    one, two = runner.collect(first), runner.collect(second)
    assert one.logits.shape == (2, VOCAB) and two.logits.shape == (1, VOCAB)
    assert one.start_s < one.end_s <= two.start_s < two.end_s
    assert not runner.wait(second + 1, 0.001) and runner.wait(second, 0.0)
    assert two.logits.tobytes() == logits_of(runner, [1, 2, 3], [1])[2:].tobytes()


def test_a_step_can_take_in_what_the_one_before_samples(folder: Path) -> None:
    """The third step's token is the second row's sample of the step that was submitted before it, bit for bit."""
    runner = make_runner(folder)

    def sampling(batch: StepBatch, rows: list[int]) -> StepBatch:
        num_rows = len(rows)
        return dataclasses.replace(
            batch, sample_rows=np.array(rows, np.int32), temperature=np.zeros(num_rows, np.float32),
            top_k=np.zeros(num_rows, np.int32), top_p=np.ones(num_rows, np.float32),
            min_p=np.zeros(num_rows, np.float32), seed=np.zeros(num_rows, np.uint64),
            sample_idx=np.zeros(num_rows, np.int32), bias_starts=np.zeros(num_rows + 1, np.int32),
            mask_idx=np.full(num_rows, -1, np.int32), num_logprobs=np.full(num_rows, -1, np.int32),
        )  # fmt: skip

    runner.collect(runner.submit(sampling(batch_of_one([9], 0, VOCAB, [5]), [0])))
    first = runner.submit(sampling(batch_of_one([7, 8], 0, VOCAB, [0]), [0, 1]))
    second = runner.submit(batch_of_one([-2], 2, VOCAB, [0]))
    token_id = int(runner.collect(first).sampled_ids[1])
    got = runner.collect(second).logits
    assert got.tobytes() == logits_of(runner, [7, 8, token_id], [3])[2:].tobytes()
    with pytest.raises(ValueError, match="token id -1 is outside the vocabulary"):  # that step sampled nothing
        runner.submit(batch_of_one([-1], 3, VOCAB, [0]))


def test_steps_that_nobody_wants_any_more_are_dropped(folder: Path) -> None:
    runner = make_runner(folder)
    runner.submit(batch_of_one([1, 2], 0, VOCAB, [0]))
    runner.submit(batch_of_one([3], 2, VOCAB, [0]))
    runner.drop()
    assert runner.collect(runner.submit(batch_of_one([1], 0, VOCAB, [0]))).logits.shape == (1, VOCAB)
    runner.submit(batch_of_one([1, 2], 0, VOCAB, [0]))
    runner.close()  # waits for it


def test_a_forked_child_runs_steps_of_its_own(folder: Path) -> None:
    """The thread that runs steps stays with the parent; the child starts another, and ends without waiting for it."""
    runner = make_runner(folder)
    want = logits_of(runner, [1, 2, 3], [3]).tobytes()
    pid = os.fork()
    if pid == 0:
        is_right = logits_of(runner, [1, 2, 3], [3]).tobytes() == want
        runner.close()
        os._exit(0 if is_right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert logits_of(runner, [1, 2, 3], [3]).tobytes() == want


@pytest.mark.parametrize(
    "change,message",
    [
        ({"token_ids": np.array([1, VOCAB], np.int32)}, "token id 320 is outside the vocabulary"),
        ({"token_ids": np.array([1, -1], np.int32)}, "token id -1 is outside the vocabulary"),
        ({"context_lens": np.array([1], np.int32)}, "2 new tokens and a context of 1"),
        ({"context_lens": np.array([5000], np.int32)}, "a context of 5000"),
        ({"context_lens": np.array([33], np.int32)}, "the block table of sequence 0 is too short"),
        ({"block_tables": np.array([[64]], np.int32)}, "block 64 of sequence 0 does not exist"),
        ({"block_tables": np.array([[-1]], np.int32)}, "block -1 of sequence 0 does not exist"),
        ({"seq_starts": np.array([0, 3], np.int32)}, "do not agree"),
        ({"logits_rows": np.array([2], np.int32)}, "row 2 is not in the step"),
        ({"sample_rows": np.array([0], np.int32)}, "the arrays of sampled rows differ in length"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_and_the_runner_lives_on(folder: Path, change: Any, message: str) -> None:
    runner, good = make_runner(folder), batch_of_one([1, 2], 0, VOCAB, [0])
    with pytest.raises(ValueError, match=message):
        runner.submit(dataclasses.replace(good, **change))
    assert np.isfinite(runner.collect(runner.submit(good)).logits).all()


def test_a_wrong_dtype_is_not_converted(folder: Path) -> None:
    runner, good = make_runner(folder), batch_of_one([1, 2], 0, VOCAB, [0])
    with pytest.raises(TypeError):
        runner.submit(dataclasses.replace(good, token_ids=np.array([1, 2], np.int64)))


def test_too_many_tokens_are_refused(folder: Path) -> None:
    runner = make_runner(folder, max_tokens=32, max_num_seqs=4)
    with pytest.raises(ValueError, match="the step has 33 tokens, but 1 to 32 are possible"):
        runner.submit(batch_of_one([1] * 33, 0, VOCAB, [0, 1]))


def test_numerics_name_weights_precision_and_kv_type_but_not_threads(folder: Path, tmp_path: Path) -> None:
    def numerics(at: Path, **settings: Any) -> str:
        return make_runner(at, **settings).capabilities.numerics

    assert numerics(folder, threads=1) == numerics(folder, threads=2, num_blocks=8)
    other = make_checkpoint(tmp_path / "other", seed=5)
    different = {numerics(folder), numerics(folder, kv="int8"), numerics(folder, precision="int8"), numerics(other)}
    assert len(different) == 4


def test_a_step_allocates_no_memory_that_it_keeps(folder: Path) -> None:
    """Resident memory after 300 steps is what it was after 50."""
    runner = make_runner(folder)

    def rss() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    def run(count: int) -> None:
        for _ in range(count):
            runner.collect(runner.submit(batch_of_one([1, 2, 3], 0, VOCAB, [0])))

    run(50)
    before = rss()
    run(300)
    assert rss() - before < 2**20


def test_the_tier_is_chosen_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    before = _core.isa()
    try:
        monkeypatch.setenv("TRIVET_ISA", "baseline")
        assert choose_isa() == "baseline" == _core.isa()
        monkeypatch.setenv("TRIVET_ISA", "sse9")
        with pytest.raises(ConfigError, match="TRIVET_ISA is 'sse9'"):
            choose_isa()
        monkeypatch.setenv("TRIVET_ISA", "amx")
        monkeypatch.setattr(_core, "available_isas", lambda: ["baseline"])
        with pytest.raises(UnsupportedCpu, match="asks for amx, but this CPU offers baseline"):
            choose_isa()
    finally:
        _core.set_isa(before)


def test_threads_come_from_setting_environment_or_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRIVET_THREADS", raising=False)
    assert choose_threads(None) == _core.allowed_threads() >= 1
    assert choose_threads(1) == 1
    monkeypatch.setenv("TRIVET_THREADS", "1")
    assert choose_threads(None) == 1
    for text in ("two", "0", "-1", "²", "٣", "1.0", " 1"):
        monkeypatch.setenv("TRIVET_THREADS", text)
        with pytest.raises(ConfigError, match=f"`TRIVET_THREADS` is '{re.escape(text)}'"):
            choose_threads(None)
    assert choose_threads(1) == 1  # the setting stands before it


def test_hardware_threads_that_are_left_idle_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRIVET_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(_core, "num_cores", lambda cpus: len(cpus) // 2)
    monkeypatch.setattr(_core, "allowed_threads", lambda: 8)
    assert thread_notes(None) == ["threads: one a core, of 16 CPUs on 8 cores; `threads` says otherwise"]
    assert thread_notes(16) == []
    monkeypatch.setattr(_core, "allowed_threads", lambda: 2)  # by the quota
    assert thread_notes(None) == []
    monkeypatch.setattr(_core, "allowed_threads", lambda: 16)
    monkeypatch.setattr(_core, "num_cores", len)
    assert thread_notes(None) == []


def test_more_threads_than_four_a_cpu_are_refused_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    num_cpus = os.cpu_count() or 1
    assert choose_threads(4 * num_cpus) == 4 * num_cpus
    with pytest.raises(ConfigError, match=f"`threads` is {4 * num_cpus + 1}, but this machine has {num_cpus} CPUs"):
        choose_threads(4 * num_cpus + 1)
    monkeypatch.setenv("TRIVET_THREADS", "100000")
    with pytest.raises(ConfigError, match=f"`TRIVET_THREADS` is 100000, but this machine has {num_cpus} CPUs"):
        choose_threads(None)


def test_a_closed_runner_gives_its_memory_back_and_says_that_it_is_closed(folder: Path) -> None:
    runner = make_runner(folder, num_blocks=4096)
    kv_bytes = runner.info_fields()["kv_bytes"]
    before = address_space()
    runner.close()
    runner.close()
    assert before - address_space() >= kv_bytes > 0
    with pytest.raises(ValueError, match="the runner is closed"):
        runner.submit(batch_of_one([1, 2], 0, VOCAB, [0]))
    with pytest.raises(ValueError, match="the runner is closed"):
        runner.info_fields()


def address_space() -> int:
    """Bytes of address space of this process: what the KV cache reserves counts, touched or not."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * 4096


def test_a_profile_is_printed_at_the_end_when_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runner = make_runner(folder)
    runner.collect(runner.submit(batch_of_one([1, 2], 0, VOCAB, [0])))
    runner.close()
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("TRIVET_PROFILE", "1")
    runner = make_runner(folder)
    runner.collect(runner.submit(batch_of_one([1, 2], 0, VOCAB, [0])))
    runner.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].split() == ["operation", "ms", "share", "calls", "us", "a", "call", "GB/s", "TOPS"]
    assert {line[:22].strip() for line in lines[1:]} >= {
        "attention",
        "qkv product",
        "head product",
        "norm and quantize",
    }
    shares = [float(line[22:].split()[1].rstrip("%")) for line in lines[1:]]
    assert sum(shares) == pytest.approx(100, abs=1) and shares == sorted(shares, reverse=True)
    rates = {line[:22].strip(): line.split()[-2:] for line in lines[1:]}
    assert rates["norm and quantize"] == ["-", "-"] and float(rates["head product"][0]) > 0
