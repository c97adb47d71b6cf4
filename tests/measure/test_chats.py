"""One worker's load against a server that is a function: which requests are sent, and what becomes of the others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from trivet.measure.bodies import BodyMaker
from trivet.measure.client import ConnectionCounts
from trivet.measure.load import Load
from trivet.measure.messages import Dialect, Job, Run, Turn
from trivet.measure.outcomes import Exchange, Outcome

Answers = Callable[[Exchange], Outcome | None]  # None: never


class Server:
    """Answers each request at once, or never."""

    def __init__(self, answers: Answers) -> None:
        self.counts = ConnectionCounts()
        self.sent: list[Exchange] = []
        self.load: Load
        self._answers = answers

    def send(self, exchange: Exchange) -> None:
        self.sent.append(exchange)
        exchange.sent_s = exchange.first_s = exchange.last_s = time.monotonic()
        exchange.outcome = self._answers(exchange)
        if exchange.outcome is not None:
            asyncio.get_running_loop().call_soon(self.load.exchange_done, exchange)

    def cut_all(self) -> None:
        for exchange in self.sent:
            if exchange.outcome is None:
                exchange.outcome = Outcome.cut
                self.load.exchange_done(exchange)


def ran(
    *jobs: Job, answers: Answers = lambda exchange: Outcome.ok, stop_after_s: float | None = None, **run: Any
) -> tuple[Load, Server]:
    """The load after its end; `stop_after_s`: Ctrl-C, twice."""

    async def drive() -> tuple[Load, Server]:
        server, ended = Server(answers), asyncio.Event()
        maker = BodyMaker(Dialect("completions", "ids", [b"1", b"2"], b'"model":"m"'), 0)
        order = Run(0, 0, jobs=list(jobs), **{"warmup_s": 0.0, **run})
        server.load = load = Load(asyncio.get_running_loop(), order, server, maker, ended.set)
        load.start(time.monotonic())
        if stop_after_s is not None:
            await asyncio.sleep(stop_after_s)
            load.stop(cut=False)
            load.stop(cut=True)
        await asyncio.wait_for(ended.wait(), 20)
        return load, server

    return asyncio.run(drive())


def chat(index: int, num_turns: int, *, at_s: float = 0.0, think_s: float = 0.0) -> Job:
    return Job(index, [Turn(4, [(-1, 5)], at_s if i == 0 else 0.0, think_s if i else 0.0) for i in range(num_turns)])


def outcomes(load: Load) -> list[str]:
    return [exchange.outcome.name for exchange in load.done if exchange.outcome is not None]


def test_a_chat_that_fails_loses_its_other_turns() -> None:
    load, server = ran(chat(0, 10, think_s=0.01), answers=lambda e: Outcome.http_429 if e.turn == 1 else Outcome.ok)
    assert len(server.sent) == 2
    assert outcomes(load) == ["ok", "http_429", *["abandoned"] * 8]
    assert [exchange.index for exchange in load.done] == list(range(10))
    times = [exchange.intended_s for exchange in load.done]
    assert times == sorted(times), "each is meant to be sent after the one before"
    assert (load.not_sent, load.beyond, load.failed) == (0, 0, 9)


def test_a_stop_counts_every_request_that_was_not_sent() -> None:
    """Of a chat in flight, of one between two turns, and of one that has not begun."""
    jobs = chat(0, 5), chat(10, 4, think_s=60.0), chat(20, 3, at_s=60.0)
    load, server = ran(*jobs, answers=lambda e: None if e.index == 0 else Outcome.ok, stop_after_s=0.1)
    assert len(server.sent) == 2
    assert load.not_sent == 4 + 3 + 3
    assert sorted(outcomes(load)) == ["cut", "ok"]


def test_no_turn_is_sent_after_the_end() -> None:
    load, server = ran(chat(0, 5, think_s=0.1), stop_s=0.25)
    assert len(server.sent) == 3 and load.beyond == 2
    assert load.not_sent == 0, "that is what a stop leaves"


def test_a_failure_near_the_end_loses_only_what_would_have_been_sent() -> None:
    load, _ = ran(chat(0, 9, think_s=0.1), stop_s=0.25, answers=lambda e: Outcome.http_5xx)
    assert outcomes(load) == ["http_5xx", "abandoned", "abandoned"] and load.beyond == 6


def test_an_open_loop_counts_no_more_than_its_limit() -> None:
    """A chat that began in the warm-up goes on after it, and what it sends there counts."""
    jobs = chat(0, 4, think_s=0.06), *(chat(10 * i, 3, at_s=0.1) for i in (1, 2))
    load, server = ran(*jobs, warmup_s=0.1, limit=6)
    counted = sum(e.intended_s >= load._counting_from for e in server.sent)
    assert (counted, load._counted) == (6, 6)
    assert len(server.sent) + load.beyond == 4 + 3 + 3


def test_the_warm_up_is_sent_whatever_the_limit() -> None:
    _, server = ran(chat(0, 1), chat(1, 1, at_s=0.01), warmup_s=0.1, limit=0)
    assert len(server.sent) == 2


def test_a_closed_loop_of_chats_stops_at_its_limit() -> None:
    load, server = ran(chat(0, 4), concurrency=1, limit=10)
    assert len(server.sent) == 10 and load.beyond == 2


def test_a_closed_loop_takes_the_next_at_once() -> None:
    """With nothing in flight at the warm-up's end, the run would end there."""

    async def answered() -> None:
        server = Server(lambda exchange: None)
        maker = BodyMaker(Dialect("completions", "ids", [b"1", b"2"], b'"model":"m"'), 0)
        load = Load(asyncio.get_running_loop(), Run(0, 0, 60.0, [chat(0, 1)], 1), server, maker, lambda: None)
        server.load = load
        load.start(time.monotonic())
        while not server.sent:
            await asyncio.sleep(0.001)
        server.sent[0].outcome = Outcome.ok
        load.exchange_done(server.sent[0])
        assert len(server.sent) == 2 and load.in_flight == 1
        load.stop(cut=True)

    asyncio.run(answered())
