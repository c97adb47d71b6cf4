"""The highest rate at which enough requests meet their limits: doubling to bracket it, halving the bracket, and a
longer run at the end that must confirm it.

A trial passes if enough of all its requests met the limits, and enough of its second half did: a queue that grows shows
there first, so that a short trial does not pass what a long one would not.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from trivet.errors import ConfigError

MAX_DOUBLINGS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A run at one rate."""

    rate: float  # requests a second
    attainment: float
    attainment_late: float  # of the requests in the second half of the run
    is_valid: bool = True  # the client could keep up
    is_confirmation: bool = False

    def passes(self, wanted: float) -> bool:
        return min(self.attainment, self.attainment_late) >= wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What a search found; `rate` is None where even the lowest rate that was tried is too high."""

    rate: float | None
    wanted: float
    trials: tuple[Trial, ...]
    is_bounded: bool  # False: the client, not the server, was the limit, or no rate failed
    because: str


Measure = Callable[[float, bool], Awaitable[Trial | None]]  # (rate, confirming) -> None: the search is to end


async def find_capacity(
    measure: Measure,
    *,
    first_rate: float,
    wanted: float = 0.9,
    precision: float = 0.05,
    lowest_rate: float = 1e-3,
    counts_sending: bool = True,
) -> Capacity:
    """Searches from `first_rate` on, until the rates that pass and fail are `precision` (relative) apart.

    `counts_sending`: a limit counts from the intended send time, so a client that is late makes a server look slow,
    never fast. Without one it makes the rate lower than it says, and a trial that is not valid ends the search.
    """
    if not 0 < wanted <= 1:
        raise ConfigError(f"the attainment is {wanted:g}, but it must be above 0 and at most 1")
    search = _Search(measure, wanted, counts_sending)
    await search.bracket(first_rate, lowest_rate)
    await search.narrow(precision)
    await search.confirm(precision, lowest_rate)
    return Capacity(
        rate=search.passed,
        wanted=wanted,
        trials=tuple(search.trials),
        is_bounded=search.failed is not None and search.problem is None,
        because=search.problem or _because(search, lowest_rate),
    )


def _because(search: _Search, lowest_rate: float) -> str:
    if search.failed is None:
        return "no rate that was tried was too high"
    return f"rates below {lowest_rate:.3g} requests/s were not tried" if search.passed is None else ""


class _Search:
    """`passed` and `failed` are the highest rate that passed and the lowest that failed, so far."""

    def __init__(self, measure: Measure, wanted: float, counts_sending: bool) -> None:
        self.trials: list[Trial] = []
        self.passed: float | None = None
        self.failed: float | None = None
        self.problem: str | None = None
        self._measure = measure
        self._wanted = wanted
        self._counts_sending = counts_sending

    async def try_rate(self, rate: float, *, confirming: bool = False) -> bool | None:
        """Whether the rate passes; None if the search must end."""
        trial = await self._measure(rate, confirming)
        if trial is None:
            self.problem = "the search was interrupted"
            return None
        self.trials.append(trial)
        passes = trial.passes(self._wanted)
        if not trial.is_valid and not (passes and self._counts_sending):
            self.problem = f"the client could not keep up at {rate:.3g} requests/s: give it more `--workers`"
            return None
        return passes

    async def bracket(self, rate: float, lowest_rate: float) -> None:
        for _ in range(MAX_DOUBLINGS):
            passes = await self.try_rate(rate)
            if passes is None:
                return
            if passes:
                self.passed, rate = rate, rate * 2
            else:
                self.failed, rate = rate, rate / 2
            if (self.passed is not None and self.failed is not None) or rate < lowest_rate:
                return

    async def narrow(self, precision: float, *, confirming: bool = False) -> None:
        while (
            self.problem is None
            and self.passed is not None
            and self.failed is not None
            and self.failed > self.passed * (1 + precision)
        ):
            middle = math.sqrt(self.passed * self.failed)
            passes = await self.try_rate(middle, confirming=confirming)
            if passes is None:
                return
            if passes:
                self.passed = middle
            else:
                self.failed = middle

    async def confirm(self, precision: float, lowest_rate: float) -> None:
        """Lowers the rate that passed until a longer run at it passes: by steps that grow, then halving the last."""
        rate, step = self.passed, 1 + precision
        while self.problem is None and rate is not None and rate >= lowest_rate:
            passes = await self.try_rate(rate, confirming=True)
            if passes is None:
                return
            if passes:
                self.passed = rate
                await self.narrow(precision, confirming=True)
                return
            self.passed, self.failed = None, rate  # nothing is confirmed yet
            rate, step = rate / step, step * step
