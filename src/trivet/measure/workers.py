"""The worker processes, seen from their parent."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

import msgspec

from trivet.errors import TrivetError
from trivet.measure.messages import (
    HEADER_BYTES,
    Crashed,
    Job,
    Order,
    Progress,
    Ready,
    Report,
    Result,
    Run,
    Setup,
    Start,
    Stop,
    frame,
)
from trivet.measure.results import Requests, requests_of

START_AFTER_S = 0.1  # from "all are ready" to the run's begin: the order must have reached everybody
END_TIMEOUT_S = 5.0

OnProgress = Callable[[Progress], None]
R = TypeVar("R", Ready, Result)


class WorkerDied(TrivetError):
    """A worker process ended; the run cannot be counted."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A run, as it came back from all workers."""

    requests: Requests
    start_s: float
    results: list[Result]


class Workers:
    """A number of worker processes. Use as `async with Workers(2) as workers`."""

    def __init__(self, num: int) -> None:
        self.num = num
        self._processes: list[asyncio.subprocess.Process] = []
        self._decoder = msgspec.msgpack.Decoder(Report)
        self._progress: list[Progress] = []
        self._running = self._stopped = False

    async def __aenter__(self) -> Workers:
        # A Ctrl-C on the terminal goes to everybody; the parent alone decides what it means.
        self._processes = [
            await asyncio.create_subprocess_exec(
                sys.executable, "-m", "trivet.measure.worker",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True,
                env=_environment(),
            )
            for _ in range(self.num)
        ]  # fmt: skip
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            try:
                async with asyncio.timeout(END_TIMEOUT_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    async def set_up(self, setup: Setup) -> None:
        """Makes a target known, or known anew."""
        await self._tell_all([setup] * self.num)

    async def run(self, runs: Sequence[Run], on_progress: OnProgress = lambda progress: None) -> Measured | None:
        """Runs one part on each worker, together; None if `stop` came before. WorkerDied if one of them ends."""
        await self._tell_all(runs)
        await asyncio.gather(*(self._await(process, Ready) for process in self._processes))
        if self._stopped:
            return None
        start_s = time.monotonic() + START_AFTER_S
        self._progress = [Progress(0, 0, 0, 0)] * self.num
        self._running = True
        await self._tell_all([Start(start_s)] * self.num)
        try:
            results = await asyncio.gather(
                *(self._await(process, Result, i, on_progress) for i, process in enumerate(self._processes))
            )
        finally:
            self._running = False
        return Measured(requests_of(results, start_s), start_s, results)

    async def stop(self, *, cut: bool = False) -> None:
        """Ends the run that is on early; no other will begin."""
        self._stopped = True
        if self._running:
            await self._tell_all([Stop(cut)] * self.num)

    async def _tell_all(self, orders: Sequence[Order]) -> None:
        for process, order in zip(self._processes, orders, strict=True):
            assert process.stdin is not None
            process.stdin.write(frame(order))
        try:
            for process in self._processes:
                assert process.stdin is not None
                await process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            raise WorkerDied("a worker process ended before it was told what to do") from None

    async def _await(
        self,
        process: asyncio.subprocess.Process,
        kind: type[R],
        index: int = 0,
        on_progress: OnProgress | None = None,
    ) -> R:
        """The next report of that kind; progress on the way is passed on."""
        assert process.stdout is not None
        while True:
            try:
                size = int.from_bytes(await process.stdout.readexactly(HEADER_BYTES), "little")
                report: Report = self._decoder.decode(await process.stdout.readexactly(size))
            except asyncio.IncompleteReadError:
                raise WorkerDied(
                    f"a worker process ended with {await process.wait()} in the middle of a run",
                    hint="its last words are above",
                ) from None
            if isinstance(report, Crashed):
                raise WorkerDied(f"a worker process failed: {report.reason}")
            if isinstance(report, kind):
                return report
            if isinstance(report, Progress) and on_progress is not None:
                self._progress[index] = report
                on_progress(_sum(self._progress))


def deal(jobs: Sequence[Job], num: int) -> list[list[Job]]:
    """The jobs dealt out in turn, so that every worker has a thinner copy of the same load."""
    return [list(jobs[i::num]) for i in range(num)]


def _sum(parts: Sequence[Progress]) -> Progress:
    return Progress(*(sum(column) for column in zip(*(msgspec.structs.astuple(part) for part in parts), strict=True)))


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
