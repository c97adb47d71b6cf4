"""Service level objectives: limits that one request meets or misses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.errors import ConfigError
from trivet.measure.results import Requests
from trivet.measure.units import parse_seconds, show_seconds

NAMES = ("ttft", "itl", "itl_max", "tpot", "e2e")
ITL_SHARE = 0.95  # `itl`: so many of a request's gaps between reads must be within the limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Limits in seconds, by name."""

    limits_s: dict[str, float]

    def __str__(self) -> str:
        return ", ".join(f"{name.replace('_', ' ').upper()} <= {show_seconds(s)}" for name, s in self.limits_s.items())

    @property
    def counts_sending(self) -> bool:
        """Whether a limit counts from the intended send time."""
        return not {"ttft", "e2e"}.isdisjoint(self.limits_s)

    def met(self, requests: Requests) -> NDArray[np.bool_]:
        """For each request whether it was answered within all limits; what failed has not met them."""
        met = np.array(requests.is_ok)
        for name, limit_s in self.limits_s.items():
            met &= _within(requests, name, limit_s)
        return met


def parse_slo(text: str) -> Slo:
    """`ttft=500ms,itl=60ms` as an Slo; ConfigError naming the part that cannot be."""
    limits: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        if name not in NAMES or not value:
            raise ConfigError(
                f"`--slo` has the part {part.strip()!r}, but each must be one of {', '.join(NAMES)} with a time",
                hint="such as ttft=500ms,itl=60ms",
            )
        limits[name] = parse_seconds(value, f"--slo {name}")
    return Slo(limits_s=limits)


def _within(requests: Requests, name: str, limit_s: float) -> NDArray[Any]:
    if name == "ttft":
        return np.asarray(ttft_s(requests) <= limit_s)
    if name == "e2e":
        return np.asarray(e2e_s(requests) <= limit_s)
    if name == "tpot":
        tpot = tpot_s(requests)
        return np.asarray(np.isnan(tpot) | (tpot <= limit_s))  # one token has no time per further token
    late = np.bincount(requests.gap_owner[requests.gap_s > limit_s], minlength=len(requests))
    gaps = np.bincount(requests.gap_owner, minlength=len(requests))  # not tokens: batching them would hide any wait
    allowed = 0.0 if name == "itl_max" else (1 - ITL_SHARE) * gaps
    return np.asarray(late <= allowed)


def ttft_s(requests: Requests) -> NDArray[np.float64]:
    """From the intended send time to the first token; NaN without one."""
    return np.asarray(requests["first_s"] - requests["intended_s"])


def e2e_s(requests: Requests) -> NDArray[np.float64]:
    """From the intended send time to the last token."""
    return np.asarray(requests["last_s"] - requests["intended_s"])


def tpot_s(requests: Requests) -> NDArray[np.float64]:
    """Time per output token after the first; NaN for an answer of one."""
    tokens = requests["num_tokens"]
    return np.where(tokens > 1, (requests["last_s"] - requests["first_s"]) / np.maximum(1, tokens - 1), np.nan)
