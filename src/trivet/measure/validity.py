"""Whether the client may be believed, and what else a reader of its figures must know.

The client's own lateness goes into every figure, so it may be at most a part of the figure: 5 %, or 2 ms where that is
more (what the instrument is tested to). It is compared at each rank that is reported: its median with the median, its
p99 with the p99. A loop that is busy for a share b of the time makes what comes wait in proportion to 1 / (1 - b): at
90 % ten times the work of one event. Beyond that a lateness that the ticks did not happen to see must be expected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trivet.measure.messages import Result
from trivet.measure.metrics import QUANTILES, Figures, Latency
from trivet.measure.outcomes import Outcome
from trivet.measure.plan import Plan
from trivet.measure.results import Requests
from trivet.measure.statistics import weighted_quantiles
from trivet.measure.units import show_seconds

ALLOWED_S = 0.002
ALLOWED_SHARE = 0.05
MAX_CPU_SHARE = 0.9
MIN_WALL_S = 0.5  # a share of less time says nothing
TOGETHER = 0.05  # from this share of tokens on that came with another, a server is said to batch


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientState:
    """What the client says of itself. Shares are of one core."""

    num_workers: int
    cpu_share: float  # of the busiest worker
    cpu_share_total: float
    sending_lag_s: tuple[float, ...]  # QUANTILES of actual minus intended send time
    loop_lag_s: tuple[float, ...]  # QUANTILES of how late the event loop came to a tick
    problems: tuple[str, ...]  # why the run is invalid; none: it is valid


def client_state(results: Sequence[Result], requests: Requests, figures: Figures, warmup_s: float) -> ClientState:
    """The client's state in a run, and whether it makes the run invalid."""
    shares = [result.cpu_s / result.wall_s for result in results if result.wall_s >= MIN_WALL_S]
    counted = requests.where(requests["intended_s"] >= warmup_s)
    late_s = counted["sent_s"] - counted["intended_s"]
    sending = _quantiles(late_s[~np.isnan(late_s)])
    loop = _quantiles(requests.lag_s)
    problems = [
        *_too_late("requests were sent", sending, figures.ttft, "TTFT"),
        *_too_late("the client's event loop came", loop, figures.itl, "ITL"),
    ]
    if max(shares, default=0.0) > MAX_CPU_SHARE:
        problems.append(
            f"a client process used {max(shares):.0%} of a core, more than {MAX_CPU_SHARE:.0%}: give it `--workers`"
        )
    return ClientState(
        num_workers=len(results),
        cpu_share=max(shares, default=0.0),
        cpu_share_total=sum(shares),
        sending_lag_s=sending,
        loop_lag_s=loop,
        problems=tuple(problems),
    )


def notes_of(
    results: Sequence[Result],
    requests: Requests,
    figures: Figures,
    planned: Plan | None = None,
    *,
    is_late: bool = False,
) -> list[str]:
    """What a reader must know of how the server answered, one sentence each; `is_late`: this client was."""
    ok = requests.where(requests.is_ok)
    notes: list[str] = []
    if len(ok):
        notes += [*_batching(ok, is_late), *_lengths(ok), *_caching(ok)]
    closed, opened = sum(r.closed_by_server for r in results), sum(r.opened for r in results)
    if closed > 0.05 * len(requests):
        notes.append(
            f"the server closed {closed:,} connections that could have been kept; {opened:,} were opened for "
            f"{len(requests):,} requests, and connecting counts in TTFT"
        )
    if retried := sum(r.retried for r in results):
        notes.append(f"{retried:,} requests were sent again: the kept connection turned out to be closed")
    notes += _refusals(requests)
    if lost := figures.failures.get(Outcome.abandoned.name):
        notes.append(f"{lost:,} later turns were not sent, as their chat had failed before: they miss every limit")
    if planned is not None and planned.num_lengthened:
        notes.append(
            f"of the trace's prompts {planned.num_lengthened:,} are no longer than what the server adds to each: "
            "where sent, they have one token beside it, and so are longer than the trace says"
        )
    if beyond := (planned.left_out if planned is not None else 0) + sum(r.beyond for r in results):
        notes.append(f"{beyond:,} later turns of chats are beyond the run's end: they were not sent and do not count")
    not_sent = sum(r.not_sent for r in results)
    if figures.num_cut or not_sent:
        notes.append(f"stopped early: {figures.num_cut:,} requests were cut off, {not_sent:,} were never sent")
    if 0 < figures.ttft.num < 100:
        notes.append(f"p99 of {figures.ttft.num:,} requests is the slowest one: send at least 100 to believe it")
    return notes


def _quantiles(values: NDArray[np.float64]) -> tuple[float, ...]:
    if not len(values):
        return (0.0,) * len(QUANTILES)
    return tuple(weighted_quantiles(np.sort(values), np.ones(len(values)), QUANTILES).tolist())


def _too_late(what: str, lag_s: Sequence[float], latency: Latency, name: str) -> list[str]:
    for q, lag in zip(QUANTILES, lag_s, strict=True):
        figure = latency.at(q).value
        allowed = max(ALLOWED_S, ALLOWED_SHARE * figure)
        if lag > allowed and not math.isnan(figure):
            return [
                f"{what} {show_seconds(lag)} late at p{100 * q:.0f}, more than the {show_seconds(allowed)} that "
                f"{name} allows"
            ]
    return []


def _batching(ok: Requests, is_late: bool) -> list[str]:
    events, reads, tokens = (float(ok[name].sum()) for name in ("num_events", "num_reads", "num_tokens"))
    seen = float(ok["first_tokens"].sum() + ok.gap_tokens.sum())
    notes = []
    if events > (1 + TOGETHER) * reads:
        notes.append(
            f"the server batches its events, or the network does{', or the client was late' * is_late}: "
            f"{events / reads:.1f} came with each read, so ITL says when reads came, not when tokens were made"
        )
    if seen > (1 + TOGETHER) * events:
        notes.append(f"an event holds {seen / events:.1f} tokens: ITL is 0 inside an event, TPOT is the average")
    if tokens > (1 + TOGETHER) * seen:
        notes.append(
            f"the usage at the end counts {tokens / seen:.1f} tokens for each that was seen, but not which event held "
            "them: ITL is that of events, TPOT that of tokens"
        )
    return notes


def _lengths(ok: Requests) -> list[str]:
    notes = []
    short = int((ok["num_tokens"] < ok["wished_output"]).sum())
    if short:
        mean = float(ok["num_tokens"].mean())
        notes.append(f"{short:,} of {len(ok):,} answers ended before the wished length; the mean is {mean:.1f} tokens")
    known = (ok["prompt_tokens"] >= 0) & (ok["wished_input"] >= 0)
    off = (ok["prompt_tokens"] - ok["wished_input"])[known]
    if off.any():
        notes.append(
            f"{int((off != 0).sum()):,} of {len(off):,} prompts are not of the wished length: by the server's count "
            f"they are {int(off.min()):+d} to {int(off.max()):+d} tokens off"
        )
    return notes


def _caching(ok: Requests) -> list[str]:
    said = ok["cached_tokens"] >= 0
    prompt, cached = int(ok["prompt_tokens"][said].sum()), int(ok["cached_tokens"][said].sum())
    if prompt <= 0 or cached < 0.01 * prompt:
        return []
    return [f"{cached / prompt:.1%} of the prompt tokens were found in the server's prefix cache"]


def _refusals(requests: Requests) -> list[str]:
    notes = []
    for status in (429, 503):
        refused = requests["status"] == status
        told = requests["retry_after_s"][refused]
        told = told[told >= 0]
        if len(told):
            notes.append(
                f"{int(refused.sum()):,} requests got {status}; Retry-After was {told.min():g} to {told.max():g} s "
                "(they were not sent again)"
            )
        elif status == 429 and refused.any():
            notes.append(f"{int(refused.sum()):,} requests got 429, without a Retry-After that can be read")
    return notes
