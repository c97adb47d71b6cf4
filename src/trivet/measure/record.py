"""A run as JSON: everything that its figures are, and everything needed to have it again."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import platform
import re
import socket
import sys
from collections.abc import Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from trivet import __version__
from trivet.measure.bench import RunReport
from trivet.measure.capacity import Capacity
from trivet.measure.compare import Ratio
from trivet.measure.job import BenchJob
from trivet.measure.metrics import QUANTILES, Figures, Latency, Throughput
from trivet.measure.probe import Probed
from trivet.measure.statistics import CONFIDENCE, Estimate

FORMAT = 1
PARTS = ("numpy", "uvloop", "httptools", "msgspec", "tokenizers")
SECRET_FLAGS = ("--api-key",)

Json = dict[str, Any]


def header(command: Sequence[str], job: BenchJob, targets: Sequence[Probed]) -> Json:
    """What all records of one command share, as it is before the first run.

    The time of day is a label here; nothing is computed from it.
    """
    return {
        "bench": "load",
        "format": FORMAT,
        "command": redacted(command),
        "seed": job.seed,
        "words_seed": job.words_seed,
        "trace_sha256": None if job.options.trace is None else _digest(job.options.trace),
        "at": datetime.now().astimezone().isoformat(timespec="seconds"),
        "targets": [_target(probed) for probed in targets],
        "slo": None if job.slo is None else {"limits_s": job.slo.limits_s},
        "confidence": CONFIDENCE,
        "versions": {"trivet": __version__, "python": platform.python_version(), **_versions()},
        "host": _host(),
    }


def redacted(command: Sequence[str]) -> list[str]:
    """The command without its secrets: keys, and users in addresses."""
    shown, hide = [], False
    for given in command:
        word = re.sub(r"(?<=://)[^/@]*(?=@)", "***", given)
        name, equals, _ = word.partition("=")
        shown.append("***" if hide else f"{name}=***" if equals and name in SECRET_FLAGS else word)
        hide = word in SECRET_FLAGS
    return shown


def run_record(report: RunReport) -> Json:
    """One run."""
    client = report.client
    return {
        "target": report.target,
        "load": _plain(report.workload),
        "seed": report.seed,
        "planned": {
            "requests": report.planned.num_requests,
            "requests_per_s": _number(report.planned.rate) or None,
            "mean_output_tokens": _number(report.planned.mean_output),
        },
        "valid": report.is_valid,
        "invalid_because": [*client.problems, *([] if report.figures.num_ok else ["no request was answered"])],
        "interrupted": report.interrupted,
        **_figures(report.figures),
        "client": {
            "workers": client.num_workers,
            "cpu_share_busiest": _number(client.cpu_share),
            "cpu_share_total": _number(client.cpu_share_total),
            "sending_lag_s": _ranks(client.sending_lag_s),
            "loop_lag_s": _ranks(client.loop_lag_s),
        },
        "examples": report.examples,
        "notes": list(report.notes),
    }


def capacity_record(capacity: Capacity) -> Json:
    """A search for capacity."""
    return {
        "requests_per_s": None if capacity.rate is None else _number(capacity.rate),
        "attainment_wanted": capacity.wanted,
        "is_bounded": capacity.is_bounded,
        "because": capacity.because,
        "trials": [_plain(trial) for trial in capacity.trials],
    }


def ratio_record(ratio: Ratio) -> Json:
    """One figure of B over that of A."""
    return {
        "figure": ratio.name,
        "a": _number(ratio.a),
        "b": _number(ratio.b),
        "ratio": _number(ratio.ratio),
        "low": _number(ratio.low),
        "high": _number(ratio.high),
        "verdict": ratio.verdict,
    }


def _target(probed: Probed) -> Json:
    dialect = probed.dialect
    return {
        "url": probed.target.url,
        "address": f"{probed.target.address.host}:{probed.target.address.port}",
        "model": probed.model.name,
        "max_model_len": probed.model.max_len,
        "endpoint": dialect.endpoint,
        "prompts_as": dialect.form,
        "tokenizer": None if probed.tokenizer is None else str(probed.tokenizer),
        "body": dialect.options.decode(),
        "prompt_tokens_added_by_server": dialect.overhead,
        "timeout_s": probed.timeout_s,
    }


def _figures(figures: Figures) -> Json:
    return {
        "requests": figures.num_requests,
        "answered": figures.num_ok,
        "cut": figures.num_cut,
        "failures": figures.failures,
        "ttft_s": _latency(figures.ttft),
        "itl_s": _latency(figures.itl),
        "tpot_s": _latency(figures.tpot),
        "e2e_s": _latency(figures.e2e),
        "throughput": _throughput(figures.whole),
        "throughput_while_sending": _throughput(figures.steady),
        "attainment": None if figures.attainment is None else _estimate(figures.attainment),
        "offered_requests_per_s": None if figures.offered is None else _number(figures.offered),
        "goodput_requests_per_s": None if figures.goodput is None else _number(figures.goodput),
    }


def _ranks(values: Sequence[float]) -> Json:
    return {f"p{100 * q:.0f}": _number(value) for q, value in zip(QUANTILES, values, strict=True)}


def _latency(latency: Latency) -> Json:
    named = {f"p{100 * q:.0f}": _estimate(e) for q, e in zip(QUANTILES, latency.quantiles, strict=True)}
    return {"num": latency.num, "mean": _number(latency.mean), **named, "max": _number(latency.longest)}


def _throughput(throughput: Throughput) -> Json:
    return {
        "seconds": _number(throughput.end_s - throughput.begin_s),
        "output_tokens_per_s": _number(throughput.rate(throughput.output_tokens)),
        "input_tokens_per_s": _number(throughput.rate(throughput.input_tokens)),
        "requests_per_s": _number(throughput.rate(throughput.requests)),
    }


def _estimate(estimate: Estimate) -> Json:
    return {"value": _number(estimate.value), "low": _number(estimate.low), "high": _number(estimate.high)}


def _number(value: float) -> float | None:
    """Six significant digits; JSON has no NaN."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    """Dataclasses and paths as JSON has them; what was not set is left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {name: _plain(field) for name, field in fields if field is not None}
    return str(value) if isinstance(value, Path) else value


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in PARTS}


def _host() -> Json:
    return {
        "name": socket.gethostname(),
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg()[0],
        "executable": sys.executable,
    }
