"""From the requests of a run to its figures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.measure.outcomes import Outcome
from trivet.measure.results import Requests
from trivet.measure.slo import Slo, e2e_s, tpot_s, ttft_s
from trivet.measure.statistics import NOTHING, Estimate, estimate_quantiles, share

QUANTILES = (0.5, 0.9, 0.95, 0.99)
ROUNDING_S = 1e-9  # a time that is a sum of gaps may come out that much after itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """One kind of latency: seconds at p50, p90, p95 and p99, their mean and the longest."""

    quantiles: tuple[Estimate, ...]
    mean: float
    longest: float
    num: int

    def at(self, q: float) -> Estimate:
        return self.quantiles[QUANTILES.index(q)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """What the whole system did between two moments of the run."""

    begin_s: float
    end_s: float
    output_tokens: float
    input_tokens: int
    requests: int

    def rate(self, amount: float) -> float:
        """The amount a second; NaN for no time."""
        return amount / (self.end_s - self.begin_s) if self.end_s > self.begin_s else math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a run says of its target. Latencies are of requests that were answered; the others are counted."""

    num_requests: int  # meant to be sent after the warm-up
    num_ok: int
    num_cut: int
    failures: dict[str, int]
    ttft: Latency
    itl: Latency
    tpot: Latency
    e2e: Latency
    whole: Throughput  # from the warm-up's end to the last answer's
    steady: Throughput  # to the last intended send time only
    attainment: Estimate | None
    offered: float | None  # requests a second that were meant to be sent; None: closed loop, which sends what it can
    goodput: float | None  # requests a second that met the limits, over that time; closed loop: over `whole`


def figures_of(
    requests: Requests,
    warmup_s: float,
    slo: Slo | None,
    *,
    sending_s: float | None = None,
    is_closed: bool = False,
    seed: int = 0,
) -> Figures:
    """The figures of a run. `sending_s`: for how long requests were to be sent after the warm-up, where that is set."""
    rng = np.random.default_rng([seed, 9])
    counted = requests.where(requests["intended_s"] >= warmup_s)
    ok = counted.where(counted.is_ok)
    is_cut = counted["outcome"] == Outcome.cut
    sent_until = float(counted["intended_s"].max()) if len(counted) else warmup_s
    ended = float(np.nanmax(counted["last_s"])) if np.isfinite(counted["last_s"]).any() else sent_until
    span = sending_s
    if span is None:
        span = ended - warmup_s if is_closed else _sending_time(counted)
    attainment = goodput = None
    if slo is not None:
        tried = counted.where(~is_cut)
        met = int(slo.met(tried).sum())
        attainment = share(met, len(tried))
        goodput = met / span if span > 0 else math.nan
    itl_values, itl_weights, itl_owners = inter_token_latencies(ok)
    tpot = tpot_s(ok)
    return Figures(
        num_requests=len(counted),
        num_ok=len(ok),
        num_cut=int(is_cut.sum()),
        failures=failures_of(counted),
        ttft=_latency(ttft_s(ok), rng),
        itl=_latency(itl_values, rng, itl_owners, itl_weights),
        tpot=_latency(tpot[~np.isnan(tpot)], rng),
        e2e=_latency(e2e_s(ok), rng),
        whole=throughput(requests, warmup_s, ended),
        steady=throughput(requests, warmup_s, sent_until),
        attainment=attainment,
        offered=None if is_closed else len(counted) / span if span > 0 else math.nan,
        goodput=goodput,
    )


def _sending_time(requests: Requests) -> float:
    """The time in which the requests were meant to come: n of them have n - 1 gaps, and one more belongs to it."""
    intended = requests["intended_s"]
    if len(intended) < 2:
        return math.nan
    return float(intended.max() - intended.min()) * len(intended) / (len(intended) - 1)


def failures_of(requests: Requests) -> dict[str, int]:
    """How many requests ended in each way that is not an answer."""
    kinds, counts = np.unique(requests["outcome"], return_counts=True)
    return {
        Outcome(int(kind)).name: int(num)
        for kind, num in zip(kinds, counts, strict=True)
        if Outcome(int(kind)) not in (Outcome.ok, Outcome.cut)
    }


def inter_token_latencies(requests: Requests) -> tuple[NDArray[np.float64], NDArray[Any], NDArray[Any]]:
    """(values, weights, rows): a read's gap counts once; further tokens of the same read came 0 s after each other."""
    rows = np.arange(len(requests))
    together = np.concatenate([requests.gap_tokens - 1, np.maximum(0, requests["first_tokens"].astype(np.int64) - 1)])
    owners = np.concatenate([requests.gap_owner, rows])
    some = together > 0
    values = np.concatenate([requests.gap_s, np.zeros(int(some.sum()))])
    weights = np.concatenate([np.ones(len(requests.gap_s)), together[some]])
    return values, weights, np.concatenate([requests.gap_owner, owners[some]])


def token_times(requests: Requests) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(time, tokens) of each read that brought some; tokens as the server's usage counts them, where it does."""
    some = requests["first_tokens"] > 0
    total = np.cumsum(requests.gap_s)
    first_of = np.searchsorted(requests.gap_owner, np.arange(len(requests)))
    before = np.concatenate([[0.0], total])[first_of]
    later = requests["first_s"][requests.gap_owner] + total - before[requests.gap_owner]
    seen = requests["first_tokens"] + np.bincount(requests.gap_owner, requests.gap_tokens, len(requests))
    scale = np.where(requests.is_ok & (seen > 0), requests["num_tokens"] / np.maximum(1, seen), 1.0)
    tokens = np.concatenate([(requests["first_tokens"] * scale)[some], requests.gap_tokens * scale[requests.gap_owner]])
    return np.concatenate([requests["first_s"][some], later]), tokens


def throughput(requests: Requests, begin_s: float, end_s: float) -> Throughput:
    """What came between two moments: tokens that arrived, prompts whose answer began, answers that ended."""
    times, tokens = token_times(requests)
    inputs = np.where(requests["prompt_tokens"] >= 0, requests["prompt_tokens"], requests["wished_input"])
    began = _between(requests["first_s"], begin_s, end_s)
    return Throughput(
        begin_s=begin_s,
        end_s=end_s,
        output_tokens=float(tokens[_between(times, begin_s, end_s)].sum()),
        input_tokens=int(np.maximum(inputs, 0)[began].sum()),
        requests=int((requests.is_ok & _between(requests["last_s"], begin_s, end_s)).sum()),
    )


def _between(times: NDArray[Any], begin_s: float, end_s: float) -> NDArray[np.bool_]:
    return np.asarray((times >= begin_s) & (times <= end_s + ROUNDING_S))


def _latency(
    values: NDArray[np.float64],
    rng: np.random.Generator,
    owners: NDArray[Any] | None = None,
    weights: NDArray[Any] | None = None,
) -> Latency:
    if not len(values):
        return Latency(quantiles=(NOTHING,) * len(QUANTILES), mean=math.nan, longest=math.nan, num=0)
    quantiles = estimate_quantiles(values, QUANTILES, rng, owners=owners, weights=weights)
    return Latency(
        quantiles=tuple(quantiles),
        mean=float(np.average(values, weights=weights)),
        longest=float(values.max()),
        num=int(len(values) if weights is None else weights.sum()),
    )
