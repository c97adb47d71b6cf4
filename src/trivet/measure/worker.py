"""`python -m trivet.measure.worker`: a process that makes load. Orders come on stdin, reports go to stdout.

It has one event loop and nothing else, so that what it measures of itself is all there is. It ends when stdin ends.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import traceback
from typing import Any

import msgspec

from trivet.measure.bodies import BodyMaker
from trivet.measure.client import Client
from trivet.measure.load import Load
from trivet.measure.messages import (
    Crashed,
    Dialect,
    Frames,
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
from trivet.measure.outcomes import Exchange
from trivet.measure.results import columns_of

PROGRESS_EVERY_S = 0.5


class Worker:
    """Prepares and runs one load after another; connections to a target live on between runs."""

    def __init__(self, loop: asyncio.AbstractEventLoop, orders_fd: int, reports_fd: int) -> None:
        self._loop = loop
        self._orders_fd, self._reports_fd = orders_fd, reports_fd
        self._frames = Frames()
        self._decoder = msgspec.msgpack.Decoder(Order)
        self._targets: dict[int, tuple[Client, Dialect]] = {}
        self._load: Load | None = None
        self._progress: asyncio.TimerHandle | None = None
        os.set_blocking(orders_fd, False)
        loop.add_reader(orders_fd, self._read)
        loop.set_exception_handler(self._unhandled)

    def report(self, message: Report) -> None:
        """Writes all of it; the parent always reads."""
        view = memoryview(frame(message))
        while view:
            view = view[os.write(self._reports_fd, view) :]

    def _read(self) -> None:
        try:
            piece = os.read(self._orders_fd, 1 << 20)
        except BlockingIOError:
            return
        if not piece:
            self._loop.stop()
            return
        try:
            for body in self._frames.feed(piece):
                self._obey(self._decoder.decode(body))
        except Exception as error:
            self._crash(error)

    def _crash(self, error: BaseException) -> None:
        """Ends the process after an error of ours; without this the parent would wait for ever."""
        trace = "".join(traceback.format_exception(error))
        self.report(Crashed(f"{type(error).__name__}: {error}\n{trace}"))
        self._loop.stop()

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What nothing has caught: in a callback, or in a task."""
        self._crash(context.get("exception") or RuntimeError(context.get("message", "an unknown error")))

    def _obey(self, order: Order) -> None:
        match order:
            case Setup():
                self._set_up(order)
            case Run():
                client, dialect = self._targets[order.target]
                self._load = Load(self._loop, order, client, BodyMaker(dialect, order.seed), self._ended)
                gc.collect()
                gc.freeze()
                gc.disable()  # a full collection would be a pause of our own making
                self.report(Ready())
            case Start():
                assert self._load is not None
                self._load.start(order.at_s)
                self._tell_progress()
            case Stop():
                if self._load is not None:
                    self._load.stop(cut=order.cut)

    def _set_up(self, setup: Setup) -> None:
        client = Client(self._loop, setup.address, setup.head, timeout_s=setup.timeout_s, on_done=self._exchange_done)
        self._targets[setup.target] = client, setup.dialect

    def _exchange_done(self, exchange: Exchange) -> None:
        if self._load is not None:
            self._load.exchange_done(exchange)

    def _tell_progress(self) -> None:
        load = self._load
        if load is not None:
            self.report(Progress(load.sent, load.sent - load.in_flight, load.failed, load.tokens))
            self._progress = self._loop.call_later(PROGRESS_EVERY_S, self._tell_progress)

    def _ended(self) -> None:
        load, self._load = self._load, None
        assert load is not None
        if self._progress is not None:
            self._progress.cancel()
        counts = load.counts()
        examples: dict[int, str] = {}
        for exchange in load.done:
            if exchange.outcome and exchange.message:
                examples.setdefault(int(exchange.outcome), exchange.message)
        self.report(Result(
            columns=columns_of(load.done, load.meter.lags_s), examples=examples, opened=counts.opened,
            closed_by_server=counts.closed_by_server, retried=counts.retried, not_sent=load.not_sent,
            cpu_s=load.cpu_s, wall_s=load.wall_s, beyond=load.beyond,
        ))  # fmt: skip
        gc.enable()


def main() -> None:
    """Works until stdin ends."""
    import uvloop

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if soft < hard else soft, hard))
    reports_fd = os.dup(1)
    os.dup2(2, 1)  # whatever prints must not get between the frames
    loop = uvloop.new_event_loop()
    Worker(loop, 0, reports_fd)
    try:
        loop.run_forever()
    finally:
        loop.close()


if __name__ == "__main__":
    main()
