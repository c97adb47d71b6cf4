"""Steps by hand: a runner on a checkpoint, and batches of one sequence, for tests below the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from trivet.engine.cpu_runner import CpuRunner, build_runner
from trivet.engine.memory import BLOCK_PAD_BYTES
from trivet.engine.step import StepBatch
from trivet.models.load import load_model


def make_runner(
    folder: Path | str,
    *,
    precision: Any = "bf16",
    kv: Any = "bf16",
    block_size: int = 32,
    threads: int = 2,
    num_blocks: int = 64,
    max_tokens: int = 512,
    max_num_seqs: int = 32,
) -> CpuRunner:
    """A runner on the checkpoint, packed into the test run's cache folder."""
    loaded = load_model(ModelConfig(path=str(folder), precision=precision))
    memory = num_blocks * (loaded.spec.kv_bytes_per_token(kv) * block_size + BLOCK_PAD_BYTES)
    config = EngineConfig(
        model=ModelConfig(path=str(folder), precision=precision),
        cache=CacheConfig(block_size=block_size, memory_bytes=memory, dtype=kv),
        scheduler=SchedulerConfig(max_tokens_per_step=max_tokens, max_num_seqs=max_num_seqs),
        threads=threads,
    )
    return build_runner(loaded, config)


def batch_of(sequences: list[tuple[list[int], int, list[int]]], vocab_size: int) -> StepBatch:
    """Tokens `ids` at positions start.. for each (ids, start, block table); full logits of every row are asked for."""
    counts = [len(ids) for ids, _, _ in sequences]
    width = max(len(table) for _, _, table in sequences)

    def empty(dtype: Any, *shape: int) -> NDArray[Any]:
        return np.zeros(shape or (0,), dtype)

    return StepBatch(
        token_ids=np.concatenate([np.array(ids, np.int32) for ids, _, _ in sequences]),
        seq_starts=np.array([0, *np.cumsum(counts)], np.int32),
        context_lens=np.array([start + len(ids) for ids, start, _ in sequences], np.int32),
        block_tables=np.array([table + [-1] * (width - len(table)) for _, _, table in sequences], np.int32),
        sample_rows=empty(np.int32), temperature=empty(np.float32), top_k=empty(np.int32), top_p=empty(np.float32),
        min_p=empty(np.float32), seed=empty(np.uint64), sample_idx=empty(np.int32), bias_starts=empty(np.int32, 1),
        bias_ids=empty(np.int32), bias_values=empty(np.float32), mask_idx=empty(np.int32),
        masks=empty(np.uint32, 0, (vocab_size + 31) // 32), num_logprobs=empty(np.int32),
        score_rows=empty(np.int32), score_ids=empty(np.int32), score_num_logprobs=empty(np.int32),
        logits_rows=np.arange(sum(counts), dtype=np.int32), hidden_rows=empty(np.int32),
    )  # fmt: skip


def batch_of_one(ids: list[int], start: int, vocab_size: int, table: list[int]) -> StepBatch:
    """`batch_of` a single sequence."""
    return batch_of([(ids, start, table)], vocab_size)


def logits_of(
    runner: CpuRunner, ids: list[int], chunks: list[int], table: list[int] | None = None
) -> NDArray[np.float32]:
    """float32 [T, V], the ids computed in steps of the given sizes (the last size repeats)."""
    table = table or list(range(runner.capabilities.num_blocks))
    out, start = [], 0
    while start < len(ids):
        size = chunks[min(len(out), len(chunks) - 1)]
        batch = batch_of_one(ids[start : start + size], start, runner.capabilities.vocab_size, table)
        out.append(runner.collect(runner.submit(batch)).logits)
        start += size
    return np.concatenate(out)
