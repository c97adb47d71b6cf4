"""A model that needs no weights: token ids are characters, and what follows is drawn from (seed, index, position)."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable

import msgspec

from trivet.config import EngineConfig
from trivet.engine.messages import (
    Accepted,
    EngineEvent,
    EngineInfo,
    EngineRequest,
    EngineStats,
    Failed,
    FinishReason,
    Timings,
    Tokens,
)
from trivet.errors import ModelFormatError

BUG = 1  # prompts that begin with this id make `step` raise
CRASH = 2  # ... end the process with SIGSEGV
SLOW = 3  # ... take 50 ms a step
REFUSED = 4  # ... are refused at admission
LONG = 5  # ... take 2 s a step
UNFIT = 6  # ... make `add` raise

INFO = EngineInfo(
    model_path="fake", family="fake", precision="int8", kv_dtype="bf16", isa="baseline", num_threads=1,
    fingerprint="fp_fake", vocab_size=128, max_context=4096, block_size=32, num_blocks=64, max_num_seqs=8,
    max_waiting=8, weight_bytes=0, kv_bytes=0,
)  # fmt: skip


def continuation(seed: int, index: int, num_tokens: int) -> list[int]:
    """What the fake model says."""
    return [random.Random(f"{seed} {index} {i}").randrange(97, 123) for i in range(num_tokens)]


class FakeAdmission:
    def __init__(self) -> None:
        self.open: dict[str, int] = {}

    def check(self, request: EngineRequest) -> Accepted | Failed:
        if request.prompt_token_ids[0] == REFUSED:
            return Failed(request_id=request.request_id, kind="Overloaded", message="too busy", retry_after_s=7.0)
        seed = 42 if request.sampling.seed is None else request.sampling.seed
        self.open[request.request_id] = seed
        return Accepted(request_id=request.request_id, seed=seed)

    def forget(self, request_id: str) -> None:
        self.open.pop(request_id, None)


class FakeEngine:
    """One token a sequence a step."""

    def __init__(self) -> None:
        self.admission = FakeAdmission()
        self.running: dict[tuple[str, int], list[int]] = {}  # what is still to be said
        self.requests: dict[str, EngineRequest] = {}
        self.num_steps = 0
        self.num_prepared = self.num_to_prepare = 0
        self.preparing: Callable[[], None] = lambda: None  # called by each `prepare`

    @property
    def has_work(self) -> bool:
        return bool(self.running)

    def add(self, request: EngineRequest) -> None:
        sampling = request.sampling
        assert sampling.max_tokens is not None
        if request.prompt_token_ids[0] == UNFIT:
            raise LookupError("no place for it")
        self.requests[request.request_id] = request
        for index in range(sampling.n):
            said = continuation(self.admission.open[request.request_id], index, sampling.max_tokens)
            self.running[request.request_id, index] = said[::-1]

    def cancel(self, request_id: str, index: int | None = None) -> None:
        for key in [k for k in self.running if k[0] == request_id and index in (None, k[1])]:
            self._end(key)

    def step(self, take_in: Callable[[], None] | None = None) -> list[EngineEvent]:
        self.num_steps += 1
        events: list[EngineEvent] = []
        for key, rest in list(self.running.items()):
            self._misbehave(self.requests[key[0]].prompt_token_ids[0])
            request = self.requests[key[0]]
            token_id = rest.pop()
            first = len(rest) + 1 == request.sampling.max_tokens
            reason = FinishReason.STOP if token_id in request.stop_ids else None if rest else FinishReason.LENGTH
            timings = Timings(queued_s=0.0, prefill_s=0.1, decode_s=0.0, num_cached_tokens=0, num_preemptions=0)
            events.append(
                Tokens(
                    request_id=key[0], index=key[1], finish_reason=reason,
                    token_ids=[] if reason is FinishReason.STOP else [token_id],
                    stop_id=token_id if reason is FinishReason.STOP else None,
                    timings=timings if reason or first else None,
                )
            )  # fmt: skip
            if reason is not None:
                self._end(key)
        return events

    def prepare(self) -> bool:
        assert not self.has_work
        self.num_prepared += 1
        self.preparing()
        return self.num_prepared < self.num_to_prepare

    def stats(self) -> EngineStats:
        zeros = dict.fromkeys(EngineStats.__struct_fields__, 0)
        return EngineStats(**{**zeros, "num_running": len(self.running), "num_steps": self.num_steps})

    def _end(self, key: tuple[str, int]) -> None:
        del self.running[key]
        if not any(k[0] == key[0] for k in self.running):
            self.admission.forget(key[0])

    def _misbehave(self, first_id: int) -> None:
        if first_id == BUG:
            raise ZeroDivisionError("a planted bug")
        if first_id == CRASH:
            os.kill(os.getpid(), signal.SIGSEGV)
            time.sleep(10)
        if first_id in (SLOW, LONG):
            time.sleep(0.05 if first_id == SLOW else 2.0)


class FakeAssembled:
    """What `assemble` returns, without a model."""

    def __init__(self, config: EngineConfig | None = None) -> None:
        self.engines: list[FakeEngine] = []
        self.closed = False
        self.info = INFO
        path = "fake" if config is None else config.model.path
        if path.startswith("changing:"):  # another model at each start
            with open(path.partition(":")[2], "a+") as starts:
                starts.write("x")
                self.info = msgspec.structs.replace(INFO, fingerprint=f"fp_{starts.tell()}")
        if path == "broken":
            raise ModelFormatError("`broken` is broken", hint="mend it")
        if path == "dies":
            os.kill(os.getpid(), signal.SIGSEGV)

    def make_engine(self) -> FakeEngine:
        self.engines.append(FakeEngine())
        return self.engines[-1]

    def close(self) -> None:
        self.closed = True


class FakeDetokenizer:
    def add(self, token_ids: list[int]) -> str:
        return "".join(map(chr, token_ids))

    def finish(self) -> str:
        return ""


class FakeText:
    """The fake model's tokenizer: a token is a character."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [ord(c) for c in text]

    def detokenizer(self, *, skip_special_tokens: bool = True) -> FakeDetokenizer:
        return FakeDetokenizer()
