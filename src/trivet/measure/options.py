"""What `trivet bench` was asked, as it was typed; `job.py` makes sense of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The flags of the command line; their help texts are in `cli/bench.py`."""

    target: str = "http://127.0.0.1:8000"
    rate: float | None = None
    arrivals: str = "poisson"
    cv: float = 2.0
    ramp_to: float | None = None
    spike: float | None = None
    spike_at: str = "30s"
    spike_for: str = "60s"
    concurrency: int | None = None
    duration: str | None = None
    requests: int | None = None
    warmup: str | None = None
    input_tokens: str = "256"
    output_tokens: str = "64"
    shared_prefix: int = 0
    turns: int = 1
    think_time: str = "0s"
    trace: Path | None = None
    trace_format: str = "auto"
    trace_start: str = "0s"
    trace_for: str | None = None
    time_scale: float = 1.0
    length_scale: float = 1.0
    max_input: int | None = None
    max_output: int | None = None
    slo: str | None = None
    require: float | None = None
    find_capacity: bool = False
    attainment: float = 0.9
    sweep: str | None = None
    compare: list[str] | None = None
    rounds: int = 5
    endpoint: str = "completions"
    model: list[str] | None = None
    api_key: str | None = None
    tokenizer: list[Path] | None = None
    body: str | None = None
    timeout: str = "5m"
    insecure: bool = False
    workers: int | None = None
    seed: int | None = None
    output: Path | None = None
    as_json: bool = False
