"""Who takes part: every form of every peer with its best known settings, and our own.

A form's name is `peer/form`. What the settings of a worker mean is in workers/*.py; the table prints them.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import trivet
from benchmarks.peers.model_facts import model_facts
from benchmarks.peers.setup import LLAMA_SDIST, VLLM, llama_source, python_of

REPO = Path(__file__).resolve().parents[2]
WORKERS = Path(__file__).parent / "workers"
Kind = Literal["engine", "server"]
Bits = Literal[4, 8, 16]

# llama.cpp: 2,048 tokens a batch and 512 a micro-batch were best; Q4_K_M decodes slower than Q8_0, so it has no form
LLAMA = {"batch": 2048, "micro_batch": 512}
# OpenVINO computes in bf16 unless told; with f32 it decodes faster (int4 32 -> 41 tok/s) and prefills at half the speed
F32 = {"INFERENCE_PRECISION_HINT": "f32"}
ROOM_PEERS = ("trivet", "openvino", "vllm")  # they take all the room for KV that they are given, prompt after prompt
SERVER_KV_GIB = 3  # of servers that keep what was computed, ours and vLLM's: these fill it
MAX_FILLS = 128  # turns; more than any row of a model of 0.6 B needs
SERVER_VERSIONS = {"llama.cpp": LLAMA_SDIST, "vllm": VLLM}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where things are on this machine, and what is asked of everybody alike."""

    home: Path  # of the peers, as setup.py fills it
    model: Path
    threads: int
    kv_gib: int = 1  # in-process, at least; more where the work needs it
    fill_kv: bool = False  # llama.cpp, too, gets room for kv_gib instead of just enough
    tier: str = "native"  # of the instruction sets; llama.cpp and ours are built for several

    @property
    def isa(self) -> str:
        """What TRIVET_ISA would say; empty: the best that this CPU has."""
        return "" if self.tier == "native" else self.tier

    @property
    def forms(self) -> Path:
        return self.home / "models" / self.model.name

    @property
    def kv_bytes_per_token(self) -> int:
        """Of 16-bit keys and values."""
        return 2 * model_facts(self.model)["kv_values"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """One engine with one form of the model."""

    peer: str
    form: str
    bits: Bits  # of the weights: the accuracy class
    kind: Kind = "engine"
    head_bits: int = 16
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.peer}/{self.form}" + ("" if self.kind == "engine" else "/server")


def _openvino(form: str, artifact: str, bits: Bits, head: int, *, f32: bool = False) -> Contestant:
    settings = {"artifact": artifact, "properties": F32 if f32 else {}}
    return Contestant(
        peer="openvino", form=form + ("+f32" if f32 else ""), bits=bits, head_bits=head, settings=settings
    )


def _engines() -> list[Contestant]:
    return [
        Contestant(peer="trivet", form="int4", bits=4, head_bits=8, settings={"precision": "int4"}),
        Contestant(peer="trivet", form="int8", bits=8, head_bits=8, settings={"precision": "int8"}),
        Contestant(peer="trivet", form="bf16", bits=16, settings={"precision": "bf16"}),
        Contestant(peer="trivet", form="int4+kv8", bits=4, head_bits=8,
                   settings={"precision": "int4", "kv_precision": "int8"}),
        Contestant(peer="trivet", form="int8+kv8", bits=8, head_bits=8,
                   settings={"precision": "int8", "kv_precision": "int8"}),
        Contestant(peer="llama.cpp", form="Q4_0", bits=4, head_bits=6, settings=LLAMA),
        Contestant(peer="llama.cpp", form="Q8_0", bits=8, head_bits=8, settings=LLAMA),
        Contestant(peer="llama.cpp", form="BF16", bits=16, settings=LLAMA),
        *(_openvino("int4", "ov-int4", 4, 8, f32=f32) for f32 in (False, True)),
        *(_openvino("int4-head4", "ov-int4-head4", 4, 4, f32=f32) for f32 in (False, True)),
        *(_openvino("int8", "ov-int8", 8, 8, f32=f32) for f32 in (False, True)),
        _openvino("fp16", "ov-fp16", 16, 16),
        Contestant(peer="vllm", form="w8a8", bits=8),
        Contestant(peer="vllm", form="bf16", bits=16),
        Contestant(peer="onnxruntime", form="int4", bits=4, head_bits=4, settings={"artifact": "ort-int4"}),
        Contestant(peer="transformers", form="bf16", bits=16),
    ]  # fmt: skip


def _servers() -> list[Contestant]:
    return [
        Contestant(peer=c.peer, form=c.form, bits=c.bits, head_bits=c.head_bits, kind="server", settings=c.settings)
        for c in _engines()
        if c.peer in ("trivet", "llama.cpp", "vllm")
    ]


CONTESTANTS = {contestant.name: contestant for contestant in [*_engines(), *_servers()]}


def worker_command(contestant: Contestant, place: Place, work: dict[str, Any]) -> list[str]:
    """The worker's command line: what it is told fits the work, such as the longest context."""
    streams = work.get("streams", 1)
    context = _longest(work["prompt"]) + _longest(work["output"])
    if contestant.kind == "server":
        return [sys.executable, str(WORKERS / "server_worker.py"), json.dumps(_server(contestant, place, work))]
    settings = _settings(contestant, place, context, streams)
    python = sys.executable if contestant.peer == "trivet" else str(python_of(place.home, contestant.peer))
    script = WORKERS / f"{contestant.peer.replace('.', '_')}_worker.py"
    return [python, str(script), json.dumps(settings)]


def worker_environment(contestant: Contestant, place: Place, *, cache: str | None = None) -> dict[str, str]:
    """Environment variables of a worker. `cache`: where we keep packed weights, if not where they are already."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    if contestant.peer == "trivet" or contestant.kind == "server":
        environment["PYTHONPATH"] = os.pathsep.join([str(REPO / "src"), str(REPO)])
    if contestant.peer == "trivet" and place.isa:
        environment["TRIVET_ISA"] = place.isa
    if contestant.peer == "trivet" and cache:
        environment["TRIVET_CACHE_DIR"] = cache
    return environment


def kv_bytes(place: Place, context: int, streams: int) -> int:
    """What the work fills of a KV cache, with a little more for whole blocks."""
    return streams * (context + 64) * place.kv_bytes_per_token


def _room_gib(place: Place, context: int, streams: int) -> int:
    return max(place.kv_gib, -(-kv_bytes(place, context, streams) // 2**30))


def kv_fills(contestant: Contestant, place: Place, work: dict[str, Any]) -> int:
    """How often the KV of a turn goes into the contestant's room for KV; 1 where it gets no more room than that."""
    if contestant.peer not in ROOM_PEERS:
        return 1
    context, streams = work["prompt"] + work["output"], work["streams"]
    room = _room_gib(place, context, streams) << 30
    values = 2 if contestant.settings.get("kv_precision") == "int8" else 1  # in the bytes of a 16-bit one
    tokens = streams * context - (streams - 1) * work.get("shared", 0)
    return min(MAX_FILLS, int(-(-room * values // (tokens * place.kv_bytes_per_token))))


BASE_GIB = {"vllm": 6, "trivet": 1}


def memory_need(contestant: Contestant, place: Place, work: dict[str, Any]) -> int:
    """Bytes that a worker may come to use: some GiB (vLLM had 5 beside its KV), and KV, filled or taken at once."""
    context = max(_longest(work["prompt"]) + _longest(work["output"]), work.get("long", 0))
    filled = kv_bytes(place, context, work.get("streams", 1))
    if contestant.peer in ROOM_PEERS:
        filled = max(filled, (place.kv_gib if contestant.kind == "engine" else SERVER_KV_GIB) << 30)
    return (BASE_GIB.get(contestant.peer, 4) << 30) + filled


def shown_settings(command: list[str], place: Place) -> str:
    """What a worker was told, for the table: without the paths of this machine."""
    text = command[2].replace(str(place.forms), "FORMS").replace(str(place.home), "HOME")
    return text.replace(str(place.model), "MODEL").replace(sys.executable, "python")


def _longest(tokens: int | list[int]) -> int:
    return tokens if isinstance(tokens, int) else max(tokens)


def _settings(contestant: Contestant, place: Place, context: int, streams: int) -> dict[str, Any]:
    own = {name: value for name, value in contestant.settings.items() if name != "artifact"}
    kv_gib = _room_gib(place, context, streams)
    kv = {"kv_gib": kv_gib, "max_tokens": 4096}
    if contestant.peer == "trivet":
        return {"model": str(place.model), "threads": place.threads, "memory": kv_gib << 30,
                "max_context": context, "max_num_seqs": max(streams, 1), **own}  # fmt: skip
    if contestant.peer == "llama.cpp":
        return {"model": str(place.forms / f"{contestant.form}.gguf"), "threads": place.threads,
                "library": str(place.home / "build" / f"llama.cpp-{place.tier}" / "bin"),
                "package": str(llama_source(place.home)),
                "context": (place.kv_gib << 30) // place.kv_bytes_per_token if place.fill_kv else 0, **own}  # fmt: skip
    if contestant.peer == "openvino":
        properties = {"INFERENCE_NUM_THREADS": place.threads, **own["properties"]}
        return {"model": str(place.forms / contestant.settings["artifact"]), **kv, "properties": properties}
    if contestant.peer == "vllm":
        return {"model": _vllm_model(contestant, place), "threads": place.threads, **kv, "context": max(context, 4096)}
    if contestant.peer == "onnxruntime":
        return {"model": str(place.forms / contestant.settings["artifact"])}
    return {"model": str(place.model), "threads": place.threads}


def _vllm_model(contestant: Contestant, place: Place) -> str:
    return str(place.forms / "w8a8" if contestant.form == "w8a8" else place.model)


def _server(contestant: Contestant, place: Place, work: dict[str, Any]) -> dict[str, Any]:
    streams = work.get("streams", 1)
    context = max(_longest(work["prompt"]) + _longest(work["output"]), work.get("long", 0) + 32)
    versions = {"trivet": trivet.__version__, **SERVER_VERSIONS}
    common = {"name": "x", "tokenizer": str(place.model), "versions": {contestant.peer: versions[contestant.peer]}}
    if contestant.peer == "trivet":
        own = contestant.settings
        return {**common, "command": [
            sys.executable, "-m", "trivet.cli.main", "serve", str(place.model), "--port", "{port}", "--precision",
            own["precision"], "--kv-precision", own.get("kv_precision", "bf16"), "--served-model-name", "x",
            "--memory", f"{SERVER_KV_GIB}GiB",
        ]}  # fmt: skip
    if contestant.peer == "llama.cpp":
        # as many slots as callers: idle slots between busy ones cut its batches into single rows
        slots = streams + ("long" in work)
        return {**common, "command": [
            str(place.home / "build" / f"llama.cpp-{place.tier}" / "bin" / "llama-server"), "-m",
            str(place.forms / f"{contestant.form}.gguf"), "-t", str(place.threads), "-tb", str(place.threads), "-np",
            str(slots), "-c", str(slots * -(-context // 256) * 256), "-b", str(LLAMA["batch"]), "-ub",
            str(LLAMA["micro_batch"]), "-fa", "on", "--host", "127.0.0.1", "--port", "{port}", "--alias", "x",
        ]}  # fmt: skip
    return {**common, "environment": {
        "VLLM_CPU_KVCACHE_SPACE": str(SERVER_KV_GIB), "VLLM_CPU_OMP_THREADS_BIND": f"0-{place.threads - 1}",
        "VLLM_NO_USAGE_STATS": "1", "PYTHONPATH": "",
    }, "command": [
        str(python_of(place.home, "vllm")), "-m", "vllm.entrypoints.openai.api_server", "--model",
        _vllm_model(contestant, place), "--served-model-name", "x", "--dtype", "bfloat16", "--max-model-len",
        str(max(context, 4096)), "--max-num-seqs", "64", "--max-num-batched-tokens", "2048", "--host", "127.0.0.1",
        "--port", "{port}",
    ]}  # fmt: skip
