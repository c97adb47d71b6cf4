"""Results of runs, as a worker would have given them, without a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from trivet.measure.messages import Result
from trivet.measure.outcomes import Exchange, Outcome
from trivet.measure.results import Requests, columns_of, requests_of


def exchange(  # noqa: PLR0917
    index: int,
    intended_s: float,
    ttft_s: float,
    gaps: Sequence[float] = (),
    tokens: Iterable[int] = (),
    outcome: Outcome = Outcome.ok,
) -> Exchange:
    """A finished request; `tokens` are those of each read, one each unless given."""
    made = Exchange(index, 100.0 + intended_s, b"")
    made.sent_s = made.intended_s + 0.0001
    made.outcome = outcome
    counts = list(tokens) or [1] * (1 + len(gaps))
    if outcome is Outcome.ok:
        made.first_s = made.intended_s + ttft_s
        made.first_tokens = counts[0]
        made.last_s = made.first_s + sum(gaps)
        made.gaps.extend(gaps)
        made.gap_tokens.extend(counts[1:])
        made.num_tokens = sum(counts)
        made.num_events = made.num_reads = len(counts)
    made.wished_output = made.num_tokens
    made.wished_input = made.prompt_tokens = 10
    return made


def result(exchanges: Sequence[Exchange], *, lags_s: Sequence[float] = (0.0001,), cpu_s: float = 0.1) -> Result:
    """What a worker with these exchanges reports."""
    return Result(columns_of(exchanges, lags_s), {}, 1, 0, 0, 0, cpu_s, 1.0)


def requests(exchanges: Sequence[Exchange]) -> Requests:
    """The run of one worker that began at 100 s."""
    return requests_of([result(exchanges)], 100.0)
