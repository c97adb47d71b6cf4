"""A worker as the harness sees it: a process that loads once, obeys line by line, and can be stopped and continued."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

Message = dict[str, Any]


class WorkerFailed(RuntimeError):
    """It ended, said that it could not do the work, or took too long."""


class Worker:
    """A process in a group of its own, so that what it starts is stopped and ended with it."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path, *, timeout_s: float) -> None:
        """Starts it and waits until it is ready. Raises WorkerFailed."""
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        self.started_s = time.perf_counter()
        with log.open("w") as stderr:
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, bufsize=0,
                start_new_session=True,
            )  # fmt: skip
        self._partial = b""
        self.filled = False  # whether its room for KV was used once
        self.warm: set[str] = set()  # the rows whose work it has done
        try:
            self.about = self._read(timeout_s)
        except BaseException:
            self.end()
            raise

    def ask(self, command: Message, *, timeout_s: float) -> Message:
        """What it answers. Raises WorkerFailed, also for an answer that is an error."""
        stdin = self._process.stdin
        assert stdin
        try:
            stdin.write(json.dumps(command).encode() + b"\n")
        except BrokenPipeError:
            raise self._failed("is gone") from None
        answer = self._read(timeout_s)
        if "error" in answer:
            raise self._failed(f"could not: {answer['error']}")
        return answer

    def stop(self) -> None:
        """Takes the processor away from it, and from all that it started."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def rss_bytes(self, field: str = "VmRSS") -> int:
        """Resident memory of the whole group now; VmHWM: the sum of the peaks."""
        return sum(_status_kib(pid, field) for pid in group_members(self._process.pid)) * 1024

    def end(self) -> None:
        """Asks it to quit, and ends whatever of its group is left after 20 s."""
        self.resume()
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin and stdout
        with suppress(OSError):
            stdin.write(b'{"work": "quit"}\n')
        with suppress(OSError):
            stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        self._signal(signal.SIGKILL)
        self._process.wait()
        stdout.close()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _read(self, timeout_s: float) -> Message:
        stdout: IO[bytes] | None = self._process.stdout
        assert stdout
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._partial:
            ready, _, _ = select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise self._failed(f"said nothing for {timeout_s:.0f} s")
            read = os.read(stdout.fileno(), 1 << 16)
            if not read:
                raise self._failed(f"ended with {self._process.wait()}")
            self._partial += read
        line, _, self._partial = self._partial.partition(b"\n")
        message: Message = json.loads(line)
        return message

    def _failed(self, what: str) -> WorkerFailed:
        tail = self.log.read_text(errors="replace").splitlines()[-5:]
        return WorkerFailed("\n".join([f"the worker {what}; the end of {self.log}:", *tail]))


def group_members(group: int) -> list[int]:
    """The processes of a group."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == group:
                    found.append(int(folder.name))
    return found


def _status_kib(pid: int, field: str) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1])
    return 0
