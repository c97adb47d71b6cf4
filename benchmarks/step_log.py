"""The native steps of a runner, as they are collected: what each carried, and when its computing began and ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from unittest.mock import patch

from trivet.engine.cpu_runner import CpuRunner
from trivet.engine.step import StepBatch, StepResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One native call; seconds of the monotonic clock."""

    begin_s: float
    end_s: float
    num_tokens: int
    num_seqs: int
    context_tokens: int  # of all its sequences, after the step


@contextmanager
def step_log(runner: CpuRunner) -> Iterator[list[Step]]:
    """The steps that `runner` gives back inside the block, oldest first."""
    steps: list[Step] = []
    batches: dict[int, StepBatch] = {}
    submit, collect = runner.submit, runner.collect

    def noting_submit(batch: StepBatch) -> int:
        handle = submit(batch)
        batches[handle] = batch
        return handle

    def noting_collect(handle: int) -> StepResult:
        result, batch = collect(handle), batches.pop(handle)
        steps.append(
            Step(
                begin_s=result.start_s,
                end_s=result.end_s,
                num_tokens=len(batch.token_ids),
                num_seqs=len(batch.context_lens),
                context_tokens=int(batch.context_lens.sum()),
            )
        )
        return result

    with patch.object(runner, "submit", noting_submit), patch.object(runner, "collect", noting_collect):
        yield steps


def decode_steps(steps: list[Step], num_streams: int) -> list[Step]:
    """The steps in which each of num_streams sequences had one token, and nothing else ran."""
    return [step for step in steps if step.num_tokens == step.num_seqs == num_streams]


def host_times(steps: list[Step]) -> list[float]:
    """Seconds between one native call's end and the next one's begin."""
    return [after.begin_s - before.end_s for before, after in pairwise(steps)]
