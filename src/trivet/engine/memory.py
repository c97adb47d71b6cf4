"""How much memory the KV cache may take: the machine or cgroup, the setting, and what the model can use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trivet.config import EngineConfig
from trivet.engine.cgroup import ROOT, memory_limit
from trivet.engine.kv_ahead import most_ahead
from trivet.errors import ConfigError
from trivet.models.spec import ModelSpec

BLOCK_PAD_BYTES = 4160  # between blocks: kBlockPadBytes of kv_cache.h
RESERVE_BYTES = 512 * 2**20  # for the interpreter, the tokenizer and what the system itself needs


@dataclass(frozen=True, slots=True, kw_only=True)
class KvBudget:
    """What was decided, and the lines that say so at start."""

    num_blocks: int
    block_bytes: int
    max_context: int  # tokens
    notes: tuple[str, ...] = ()


def memory_limit_bytes(root: Path = ROOT) -> int:
    """Memory this process may use: the machine's, or the least of its cgroups' if that is lower; read below `root`."""
    granted = memory_limit(root)
    total = _machine_bytes(root)
    return total if granted is None else min(total, granted)


def _machine_bytes(root: Path) -> int:
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    raise ConfigError("/proc/meminfo has no MemTotal line, so the memory budget cannot be chosen", hint="set --memory")


def gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"


def plan_kv(
    spec: ModelSpec,
    config: EngineConfig,
    *,
    weight_bytes: int = 0,
    scratch_bytes: int = 0,
    limit_bytes: int | None = None,
) -> KvBudget:
    """How many blocks: enough for `max_num_seqs` full contexts, at most `cache.memory_bytes` or a quarter of memory.

    Weights, activations, KV and a reserve together stay within the memory of the machine or cgroup. Raises ConfigError
    when they cannot, when not even one block fits, or when a `max_context` that was asked for is more than the model
    was made for or than the cache holds. The model's own context shrinks to what the cache holds, and a note says so.
    """
    cache = config.cache
    context = config.model.max_context or spec.max_context
    if context > spec.max_context:
        raise ConfigError(
            f"`model.max_context` is {context:,}, but the model was made for {spec.max_context:,} tokens",
            hint=f"use --max-context {spec.max_context} or less",
        )
    limit = memory_limit_bytes() if limit_bytes is None else limit_bytes
    room = limit - weight_bytes - scratch_bytes - RESERVE_BYTES
    parts = (
        f"weights {gib(weight_bytes)}, activations at most {gib(scratch_bytes)}, reserve {gib(RESERVE_BYTES)}, "
        f"of {gib(limit)}"
    )
    if cache.memory_bytes is not None and cache.memory_bytes > room:
        raise ConfigError(
            f"`cache.memory_bytes` is {gib(cache.memory_bytes)}, but only {gib(max(room, 0))} are left ({parts})",
            hint=f"use --memory {max(room, 0) // 2**20}MiB or less",
        )
    block_bytes = spec.kv_bytes_per_token(cache.dtype) * cache.block_size + BLOCK_PAD_BYTES
    per_context = -(-context // cache.block_size)
    if cache.memory_bytes is None:
        allowed = min(limit // 4, room)
        num_blocks = min(per_context * config.scheduler.max_num_seqs, allowed // block_bytes)
    else:
        allowed = cache.memory_bytes
        num_blocks = allowed // block_bytes
    if num_blocks < 1:
        raise ConfigError(
            f"the KV cache may take {gib(max(allowed, 0))}, but one block of {cache.block_size} tokens takes "
            f"{gib(block_bytes)} ({parts})",
            hint="raise --memory or the memory limit, or use --kv-precision int8",
        )
    notes = [
        f"memory: KV cache at most {gib(num_blocks * block_bytes)} ({num_blocks:,} blocks of {cache.block_size} "
        f"tokens, {cache.dtype}), {parts}; pages are touched when first used, "
        f"{most_ahead(num_blocks * block_bytes) / 2**20:.0f} MiB ahead while idle"
    ]
    if num_blocks < per_context:
        held = num_blocks * cache.block_size
        if config.model.max_context is not None:
            raise ConfigError(
                f"`model.max_context` is {context:,}, but the KV cache may take {gib(num_blocks * block_bytes)}, which "
                f"holds {held:,} tokens ({parts})",
                hint=f"use --max-context {held} or less, more --memory ({gib(per_context * block_bytes)} would do), or "
                "--kv-precision int8",
            )
        context = held
        notes.append(
            f"the KV budget holds {context:,} tokens, so this is the longest context "
            f"(the model's: {spec.max_context:,})"
        )
    return KvBudget(num_blocks=num_blocks, block_bytes=block_bytes, max_context=context, notes=tuple(notes))
