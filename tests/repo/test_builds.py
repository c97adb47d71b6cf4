"""Builds of the native core with other options can take its place in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import trivet
from builds import build_id, core_objects, core_prelude
from trivet import _core


def test_another_build_takes_the_place_of_the_core(tmp_path: Path) -> None:
    other = tmp_path / Path(str(_core.__file__)).name
    other.write_bytes(Path(str(_core.__file__)).read_bytes())
    code = core_prelude(other) + "\nfrom trivet import _core\nprint(_core.__file__, _core.available_isas()[0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(other), "baseline"]


def test_a_build_has_an_id_and_other_files_have_none(tmp_path: Path) -> None:
    module = Path(str(_core.__file__))
    identity = build_id(module)
    assert identity and len(identity) == 40
    with pytest.raises(AssertionError, match="readelf"):
        build_id(tmp_path / "missing.so")


def test_objects_are_keyed_by_source() -> None:
    objects = core_objects()
    root = Path(trivet.__file__).parents[2]
    assert "native/kernels/dispatch.cc" in objects
    assert all((root / source).is_file() for source in objects)
