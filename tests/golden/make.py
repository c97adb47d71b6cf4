"""Writes tests/golden/logits.json anew: `python tests/golden/make.py`, after a change of kernel bits that is meant.

Raise KERNEL_REVISION in engine/cpu_runner.py in the same commit, and say there why the bits changed.
"""

from __future__ import annotations

import json
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO), str(REPO / "tests")]
FILE = Path(__file__).with_name("logits.json")
TWINS = ("baseline", "baseline_pairs")  # the plain tiers: every other gives the bits of one of them
IDS = [(7 * i * i + 3 * i + 1) % 500 for i in range(100)]


def golden(folder: Path) -> dict[str, Any]:
    """Greedy tokens and the CRC-32 of all logits, for each precision and KV type, in the tier in use."""
    from steps import logits_of, make_runner
    from trivet.engine.cpu_runner import KERNEL_REVISION

    out: dict[str, Any] = {"kernel_revision": KERNEL_REVISION}
    for precision in ("bf16", "int8", "int4"):
        for kv in ("bf16", "int8"):
            runner = make_runner(folder, precision=precision, kv=kv)
            logits = logits_of(runner, IDS, [len(IDS)])
            ids = list(IDS)
            for _ in range(12):
                ids.append(int(logits_of(runner, ids, [len(ids)])[-1].argmax()))
            out[f"{precision} kv {kv}"] = {
                "logits_crc32": f"{zlib.crc32(logits.tobytes()):08x}",
                "tokens": ids[len(IDS) :],
            }
    return out


def checkpoint(folder: Path) -> Path:
    """The model of the golden numbers: random weights from a seed, by NumPy alone."""
    from benchmarks.make_checkpoint import make_checkpoint

    make_checkpoint("tiny", folder)
    return folder


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        from trivet import _core

        folder, numbers = checkpoint(Path(scratch) / "tiny"), {}
        for twin in TWINS:
            _core.set_isa(twin)
            numbers[twin] = golden(folder)
        FILE.write_text(json.dumps(numbers, indent=1) + "\n")
