"""From flags to a job: defaults, and what cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trivet.errors import ConfigError
from trivet.measure.job import BenchJob, job_from
from trivet.measure.options import Options
from trivet.measure.units import parse_seconds, show_seconds


def job(**flags: Any) -> BenchJob:
    return job_from(Options(**flags))


def test_the_defaults_are_an_open_loop() -> None:
    [workload] = job().workloads
    assert (workload.rate, workload.concurrency, workload.process) == (1.0, None, "poisson")
    assert (workload.duration_s, workload.warmup_s, workload.num_requests) == (30.0, 2.0, None)
    assert job().kind == "run" and job().asked[0].endpoint == "completions"


def test_a_trace_has_its_own_times() -> None:
    [workload] = job(trace=Path("t.csv"), trace_for="5m", time_scale=2.0).workloads
    assert (workload.rate, workload.duration_s, workload.warmup_s) == (None, None, 0.0)
    assert workload.trace is not None and workload.trace.duration_s == 300


def test_requests_bound_a_run_instead_of_time() -> None:
    [workload] = job(requests=50).workloads
    assert (workload.num_requests, workload.duration_s) == (50, None)
    [workload] = job(concurrency=4).workloads
    assert (workload.rate, workload.duration_s) == (None, 30.0)


def test_a_sweep_has_a_workload_for_each_value() -> None:
    assert [w.rate for w in job(sweep="rate=1,2.5").workloads] == [1, 2.5]
    swept = job(sweep="concurrency=1,8").workloads
    assert [(w.rate, w.concurrency, w.duration_s) for w in swept] == [(None, 1, 30), (None, 8, 30)]
    assert job(sweep="concurrency=2", trace=Path("t")).workloads[0].duration_s == 30


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"rate": 1.0, "concurrency": 2}, "`--rate` and `--concurrency` exclude each other"),
        ({"ramp_to": 1.0, "spike": 2.0}, "`--ramp-to` and `--spike` exclude each other"),
        ({"concurrency": 1, "spike": 2.0}, "`--concurrency` and a rate that changes exclude each other"),
        ({"trace": Path("t"), "ramp_to": 2.0}, "`--trace` and a rate that changes exclude each other"),
        ({"trace": Path("t"), "turns": 2}, "`--trace` and `--turns` exclude each other"),
        ({"find_capacity": True, "concurrency": 2, "slo": "ttft=1s"}, "`--find-capacity` and `--concurrency` exclude"),
        ({"sweep": "rate=1", "compare": ["x"]}, "--sweep, --find-capacity and --compare exclude each other"),
        ({"find_capacity": True}, "`--find-capacity` needs limits to meet"),
        ({"require": 0.5}, "`--require` needs limits to meet"),
        ({"require": 1.5, "slo": "ttft=1s"}, "`--require` is 1.5, but it must be above 0 and at most 1"),
        ({"requests": 0}, "`--requests` is 0, but it must be 1 or more"),
        ({"max_input": 0}, "`--max-input` is 0, but it must be 1 or more"),
        ({"rate": 0.0}, "`--rate` is 0, but it must be above 0"),
        ({"time_scale": -1.0}, "`--time-scale` is -1, but it must be above 0"),
        ({"seed": -1}, "`--seed` is -1, but it must be 0 or more"),
        ({"arrivals": "random"}, "`--arrivals` is 'random', but it must be one of poisson, gamma, constant"),
        ({"endpoint": "embeddings"}, "`--endpoint` is 'embeddings', but it must be one of completions, chat"),
        ({"trace": Path("t"), "trace_format": "x"}, "`--trace-format` is 'x', but it must be one of auto, azure"),
        ({"duration": "0s"}, "`--duration` is 0, but it must be above 0"),
        ({"duration": "long"}, "`--duration` is 'long', but it must be a time"),
        ({"input_tokens": "many"}, "`--input-tokens` is 'many', but it must be a number of tokens"),
        ({"sweep": "rate"}, "`--sweep` is 'rate', but it must be a list of values above 0"),
        ({"sweep": "concurrency=1.5"}, "`--sweep` is 'concurrency=1.5'"),
        ({"sweep": "speed=1"}, "`--sweep` is 'speed=1'"),
        ({"body": "[1]"}, "`--body` is '\\[1\\]', but it must be a JSON object"),
        ({"target": "ftp://x"}, "the target is 'ftp://x', but it must be a URL"),
        ({"api_key": "a\nb"}, "`--api-key` holds a character that cannot stand in a header"),
        ({"slo": "quick"}, "`--slo` has the part 'quick'"),
        ({"slo": "ttft=1s", "find_capacity": True, "turns": 2}, "`--find-capacity` and `--turns` exclude"),
        ({"slo": "ttft=1s", "find_capacity": True, "ramp_to": 2.0}, "`--find-capacity` and `--ramp-to` exclude"),
        ({"slo": "ttft=1s", "find_capacity": True, "spike": 2.0}, "`--find-capacity` and `--spike` exclude"),
        ({"slo": "ttft=1s", "find_capacity": True, "require": 0.9}, "`--find-capacity` and `--require` exclude"),
        ({"trace": Path("t"), "arrivals": "constant"}, "`--trace` and `--arrivals` exclude each other"),
        ({"concurrency": 2, "arrivals": "gamma"}, "`--concurrency` and `--arrivals` exclude each other"),
        ({"sweep": "concurrency=1", "arrivals": "gamma"}, "`--sweep concurrency` and `--arrivals` exclude"),
        ({"sweep": "rate=1,2", "rate": 3.0}, "`--sweep` and `--rate` exclude"),
        ({"sweep": "rate=1,2", "concurrency": 3}, "`--sweep` and `--concurrency` exclude"),
        ({"sweep": "concurrency=1", "spike": 2.0}, "`--sweep concurrency` and a rate that changes exclude"),
        ({"ramp_to": 2.0, "requests": 9}, "`--ramp-to` needs `--duration`"),
        ({"shared_prefix": 65, "input_tokens": "64..512"}, "`--shared-prefix` is 65, but the shortest prompt has 64"),
        ({"trace": Path("t"), "shared_prefix": 5}, "`--trace` and `--shared-prefix` exclude"),
        ({"trace": Path("t"), "time_scale": 2.0, "rate": 5.0}, "`--time-scale` and a rate exclude"),
        ({"max_input": 9}, "`--max-input` does nothing without `--trace`"),
        ({"length_scale": 0.5}, "`--length-scale` does nothing without `--trace`"),
        ({"spike_for": "9s"}, "`--spike-for` does nothing without `--spike`"),
        ({"rounds": 9}, "`--rounds` does nothing without `--compare`"),
        ({"attainment": 0.5}, "`--attainment` does nothing without `--find-capacity`"),
        ({"think_time": "1s"}, "`--think-time` does nothing without `--turns`"),
        ({"cv": 3.0}, "`--cv` does nothing without `--arrivals gamma`"),
        ({"model": ["a", "b"]}, "`--model` is given 2 times, but there is 1 target"),
        ({"model": ["a", "b"], "compare": ["x", "y"]}, "`--model` is given 2 times, but there are 3 targets"),
    ],
)
def test_flags_that_cannot_be(flags: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        job(**flags)


def test_a_run_with_a_spike_lasts_until_after_it() -> None:
    assert job(spike=10.0).workloads[0].duration_s == 30 + 60 + 30
    assert job(spike=10.0, spike_at="5s", spike_for="10s").workloads[0].duration_s == 45
    assert job(spike=10.0, duration="2m").workloads[0].duration_s == 120


def test_words_are_others_each_time_unless_a_seed_is_given() -> None:
    assert job().seed == job().seed == 0
    assert job().words_seed != job().words_seed
    assert (job(seed=7).seed, job(seed=7).words_seed) == (7, 7)


def test_each_target_may_have_its_model() -> None:
    assert [asked.model for asked in job(compare=["x"]).asked] == [None, None]
    assert [asked.model for asked in job(compare=["x"], model=["a"]).asked] == ["a", "a"]
    assert [asked.model for asked in job(compare=["x"], model=["a", "b"]).asked] == ["a", "b"]
    assert [asked.tokenizer for asked in job(compare=["x"], tokenizer=[Path("a"), Path("b")]).asked] == [
        Path("a"), Path("b")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("2", 2), ("1.5m", 90), ("1h", 3600), (" 3 s ", 3), ("20us", 2e-5), (".5s", 0.5)],
)
def test_times_are_read(text: str, seconds: float) -> None:
    assert parse_seconds(text, "--x") == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0431, "43.1 ms"), (2.5, "2.50 s"), (0.000812, "812 us"), (0.9999, "1.00 s"), (123.4, "123 s"),
        (0.0, "0.00 us"),
        (float("nan"), "-"), (0.00999, "9.99 ms"), (0.09996, "100 ms"),
    ],
)  # fmt: skip
def test_times_are_shown(seconds: float, text: str) -> None:
    assert show_seconds(seconds) == text
