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
    """A job that runs: what has been said, and which turn is next, at `due_s`."""

    job: Job
    due_s: float = 0.0
    parts: list[bytes] = field(default_factory=list)
    input_len: int = 0  # tokens of `parts`; -1: not known
    next_turn: int = 0
    body: bytes | None = None  # of the first turn, if it is made already

    @property
    def left(self) -> list[Turn]:
        """The turns that have not been sent."""
        return self.job.turns[self.next_turn :]


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
        self.sent = self.failed = self.tokens = self.not_sent = self.beyond = 0
        self.cpu_s = self.wall_s = 0.0
        self._loop, self._run, self._sender, self._maker, self._on_end = loop, run, sender, maker, on_end
        self._chats: dict[int, Chat] = {}  # by the index of the request that runs
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
            self._wait(chat, at_s + chat.job.turns[0].at_s)
        for _ in range(self._run.concurrency or 0):
            self._pacer.add(at_s, self._take_next)

    def stop(self, *, cut: bool) -> None:
        """Sends nothing more."""
        if not (self._stopped or self._ended):
            waiting = [item for item in self._pacer.clear() if isinstance(item, Chat)]
            self.not_sent = sum(len(chat.left) for chat in (*waiting, *self._chats.values()))
        self._stopped = True
        if cut:
            self._sender.cut_all()
        self._end_if_over()

    @property
    def in_flight(self) -> int:
        return len(self._chats)

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
        if self._stopped:
            self._end_if_over()
        elif exchange.outcome is not Outcome.ok:
            self._abandon(chat, exchange.intended_s)
            if self._run.concurrency is not None:
                self._pacer.add(time.monotonic() + AFTER_FAILURE_S, self._take_next)
            self._end_if_over()
        elif chat.left and not self._is_over(due_s := self._next_due(chat, exchange)):
            self._go_on(chat, exchange, due_s)
        else:
            self._leave(chat)

    # --- what is due ----------------------------------------------------------------------------------------------

    def _due(self, item: Chat | Callable[[], None]) -> None:
        if not isinstance(item, Chat):
            item()
        elif self._is_over(item.due_s):
            self._leave(item)
        else:
            self._send(item, item.due_s)
            if self._unmade:
                self._make_first(self._unmade.pop())

    def _wait(self, chat: Chat, due_s: float) -> None:
        chat.due_s = due_s
        self._pacer.add(due_s, chat)

    def _is_over(self, due_s: float) -> bool:
        """Whether the run's bounds leave out what is due then."""
        run = self._run
        return (run.stop_s is not None and due_s >= self._start_s + run.stop_s) or (
            run.limit is not None and due_s >= self._counting_from and self._counted >= run.limit
        )

    def _take_next(self) -> None:
        """Closed loop: begins the next job, unless the run is over."""
        if self._ended:
            return
        now = time.monotonic()
        if self._stopped or self._is_over(now):
            self._end_if_over()
            return
        rounds, position = divmod(self._taken, len(self._run.jobs))
        self._taken += 1
        job = self._run.jobs[position]
        self._send(Chat(job if rounds == 0 else _moved(job, rounds << 32)), now)

    def _next_due(self, chat: Chat, exchange: Exchange) -> float:
        turn = chat.left[0]
        return max(self._start_s + turn.at_s, exchange.last_s + turn.think_s)

    def _go_on(self, chat: Chat, exchange: Exchange, due_s: float) -> None:
        """The next turn, when it is due."""
        said, num = self._maker.answer(exchange.kept or [], exchange.index, exchange.num_tokens)
        chat.parts.append(said)
        chat.input_len = -1 if num < 0 or chat.input_len < 0 else chat.input_len + num
        self._wait(chat, due_s)

    def _leave(self, chat: Chat) -> None:
        """The chat is over, or the rest of it is not for this run; a closed loop takes the next."""
        self.beyond += len(chat.left)
        if self._run.concurrency is not None:
            self._take_next()  # at once: with nothing in flight the warm-up's end would be the run's
        else:
            self._end_if_over()

    def _abandon(self, chat: Chat, due_s: float) -> None:
        """What is left of a chat that failed is not sent, but was meant to be: each turn is a request that failed."""
        for number, turn in enumerate(chat.left, chat.next_turn):
            due_s = max(self._start_s + turn.at_s, due_s + turn.think_s)
            if self._is_over(due_s):
                self.beyond += 1
                continue
            lost = Exchange(chat.job.index + number, due_s, b"")
            lost.turn, lost.wished_output, lost.outcome = number, turn.output_len, Outcome.abandoned
            self.done.append(lost)
            self.failed += 1
            self._counted += due_s >= self._counting_from

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
        if self._ended or self._chats or len(self._pacer):
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
