"""Runs `trivet bench` inside the test, and gives back its record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trivet.measure.job import job_from
from trivet.measure.options import Options
from trivet.measure.session import run_session

QUICK: dict[str, Any] = {"rate": 40.0, "duration": "1s", "warmup": "0"}
QUICK_LENGTHS: dict[str, Any] = {"input_tokens": "20", "output_tokens": "8"}


def bench(folder: Path, url: str, **options: Any) -> tuple[int, dict[str, Any]]:
    """(exit status, JSON record). The load is QUICK unless the options say otherwise; a rate of 0 is none.

    A trace has its own lengths.
    """
    given = {**QUICK, **({} if "trace" in options else QUICK_LENGTHS), **options}
    if not given["rate"]:
        given["rate"] = None
    path = folder / "record.json"
    job = job_from(Options(target=url, output=path, **given))
    status = run_session(job, command=["trivet", "bench", url], measure_limits=lambda: {"measured": {"threads": 1}})
    return status, json.loads(path.read_text())


def only_run(folder: Path, url: str, **options: Any) -> dict[str, Any]:
    """The only run of the record."""
    _, record = bench(folder, url, **options)
    [run] = record["runs"]
    assert isinstance(run, dict)
    return run


def all_notes(run: dict[str, Any]) -> str:
    return "\n".join(run["notes"])
