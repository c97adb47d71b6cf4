"""The next step is submitted while one runs: what ends, leaves or fails meanwhile changes no other token."""

from __future__ import annotations

import pytest
from driving import Driver, alone, request
from fake_runner import FakeRunner

from trivet.config import CacheConfig, SchedulerConfig
from trivet.engine.engine import Engine
from trivet.engine.messages import EngineRequest, FinishReason, Tokens


def driver(**settings: object) -> Driver:
    return Driver(FakeRunner(max_under_way=2), **settings)


def num_under_way(d: Driver) -> int:
    return len(d.runner._results)


def test_a_step_is_under_way_when_the_events_of_the_last_one_come() -> None:
    d = driver()
    d.add(request(max_tokens=4))
    seen = []
    while d.engine.has_work:
        d.step()
        seen.append((num_under_way(d), len(d.tokens())))
    assert seen == [(1, 1), (1, 2), (1, 3), (0, 4)]  # that the fourth is the last one is known before it is sampled
    assert d.tokens() == alone(request(max_tokens=4))[0].token_ids


def test_a_token_that_was_sampled_after_the_end_is_dropped() -> None:
    want = alone(request(max_tokens=8))[0].token_ids
    assert want[3] not in want[:3]
    message = request(max_tokens=8, stop_ids=(want[3],))
    d = driver()
    d.add(message, request("other", 70, max_tokens=30))
    d.run()
    output = d.outputs["r", 0]
    assert (output.token_ids, output.finish_reason, output.stop_id) == (want[:3], FinishReason.STOP, want[3])
    assert d.tokens("other") == alone(request("other", 70, max_tokens=30))[0].token_ids
    assert d.engine.stats().generation_tokens == 3 + 30
    assert d.engine.scheduler.pool.num_used == 0


def test_penalties_wait_for_the_token_that_they_count() -> None:
    message = request(max_tokens=20, presence_penalty=1.5)
    d = driver()
    d.add(message)
    d.step()
    assert num_under_way(d) == 0
    d.run()
    assert d.tokens() == alone(message)[0].token_ids


def test_min_tokens_waits_only_until_they_have_come() -> None:
    message = request(max_tokens=20, stop_ids=(3,), min_tokens=4)
    d = driver()
    d.add(message)
    seen = []
    for _ in range(6):
        d.step()
        seen.append(num_under_way(d))
    assert seen == [0, 0, 0, 0, 1, 1]
    d.run()
    assert d.tokens() == alone(message)[0].token_ids


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_request_is_cancelled_while_its_next_token_is_computed(steps: int) -> None:
    d = driver()
    d.add(request("gone", 40, max_tokens=50), request("stays", 45, max_tokens=20))
    for _ in range(steps):
        d.step()
    d.engine.cancel("gone")
    d.engine.check_invariants()
    d.add(request("gone", 60, max_tokens=10))  # gets the blocks that the step under way still writes
    d.run()
    assert d.tokens("gone") == alone(request("gone", 60, max_tokens=10))[0].token_ids
    assert d.tokens("stays") == alone(request("stays", 45, max_tokens=20))[0].token_ids


def test_what_comes_in_while_a_step_runs_is_part_of_the_next() -> None:
    d = driver()
    d.add(request("first", max_tokens=5))
    late = [request("late", 12, max_tokens=3)]

    def take_in() -> None:
        while late:
            d.add(late.pop())

    d.engine.step(take_in)
    assert len(d.runner.batches) == 2 and len(d.runner.batches[-1].context_lens) == 2
    names = {event.request_id for event in d.engine.step(take_in) if isinstance(event, Tokens)}
    assert names == {"first", "late"}


def test_a_step_that_fails_takes_the_one_that_built_on_it_along() -> None:
    d = driver(max_tokens_per_step=64)
    d.add(request("a", 40, max_tokens=20))
    d.step()
    d.runner.fail_computing = MemoryError("no more")
    d.add(request("b", 100, max_tokens=20))
    d.step()  # collects the step before it
    assert not d.failures
    d.step()
    assert set(d.failures) == {"a", "b"} and "no more" in d.failures["a"].message
    assert not d.engine.has_work and num_under_way(d) == 0
    d.add(request("b", 100, max_tokens=20))
    d.run()
    timings = d.outputs["b", 0].timings
    assert timings is not None and timings.num_cached_tokens == 0, "a block that was never computed was shared"
    assert d.tokens("b") == alone(request("b", 100, max_tokens=20))[0].token_ids


def test_who_took_over_blocks_of_a_step_that_failed_is_computed_again() -> None:
    """The second request waits for the first one's next block, so it is in neither step that fails."""
    d = driver(max_tokens_per_step=64)
    d.add(request("a", 100, max_tokens=10), request("b", 100, max_tokens=10))
    d.runner.fail_computing = MemoryError("no more")
    d.run()
    want = alone(request("b", 100, max_tokens=10))[0].token_ids
    assert set(d.failures) == {"a"} and d.tokens("b") == want
    d.add(request("c", 100, max_tokens=10))
    d.run()
    assert d.tokens("c") == want


def test_a_fresh_engine_begins_with_an_idle_runner() -> None:
    d = driver()
    d.add(request(max_tokens=50))
    d.step()
    assert num_under_way(d) == 1
    engine = Engine(
        d.runner, SchedulerConfig(itl_target_s=0.0), CacheConfig(block_size=d.runner.block_size), clock=d.runner.clock
    )
    engine.submit(EngineRequest(request_id="new", prompt_token_ids=[1, 2], sampling=request().sampling))
    tokens = []
    while engine.has_work:
        tokens += [t for event in engine.step() if isinstance(event, Tokens) for t in event.token_ids]
    assert tokens == alone(request("new", [1, 2]))[0].token_ids


def test_no_time_between_steps_counts_as_the_hosts() -> None:
    d = driver()
    d.add(request(max_tokens=100))
    while d.engine.has_work:
        d.step()
        d.runner.clock.now += 0.004
    d.runner.clock.now += 60.0
    d.add(request(max_tokens=2))
    d.run()
    assert d.engine.stats().host_s_p99 <= 0.005  # the idle minute is nobody's
