"""What the parent process and its workers tell each other: msgpack frames over pipes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from trivet.measure.client import Address

Block = tuple[
    int, int
]  # (key, tokens): the same key always begins with the same tokens; below 0 it is one prompt's own


class Turn(msgspec.Struct, array_like=True, frozen=True):
    """One request of a job. It is due at `at_s`, or `think_s` after the answer before it, whichever is later."""

    output_len: int
    blocks: list[Block]  # what it adds to the prompt
    at_s: float = 0.0  # from the run's begin
    think_s: float = 0.0
    text: str | None = None  # instead of blocks, where the words matter


class Job(msgspec.Struct, array_like=True, frozen=True):
    """A request, or a chat of several; the turns' indices follow one another."""

    index: int
    turns: list[Turn]


class Dialect(msgspec.Struct, frozen=True):
    """How this server is asked."""

    endpoint: Literal["completions", "chat"]
    form: Literal["ids", "text"]  # what `pieces` are
    pieces: list[bytes]  # each one token: its id in digits, or its text as it stands inside a JSON string
    options: bytes  # further fields of the body, as `"name":value,"name":value`
    overhead: int = 0  # prompt tokens that the server adds to the first message (BOS, template), by its own usage
    turn_overhead: int = 0  # and to each further turn of a chat


class Setup(msgspec.Struct, tag=True, frozen=True):
    """A target that runs may name."""

    target: int
    address: Address
    head: bytes
    timeout_s: float
    dialect: Dialect


class Run(msgspec.Struct, tag=True, frozen=True):
    """A load, to be prepared. Times are seconds from its start."""

    target: int
    seed: int  # of the prompts
    warmup_s: float  # requests meant to be sent earlier than this do not count
    jobs: list[Job]
    concurrency: int | None = None  # closed loop: that many at once; the jobs are taken over and over
    stop_s: float | None = None  # nothing that is due from then on is sent
    limit: int | None = None  # requests after the warm-up


class Start(msgspec.Struct, tag=True, frozen=True):
    """Begins the run that was prepared, at a time of CLOCK_MONOTONIC, which all processes share."""

    at_s: float


class Stop(msgspec.Struct, tag=True, frozen=True):
    """Sends nothing more; `cut`: gives up what runs, too."""

    cut: bool = False


class Ready(msgspec.Struct, tag=True, frozen=True):
    """A run is prepared."""


class Progress(msgspec.Struct, tag=True, frozen=True):
    """How far a worker is."""

    sent: int
    done: int
    failed: int
    tokens: int


class Result(msgspec.Struct, tag=True, frozen=True):
    """What a worker measured: columns by name, as the bytes of numpy arrays (`results.COLUMNS`)."""

    columns: dict[str, bytes]
    examples: dict[int, str]  # outcome -> what the first such request was told
    opened: int
    closed_by_server: int
    retried: int
    not_sent: int  # requests given up before their time
    cpu_s: float  # of this process, over the counted part of the run
    wall_s: float
    beyond: int = 0  # later turns of chats that were due after the run's end


class Crashed(msgspec.Struct, tag=True, frozen=True):
    """The worker cannot go on: the text of its exception."""

    reason: str


Order = Setup | Run | Start | Stop
Report = Ready | Progress | Result | Crashed
HEADER_BYTES = 8


def frame(message: Order | Report) -> bytes:
    """The message with its length before it."""
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(HEADER_BYTES, "little") + body


class Frames:
    """Bytes in any pieces, to whole messages."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The body of each message that is whole now."""
        self._held += piece
        while len(self._held) >= HEADER_BYTES:
            end = HEADER_BYTES + int.from_bytes(self._held[:HEADER_BYTES], "little")
            if len(self._held) < end:
                return
            body = bytes(self._held[HEADER_BYTES:end])
            del self._held[:end]
            yield body
