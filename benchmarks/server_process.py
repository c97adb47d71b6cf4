"""`trivet` as another process, as a user starts it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def serve(*args: str) -> Iterator[Server]:
    """`trivet serve ARGS` on a free port; ends it after the block. RuntimeError if it ends before it is ready."""
    started_s = time.perf_counter()
    command = [*trivet_command(), "serve", *args, "--port", "0", "--json"]
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
