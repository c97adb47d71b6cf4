"""How a request can end, and what is kept of it: a few numbers a request, and two for each read that brought tokens."""

from __future__ import annotations

from array import array
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    from trivet.measure.client import Connection


class Outcome(IntEnum):
    """How a request ended. Numbers go over the wire to the parent process; add new ones at the end."""

    ok = 0
    connect = 1  # no connection could be made
    timeout = 2  # not whole within --timeout
    http_429 = 3
    http_4xx = 4
    http_5xx = 5
    died_mid_stream = 6  # the connection or the stream ended before the answer did
    error_event = 7  # the server reported an error inside the stream
    malformed = 8  # not HTTP, not events, or not JSON
    wrong_model = 9  # 404: the model is not served (any more)
    no_tokens = 10  # whole, but without a single token
    cut = 11  # given up by us: Ctrl-C
    died_before_answer = 12  # the connection was closed before a status came
    abandoned = 13  # never sent: a turn before it, of the same chat, had failed
    http_3xx = 14  # sent elsewhere; we do not follow


class Exchange:
    """One request while it runs. Times are seconds of `time.monotonic`; -1.0 is "not yet"."""

    __slots__ = (
        "body", "cached_tokens", "connection", "first_s", "first_tokens", "gap_tokens", "gaps", "index",
        "intended_s", "kept", "last_s", "message", "num_events", "num_reads", "num_tokens", "outcome", "prompt_tokens",
        "retry_after_s", "reused", "sent_s", "status", "timer", "tries", "turn",
        "wished_input", "wished_output",
    )  # fmt: skip

    def __init__(self, index: int, intended_s: float, body: bytes) -> None:
        self.index = index
        self.intended_s = intended_s
        self.body = body
        self.sent_s = self.first_s = self.last_s = -1.0
        self.first_tokens = self.num_tokens = self.num_events = self.num_reads = 0
        self.gaps = array("d")  # seconds from one read with tokens to the next
        self.gap_tokens = array("I")  # tokens that the later of them brought
        self.prompt_tokens = self.cached_tokens = -1  # as the server counts them; -1: it did not say
        self.status = 0
        self.retry_after_s = -1.0
        self.outcome: Outcome | None = None
        self.message = ""  # of the error, from the server where it gave one
        self.reused = False  # went over a connection that had served another before
        self.tries = 0
        self.turn = 0  # of its chat
        self.wished_input = self.wished_output = -1  # tokens; -1: not known
        self.kept: list[object] | None = None  # token ids or texts of the answer, where a chat goes on with them
        self.timer: asyncio.TimerHandle | None = None  # of the timeout
        self.connection: Connection | None = None  # that it runs on
