"""Scripted servers for the tests of `trivet bench`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def _serving(**script: Any) -> Iterator[str]:
    server = Path(__file__).with_name("scripted_server.py")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(
        [sys.executable, str(server), json.dumps(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env
    ) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


@pytest.fixture
def scripted() -> Iterator[Callable[..., str]]:
    """Starts servers with scripts (`scripted_server.Script`); each call gives the URL of a new one."""
    with ExitStack() as stack:
        yield lambda **script: stack.enter_context(_serving(**script))
