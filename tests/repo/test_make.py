"""`make`, `.ci/run` and the install: what they would do, that they say so truthfully, and how large the result is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from builds import REPO

ENV = {
    name: value
    for name, value in os.environ.items()
    if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "TESTS", "ARGS", "SHARD", "SHARDS")
}


def make(*arguments: str, folder: Path = REPO) -> str:
    done = subprocess.run(["make", *arguments], cwd=folder, env=ENV, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with only what decides about set-up: nothing is installed there, and make only says what it would do."""
    for name in ("Makefile", "CMakeLists.txt", "pyproject.toml"):
        shutil.copy(REPO / name, tmp_path)
    shutil.copytree(REPO / "scripts", tmp_path / "scripts")
    (tmp_path / "native").mkdir()
    return tmp_path


def test_serve_sets_up_without_torch(clone: Path) -> None:
    plan = make("--dry-run", "serve", "ARGS=--port 9000", folder=clone)
    assert "-m venv" in plan and "--editable ." in plan
    assert plan.rstrip().endswith("trivet serve --port 9000")
    assert "requirements.py test" not in plan


def test_test_sets_up_what_tests_need(clone: Path) -> None:
    plan = make("--dry-run", "test", folder=clone)
    assert "requirements.py test" in plan
    assert 'pytest -m "not slow" tests' in plan


def test_a_second_time_does_nothing_but_the_work(clone: Path) -> None:
    (clone / ".venv").mkdir()
    make("--touch", "setup", folder=clone)
    assert make("--dry-run", "serve", folder=clone).split() == ["exec", ".venv/bin/trivet", "serve"]
    os.utime(clone / "CMakeLists.txt", (2**31, 2**31))
    assert "--editable ." in make("--dry-run", "serve", folder=clone)


def test_every_shard_runs_in_test_all(clone: Path) -> None:
    plan = make("--dry-run", "test-all", "SHARDS=3", folder=clone)
    assert "for shard in 1 2 3;" in plan and "--shard $shard/3" in plan


def test_the_base_install_has_no_torch() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    assert not [name for name in project["dependencies"] if name.startswith(("torch", "nvidia"))]
    listed = subprocess.run(
        [sys.executable, "scripts/requirements.py", "test"], cwd=REPO, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "torch==2.13.0" in listed


@pytest.fixture
def ci(tmp_path: Path) -> Path:
    """A checkout whose `make test` is a script of ours."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(REPO / ".ci" / "run", tmp_path / ".ci" / "run")
    return tmp_path


@pytest.mark.parametrize(
    ("recipe", "code", "closing"),
    [
        ("echo '3 passed, 1 deselected in 2.50s'", 0, "ci: 3 passed, 1 deselected in 2.50s (exit code 0)"),
        ("echo '1 failed, 2 passed in 2.50s'; exit 1", 2, "ci: 1 failed, 2 passed in 2.50s (exit code 2)"),
        ("echo '= 2 errors in 61.20s (0:01:01) ='; exit 1", 2, "ci: = 2 errors in 61.20s (0:01:01) = (exit code 2)"),
        ("echo no compiler; exit 1", 2, "ci: make test ended before pytest did (exit code 2)"),
        ("read line && echo $$line", 2, "ci: make test ended before pytest did (exit code 2)"),
    ],
)  # fmt: skip
def test_ci_tells_the_truth(ci: Path, recipe: str, code: int, closing: str) -> None:
    (ci / "Makefile").write_text(f"test:\n\t@{recipe}\n")
    done = subprocess.run([ci / ".ci" / "run"], env=ENV, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stdout.splitlines()[-1] == closing


@pytest.mark.slow
def test_the_install_is_small_and_works_alone() -> None:
    """Builds a wheel as a stranger's pip does, in a fresh environment: about two minutes."""
    done = subprocess.run(
        ["scripts/install-size"], cwd=REPO, env=ENV, capture_output=True, text=True, check=False, timeout=1800
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "together, of at most 200" in done.stdout
