"""From settings to jobs, and from jobs to bodies of exact lengths."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from trivet.errors import ConfigError
from trivet.measure.bench import choose_workers
from trivet.measure.bodies import BodyMaker
from trivet.measure.messages import Dialect, Job, Turn
from trivet.measure.plan import Plan, check_fits, plan
from trivet.measure.workers import deal
from trivet.measure.workload import Lengths, TraceChoice, Workload, parse_lengths

PIECES = [b"%d" % i for i in range(100, 400)]
OPTIONS = b'"model":"m","stream":true'


def dialect(**changes: Any) -> Dialect:
    made: dict[str, Any] = {"endpoint": "completions", "form": "ids", "pieces": PIECES, "options": OPTIONS}
    return Dialect(**(made | changes))


def lengths(job: Job) -> list[int]:
    return [sum(num for _, num in turn.blocks) for turn in job.turns]


# --- jobs ---------------------------------------------------------------------------------------------------------


def test_an_open_loop_of_a_duration() -> None:
    planned = plan(Workload(rate=50.0, duration_s=20.0, warmup_s=2.0, input=Lengths(low=64, high=128)), 3)
    times = [job.turns[0].at_s for job in planned.jobs]
    assert times == sorted(times) and times[0] > 0 and times[-1] < 22
    assert len(times) == planned.num_requests == pytest.approx(1100, rel=0.1)
    assert planned.span_s == 22 and planned.rate == pytest.approx(50, rel=0.1)
    inputs = [lengths(job)[0] for job in planned.jobs]
    assert (min(inputs), max(inputs)) == (64, 128)
    assert [job.index for job in planned.jobs] == list(range(len(times)))


def test_the_same_seed_is_the_same_load() -> None:
    workload = Workload(rate=20.0, duration_s=5.0, process="gamma")
    assert plan(workload, 1) == plan(workload, 1) != plan(workload, 2)


def test_a_number_of_requests_counts_after_the_warm_up() -> None:
    planned = plan(Workload(rate=10.0, duration_s=None, num_requests=40, warmup_s=3.0), 0)
    assert sum(job.turns[0].at_s >= 3.0 for job in planned.jobs) == 40


def test_a_closed_loop_has_no_times() -> None:
    planned = plan(Workload(concurrency=4, num_requests=10, duration_s=None), 0)
    assert len(planned.jobs) == 10 and {job.turns[0].at_s for job in planned.jobs} == {0.0}
    assert (planned.span_s, planned.rate) == (0.0, 0.0)


def test_the_rate_counts_the_requests_of_chats() -> None:
    planned = plan(Workload(rate=30.0, duration_s=20.0, turns=3, think_s=0.5), 0)
    assert planned.num_requests == pytest.approx(600, rel=0.2)
    whole = [job for job in planned.jobs if job.turns[0].at_s < 19]
    assert {len(job.turns) for job in whole} == {3}
    assert [turn.think_s for turn in planned.jobs[0].turns] == [0.0, 0.5, 0.5]
    assert [b.index - a.index for a, b in pairwise(whole)] == [3] * (len(whole) - 1)


def test_turns_that_cannot_be_due_before_the_end_are_left_out() -> None:
    planned = plan(Workload(rate=4.0, duration_s=30.0, turns=4, think_s=12.0), 0)
    assert {len(job.turns) for job in planned.jobs} == {1, 2, 3}
    for job in planned.jobs:
        assert job.turns[0].at_s + (len(job.turns) - 1) * 12 < 30
    assert planned.num_requests + planned.left_out == 4 * len(planned.jobs)
    assert [b.index - a.index for a, b in pairwise(planned.jobs)] == [len(job.turns) for job in planned.jobs[:-1]]


def test_a_number_of_requests_cuts_the_last_chat() -> None:
    planned = plan(Workload(rate=4.0, duration_s=None, num_requests=10, turns=4), 0)
    assert [len(job.turns) for job in planned.jobs] == [4, 4, 2]
    assert (planned.num_requests, planned.left_out) == (10, 2)


def test_a_session_ends_with_the_run(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("time_s,input_tokens,output_tokens,session\n0,4,4,a\n5,4,4,a\n30,4,4,a\n40,4,4,\n")
    planned = plan(Workload(trace=TraceChoice(path=tmp_path / "t.csv"), duration_s=10), 0)
    assert [[turn.at_s for turn in job.turns] for job in planned.jobs] == [[0.0, 5.0]]
    assert planned.left_out == 1


def test_a_ramp_begins_after_the_warm_up() -> None:
    profile = Workload(rate=1.0, ramp_to=9.0, warmup_s=10.0, duration_s=20.0).profile()
    assert [profile.rate_at(s) for s in (0, 9.9, 20, 30, 99)] == [1, 1, 5, 9, 9]


@pytest.mark.parametrize(
    "bound",
    [
        {"duration_s": 30.0},
        {"duration_s": None, "num_requests": 20},
        {"duration_s": 120.0, "num_requests": 20},
        {"duration_s": 120.0, "num_requests": 20, "turns": 2},
        {"duration_s": 30.0, "num_requests": 10_000},
    ],
)
def test_a_spike_after_the_end_is_refused(bound: dict[str, Any]) -> None:
    spiked = Workload(rate=4.0, spike=10.0, spike_at_s=30.0, warmup_s=2.0, **bound)
    with pytest.raises(ConfigError, match="after its warm-up, but the spike begins at 30 s"):
        plan(spiked, 0)
    plan(replace(spiked, spike_at_s=1.0), 0)


def test_a_shared_prefix() -> None:
    planned = plan(Workload(rate=10.0, duration_s=2.0, shared_prefix=100), 0)
    assert {tuple(job.turns[0].blocks[0]) for job in planned.jobs} == {(0, 100)}
    assert len({job.turns[0].blocks[1] for job in planned.jobs}) == len(planned.jobs)
    assert {lengths(job)[0] for job in planned.jobs} == {256}


def test_what_the_server_adds_is_left_out() -> None:
    assert {lengths(job)[0] for job in plan(Workload(rate=10.0), 0, overhead=6).jobs} == {250}
    short = Workload(rate=10.0, input=Lengths(low=7, high=7))
    assert {lengths(job)[0] for job in plan(short, 0, overhead=6).jobs} == {1}


def test_lengths_that_the_server_alone_exceeds_are_refused(tmp_path: Path) -> None:
    tiny = Workload(rate=10.0, input=Lengths(low=6, high=90))
    with pytest.raises(ConfigError, match=r"`--input-tokens` is 6\.\.90, but the server adds 6 tokens to each prompt"):
        plan(tiny, 0, overhead=6)
    (tmp_path / "s.csv").write_text("client,timestamp,rate,cv,pattern,param1,param2\n0,600,1.0,1.0,Gamma,1.0,0.04\n")
    with pytest.raises(ConfigError, match="`--input-tokens` is"):
        plan(replace(tiny, rate=None, trace=TraceChoice(path=tmp_path / "s.csv")), 0, overhead=6)


def test_prompts_of_a_trace_are_made_longer_than_what_the_server_adds(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("time_s,input_tokens,output_tokens,session\n0,6,4,a\n1,7,4,\n2,2,4,a\n")
    planned = plan(Workload(trace=TraceChoice(path=tmp_path / "t.csv"), duration_s=None), 0, overhead=6)
    assert [lengths(job) for job in planned.jobs] == [[1, 2], [1]]
    assert planned.num_lengthened == 1 and planned.longest == 7 + 4 + 2 + 4


def test_what_the_server_adds_to_each_turn_counts_for_the_longest() -> None:
    chats = Workload(rate=10.0, turns=10)
    alone = plan(chats, 0, overhead=6).longest
    assert plan(chats, 0, overhead=6, turn_overhead=5).longest == alone + 9 * 5


def test_a_trace_is_replayed_at_its_times(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("time_s,input_tokens,output_tokens,session\n0,40,4,a\n1,80,8,\n4,20,2,a\n9,9,9,\n")
    trace = TraceChoice(path=tmp_path / "t.csv", time_scale=0.5, duration_s=8, length_scale=0.5)
    planned = plan(Workload(trace=trace, duration_s=None), 0)
    assert [[turn.at_s for turn in job.turns] for job in planned.jobs] == [[0.0, 2.0], [0.5]]
    assert [lengths(job) for job in planned.jobs] == [[20, 10], [40]]
    assert planned.longest == 40 + 4, "of the chat it is 20 + 2 + 10 + 1"
    faster = plan(Workload(trace=TraceChoice(path=tmp_path / "t.csv", duration_s=8), rate=3.0, duration_s=None), 0)
    assert [turn.at_s for turn in faster.jobs[0].turns] == pytest.approx([0.0, 4 / 8])


@pytest.mark.parametrize(("start_s", "duration_s"), [(0.0, None), (50.0, 20.0), (0.0, 200.0), (10.0, 40.0)])
def test_the_asked_rate_is_sent_wherever_the_trace_ends(tmp_path: Path, start_s: float, duration_s: float) -> None:
    rows = "".join(f"{i},4,4\n" for i in range(101))
    (tmp_path / "t.csv").write_text("time_s,input_tokens,output_tokens\n" + rows)
    trace = TraceChoice(path=tmp_path / "t.csv", start_s=start_s, duration_s=duration_s)
    planned = plan(Workload(trace=trace, rate=5.0, duration_s=None), 0)
    gaps = {round(b.turns[0].at_s - a.turns[0].at_s, 2) for a, b in pairwise(planned.jobs)}
    assert gaps == {0.2}


@pytest.mark.parametrize(("start_s", "duration_s"), [(0.0, None), (300.0, 600.0), (0.0, 1200.0), (100.0, 400.0)])
def test_the_asked_rate_is_that_of_a_servegen_trace_too(tmp_path: Path, start_s: float, duration_s: float) -> None:
    (tmp_path / "s.csv").write_text("client,timestamp,rate,cv,pattern,param1,param2\n0,600,2.0,1.0,Gamma,1e4,0.04\n")
    trace = TraceChoice(path=tmp_path / "s.csv", start_s=start_s, duration_s=duration_s)
    planned = plan(Workload(trace=trace, rate=5.0, duration_s=None), 0)
    assert planned.rate == pytest.approx(5.0, rel=0.02)


def test_a_closed_loop_takes_a_trace_s_lengths_alone(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("time_s,input_tokens,output_tokens,session\n0,40,4,a\n90,80,8,\n95,20,2,a\n")
    planned = plan(Workload(trace=TraceChoice(path=tmp_path / "t.csv"), concurrency=2), 0)
    assert [[turn.at_s for turn in job.turns] for job in planned.jobs] == [[0.0, 0.0], [0.0]]


def test_mooncake_hashes_share_prefixes(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [7, 8, 9]},
        {"timestamp": 9, "input_length": 1030, "output_length": 6, "hash_ids": [7, 8, 11]},
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    trace = TraceChoice(path=tmp_path / "m.jsonl", length_scale=0.25)
    planned = plan(Workload(trace=trace, duration_s=None), 0)
    maker = BodyMaker(dialect(), 0)
    first, second = (json.loads(maker.body([maker.prompt(job.turns[0])], 5))["prompt"] for job in planned.jobs)
    assert (len(first), len(second)) == (275, 258)
    assert first[:256] == second[:256] and first[256:258] != second[256:258]


@pytest.mark.parametrize("scale", [0.1, 1 / 3, 0.3, 0.7])
def test_prompts_of_scaled_blocks_have_their_whole_length(tmp_path: Path, scale: float) -> None:
    row = {"timestamp": 0, "input_length": 6000, "output_length": 5, "hash_ids": list(range(12))}
    (tmp_path / "m.jsonl").write_text(json.dumps(row) + "\n")
    planned = plan(Workload(trace=TraceChoice(path=tmp_path / "m.jsonl", length_scale=scale), duration_s=None), 0)
    assert lengths(planned.jobs[0]) == [round(6000 * scale)]


@pytest.mark.parametrize("change", [{"length_scale": 0.5}, {"max_input": 9}, {"max_output": 9}])
def test_servegen_has_no_lengths_to_change(tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / "s.csv").write_text("client,timestamp,rate,cv,pattern,param1,param2\n0,600,1.0,1.0,Gamma,1.0,0.04\n")
    with pytest.raises(ConfigError, match="a ServeGen trace has no lengths"):
        plan(Workload(trace=TraceChoice(path=tmp_path / "s.csv", **change), duration_s=None), 0)


@pytest.mark.parametrize("change", [{"input": Lengths(low=9, high=9)}, {"output": Lengths(low=9, high=9)}])
def test_recorded_requests_have_their_own_lengths(tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / "t.csv").write_text("time_s,input_tokens,output_tokens\n0,40,4\n")
    trace = TraceChoice(path=tmp_path / "t.csv")
    with pytest.raises(ConfigError, match="`--input-tokens` and `--output-tokens` do nothing with a rows trace"):
        plan(Workload(trace=trace, duration_s=None, **change), 0)


def test_servegen_takes_the_lengths_of_the_workload(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("client,timestamp,rate,cv,pattern,param1,param2\n0,600,1.0,1.0,Gamma,1.0,0.04\n")
    trace = TraceChoice(path=tmp_path / "s.csv", duration_s=300)
    planned = plan(Workload(trace=trace, duration_s=None, input=Lengths(low=5, high=9)), 0)
    assert planned.num_requests == pytest.approx(300, rel=0.25)
    assert {lengths(job)[0] for job in planned.jobs} == {5, 6, 7, 8, 9}


def test_a_run_without_requests_is_refused() -> None:
    with pytest.raises(ConfigError, match="no request falls into this run"):
        plan(Workload(rate=0.001, duration_s=1.0), 0)


def test_a_request_that_the_model_cannot_hold_is_refused() -> None:
    planned = plan(Workload(rate=1.0), 0)
    check_fits(planned, 320, "demo")
    check_fits(planned, None, "demo")
    chat = Plan(
        jobs=[Job(0, [Turn(1, [], text="a"), Turn(1, [], text="b")])],
        num_requests=2,
        span_s=1,
        mean_output=1,
        longest=4,
    )
    check_fits(chat, None, "demo")
    with pytest.raises(ConfigError, match="sessions whose prompts are texts"):
        check_fits(chat, None, "demo", takes_texts=False)
    with pytest.raises(ConfigError, match="has 320 tokens with its answer, but `demo` can hold 319"):
        check_fits(planned, 319, "demo")


@pytest.mark.parametrize("text", ["", "0", "x", "5..", "9..3", "-4", "1..2..3"])
def test_lengths_that_cannot_be(text: str) -> None:
    with pytest.raises(ConfigError, match="`--input-tokens` is"):
        parse_lengths(text, "--input-tokens")
    assert str(parse_lengths("5..9", "x")) == "5..9" and str(parse_lengths("7", "x")) == "7"


def test_workers_are_as_many_as_the_load_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))

    def planned(rate: float) -> Plan:
        return Plan(jobs=[], num_requests=int(rate * 10), span_s=10.0, mean_output=100.0, longest=1)

    open_loop = Workload(rate=1.0)
    assert [choose_workers(open_loop, planned(rate)) for rate in (1, 100, 250, 10_000)] == [1, 2, 4, 8]
    spiked = Workload(rate=5.0, spike=50.0, spike_at_s=1.0)
    assert choose_workers(spiked, planned(5)) == 4, "the spike is 250 requests/s"
    assert [choose_workers(Workload(concurrency=n), planned(0)) for n in (1, 64, 512, 4096)] == [1, 1, 3, 8]


def test_jobs_are_dealt_out() -> None:
    planned = plan(Workload(rate=10.0, duration_s=3.0), 0)
    hands = deal(planned.jobs, 3)
    assert sorted(job.index for hand in hands for job in hand) == [job.index for job in planned.jobs]
    assert max(map(len, hands)) - min(map(len, hands)) <= 1


# --- bodies -------------------------------------------------------------------------------------------------------


def test_ids_are_of_exact_number_and_of_the_pieces() -> None:
    maker = BodyMaker(dialect(), 1)
    body = json.loads(maker.body([maker.prompt(Turn(8, [(5, 512), (-1, 100)]))], 8))
    assert len(body["prompt"]) == 612 and set(body["prompt"]) <= set(range(100, 400))
    assert (body["max_tokens"], body["model"], body["stream"]) == (8, "m", True)


def test_the_same_key_begins_with_the_same_tokens() -> None:
    maker = BodyMaker(dialect(), 1)
    whole, half = (maker.tokens((5, num)).split(b",") for num in (512, 200))
    assert whole[:200] == half
    assert (
        maker.tokens((5, 512)) == BodyMaker(dialect(), 1).tokens((5, 512)) != BodyMaker(dialect(), 2).tokens((5, 512))
    )
    assert maker.tokens((5, 512)) != maker.tokens((-5, 512))


def test_texts_are_joined_and_escaped() -> None:
    maker = BodyMaker(dialect(form="text", pieces=[b" one"]), 0)
    assert json.loads(maker.body([maker.prompt(Turn(8, [(1, 3)]))], 8))["prompt"] == " one one one"
    assert json.loads(maker.body([maker.prompt(Turn(8, [], text='say "hi"\n'))], 8))["prompt"] == 'say "hi"\n'
    ids = BodyMaker(dialect(), 0)
    assert json.loads(ids.body([ids.prompt(Turn(8, [], text="7 wonders"))], 8))["prompt"] == "7 wonders"


def test_a_chat_goes_on_with_what_was_said() -> None:
    maker = BodyMaker(dialect(endpoint="chat", form="text", pieces=[b" one"]), 0)
    said, num = maker.answer(['a "b', "c"], 0, 2)
    messages = json.loads(maker.body([b" one", said, b" one one"], 8))["messages"]
    assert messages == [
        {"role": "user", "content": " one"}, {"role": "assistant", "content": 'a "bc'},
        {"role": "user", "content": " one one"},
    ]  # fmt: skip
    assert num == -1, "text is not counted here"


def test_ids_go_on_with_the_ids_of_the_answer_or_as_many_others() -> None:
    maker = BodyMaker(dialect(), 0)
    assert maker.answer([7, 8, 9], 0, 3) == (b"7,8,9", 3)
    made_up, num = maker.answer(["text"], 4, 5)
    assert num == 5 and len(made_up.split(b",")) == 5
    assert maker.answer([], 4, 5) == (made_up, 5)


def test_blocks_that_are_not_used_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trivet.measure.bodies.CACHED_BLOCKS", 2)
    maker = BodyMaker(dialect(), 0)
    before = [maker.tokens((key, 4)) for key in range(5)]
    assert len(maker._shared) == 2
    assert [maker.tokens((key, 4)) for key in range(5)] == before
