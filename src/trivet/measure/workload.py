"""The settings of a load; `plan.py` makes the jobs of one run of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trivet.errors import ConfigError
from trivet.measure.arrivals import Process, RateProfile, ramp, spike, steady
from trivet.measure.traces import TraceFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Numbers of tokens, evenly between two ends."""

    low: int
    high: int

    def draw(self, num: int, rng: np.random.Generator) -> list[int]:
        return [int(n) for n in rng.integers(self.low, self.high + 1, num)]

    def __str__(self) -> str:
        return f"{self.low}" if self.low == self.high else f"{self.low}..{self.high}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceChoice:
    """A trace and the part of it that is replayed."""

    path: Path
    kind: TraceFormat | None = None  # None: by its first line
    start_s: float = 0.0
    duration_s: float | None = None
    time_scale: float = 1.0  # 2: gaps twice as long, half the rate
    length_scale: float = 1.0
    max_input: int | None = None
    max_output: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The load of one run. Either `rate` (open loop), `concurrency` (closed loop), or a trace's own times."""

    rate: float | None = None  # requests a second; of a trace: its times are scaled to it
    concurrency: int | None = None
    process: Process = "poisson"
    cv: float = 2.0  # of gamma gaps
    ramp_to: float | None = None
    spike: float | None = None  # that many times the rate,
    spike_at_s: float = 0.0
    spike_for_s: float = 60.0
    duration_s: float | None = 30.0  # after the warm-up
    num_requests: int | None = None  # after the warm-up
    warmup_s: float = 0.0
    input: Lengths = Lengths(low=256, high=256)
    output: Lengths = Lengths(low=64, high=64)
    shared_prefix: int = 0
    turns: int = 1
    think_s: float = 0.0
    trace: TraceChoice | None = None

    def profile(self) -> RateProfile:
        """The rate of the jobs with time: chats begin at rate / turns."""
        rate = (self.rate or 0.0) / self.turns
        if self.ramp_to is not None:
            return ramp(rate, self.ramp_to / self.turns, self.duration_s or 0.0, at_s=self.warmup_s)
        if self.spike is not None:
            return spike(rate, factor=self.spike, at_s=self.warmup_s + self.spike_at_s, for_s=self.spike_for_s)
        return steady(rate)

    @property
    def end_s(self) -> float:
        """From then on nothing is sent, in seconds from the run's begin."""
        return math.inf if self.duration_s is None else self.warmup_s + self.duration_s


def parse_lengths(text: str, name: str) -> Lengths:
    """`128`, or `64..256`: evenly between both. ConfigError naming the setting."""
    low, dots, high = text.partition("..")
    if not (low.isdigit() and (high.isdigit() or not dots)) or not 1 <= int(low) <= int(high or low):
        raise ConfigError(f"`{name}` is {text!r}, but it must be a number of tokens", hint="such as 128, or 64..256")
    return Lengths(low=int(low), high=int(high or low))
