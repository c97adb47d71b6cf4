"""Sampling: milliseconds to draw one token from one row of logits, on one thread.

    python -m benchmarks.engine.sample --vocab 151936 --json

Rows are normal with the given deviation: 1 is flatter than a model's, 3 about as peaked. The limit is one read of the
row from memory at the bandwidth of one thread.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from benchmarks.record import Record, bandwidth_gb_per_s, environment, median_and_spread, show
from trivet import _core

WAYS: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0.0}, "temperature": {}, "top_k 50": {"top_k": 50}, "top_p 0.9": {"top_p": 0.9},
    "min_p 0.05": {"min_p": 0.05}, "top_k 50, top_p 0.9": {"top_k": 50, "top_p": 0.9},
}  # fmt: skip


def arguments(rows: int, **given: float) -> dict[str, Any]:
    """Arguments of `sample_rows`, the same for every row but for the position."""
    values = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | given
    kinds = {"temperature": np.float32, "top_k": np.int32, "top_p": np.float32, "min_p": np.float32}
    columns: dict[str, Any] = {name: np.full(rows, value, kinds[name]) for name, value in values.items()}
    return columns | {
        "seed": np.zeros(rows, np.uint64), "sample_idx": np.zeros(rows, np.int32),
        "position": np.arange(rows, dtype=np.int64), "bias_starts": np.zeros(rows + 1, np.int32),
        "bias_ids": np.zeros(0, np.int32), "bias_values": np.zeros(0, np.float32),
        "mask_idx": np.full(rows, -1, np.int32), "masks": np.zeros((0, 0), np.uint32),
    }  # fmt: skip


def ms_a_row(logits: Any, given: dict[str, float]) -> float:
    """Milliseconds a row."""
    columns = arguments(len(logits), **given)
    begin = time.perf_counter()
    _core.sample_rows(logits, **columns)
    return (time.perf_counter() - begin) / len(logits) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=151936)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--deviations", type=lambda text: [float(d) for d in text.split(",")], default=[1.0, 3.0])
    parser.add_argument("--runs", type=int, default=9, help="after one that warms up")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    normal = np.random.default_rng(0).standard_normal((args.rows, args.vocab), np.float32)
    limit_ms = args.vocab * 4 / bandwidth_gb_per_s(1) * 1e-6
    records: list[Record] = []
    for deviation in args.deviations:
        logits = normal * np.float32(deviation)
        for way, given in WAYS.items():
            times = [ms_a_row(logits, given) for _ in range(args.runs + 1)][1:]
            value, spread = median_and_spread(times)
            records.append({
                "bench": "engine.sample", "way": way, "deviation": deviation, "vocab": args.vocab, "batch": args.rows,
                "value": round(value, 4), "spread": round(spread, 4), "unit": "ms/row", "best": round(min(times), 4),
                "limit_ms": round(limit_ms, 4), "isa": _core.isa(), "threads": 1, **environment(),
            })  # fmt: skip
    show(records, ("way", "deviation", "value", "spread", "best", "limit_ms", "unit"), as_json=args.json)


if __name__ == "__main__":
    main()
