"""A scripted engine and a byte tokenizer: the whole HTTP side without a model.

What a prompt asks for is written in it: `!slow` waits 20 ms a token, `!hang` never answers, `!die` ends with EngineDied
after three tokens, `!busy` is refused, `!late` waits 0.3 s for its first token. Everything else is answered at once
with the prompt itself, over and over.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from trivet.engine.async_engine import AsyncEngine
from trivet.engine.defaults import SamplingDefaults
from trivet.engine.messages import (
    Accepted,
    EngineEvent,
    EngineInfo,
    EngineRequest,
    EngineStats,
    Failed,
    FinishReason,
    PromptInfo,
    Timings,
    TokenLogprob,
    Tokens,
)
from trivet.server.backend import Backend

VOCAB = 260
BOS, EOS = 256, 257
MAX_CONTEXT = 4096

NOTES = ["layer 3 runs in int8", "int8 instead of int4 for down: no group size divides K = 10"]
INFO = EngineInfo(
    model_path="/models/scripted", family="llama", precision="int8", kv_dtype="bf16", isa="baseline", num_threads=2,
    fingerprint="fp_0123456789abcdef", vocab_size=VOCAB, max_context=MAX_CONTEXT, block_size=32, num_blocks=1024,
    max_num_seqs=64, max_waiting=256, weight_bytes=10 * 2**20, kv_bytes=2**20, notes=NOTES,
    timings_s={"load_model": 0.01},
)  # fmt: skip


class ByteTokenizer:
    """Ids are bytes; 256 is BOS, 257 EOS."""

    bos_id: int | None = BOS
    special_ids = frozenset({BOS, EOS})

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        ids = list(text.encode())
        return [BOS, *ids] if add_special_tokens else ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return b"".join(self.token_bytes(i) for i in token_ids if i < 256).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else b"<bos>" if token_id == BOS else b"<eos>"

    def detokenizer(self, *, skip_special_tokens: bool = True) -> ByteDetokenizer:
        return ByteDetokenizer()


class ByteDetokenizer:
    def __init__(self) -> None:
        self._held = b""

    def add(self, token_ids: Sequence[int]) -> str:
        self._held += bytes(i for i in token_ids if i < 256)
        for cut in range(len(self._held), max(-1, len(self._held) - 4), -1):
            try:
                text = self._held[:cut].decode()
            except UnicodeDecodeError:
                continue
            self._held = self._held[cut:]
            return text
        return ""

    def finish(self) -> str:
        rest, self._held = self._held, b""
        return rest.decode(errors="replace")


class Template:
    """Writes `role: content` lines."""

    def render(self, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> str:
        shout = kwargs.get("shout", False)
        text = "\n".join(f"{m['role']}: {m['content']}" for m in messages)
        return text.upper() if shout else text


class ScriptedClient:
    """An `EngineClient` that needs no model. `cancelled` and `requests` are what tests look at."""

    def __init__(self, info: EngineInfo = INFO) -> None:
        self.info = info
        self.alive = True
        self.closed = threading.Event()
        self.cancelled: list[str] = []
        self.requests: list[EngineRequest] = []
        self._listener: Callable[[list[EngineEvent]], None] = lambda events: None
        self._gone: set[str] = set()
        self._threads: list[threading.Thread] = []
        self._stalled: EngineStats | None = None
        self._stats = EngineStats(**{**dict.fromkeys(EngineStats.__struct_fields__, 0), "kv_blocks_total": 1024})

    def set_listener(self, listener: Callable[[list[EngineEvent]], None]) -> None:
        self._listener = listener

    def stats(self) -> EngineStats | None:
        return self._stalled or msgspec.structs.replace(
            self._stats, time_s=time.monotonic(), num_steps=7, prompt_tokens=11
        )

    def stall(self) -> None:
        """Makes the engine look as if it had work and stood still."""
        self._stalled = msgspec.structs.replace(self._stats, time_s=time.monotonic() - 3600, num_running=1)

    def idle_since(self, time_s: float) -> None:
        """Makes the latest snapshot one of an engine that idles since then."""
        self._stalled = msgspec.structs.replace(self._stats, time_s=time_s)

    def submit(self, request: EngineRequest) -> None:
        self.requests.append(request)
        if b"!busy" in bytes(i for i in request.prompt_token_ids if i < 256):
            self._say(Failed(request_id=request.request_id, kind="Overloaded", message="256 wait", retry_after_s=6.2))
            return
        seed = 4242 if request.sampling.seed is None else request.sampling.seed
        self._say(Accepted(request_id=request.request_id, seed=seed))
        thread = threading.Thread(target=self._run, args=(request,), daemon=True)
        self._threads.append(thread)
        thread.start()

    def cancel(self, request_id: str, index: int | None = None) -> None:
        if index is None:
            self.cancelled.append(request_id)
            self._gone.add(request_id)

    def close(self, *, drain_s: float = 0.0) -> None:
        self.closed.set()
        for thread in self._threads:
            thread.join()

    def _say(self, *events: EngineEvent) -> None:
        self._listener(list(events))

    def _pause(self, request: EngineRequest, seconds: float) -> bool:
        """False if the request must not go on."""
        end = time.monotonic() + seconds
        while request.request_id not in self._gone and not self.closed.is_set():
            left = end - time.monotonic()
            if left <= 0:
                return True
            time.sleep(min(left, 0.005))
        return False

    def _run(self, request: EngineRequest) -> None:
        script = bytes(i for i in request.prompt_token_ids if i < 256)
        sampling = request.sampling
        if sampling.prompt_logprobs is not None:
            self._say(self._prompt_info(request))
        first_s = 1e9 if b"!hang" in script else 0.3 if b"!late" in script else 0.0
        token_s = 0.02 if b"!slow" in script else 0.0
        assert sampling.max_tokens is not None
        for i in range(sampling.max_tokens):
            if not self._pause(request, first_s if i == 0 else token_s):
                if self.closed.is_set():
                    self._say(Failed(request_id=request.request_id, kind="EngineDied", message="the engine was closed"))
                return
            if b"!die" in script and i == 3:
                self._say(Failed(request_id=request.request_id, kind="EngineDied", message="it was ended by SIGSEGV"))
                return
            last = i == sampling.max_tokens - 1
            self._say(*(self._token(request, index, script[i % len(script)], i, last) for index in range(sampling.n)))

    def _token(self, request: EngineRequest, index: int, token_id: int, i: int, last: bool) -> Tokens:
        logprobs = None if request.sampling.logprobs is None else [self._logprob(token_id, request.sampling.logprobs)]
        timings = Timings(queued_s=0.001, prefill_s=0.002, decode_s=0.003, num_cached_tokens=3, num_preemptions=0)
        return Tokens(
            request_id=request.request_id, index=index, token_ids=[token_id], logprobs=logprobs,
            finish_reason=FinishReason.LENGTH if last else None, timings=timings if last or i == 0 else None,
        )  # fmt: skip

    def _logprob(self, token_id: int, num_top: int) -> TokenLogprob:
        top = [token_id, *(i for i in range(97, 118) if i != token_id)][:num_top]
        return TokenLogprob(
            token_id=token_id, logprob=-0.5, rank=1, top_ids=top, top_logprobs=[-0.5 - j for j in range(num_top)]
        )

    def _prompt_info(self, request: EngineRequest) -> PromptInfo:
        num_top = request.sampling.prompt_logprobs or 0
        entries = [None, *(self._logprob(i, num_top) for i in request.prompt_token_ids[1:])]
        return PromptInfo(request_id=request.request_id, num_cached_tokens=3, logprobs=entries)


def scripted_backend(client: ScriptedClient, *, template: bool = True) -> Backend:
    tokenizer = ByteTokenizer()
    defaults = SamplingDefaults(model_name="scripted", max_context=MAX_CONTEXT, eos_ids=(EOS,))
    engine = AsyncEngine(client, tokenizer, defaults)
    return Backend(engine=engine, tokenizer=tokenizer, template=Template() if template else None)
