"""One run's load, inside a worker: sends each request at its intended time, or keeps a number of them in flight."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from trivet.measure.bodies import BodyMaker
from trivet.measure.client import ConnectionCounts
from trivet.measure.messages import Block, Job, Run, Turn
from trivet.measure.outcomes import Exchange, Outcome
from trivet.measure.pacer import LagMeter, Pacer

AFTER_FAILURE_S = 0.1  # closed loop: a place waits that long after a failure, or it would do nothing but fail
READY_BYTES = 64 * 2**20  # of bodies that are made before the run; the rest follows one by one


class Sender(Protocol):
    """What `client.Client` is to a load."""

    counts: ConnectionCounts

    def send(self, exchange: Exchange) -> None: ...

    def cut_all(self) -> None: ...


@dataclass(slots=True)
class Chat:
    """A job that runs: what has been said, and which turn is next."""

    job: Job
    parts: list[bytes] = field(default_factory=list)
    input_len: int = 0  # tokens of `parts`; -1: not known
    next_turn: int = 0
    body: bytes | None = None  # of the first turn, if it is made already


class Load:
    """Runs the jobs of one `Run`; `on_end` is called when the last answer is there."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        run: Run,
        sender: Sender,
        maker: BodyMaker,
        on_end: Callable[[], None],
    ) -> None:
        self.done: list[Exchange] = []
        self.sent = self.failed = self.tokens = self.not_sent = 0
        self.cpu_s = self.wall_s = 0.0
        self._loop, self._run, self._sender, self._maker, self._on_end = loop, run, sender, maker, on_end
        self._chats: dict[int, Chat] = {}  # by the index of the request that runs
        self._waiting = 0  # chats between two turns
        self._stopped = self._ended = False
        self._taken = self._counted = 0  # closed loop: jobs begun, requests after the warm-up
        self._start_s = self._counting_from = 0.0
        self._began: tuple[float, float] | None = None
        self._opened_before = sender.counts.opened, sender.counts.closed_by_server, sender.counts.retried
        self._unmade: list[Chat] = []
        self._prepared = [] if run.concurrency is not None else [Chat(job) for job in run.jobs]
        made = 0
        for position, chat in enumerate(self._prepared):
            made += self._make_first(chat)
            if made > READY_BYTES:
                self._unmade = self._prepared[:position:-1]
                break
        self._pacer = Pacer(loop, self._due)
        self.meter = LagMeter(loop)

    def start(self, at_s: float) -> None:
        """Begins at that time of the monotonic clock."""
        self._start_s, self._counting_from = at_s, at_s + self._run.warmup_s
        self._pacer.add(self._counting_from, self._begin_counting)
        for chat in self._prepared:
            self._pacer.add(at_s + chat.job.turns[0].at_s, chat)
        for _ in range(self._run.concurrency or 0):
            self._pacer.add(at_s, self._take_next)

    def stop(self, *, cut: bool) -> None:
        """Sends nothing more."""
        self._stopped = True
        if not self._ended:
            self.not_sent += sum(isinstance(item, Chat) for item in self._pacer.clear())
            self._waiting = 0
            if cut:
                self._sender.cut_all()
            self._end_if_over()

    def counts(self) -> ConnectionCounts:
        """What became of connections in this run."""
        now = self._sender.counts
        opened, closed, retried = self._opened_before
        return ConnectionCounts(
            opened=now.opened - opened, closed_by_server=now.closed_by_server - closed, retried=now.retried - retried
        )

    def exchange_done(self, exchange: Exchange) -> None:
        """An exchange has its outcome: the chat goes on, or the next job begins."""
        exchange.body = b""
        self.done.append(exchange)
        self.tokens += exchange.num_tokens
        self.failed += exchange.outcome is not Outcome.ok
        chat = self._chats.pop(exchange.index)
        if exchange.outcome is Outcome.ok and chat.next_turn < len(chat.job.turns) and not self._stopped:
            self._go_on(chat, exchange)
        elif self._run.concurrency is not None and not self._stopped:
            if exchange.outcome is Outcome.ok:
                self._loop.call_soon(self._take_next)  # it ends the run if there is nothing more
                return
            self._pacer.add(time.monotonic() + AFTER_FAILURE_S, self._take_next)
        self._end_if_over()

    # --- what is due ----------------------------------------------------------------------------------------------

    def _due(self, item: Chat | Callable[[], None]) -> None:
        if isinstance(item, Chat):
            self._send(item, self._start_s + item.job.turns[0].at_s)
            if self._unmade:
                self._make_first(self._unmade.pop())
        else:
            item()

    def _take_next(self) -> None:
        """Closed loop: begins the next job, unless the run is over."""
        if self._ended:
            return
        run, now = self._run, time.monotonic()
        is_over = (run.stop_s is not None and now >= self._start_s + run.stop_s) or (
            run.limit is not None and self._counted >= run.limit
        )
        if self._stopped or is_over:
            self._end_if_over()
            return
        rounds, position = divmod(self._taken, len(run.jobs))
        self._taken += 1
        job = run.jobs[position]
        self._send(Chat(job if rounds == 0 else _moved(job, rounds << 32)), now)

    def _go_on(self, chat: Chat, exchange: Exchange) -> None:
        """The next turn, when it is due."""
        said, num = self._maker.answer(exchange.kept or [], exchange.index, exchange.num_tokens)
        chat.parts.append(said)
        chat.input_len = -1 if num < 0 or chat.input_len < 0 else chat.input_len + num
        turn = chat.job.turns[chat.next_turn]
        due = max(self._start_s + turn.at_s, exchange.last_s + turn.think_s)
        self._waiting += 1
        self._pacer.add(due, lambda: self._next_turn(chat, due))

    def _next_turn(self, chat: Chat, due: float) -> None:
        self._waiting -= 1
        self._send(chat, due)

    # --- sending --------------------------------------------------------------------------------------------------

    def _make_first(self, chat: Chat) -> int:
        """Makes the body of a job's first turn; returns its bytes."""
        if chat.body is None:
            turn = chat.job.turns[0]
            chat.parts.append(self._maker.prompt(turn))
            chat.input_len = _input_len(turn)
            chat.body = self._maker.body(chat.parts, turn.output_len)
        return len(chat.body)

    def _send(self, chat: Chat, intended_s: float) -> None:
        number = chat.next_turn
        turn = chat.job.turns[number]
        if number == 0:
            self._make_first(chat)
            body, chat.body = chat.body, b""
        else:
            chat.parts.append(self._maker.prompt(turn))
            chat.input_len += _input_len(turn) if chat.input_len >= 0 else 0
            body = self._maker.body(chat.parts, turn.output_len)
        assert body is not None
        exchange = Exchange(chat.job.index + number, intended_s, body)
        exchange.turn, exchange.wished_output = number, turn.output_len
        if turn.text is None and chat.input_len >= 0:
            dialect = self._maker.dialect
            exchange.wished_input = chat.input_len + dialect.overhead + number * dialect.turn_overhead
        exchange.kept = [] if number + 1 < len(chat.job.turns) else None
        chat.next_turn += 1
        self._chats[exchange.index] = chat
        self.sent += 1
        self._counted += intended_s >= self._counting_from
        self._sender.send(exchange)

    # --- the end --------------------------------------------------------------------------------------------------

    def _begin_counting(self) -> None:
        self._began = time.process_time(), time.monotonic()
        self.meter.lags_s = self.meter.lags_s[:0]
        self._end_if_over()

    def _end_if_over(self) -> None:
        if self._ended or self._chats or self._waiting or (len(self._pacer) and not self._stopped):
            return
        self._ended = True
        if self._began is not None:
            self.cpu_s = time.process_time() - self._began[0]
            self.wall_s = time.monotonic() - self._began[1]
        self._pacer.close()
        self.meter.close()
        self._loop.call_soon(self._on_end)


def _input_len(turn: Turn) -> int:
    return sum(num for _, num in turn.blocks)


def _moved(job: Job, by: int) -> Job:
    """The job again, with prompts and indices of its own; what is shared stays shared."""

    def moved(block: Block) -> Block:
        return (block[0] - by, block[1]) if block[0] < 0 else block

    turns = [
        Turn(turn.output_len, [moved(block) for block in turn.blocks], turn.at_s, turn.think_s, turn.text)
        for turn in job.turns
    ]
    return Job(job.index + by, turns)
