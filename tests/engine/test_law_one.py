"""Law 1, proved: the same answer, whatever the load; and the proof finds the faults that engines usually have."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from law_one import Search, find_violation

from builds import build_variant, core_prelude
from checkpoints import make_checkpoint

COMBINATIONS = [(p, kv, s) for p in ("bf16", "int8", "int4") for kv in ("bf16", "int8") for s in ("greedy", "seeded")]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(
        tmp_path_factory.mktemp("law") / "m", "qwen3", max_position_embeddings=1536, intermediate_size=128
    )


@pytest.mark.parametrize("precision,kv,sampling", COMBINATIONS)
def test_same_tokens_whatever_the_load(checkpoint: Path, precision: str, kv: str, sampling: str) -> None:
    check(find_violation(checkpoint, precision, kv, sampling, seconds=3))  # type: ignore[arg-type]


def check(search: Search) -> None:
    """Nothing was found, and it was a search."""
    assert search.violation is None, search.violation
    assert search.was_one, search


@pytest.mark.slow
@pytest.mark.parametrize("precision,kv,sampling", COMBINATIONS)
def test_same_tokens_whatever_the_load_for_long(checkpoint: Path, precision: str, kv: str, sampling: str) -> None:
    """Ten minutes over all combinations."""
    check(find_violation(checkpoint, precision, kv, sampling, seconds=50, seed=1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fault,precision,kv",
    [(0, "bf16", "int8"), (1, "bf16", "bf16"), (2, "int8", "bf16"), (3, "int8", "int8")],
    ids=["none", "k-split-by-threads", "attention-split-by-batch", "kv-read-before-quantization"],
)
def test_finds_planted_faults(checkpoint: Path, fault: int, precision: str, kv: str) -> None:
    module = build_variant("faults", "-DTRIVET_FAULTS=ON")
    code = f"""
{core_prelude(module)}
trivet._core.plant_fault({fault})
from law_one import find_violation
print(find_violation({str(checkpoint)!r}, {precision!r}, {kv!r}, "greedy", seconds=3).violation or "")
"""
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1]), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert ("differs from its run alone" in done.stdout) == (fault != 0), done.stdout + done.stderr
