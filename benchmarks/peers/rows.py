"""The rows of the table: what is done, by which of ours, against whom."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.peers.contestants import CONTESTANTS, Bits, Kind

Figure = Literal["tok_per_s", "seconds", "peak_mib"]
ROUNDS = 5
FINALISTS = 2
LONG = 8192
PEERS = ("llama.cpp", "openvino", "vllm", "onnxruntime", "transformers")
CACHING = PEERS[:3]  # the others compute every prompt whole: minutes, where prompts are long or shared


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One piece of work, and who does it."""

    name: str
    title: str
    work: dict[str, Any]  # a worker's command, without its seed
    ours: tuple[str, ...]
    rivals: tuple[str, ...]
    figure: Figure = "tok_per_s"
    measure: Literal["work", "start", "first start", "memory"] = "work"
    rounds: int = ROUNDS
    repeat_prompts: bool = False  # the same prompts in every turn, so that prefix caches spare a long prefill

    @property
    def turn_s(self) -> float:
        """A turn that takes longer has failed."""
        return 600.0 if self.repeat_prompts else 300.0

    @property
    def lower_is_better(self) -> bool:
        return self.figure != "tok_per_s"


def rivals(
    bits: Iterable[Bits] = (4, 8, 16), *, kind: Kind = "engine", head: int | None = None, peers: Iterable[str] = PEERS
) -> tuple[str, ...]:
    """Forms of these accuracy classes; `head`: only with as many bits in the head (6 counts as 8)."""
    return tuple(
        c.name
        for c in CONTESTANTS.values()
        if c.peer in peers and c.kind == kind and c.bits in bits
        and (head is None or (4 if c.head_bits == 4 else 8) == head)
    )  # fmt: skip


def _servers(*forms: str) -> tuple[str, ...]:
    return tuple(f"{form}/server" for form in forms)


ONE = {"work": "decode", "streams": 1, "prompt": 128, "output": 128}
PEER_SERVERS = _servers("vllm/w8a8", "vllm/bf16", "llama.cpp/Q8_0", "llama.cpp/Q4_0")


def _decode(streams: int, prompt: int = 128, output: int = 128) -> dict[str, Any]:
    return {"work": "decode", "streams": streams, "prompt": prompt, "output": output}


def _prefill(tokens: int) -> dict[str, Any]:
    return {"work": "prefill", "streams": 1, "prompt": tokens, "output": 1}


CLASSES: tuple[tuple[Bits, str], ...] = ((4, "trivet/int4"), (8, "trivet/int8"), (16, "trivet/bf16"))


def _rows() -> list[Row]:
    both, small_kv = ("trivet/int8", "trivet/int4"), ("trivet/int8", "trivet/int8+kv8", "trivet/int4+kv8")
    rows = [
        Row(name="R1.int8", title="decode, 1 stream, 8-bit", work=ONE, ours=("trivet/int8",), rivals=rivals([8])),
        Row(name="R1.int4", title="decode, 1 stream, 4-bit, head 8-bit", work=ONE, ours=("trivet/int4",),
            rivals=rivals([4], head=8)),
        Row(name="R1.int4-head4", title="decode, 1 stream, 4-bit, head 4-bit", work=ONE, ours=("trivet/int4",),
            rivals=rivals([4], head=4)),
        *(Row(name=f"R2.{n}", title=f"prefill, {n:,} tokens", work=_prefill(n), ours=both, rivals=rivals())
          for n in (512, 2048)),
        *(Row(name=f"R3.{n}", title=f"decode, {n} streams, aggregate", work=_decode(n), ours=small_kv,
              rivals=rivals()) for n in (8, 16, 32)),
        *(Row(name=f"R4.{n}", title=f"server, {n} streaming callers, prompts 50-800, answers 32-256",
              work={"work": "clients", "streams": n, "requests": 3 * n, "prompt": [50, 800], "output": [32, 256]},
              ours=_servers(*small_kv), rivals=PEER_SERVERS) for n in (8, 16)),
        Row(name="R5", title="server, 8 streams decode while 2,048 tokens of prompt come in",
            work={"work": "mixed", "streams": 8, "prompt": 64, "output": 192, "after_s": 2.0, "long": 2048},
            ours=_servers(*small_kv), rivals=PEER_SERVERS),
        Row(name="R6", title="32 requests, 1,024 tokens common + 32 own, 64 out", figure="seconds",
            work={"work": "shared", "streams": 32, "prompt": 1056, "shared": 1024, "output": 64}, ours=small_kv,
            rivals=rivals(peers=CACHING)),
        *(Row(name=f"R7.{n}", title=f"decode at {LONG:,} tokens of context, {n} stream{'s' * (n > 1)}",
              work=_decode(n, LONG, 64), ours=small_kv, rivals=rivals(peers=CACHING), repeat_prompts=True, rounds=3)
          for n in (1, 8)),
        Row(name="R8.engine", title="process to first token, in-process", figure="seconds", measure="start",
            work={"work": "prefill", "streams": 1, "prompt": 128, "output": 1}, ours=both, rivals=rivals()),
        Row(name="R8.server", title="process to first token, server", figure="seconds", measure="start",
            work={"work": "clients", "streams": 1, "prompt": 128, "output": 1}, ours=_servers(*both),
            rivals=PEER_SERVERS),
        Row(name="R8.first", title="process to first token, in-process, the very first time (we pack the weights)",
            figure="seconds", measure="first start", rounds=3, ours=both, rivals=(),
            work={"work": "prefill", "streams": 1, "prompt": 128, "output": 1}),
        *(Row(name=f"R9.{bits}", title=f"peak memory, 1 stream, {bits}-bit weights, equal room for KV",
              figure="peak_mib", measure="memory", work=ONE, ours=(ours,), rivals=rivals([bits]), rounds=1)
          for bits, ours in CLASSES),
        *(Row(name=f"R10.decode{n}", title=f"decode, {n} stream{'s' * (n > 1)}, 16-bit", work=_decode(n),
              ours=("trivet/bf16",), rivals=rivals([16])) for n in (1, 16, 32)),
        *(Row(name=f"R10.prefill{n}", title=f"prefill, {n:,} tokens, 16-bit", work=_prefill(n),
              ours=("trivet/bf16",), rivals=rivals([16])) for n in (512, 2048)),
    ]  # fmt: skip
    for name, title, work in (
        ("decode16", "decode, 16 streams", _decode(16)), ("prefill512", "prefill, 512 tokens", _prefill(512)),
    ):  # fmt: skip
        rows.append(Row(name=f"R11.{name}", title=f"{title}; a lower tier", work=work, ours=both,
                        rivals=("llama.cpp/Q8_0", "llama.cpp/Q4_0")))  # fmt: skip
    for bits, ours, rival in ((8, "trivet/int8", "llama.cpp/Q8_0"), (4, "trivet/int4", "llama.cpp/Q4_0")):
        rows.append(Row(name=f"R11.decode1-int{bits}", title=f"decode, 1 stream, {bits}-bit; a lower tier", work=ONE,
                        ours=(ours,), rivals=(rival,)))  # fmt: skip
    return rows


ROWS = {row.name: row for row in _rows()}


def select(wanted: Iterable[str]) -> list[Row]:
    """The rows whose names are these, or begin with one of these and a dot. ValueError names what no row is called."""
    found: dict[str, Row] = {}
    for word in wanted:
        matching = {name: row for name, row in ROWS.items() if name == word or name.startswith(word + ".")}
        if not matching:
            raise ValueError(f"no row is called `{word}`; there are {', '.join(ROWS)}")
        found |= matching
    return list(found.values())
