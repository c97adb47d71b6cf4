"""`trivet` as another process, as a user starts it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def trivet_command() -> list[str]:
    """The installed command beside this Python, else the same through the module."""
    script = Path(sys.executable).with_name("trivet")
    return [str(script)] if script.exists() else [sys.executable, "-m", "trivet.cli.main"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server that answers; seconds of `time.perf_counter`."""

    url: str
    started_s: float
    ready: dict[str, Any]  # what it said when it was ready


def serve(*args: str) -> AbstractContextManager[Server]:
    """`trivet serve ARGS` on a free port, as `started` does."""
    return started([*trivet_command(), "serve", *args, "--port", "0", "--json"])


@contextmanager
def started(command: list[str]) -> Iterator[Server]:
    """A command that prints what `trivet serve --json` does; ends it after the block. RuntimeError if it ends before
    it is ready."""
    started_s = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            for line in process.stdout:
                event = json.loads(line)
                if event["event"] == "ready":
                    yield Server(url=event["url"], started_s=started_s, ready=event)
                    return
            raise RuntimeError(f"`{' '.join(command)}` ended with {process.wait()} before it was ready")
        finally:
            process.terminate()
