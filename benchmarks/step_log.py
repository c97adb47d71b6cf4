"""Every native step of this process, as it is taken: what it carried, and when the native call began and ended."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from trivet.engine.cpu_runner import CpuRunner


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One native call; seconds of `time.perf_counter`."""

    begin_s: float
    end_s: float
    num_tokens: int
    num_seqs: int
    context_tokens: int  # of all its sequences, after the step


class TimedExecutor:
    """Stands for the native executor and notes each call."""

    def __init__(self, executor: Any, steps: list[Step]) -> None:
        self._executor = executor
        self._steps = steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        result = self._executor.step(*args, **kwargs)
        end = time.perf_counter()
        token_ids, _, context_lens = args[:3]
        self._steps.append(Step(begin_s=begin, end_s=end, num_tokens=len(token_ids), num_seqs=len(context_lens),
                                context_tokens=int(context_lens.sum())))  # fmt: skip
        return result


@contextmanager
def step_log(runner: CpuRunner) -> Iterator[list[Step]]:
    """The steps that `runner` takes inside the block, oldest first."""
    steps: list[Step] = []
    executor: Any = runner._executor
    timed: Any = TimedExecutor(executor, steps)
    runner._executor = timed
    try:
        yield steps
    finally:
        runner._executor = executor


def decode_steps(steps: list[Step], num_streams: int) -> list[Step]:
    """The steps in which each of num_streams sequences had one token, and nothing else ran."""
    return [step for step in steps if step.num_tokens == step.num_seqs == num_streams]


def host_times(steps: list[Step]) -> list[float]:
    """Seconds between one native call's end and the next one's begin."""
    return [after.begin_s - before.end_s for before, after in pairwise(steps)]
