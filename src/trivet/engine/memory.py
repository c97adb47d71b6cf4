"""How much memory the KV cache may take: the machine or cgroup, the setting, and what the model can use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trivet.config import EngineConfig
from trivet.errors import ConfigError
from trivet.models.spec import ModelSpec

_CGROUP_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class KvBudget:
    """What was decided, and the lines that say so at start."""

    num_blocks: int
    block_bytes: int
    max_context: int  # tokens
    notes: tuple[str, ...] = ()


def memory_limit_bytes() -> int:
    """Memory this process may use: the machine's, or its cgroup's limit if that is lower."""
    total = _machine_bytes()
    for name in _CGROUP_FILES:
        try:
            text = Path(name).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            total = min(total, int(text))
    return total


def _machine_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    raise ConfigError("/proc/meminfo has no MemTotal line, so the memory budget cannot be chosen", hint="set --memory")


def gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"


def plan_kv(spec: ModelSpec, config: EngineConfig, *, limit_bytes: int | None = None) -> KvBudget:
    """Blocks for `max_num_seqs` full contexts, bounded by `cache.memory_bytes` or a quarter of the memory.

    Raises ConfigError when not even one block fits, or `max_context` is more than the model was made for. When one full
    context does not fit, `max_context` shrinks to what does, and a note says so.
    """
    cache = config.cache
    context = config.model.max_context or spec.max_context
    if context > spec.max_context:
        raise ConfigError(
            f"`model.max_context` is {context:,}, but the model was made for {spec.max_context:,} tokens",
            hint=f"use --max-context {spec.max_context} or less",
        )
    block_bytes = spec.kv_bytes_per_token(cache.dtype) * cache.block_size
    per_context = -(-context // cache.block_size)
    wanted = per_context * config.scheduler.max_num_seqs
    limit = limit_bytes if limit_bytes is not None else memory_limit_bytes()
    allowed = cache.memory_bytes if cache.memory_bytes is not None else limit // 4
    num_blocks = min(wanted, allowed // block_bytes) if cache.memory_bytes is None else allowed // block_bytes
    if num_blocks < 1:
        raise ConfigError(
            f"the KV cache may take {gib(allowed)}, but one block of {cache.block_size} tokens takes {gib(block_bytes)}",
            hint="raise --memory, or use --kv-precision int8",
        )
    notes = [
        f"KV cache: {num_blocks:,} blocks of {cache.block_size} tokens ({cache.dtype}), at most "
        f"{gib(num_blocks * block_bytes)} of {gib(limit)}; pages are touched when first used"
    ]
    if num_blocks < per_context:
        context = num_blocks * cache.block_size
        notes.append(f"the KV budget holds {context:,} tokens, so this is the longest context (the model's: {spec.max_context:,})")
    return KvBudget(num_blocks=num_blocks, block_bytes=block_bytes, max_context=context, notes=tuple(notes))
