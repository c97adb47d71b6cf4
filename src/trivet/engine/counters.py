"""`Counters`: what the engine counts and times about its own steps."""

from __future__ import annotations

import math

import numpy as np

from trivet.engine.step_model import MovingRate

_NUM_HOST_TIMES = 1000


class Counters:
    """Sums over all steps, and moving rates over the busy time of the last ones."""

    def __init__(self) -> None:
        self.num_steps = 0
        self.native_s = 0.0
        self.host_s = 0.0
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.prefill = MovingRate()  # prompt tokens, in steps that had some
        self.decode = MovingRate()  # sampled tokens
        self.finished = MovingRate()  # sequences
        self._num_finished = 0
        self._host_times = np.zeros(_NUM_HOST_TIMES)
        self._num_host_times = 0
        self._last_end_s: float | None = None  # of the native call before, None after idling

    @property
    def host_s_p99(self) -> float:
        """Seconds between native calls, 99th percentile of the last 1000; 0.0 before there are any."""
        num = min(self._num_host_times, _NUM_HOST_TIMES)
        if num == 0:
            return 0.0
        at = math.ceil(0.99 * (num - 1))  # np.quantile takes 0.1 ms to say the same
        return float(np.partition(self._host_times[:num], at)[at])

    def sequence_finished(self) -> None:
        self._num_finished += 1

    def step(self, start_s: float, end_s: float, num_prefill: int, num_sampled: int) -> None:
        """A step was computed from `start_s` to `end_s`."""
        began_s = start_s if self._last_end_s is None else self._last_end_s
        if self._last_end_s is not None:
            host_s = start_s - self._last_end_s
            self.host_s += host_s
            self._host_times[self._num_host_times % _NUM_HOST_TIMES] = host_s
            self._num_host_times += 1
        self._last_end_s = end_s
        self.num_steps += 1
        self.native_s += end_s - start_s
        busy_s = end_s - began_s
        if num_prefill:
            self.prefill.add(num_prefill, busy_s)
        self.decode.add(num_sampled, busy_s)
        self.finished.add(self._num_finished, busy_s)
        self._num_finished = 0

    def idle(self) -> None:
        """There is no work: the time until the next step is nobody's."""
        self._last_end_s = None
