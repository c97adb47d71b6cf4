"""The amx tier on tiles in software: the same bits as every other tier, whether or not this CPU has AMX."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from builds import REPO, build_variant, core_prelude


def run_tests(*arguments: str) -> str:
    """What pytest printed of a run whose native core emulates tiles; AssertionError where a test failed."""
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
    return done.stdout


def test_products_and_golden_numbers() -> None:
    folder = Path("tests/native")
    assert " passed" in run_tests("-k", "amx", str(folder / "test_linear.py"), str(folder / "test_golden.py"))


@pytest.mark.slow
def test_whole_steps() -> None:
    assert " passed" in run_tests("tests/engine/test_reference.py")
