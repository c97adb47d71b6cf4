"""A pytest plugin: no test leaves processes or environment variables behind, `--shard` runs a part of the tests."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator

import psutil
import pytest

# Servers of the standard library that live as long as the process that asked for them.
_STANDING = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")


def _settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("TRIVET_")}


def _children() -> set[psutil.Process]:
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            standing = any(name in part for part in process.cmdline() for name in _STANDING)
            if not standing and process.status() != psutil.STATUS_ZOMBIE:
                found.add(process)
        except psutil.NoSuchProcess:
            pass
    return found


@pytest.fixture(autouse=True)
def no_settings_left() -> Iterator[None]:
    """Fails a test after which a TRIVET_* variable is not what it was."""
    before = _settings()
    yield
    after = _settings()
    if after != before:
        for name in after:
            del os.environ[name]
        os.environ.update(before)
        pytest.fail(f"the test changed TRIVET_* variables for good: {before} became {after}; use monkeypatch.setenv")


@pytest.fixture(scope="module", autouse=True)
def no_processes_left() -> Iterator[None]:
    """Fails a test file that leaves a process running (so what a fixture starts lives at most as long as its file)."""
    before = _children()
    yield
    _, left = psutil.wait_procs(_children() - before, timeout=5)
    if left:
        lines = [f"{process.pid}: {process.name()}" for process in left if process.is_running()]
        for process in left:
            process.kill()
        pytest.fail(f"this file left processes behind, now killed: {', '.join(lines)}")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shard", metavar="I/N", help="run only the I-th of N parts of the tests (I from 1)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    shard = config.getoption("--shard")
    if shard is None:
        return
    index, _, count = shard.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise pytest.UsageError(f"--shard is {shard!r}, but it must be I/N with I from 1 to N, such as 2/4")
    mine = [item for item in items if zlib.crc32(item.nodeid.encode()) % int(count) == int(index) - 1]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(mine)])
    items[:] = mine
