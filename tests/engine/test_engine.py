"""What the engine promises a client: how sequences end, seeds, log probabilities, failures, cancellation, counts."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from driving import Driver, alone, request
from fake_runner import FakeRunner

from trivet.config import CacheConfig, SchedulerConfig
from trivet.engine.engine import Engine
from trivet.engine.messages import FinishReason
from trivet.errors import ConfigError


def greedy(num_tokens: int, prompt: int = 10) -> list[int]:
    """What the fake model says after the usual prompt."""
    return alone(request(prompt=prompt, max_tokens=num_tokens))[0].token_ids


# --- how a sequence ends ----------------------------------------------------------------------------------------------


def test_max_tokens_ends_with_length() -> None:
    driver = Driver()
    driver.add(request(max_tokens=3))
    driver.run()
    output = driver.outputs["r", 0]
    assert len(output.token_ids) == 3 and output.finish_reason is FinishReason.LENGTH and output.stop_id is None


def test_a_stop_token_is_told_apart_from_the_text() -> None:
    said = greedy(20)
    stop_id = next(t for i, t in enumerate(said) if i >= 4 and t not in said[:i])
    driver = Driver()
    driver.add(request(max_tokens=20, stop_ids=(stop_id,), logprobs=1))
    driver.run()
    output = driver.outputs["r", 0]
    assert output.token_ids == said[: said.index(stop_id)]
    assert len(output.logprobs) == len(output.token_ids)
    assert output.finish_reason is FinishReason.STOP and output.stop_id == stop_id


def test_no_stop_before_min_tokens() -> None:
    stop_ids = tuple(range(0, 50, 2))
    driver = Driver()
    driver.add(request(max_tokens=200, min_tokens=30, stop_ids=stop_ids))
    driver.run()
    output = driver.outputs["r", 0]
    assert len(output.token_ids) >= 30
    assert not set(output.token_ids) & set(stop_ids)
    assert output.finish_reason is FinishReason.STOP and output.stop_id in stop_ids


def test_the_context_is_used_to_its_last_token() -> None:
    driver = Driver(FakeRunner(max_context=64, num_blocks=2))
    driver.add(request(prompt=40, max_tokens=24))
    driver.run()
    assert len(driver.tokens()) == 24
    assert driver.runner.batches[-1].context_lens.tolist() == [63], "the last token needs no keys and values"


def test_without_max_tokens_the_context_is_the_limit() -> None:
    driver = Driver(FakeRunner(max_context=64))
    driver.add(request(prompt=60, max_tokens=None))
    driver.run()
    assert len(driver.tokens()) == 4


# --- how a token is drawn ---------------------------------------------------------------------------------------------


def test_a_drawn_seed_is_reported_and_repeats_the_tokens() -> None:
    driver = Driver()
    driver.add(request("a", temperature=1.0, seed=None), request("b", temperature=1.0, seed=None))
    assert 0 <= driver.seeds["a"] < 2**53 and driver.seeds["a"] != driver.seeds["b"]
    driver.add(request("c", temperature=1.0, seed=driver.seeds["a"]))
    driver.run()
    assert driver.tokens("a") == driver.tokens("c") != driver.tokens("b")


def test_a_negative_seed_is_its_unsigned_twin() -> None:
    driver = Driver()
    driver.add(request("a", temperature=1.0, seed=-1), request("b", temperature=1.0, seed=2**64 - 1))
    assert driver.seeds == {"a": -1, "b": 2**64 - 1}, "as they were sent"
    driver.run()
    assert driver.tokens("a") == driver.tokens("b")


def test_the_sequences_of_a_request_differ_and_share_the_prompt() -> None:
    driver = Driver()
    driver.add(request(prompt=100, n=3, temperature=1.0))
    driver.run()
    assert len({tuple(driver.tokens("r", i)) for i in range(3)}) == 3
    num_computed = sum(len(batch.token_ids) for batch in driver.runner.batches)
    assert num_computed == 100 + 2 * (100 - 96) + 3 * 7, "the others compute only what does not fill a block"


def test_sampling_settings_arrive_in_their_rows() -> None:
    driver = Driver()
    driver.add(
        request("a", temperature=0.5, top_k=7, top_p=0.25, min_p=0.125, seed=9, n=2, logprobs=3),
        request("b", [1], temperature=None, top_k=-1, top_p=None, min_p=None, seed=8),
    )
    driver.step()
    driver.step()
    batch = driver.runner.batches[-1]
    assert sorted(batch.sample_idx.tolist()) == [0, 0, 1]
    for r in range(3):
        mine = batch.seed[r] == 9
        got = (batch.temperature[r], batch.top_k[r], batch.top_p[r], batch.min_p[r], batch.num_logprobs[r])
        assert got == ((0.5, 7, 0.25, 0.125, 3) if mine else (1.0, 0, 1.0, 0.0, -1))


def test_bias_and_mask_arrive_in_their_rows() -> None:
    driver = Driver()
    driver.add(
        request("plain", [1]),
        request("biased", [2], logit_bias={4: 1.5, 40: -100.0}),
        request("masked", [3], allowed_token_ids=(0, 31, 32, 49)),
    )
    driver.step()
    batch = driver.runner.batches[-1]
    assert batch.bias_starts.tolist() == [0, 0, 2, 2]
    assert dict(zip(batch.bias_ids.tolist(), batch.bias_values.tolist(), strict=True)) == {4: 1.5, 40: -100.0}
    assert batch.mask_idx.tolist() == [-1, -1, 0]
    assert batch.masks.tolist() == [[1 | 1 << 31, 1 | 1 << 17]]
    driver.run()
    assert set(driver.tokens("masked")) <= {0, 31, 32, 49}


def test_penalties_follow_the_output() -> None:
    driver = Driver()
    driver.add(request(max_tokens=30, presence_penalty=0.5, frequency_penalty=0.25, logit_bias={3: 1.0}))
    driver.run()
    said, batch = driver.tokens(), driver.runner.batches[-1]
    want = {i: -0.5 - 0.25 * said[:-1].count(i) for i in said[:-1]}
    want[3] = want.get(3, 0.0) + 1.0
    assert dict(zip(batch.bias_ids.tolist(), batch.bias_values.tolist(), strict=True)) == want
    assert said != greedy(30)


# --- log probabilities and logits -------------------------------------------------------------------------------------


def test_logprobs_come_with_their_tokens() -> None:
    driver = Driver()
    driver.add(request("k", max_tokens=5, logprobs=4), request("own", max_tokens=5, logprobs=0), request("none"))
    driver.run()
    for output in (driver.outputs["k", 0], driver.outputs["own", 0]):
        assert [entry.token_id for entry in output.logprobs] == output.token_ids
    entry = driver.outputs["k", 0].logprobs[0]
    assert len(entry.top_ids) == len(entry.top_logprobs) == 4
    assert (entry.rank, entry.top_ids[0], entry.top_logprobs[0]) == (1, entry.token_id, entry.logprob)  # greedy
    assert driver.outputs["own", 0].logprobs[0].top_ids == []
    assert driver.outputs["none", 0].logprobs == []


@pytest.mark.parametrize("max_tokens_per_step", [3, 32, 512])
def test_prompt_logprobs_and_logits_are_those_of_every_row(max_tokens_per_step: int) -> None:
    driver = Driver(max_tokens_per_step=max_tokens_per_step)
    driver.add(request("warm", 70))
    driver.run()
    driver.add(request("r", 70, n=2, prompt_logprobs=2, return_logits=True), request("beside", 50))
    driver.run()
    info = driver.prompts["r"]
    prompt = request("r", 70).prompt_token_ids
    assert info.logits is not None and info.logprobs is not None and info.num_cached_tokens == 0
    logits = np.frombuffer(info.logits, np.float32).reshape(70, 50).astype(np.float64)
    lps = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert info.logprobs[0] is None and len(info.logprobs) == 70
    for position, entry in enumerate(info.logprobs[1:]):
        assert entry is not None and entry.token_id == prompt[position + 1]
        assert entry.logprob == pytest.approx(lps[position, entry.token_id], abs=1e-5)
        assert entry.rank == 1 + (logits[position] > logits[position, entry.token_id]).sum()
        assert entry.top_ids == np.argsort(-logits[position], kind="stable")[:2].tolist()
    assert driver.tokens("r") == driver.tokens("warm")


def test_prompt_rows_come_once_even_if_the_prompt_is_preempted() -> None:
    scored = request("r", 90, prompt_logprobs=1, max_tokens=1)
    driver = Driver(FakeRunner(num_blocks=5), max_tokens_per_step=3)
    driver.add(request("first", [1] * 31, max_tokens=60), scored)
    num_rows = 0
    while driver.engine.has_work:
        driver.step()
        num_rows += len(driver.runner.batches[-1].score_rows)
    timings = driver.outputs["r", 0].timings
    assert timings is not None and timings.num_preemptions == 1
    assert num_rows == 89
    want = Driver()
    want.add(scored)
    want.run()
    assert driver.prompts["r"].logprobs == want.prompts["r"].logprobs


def test_logits_of_a_one_token_prompt() -> None:
    driver = Driver()
    driver.add(request(prompt=[5], return_logits=True, prompt_logprobs=0, max_tokens=1))
    driver.run()
    info = driver.prompts["r"]
    assert info.logprobs == [None] and info.logits is not None and len(info.logits) == 4 * 50


def test_full_logits_are_fetched_a_bounded_number_at_a_time() -> None:
    driver = Driver(FakeRunner(vocab_size=2**20, max_context=64))
    driver.add(request(prompt=20, return_logits=True, max_tokens=1))
    driver.run()
    assert [len(batch.logits_rows) for batch in driver.runner.batches] == [16, 4]


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_failed_step_fails_its_requests_and_names_them() -> None:
    driver = Driver(max_num_seqs=2)
    driver.add(request("a", 40), request("b", 50), request("waits", 60))
    driver.step()
    driver.runner.fail_next = RuntimeError("the kernel said no")
    driver.step()
    assert set(driver.failures) == {"a", "b"}
    for failure in driver.failures.values():
        assert failure.kind == "TrivetError"
        assert "the kernel said no" in failure.message and "a, b" in failure.message
    driver.run()
    assert driver.tokens("waits") == greedy(8, 60)
    driver.add(request("a", 40))
    driver.run()
    assert driver.tokens("a") == greedy(8, 40)


def test_a_failed_step_ends_all_sequences_of_its_requests() -> None:
    driver = Driver(max_tokens_per_step=4)
    driver.add(request(prompt=10, n=3))
    driver.runner.fail_next = ValueError("shapes")
    driver.step()
    assert set(driver.failures) == {"r"} and not driver.engine.has_work


def test_logits_that_are_not_finite_fail_only_their_request() -> None:
    driver = Driver()
    driver.add(request("good", [1, 2]), request("bad", [3, 4]))
    driver.runner.damage = {3}
    driver.step()
    driver.runner.damage = set()
    driver.run()
    assert set(driver.failures) == {"bad"}
    assert driver.failures["bad"].kind == "TrivetError" and "position 2" in driver.failures["bad"].message
    assert driver.tokens("good") == alone(request("good", [1, 2]))[0].token_ids


def test_one_damaged_sequence_ends_its_request_once() -> None:
    driver = Driver()
    driver.add(request(prompt=40, n=3, max_tokens=20))
    driver.step()
    driver.step()
    driver.runner.damage = set(range(50))
    driver.step()
    assert set(driver.failures) == {"r"} and not driver.engine.has_work


def test_damaged_blocks_are_not_shared_any_more() -> None:
    driver = Driver()
    driver.add(request("bystander", 100, max_tokens=60), request("done", 90))
    for _ in range(20):
        driver.step()
    assert driver.engine.stats().kv_blocks_cached >= 0 and len(driver.engine.scheduler.tree or ()) > 0
    driver.add(request("bad", 100, salt="x"))
    driver.runner.damage = {100}
    driver.step()
    driver.runner.damage = set()
    assert set(driver.failures) == {"bad"}
    assert len(driver.engine.scheduler.tree or ()) == 0
    driver.add(request("after", 100))
    driver.run()
    timings = driver.outputs["after", 0].timings
    assert timings is not None and timings.num_cached_tokens == 0
    assert driver.tokens("after") == greedy(8, 100)
    assert driver.tokens("bystander") == greedy(60, 100)


def test_a_deadline_that_passes_fails_the_request() -> None:
    driver = Driver(max_num_seqs=1)
    driver.add(request("long", 10, max_tokens=50), request("late", 20, deadline_s=0.1), request("calm", 20))
    driver.add(request("early", 5, deadline_s=60.0))
    driver.run()
    assert set(driver.failures) == {"late"}
    assert driver.failures["late"].kind == "Overloaded" and "0.1 s" in driver.failures["late"].message
    assert driver.tokens("calm") == greedy(8, 20)
    assert len(driver.tokens("early")) == 8


def test_deadlines_of_finished_requests_are_not_kept() -> None:
    driver = Driver(FakeRunner())
    for i in range(500):
        driver.add(request(f"r{i}", 5, deadline_s=3600.0, max_tokens=1))
        driver.run()
    assert len(driver.engine._deadlines) <= 66


def test_a_deadline_does_not_outlive_its_request() -> None:
    driver = Driver()
    driver.add(request("r", 5, deadline_s=0.2, max_tokens=2))
    driver.run()
    driver.add(request("r", 5, max_tokens=100))
    driver.run()
    assert not driver.failures


def test_the_block_sizes_must_agree() -> None:
    with pytest.raises(ConfigError, match=r"`cache.block_size` is 64.*32"):
        Engine(FakeRunner(), SchedulerConfig(), CacheConfig(block_size=64))


def test_only_accepted_requests_can_be_added() -> None:
    with pytest.raises(KeyError):
        Driver().engine.add(request("unknown"))


# --- cancellation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_steps", range(0, 14))
@pytest.mark.parametrize("index", [None, 0, 1])
def test_cancel_at_any_moment(num_steps: int, index: int | None) -> None:
    driver = Driver(FakeRunner(num_blocks=12), max_tokens_per_step=16)
    driver.add(request("gone", 70, n=3, temperature=1.0), request("stays", 80, temperature=1.0))
    for _ in range(num_steps):
        driver.step()
    driver.engine.cancel("gone", index)
    driver.engine.cancel("gone", index)
    driver.engine.check_invariants()
    before = {key: len(output.token_ids) for key, output in driver.outputs.items()}
    driver.run()
    for i in range(3):
        if index in (None, i):
            assert len(driver.tokens("gone", i)) == before.get(("gone", i), 0), "tokens after the cancellation"
        else:
            assert driver.tokens("gone", i) == alone(request("gone", 70, n=3, temperature=1.0))[i].token_ids
    assert driver.tokens("stays") == alone(request("stays", 80, temperature=1.0))[0].token_ids
    assert driver.engine.admission.num_open == 0


def test_all_sequences_cancelled_one_by_one_end_the_request() -> None:
    driver = Driver(max_tokens_per_step=16)
    driver.add(request(prompt=70, n=3))
    driver.step()
    for index in (0, 2, 1):
        assert driver.engine.has_work
        driver.engine.cancel("r", index)
        driver.engine.check_invariants()
    assert not driver.engine.has_work


def test_unknown_cancellations_are_ignored() -> None:
    driver = Driver()
    driver.add(request())
    driver.engine.cancel("unknown")
    driver.engine.cancel("r", 5)
    driver.run()
    driver.engine.cancel("r")
    assert len(driver.tokens()) == 8
    assert driver.step() == []


def test_an_id_can_be_used_again_after_its_end() -> None:
    driver = Driver()
    for _ in range(2):
        driver.add(request())
        driver.run()
        assert driver.tokens() == greedy(8)


def test_what_is_over_is_freed_without_the_garbage_collector() -> None:
    driver = Driver()
    driver.add(request("ends", n=2), request("cancelled"))
    driver.step()
    seqs = [weakref.ref(seq) for seq in driver.engine.scheduler.running]
    assert len(seqs) == 2
    del driver.runner.batches[:]
    driver.engine.cancel("cancelled")
    gc.disable()
    try:
        driver.run()
        driver.add(request("next"))
        driver.run()
        assert [ref() for ref in seqs] == [None, None]
    finally:
        gc.enable()


# --- what is counted --------------------------------------------------------------------------------------------------


def test_timings_of_a_sequence() -> None:
    driver = Driver(max_num_seqs=1, max_tokens_per_step=20)
    driver.add(request("first", 10, max_tokens=3), request("second", 40, max_tokens=5))
    driver.run()
    timings = driver.outputs["second", 0].timings
    assert timings is not None
    assert timings.queued_s == pytest.approx(0.015 + 2 * 0.0105)  # a prefill of 10 and two decode steps
    assert timings.prefill_s == pytest.approx(2 * 0.02)
    assert timings.decode_s == pytest.approx(4 * 0.0105)
    assert timings.num_cached_tokens == timings.num_preemptions == 0


def test_stats_add_up() -> None:
    driver = Driver(max_num_seqs=2)
    driver.add(request("a", 100, n=2), request("b", 100), request("c", 33))
    driver.step()
    stats = driver.engine.stats()
    assert (stats.num_running, stats.num_waiting) == (2, 1)
    driver.run()
    stats = driver.engine.stats()
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    assert stats.prompt_tokens == 233 and stats.generation_tokens == 4 * 8
    assert stats.kv_blocks_used == 0 and stats.kv_blocks_cached > 0 and stats.kv_blocks_total == 64
    assert stats.prefix_queries_tokens == 333 and stats.prefix_hits_tokens == 96 + 96 + 32
    assert stats.step_native_s == pytest.approx(driver.runner.clock.now - 1000.0)
    assert stats.num_steps > 8 and stats.prefill_tokens_per_s > 0 and stats.decode_tokens_per_s > 0
    assert stats.time_s == driver.runner.clock.now


def test_host_time_is_the_gap_between_native_calls() -> None:
    driver = Driver(max_num_seqs=1)
    driver.add(request(max_tokens=200))
    for i in range(100):
        driver.step()
        driver.runner.clock.now += 0.0001 if i < 97 else 0.005
    stats = driver.engine.stats()
    assert stats.step_host_s == pytest.approx(97 * 0.0001 + 2 * 0.005)
    assert stats.host_s_p99 == pytest.approx(0.005)
    driver.runner.fail_next = RuntimeError("failed")
    driver.add(request("waits", max_tokens=2))
    driver.step()
    driver.runner.clock.now += 100.0  # what a failure takes is not host time either
    driver.add(request("after", max_tokens=2))
    driver.run()
    driver.runner.clock.now += 100.0  # idle time is nobody's
    driver.add(request(max_tokens=2))
    driver.run()
    assert driver.engine.stats().step_host_s < 0.1
