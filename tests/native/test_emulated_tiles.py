"""The amx tier on tiles in software: its code gives the bits of its plain twin, whether or not this CPU has AMX."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from builds import REPO, build_variant, core_prelude
from trivet import _core

pytestmark = pytest.mark.skipif(
    "avx512_bf16" not in _core.available_isas(), reason="the amx tier's other instructions: AVX-512 with bf16"
)


def run_tests(*arguments: str) -> int:
    """How many tests passed with a native core that emulates tiles; AssertionError where one failed."""
    code = f"""
{core_prelude(build_variant("emulated", "-DTRIVET_EMULATE_TILES=ON"))}
assert trivet._core.available_isas()[-1] == "amx", trivet._core.isa_notes()
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=REPO,
        env={name: value for name, value in os.environ.items() if name != "TRIVET_ISA"},
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"(\d+) passed", done.stdout)
    assert found, done.stdout
    return int(found[1])


def test_products_attention_and_golden_numbers() -> None:
    """Those of the amx tier alone, and the comparisons of all tiers for every shape, row count and epilogue."""
    files = (f"tests/native/test_{name}.py" for name in ("linear", "attention", "golden"))
    assert run_tests("-k", "amx or every_tier", *files) >= 100


@pytest.mark.slow
def test_whole_steps() -> None:
    wanted = ("-k", "amx or bits", "tests/engine/test_reference.py", "tests/engine/test_shared_prefix.py")
    assert run_tests(*wanted) >= 40
