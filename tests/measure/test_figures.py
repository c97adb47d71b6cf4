"""Figures of runs whose every time is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from requests_made import exchange, requests, result

from trivet.errors import ConfigError
from trivet.measure.metrics import figures_of, throughput, token_times
from trivet.measure.outcomes import Outcome
from trivet.measure.results import requests_of
from trivet.measure.slo import Slo, parse_slo
from trivet.measure.validity import ALLOWED_S, client_state, notes_of

HUNDRED = [exchange(i, i * 0.1, 0.010 * (i + 1), [0.02] * 4) for i in range(100)]


def test_latencies_count_from_the_intended_time() -> None:
    figures = figures_of(requests(HUNDRED), 0.0, None)
    assert [e.value for e in figures.ttft.quantiles] == pytest.approx([0.5, 0.9, 0.95, 0.99])
    assert [e.value for e in figures.itl.quantiles] == pytest.approx([0.02] * 4)
    assert (figures.itl.num, figures.itl.mean) == (400, pytest.approx(0.02))
    assert figures.tpot.at(0.5).value == pytest.approx(0.02)
    assert figures.e2e.at(0.99).value == pytest.approx(0.99 + 0.08)


def test_the_warm_up_does_not_count() -> None:
    figures = figures_of(requests(HUNDRED), 5.0, None)
    assert figures.num_requests == 50
    assert figures.ttft.at(0.5).value == pytest.approx(0.01 * 75)


def test_tokens_of_one_read_come_together() -> None:
    figures = figures_of(requests([exchange(0, 0.0, 0.1, [0.06, 0.06], [1, 3, 3])]), 0.0, None)
    assert (figures.itl.num, figures.itl.mean, figures.itl.longest) == (6, pytest.approx(0.02), 0.06)
    assert [figures.itl.at(q).value for q in (0.5, 0.9)] == [0.0, 0.06]
    assert figures.tpot.at(0.5).value == pytest.approx(0.02), "the average over the answer does not mind"


def test_one_token_has_no_time_per_further_token() -> None:
    figures = figures_of(requests([exchange(0, 0.0, 0.1)]), 0.0, Slo(limits_s={"tpot": 0.001}))
    assert figures.tpot.num == figures.itl.num == 0 and math.isnan(figures.tpot.mean)
    assert figures.attainment is not None and figures.attainment.value == 1.0


def test_failures_are_counted_and_missed() -> None:
    some = [exchange(i, 0.1 * i, 0.01, outcome=Outcome.http_429 if i % 4 == 0 else Outcome.ok) for i in range(20)]
    some.append(exchange(20, 2.0, 0.01, outcome=Outcome.cut))
    figures = figures_of(requests(some), 0.0, Slo(limits_s={"ttft": 1.0}))
    assert (figures.num_requests, figures.num_ok, figures.num_cut) == (21, 15, 1)
    assert figures.failures == {"http_429": 5}
    assert figures.attainment is not None and figures.attainment.value == 0.75
    assert figures.goodput == pytest.approx(15 / 2.1), "21 requests, 0.1 s apart"
    assert figures_of(requests(some), 0.0, Slo(limits_s={"ttft": 1.0}), sending_s=5.0).goodput == pytest.approx(3.0)


def test_a_closed_loop_s_goodput_is_over_the_whole_run() -> None:
    """Two requests that are sent at once would otherwise be an endless rate."""
    both = requests([exchange(i, 1e-5 * i, 0.1, [0.4]) for i in range(2)])
    figures = figures_of(both, 0.0, Slo(limits_s={"ttft": 1.0}), is_closed=True)
    assert figures.goodput == pytest.approx(2 / 0.5, rel=1e-3) and figures.offered is None


def test_the_rate_that_was_offered() -> None:
    assert figures_of(requests(HUNDRED), 0.0, None).offered == pytest.approx(10)
    assert figures_of(requests(HUNDRED), 0.0, None, sending_s=20.0).offered == pytest.approx(5)


def test_no_request_at_all() -> None:
    figures = figures_of(requests([]), 0.0, Slo(limits_s={"ttft": 1.0}))
    assert figures.num_requests == 0 and math.isnan(figures.ttft.at(0.5).value)


# --- throughput ---------------------------------------------------------------------------------------------------


def test_every_read_has_its_time() -> None:
    times, tokens = token_times(requests([exchange(0, 0.0, 1.0, [0.5, 0.25], [2, 1, 3]), exchange(1, 1.0, 2.0, [1.0])]))
    assert sorted(zip(times.tolist(), tokens.tolist(), strict=True)) == [
        (1.0, 2), (1.5, 1), (1.75, 3), (3.0, 1), (4.0, 1)
    ]  # fmt: skip


def test_throughput_is_what_came_in_the_time() -> None:
    found = throughput(requests(HUNDRED), 0.0, 10.98)  # the last: 9.9 + 1.0 + 0.08
    assert (found.output_tokens, found.input_tokens, found.requests) == (500, 1000, 100)
    assert found.rate(found.output_tokens) == pytest.approx(500 / 10.98)
    half = throughput(requests(HUNDRED), 0.0, 5.0)
    assert 200 < half.output_tokens < 240
    assert math.isnan(throughput(requests(HUNDRED), 1.0, 1.0).rate(5))


def test_tokens_that_only_usage_knows_are_spread_over_the_reads() -> None:
    one = exchange(0, 0.0, 1.0, [1.0, 1.0])
    one.num_tokens = 6
    _, tokens = token_times(requests([one]))
    assert tokens.tolist() == [2.0, 2.0, 2.0]


def test_workers_are_joined_in_order() -> None:
    joined = requests_of([result(HUNDRED[1::2]), result(HUNDRED[::2])], 100.0)
    alone = requests(HUNDRED)
    for name in alone.columns:
        assert np.array_equal(joined[name], alone[name]), name
    assert np.array_equal(joined.gap_owner, alone.gap_owner) and np.allclose(joined.gap_s, alone.gap_s)


# --- limits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "met"),
    [
        ({"ttft": 0.5}, 50), ({"e2e": 0.58}, 50), ({"tpot": 0.0201}, 100), ({"tpot": 0.019}, 0), ({"itl": 0.021}, 100),
        ({"itl_max": 0.019}, 0), ({"ttft": 0.5, "tpot": 0.019}, 0),
    ],
)  # fmt: skip
def test_a_request_meets_all_limits_or_misses(limits: dict[str, float], met: int) -> None:
    slack = {name: limit + 1e-9 for name, limit in limits.items()}
    assert Slo(limits_s=slack).met(requests(HUNDRED)).sum() == met


def test_itl_forgives_one_gap_in_twenty() -> None:
    gaps = [0.01] * 19 + [0.5]
    one = requests([exchange(0, 0.0, 0.1, gaps)])
    assert Slo(limits_s={"itl": 0.02}).met(one).tolist() == [True]
    assert Slo(limits_s={"itl_max": 0.02}).met(one).tolist() == [False]
    assert Slo(limits_s={"itl": 0.02}).met(requests([exchange(0, 0.0, 0.1, gaps[1:])])).tolist() == [False]


def test_itl_does_not_forgive_what_batches_its_tokens() -> None:
    """64 tokens in 4 reads, 5 s apart: of 63 gaps between tokens only 3 are late, but of the 3 between reads all."""
    one = requests([exchange(0, 0.0, 0.1, [5.0] * 3, [16] * 4)])
    assert Slo(limits_s={"itl": 0.06}).met(one).tolist() == [False]


def test_limits_are_read() -> None:
    slo = parse_slo("ttft=500ms, itl=60ms,e2e=2m")
    assert slo.limits_s == pytest.approx({"ttft": 0.5, "itl": 0.06, "e2e": 120})
    assert str(slo) == "TTFT <= 500 ms, ITL <= 60.0 ms, E2E <= 120 s"


@pytest.mark.parametrize("text", ["ttft", "ttft=", "fast=1s", "", "ttft=500ms,,"])
def test_limits_that_cannot_be(text: str) -> None:
    with pytest.raises(ConfigError, match="`--slo` has the part"):
        parse_slo(text)
    with pytest.raises(ConfigError, match="`--slo ttft` is '5 parsecs', but it must be a time"):
        parse_slo("ttft=5 parsecs")


# --- the client and its notes -------------------------------------------------------------------------------------


def test_a_light_client_is_believed() -> None:
    state = client_state([result(HUNDRED)], requests(HUNDRED), figures_of(requests(HUNDRED), 0, None), 0.0)
    assert state.problems == () and state.cpu_share == pytest.approx(0.1)
    assert state.sending_lag_s == pytest.approx((0.0001,) * 4)


def test_a_figure_that_does_not_exist_allows_and_forbids_nothing() -> None:
    some = [exchange(i, i * 0.1, 0.1) for i in range(100)]
    found = requests(some)
    assert client_state([result(some, lags_s=[0.05])], found, figures_of(found, 0, None), 0.0).problems == ()


def test_requests_that_were_never_sent_were_not_sent_late() -> None:
    some = [exchange(0, 0.0, 0.1, [0.1]), exchange(1, 1.0, 0.1, outcome=Outcome.abandoned)]
    some[1].sent_s = -1.0
    found = requests(some)
    assert client_state([result(some)], found, figures_of(found, 0, None), 0.0).sending_lag_s[-1] < 0.001


@pytest.mark.parametrize(
    ("lags_s", "cpu_s", "late_s", "said"),
    [
        ([0.0001], 0.95, 0.0, "a client process used 95% of a core, more than 90%"),
        ([0.0001] * 50 + [0.003] * 50, 0.1, 0.0, "event loop came 3.00 ms late at p90, more than the 2.00 ms that ITL"),
        ([0.0001] * 93 + [0.003] * 7, 0.1, 0.0, "event loop came 3.00 ms late at p95, more than the 2.00 ms"),
        ([0.0001], 0.1, 0.06, "requests were sent 60.1 ms late at p50, more than the 25.0 ms that TTFT allows"),
    ],
)
def test_a_client_that_matters_makes_the_run_invalid(
    lags_s: list[float], cpu_s: float, late_s: float, said: str
) -> None:
    some = [exchange(i, i * 0.1, 0.010 * (i + 1), [0.02] * 4) for i in range(100)]
    for one in some:
        one.sent_s += late_s
    results = [result(some, lags_s=lags_s, cpu_s=cpu_s)]
    found = requests_of(results, 100.0)
    [problem] = client_state(results, found, figures_of(found, 0, None), 0.0).problems
    assert said in problem


def test_the_floor_is_what_the_instrument_is_tested_to() -> None:
    assert ALLOWED_S == 0.002


def notes(some: list, **changes: int) -> str:  # type: ignore[type-arg]
    made = result(some)
    for name, value in changes.items():
        made = type(made)(**{f: getattr(made, f) for f in made.__struct_fields__} | {name: value})
    found = requests(some)
    return "\n".join(notes_of([made], found, figures_of(found, 0, None)))


def test_a_good_server_needs_no_notes() -> None:
    assert notes(HUNDRED) == ""


def test_what_must_be_known_is_noted() -> None:
    some = [exchange(i, i * 0.1, 0.1, [0.02] * 4, [2, 2, 2, 1, 1]) for i in range(100)]
    for one in some:
        one.num_reads, one.num_events, one.num_tokens = 2, 4, 8
        one.wished_output, one.prompt_tokens, one.cached_tokens = 9, 12, 6
    said = notes(some, closed_by_server=90, opened=95, retried=3)
    for part in (
        "the server batches its events", "2.0 came with each read", "an event holds 2.0 tokens",
        "100 of 100 answers ended",
        "100 of 100 prompts are not of the wished length: by the server's count they are +2 to +2",
        "50.0% of the prompt",
        "closed 90 connections", "3 requests were sent again",
    ):  # fmt: skip
        assert part in said, part


def test_tokens_that_only_the_last_usage_counts_are_noted() -> None:
    some = [exchange(i, i * 0.1, 0.1, [0.02] * 4) for i in range(100)]
    for one in some:
        one.num_tokens = one.wished_output = 10
    said = notes(some)
    assert "the usage at the end counts 2.0 tokens for each that was seen" in said and "ITL is that of events" in said
    assert "ITL is 0 inside an event" not in said


@pytest.mark.parametrize("status", [429, 503])
def test_refusals_are_noted(status: int) -> None:
    outcome = Outcome.http_429 if status == 429 else Outcome.http_5xx
    some = [exchange(i, i * 0.1, 0.1, outcome=outcome) for i in range(3)]
    for one in some:
        one.status = status
    assert ("3 requests got 429, without a Retry-After" in notes(some)) is (status == 429)
    some[0].retry_after_s, some[1].retry_after_s = 2.0, 9.0
    assert f"3 requests got {status}; Retry-After was 2 to 9 s" in notes(some)


def test_turns_that_were_not_sent_are_noted() -> None:
    some = [exchange(0, 0.0, 0.1, outcome=Outcome.http_429), exchange(1, 0.1, 0.1, outcome=Outcome.abandoned)]
    said = notes(some, beyond=3)
    assert "1 later turns were not sent, as their chat had failed before" in said
    assert "3 later turns of chats are beyond the run's end" in said
    figures = figures_of(requests(some), 0.0, Slo(limits_s={"ttft": 1.0}))
    assert figures.num_requests == 2 and figures.attainment is not None and figures.attainment.value == 0


def test_a_stop_and_few_requests_are_noted() -> None:
    said = notes([exchange(0, 0.0, 0.1, [0.1])], not_sent=7)
    assert "stopped early: 0 requests were cut off, 7 were never sent" in said
    assert "p99 of 1 requests is the slowest one" in said
