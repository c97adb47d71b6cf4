"""Golden numbers: the bits of a tiny seeded model, in every tier. A change of bits must be meant, and said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from golden.make import FILE, TWINS, checkpoint, golden
from trivet import _core


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("golden") / "tiny")


def check(isa: str, tiny: Path) -> None:
    want: dict[str, Any] = json.loads(FILE.read_text())
    assert golden(tiny) == want[_core.twin_of(isa)], (
        f"the {isa} tier gives other bits than tests/golden/logits.json: if that is meant, raise KERNEL_REVISION, run "
        "`python tests/golden/make.py`, and explain it in the commit"
    )


def test_tokens_and_logits_are_those_of_this_kernel_revision(isa: str, tiny: Path) -> None:
    check(isa, tiny)


@pytest.mark.parametrize("twin", TWINS)
def test_those_of_tiers_that_this_cpu_lacks(twin: str, tiny: Path) -> None:
    before = _core.isa()
    try:
        _core.set_isa(twin)
        check(twin, tiny)
    finally:
        _core.set_isa(before)
