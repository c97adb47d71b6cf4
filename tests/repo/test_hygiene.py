"""What is in the repository: nothing of one machine, nothing large but the bundled models, nothing left unfinished."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from builds import REPO

BUNDLED = "src/trivet/bundled/"
# Spelled so that this file does not hold what it looks for.
MACHINE_PATH = re.compile(r"(?<![\w.:/-])/(?:home|root|Users|work|mnt|opt/[a-z]+-?[a-z]*/simple)" + r"/[\w.]")
UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")
REGISTRY = re.compile(r"pypi\.|python" + "hosted|index-" + "url|find-" + "links")


@functools.cache
def files() -> list[str]:
    """Every file that belongs to the repository, relative to its root."""
    if (REPO / ".git").exists() and shutil.which("git"):
        listing = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=REPO, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        names = listing.splitlines()
    else:  # an unpacked archive
        built = {".venv", "build", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis"}
        names = []
        for folder, folders, inside in os.walk(REPO):
            folders[:] = [name for name in folders if name not in built]
            here = Path(folder).relative_to(REPO)
            names += [str(here / name) for name in inside if not name.endswith(".so")]
    return [name for name in names if (REPO / name).is_file()]


def text_of(name: str) -> str:
    """The file as text, empty if it is none."""
    try:
        return (REPO / name).read_text()
    except UnicodeDecodeError:
        return ""


def hits(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{name}: {line.strip()[:100]}"
        for name in files()
        if not name.startswith(BUNDLED) and name != "LICENSE"
        for line in text_of(name).splitlines()
        if pattern.search(line)
    ]


def test_there_are_files() -> None:
    assert {"Makefile", "README.md", "pyproject.toml", "src/trivet/config.py"} <= set(files())


@pytest.mark.parametrize(
    "pattern", [MACHINE_PATH, UNFINISHED, REGISTRY], ids=["machine path", "unfinished", "registry"]
)
def test_no_file_holds(pattern: re.Pattern[str]) -> None:
    assert hits(pattern) == []


@pytest.mark.parametrize(
    ("pattern", "line", "found"),
    [
        (MACHINE_PATH, "cd /ho" + "me/me/trivet", True), (MACHINE_PATH, "http://x.org/home/page", False),
        (MACHINE_PATH, "/usr/bin/python3", False), (UNFINISHED, "# TO" + "DO: later", True),
        (UNFINISHED, "TODOS", False), (REGISTRY, "--index-" + "url=x", True), (REGISTRY, "pip install trivet", False),
    ],
)  # fmt: skip
def test_the_patterns_find_what_they_should(pattern: re.Pattern[str], line: str, found: bool) -> None:
    assert bool(pattern.search(line)) is found


def test_nothing_is_large_but_the_bundled_models() -> None:
    large = [name for name in files() if (REPO / name).stat().st_size > 1e6 and not name.startswith(BUNDLED)]
    assert large == []
    bundled = sum((REPO / name).stat().st_size for name in files() if name.startswith(BUNDLED))
    assert 0 < bundled < 25e6, f"the bundled models take {bundled / 1e6:.1f} MB, but 25 MB is their limit"


def test_no_line_ends_in_blanks() -> None:
    assert hits(re.compile(r"[ \t]$")) == []


def test_notices_name_every_package_of_the_base_install() -> None:
    notices = (REPO / "THIRD_PARTY_NOTICES.md").read_text()
    pending = list(tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["dependencies"])
    seen: set[str] = set()
    while pending:
        requirement = Requirement(pending.pop())
        name = canonicalize_name(requirement.name)
        if name not in seen and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            seen.add(name)
            pending += distribution(name).requires or []
    assert len(seen) > 20, f"only {seen} were found"
    missing = sorted(name for name in seen if f"| {name} |" not in notices)
    assert missing == []


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "LICENSE", "THIRD_PARTY_NOTICES.md", "docs/lab.md"])
def test_a_stranger_finds(name: str) -> None:
    assert len((REPO / name).read_text()) > 200


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for name in files():
        if name.endswith(".md") and not name.startswith(BUNDLED):
            for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text_of(name)):
                if not (REPO / name).parent.joinpath(Path(target)).exists():
                    broken.append(f"{name} -> {target}")
    assert broken == []


def test_no_two_files_of_tests_share_a_name() -> None:
    """Each folder of tests/ is on the import path, so the second of two equal names would be shadowed."""
    names = [Path(name).name for name in files() if name.startswith("tests/") and name.endswith(".py")]
    assert sorted(name for name in set(names) - {"conftest.py"} if names.count(name) > 1) == []
