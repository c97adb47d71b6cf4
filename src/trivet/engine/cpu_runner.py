"""`CpuRunner`: the native core behind the `Runner` seam."""

from __future__ import annotations

import hashlib
import os
import sys
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from trivet import _core
from trivet.config import ISAS, EngineConfig, check_threads, env, env_threads
from trivet.engine.kv_ahead import KvAhead
from trivet.engine.memory import plan_kv
from trivet.engine.step import Capabilities, StepBatch, StepResult
from trivet.errors import ConfigError, UnsupportedCpu

if TYPE_CHECKING:
    from trivet.models.load import LoadedModel

KERNEL_REVISION = 6  # raise it when the bits of any kernel change: part of the fingerprint


def _score_arrays(num: int, width: int) -> dict[str, Any]:
    """What a step writes of `num` tokens of prompts, each with its `width` most probable ones."""
    return {
        "score_logprobs": np.zeros(num, np.float32),
        "score_ranks": np.zeros(num, np.int32),
        "score_top_ids": np.full((num, width), -1, np.int32),
        "score_top_logprobs": np.zeros((num, width), np.float32),
    }


_NO_SCORES = _score_arrays(0, 0)


class CpuRunner:
    """Runs steps of one packed model on the process's thread pool; see `Runner`."""

    def __init__(self, loaded: LoadedModel, config: EngineConfig, *, threads: int) -> None:
        """Raises ConfigError when weights, activations and a KV cache do not fit the memory (`plan_kv`)."""
        packed = loaded.packed
        cache, scheduler = config.cache, config.scheduler
        model = _core.Model(packed.buffer, msgspec.to_builtins(packed.spec), msgspec.to_builtins(packed.tensors))
        self._model: _core.Model | None = model
        self._vocab = packed.spec.vocab_size
        self._dim = packed.spec.dim
        self._threads = threads
        max_tokens = max(min(scheduler.max_tokens_per_step, packed.spec.max_context), scheduler.max_num_seqs)

        def executor(num_blocks: int) -> _core.Executor:
            return _core.Executor(model, num_blocks, cache.block_size, cache.dtype, max_tokens, threads)

        budget = plan_kv(packed.spec, config, weight_bytes=packed.weight_bytes, scratch_bytes=executor(1).scratch_bytes)
        self._notes = (*thread_notes(config.threads), *budget.notes)
        self._executor: _core.Executor | None = executor(budget.num_blocks)
        block_bytes = self._executor.block_bytes
        self._ahead = KvAhead(block_bytes * budget.num_blocks, block_bytes, self._touch_kv)
        self._profiling = env("TRIVET_PROFILE") == "1"
        self._executor.set_profiling(self._profiling)
        numerics = "|".join([packed.digest, packed.precision, cache.dtype, _core.isa(), str(KERNEL_REVISION)])
        self._capabilities = Capabilities(
            block_size=cache.block_size,
            num_blocks=budget.num_blocks,
            max_tokens_per_step=max_tokens,
            max_seqs_per_step=scheduler.max_num_seqs,
            vocab_size=self._vocab,
            max_context=budget.max_context,
            numerics=hashlib.sha256(numerics.encode()).hexdigest()[:16],
            max_under_way=2,
        )
        self._under_way: deque[tuple[int, dict[str, Any]]] = deque()  # step number and the arrays of its result

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def info_fields(self) -> dict[str, Any]:
        """What `EngineInfo` wants to know of the runner. Raises ValueError after `close`."""
        if self._executor is None or self._model is None:
            raise ValueError("the runner is closed")
        return {
            "isa": _core.isa(),
            "num_threads": self._threads,
            "weight_bytes": self._model.weight_bytes,
            "kv_bytes": self._executor.block_bytes * self._capabilities.num_blocks,
            "notes": [*_core.isa_notes(), *self._notes],
        }

    def submit(self, batch: StepBatch) -> int:
        """Queues the step; see `Runner`. Raises ValueError after `close` and when two steps are under way, too."""
        if self._executor is None:
            raise ValueError("the runner is closed, so it cannot run a step")
        b = batch
        rows, scores = len(b.sample_rows), len(b.score_rows)
        width = max([0, *b.num_logprobs.tolist()])
        out: dict[str, Any] = {
            "sampled_ids": np.zeros(rows, np.int32),
            "logprobs": np.zeros(rows, np.float32),
            "ranks": np.zeros(rows, np.int32),
            "top_ids": np.full((rows, width), -1, np.int32) if width else np.zeros((rows, 0), np.int32),
            "top_logprobs": np.zeros((rows, width), np.float32),
            **(_score_arrays(scores, int(b.score_num_logprobs.max())) if scores else _NO_SCORES),
            "logits": np.empty((len(b.logits_rows), self._vocab), np.float32),
            "hidden": np.empty((len(b.hidden_rows), self._dim), np.float32),
        }
        handle = self._executor.submit(
            b.token_ids, b.seq_starts, b.context_lens, b.block_tables, b.sample_rows, b.temperature, b.top_k, b.top_p,
            b.min_p, b.seed, b.sample_idx, b.bias_starts, b.bias_ids, b.bias_values, b.mask_idx, b.masks,
            b.num_logprobs, b.score_rows, b.score_ids, b.score_num_logprobs, b.logits_rows, b.hidden_rows, **out
        )  # fmt: skip
        self._under_way.append((handle, out))
        return handle

    def wait(self, handle: int, timeout_s: float) -> bool:
        return self._executor is not None and self._executor.wait(handle, timeout_s)

    def collect(self, handle: int) -> StepResult:
        if self._executor is None or not self._under_way or self._under_way[0][0] != handle:
            raise ValueError(f"there is no step {handle} to collect")
        _, out = self._under_way.popleft()
        start_s, end_s = self._executor.collect()
        return StepResult(**out, start_s=start_s, end_s=end_s)

    def prepare(self, num_used: int, num_ahead: int | None = None) -> bool:
        return self._ahead.advance(num_used, num_ahead)

    def _touch_kv(self, begin: int, end: int) -> None:
        if self._executor is not None:
            self._executor.touch_kv(begin, end)

    def drop(self) -> None:
        while self._under_way and self._executor is not None:
            self._under_way.popleft()
            with suppress(Exception):  # whoever submitted it has heard of its failure, or is gone
                self._executor.collect()

    def close(self) -> None:
        """Gives KV cache and activations back and lets go of the weights; idempotent."""
        self.drop()
        if self._profiling and self._executor is not None:
            print(profile_table(self._executor.profile()), file=sys.stderr)
        self._executor = self._model = None


def profile_table(profile: dict[str, tuple[float, int, float, float]]) -> str:
    """Where the time of steps went, the longest first: ms, share of all, calls, microseconds a call, and rates.

    GB/s of weights or KV that must be read, TOPS of multiplications and additions; a dash where neither is counted.
    """
    total = sum(seconds for seconds, *_ in profile.values())
    lines = [f"{'operation':<22} {'ms':>11} {'share':>7} {'calls':>9} {'us a call':>10} {'GB/s':>7} {'TOPS':>7}"]
    for name, (seconds, calls, read, operations) in sorted(profile.items(), key=lambda entry: -entry[1][0]):
        if calls:
            rates = (
                f"{read / seconds * 1e-9:>7.1f} {operations / seconds * 1e-12:>7.3f}" if read else f"{'-':>7} {'-':>7}"
            )
            lines.append(
                f"{name:<22} {seconds * 1e3:>11.1f} {seconds / total:>7.1%} {calls:>9,} {seconds / calls * 1e6:>10.1f} "
                + rates
            )
    return "\n".join(lines)


def choose_isa() -> str:
    """The kernel tier in use, after `TRIVET_ISA`; raises ConfigError or UnsupportedCpu."""
    wanted = env("TRIVET_ISA")
    if wanted is None:
        return _core.isa()
    if wanted not in ISAS:
        raise ConfigError(f"TRIVET_ISA is {wanted!r}, but it must be one of {', '.join(ISAS)}")
    available = _core.available_isas()
    if wanted not in available:
        raise UnsupportedCpu(
            f"TRIVET_ISA asks for {wanted}, but this CPU offers {', '.join(available)}",
            hint="name one of these, or unset TRIVET_ISA: then the fastest of them is taken",
        )
    _core.set_isa(wanted)
    return wanted


def choose_threads(setting: int | None) -> int:
    """Compute threads: the setting, then `TRIVET_THREADS`, then one a core, as affinity mask and CPU quota allow.

    Raises ConfigError for more than 4 for each CPU.
    """
    if setting is not None:
        return check_threads("threads", setting)
    return env_threads() or int(_core.allowed_threads())


def thread_notes(setting: int | None) -> list[str]:
    """A line for the start where the default leaves hardware threads of cores to others."""
    cpus = sorted(os.sched_getaffinity(0))
    cores = _core.num_cores(cpus)
    by_cores = setting is None and env_threads() is None and _core.allowed_threads() == cores
    if not by_cores or cores >= len(cpus):
        return []
    return [f"threads: one a core, of {len(cpus)} CPUs on {cores} cores; `threads` says otherwise"]


def build_runner(loaded: LoadedModel, config: EngineConfig) -> CpuRunner:
    """A CpuRunner sized for this machine: tier, threads and KV budget chosen and written to its notes."""
    choose_isa()
    return CpuRunner(loaded, config, threads=choose_threads(config.threads))
