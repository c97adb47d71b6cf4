"""Law 1 at the engine's level: whatever the load, each request gets the tokens that it gets alone.

`FakeRunner` makes every token depend on the contents of all blocks before it, so any mistake of tables, chunks,
sharing, eviction or preemption shows as a different token.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from driving import Driver, Output, alone, request
from fake_runner import Cost, FakeRunner

from trivet.engine import scheduler
from trivet.engine.messages import EngineRequest

VOCAB = 50


def random_request(rng: random.Random, name: str, bases: list[list[int]], max_context: int) -> EngineRequest:
    """A prompt that often begins like others, with settings of every kind."""
    prompt = list(rng.choice(bases))[: rng.randint(1, rng.choice([30, 120]))] if rng.random() < 0.7 else []
    prompt += [rng.randrange(VOCAB) for _ in range(rng.randint(0 if prompt else 1, 40))]
    max_tokens = min(rng.choice([1, 3, 12, 40, 150]), max_context - len(prompt))
    settings: dict[str, Any] = {"max_tokens": max_tokens, "seed": rng.randrange(2**64)}
    settings["temperature"] = rng.choice([0.0, 0.7, 1.0])
    settings["n"] = rng.choice([1, 1, 1, 2, 4])
    if rng.random() < 0.3:
        settings.update(top_k=rng.choice([5, 20]), top_p=rng.choice([0.5, 0.9]), min_p=0.05)
    if rng.random() < 0.3:
        settings.update(presence_penalty=rng.choice([-1.0, 0.5, 2.0]), frequency_penalty=rng.choice([0.0, 0.7]))
    if rng.random() < 0.2:
        settings["logit_bias"] = {rng.randrange(VOCAB): rng.choice([-100.0, 2.5, 5.0]) for _ in range(3)}
    if rng.random() < 0.2:
        settings["allowed_token_ids"] = tuple(rng.sample(range(VOCAB), 20))
    if rng.random() < 0.3:
        settings["logprobs"] = rng.choice([0, 2, 5])
    if rng.random() < 0.15:
        settings["prompt_logprobs"] = rng.choice([0, 3])
    stop_ids = tuple(rng.sample(range(VOCAB), 2)) if rng.random() < 0.4 else ()
    if stop_ids and rng.random() < 0.5:
        settings["min_tokens"] = min(5, max_tokens)
    return request(
        name,
        prompt,
        stop_ids=stop_ids,
        priority=rng.choice([0, 0, 0, 1, -1]),
        salt=rng.choice(["", "", "tenant"]),
        return_logits=rng.random() < 0.1,
        **settings,
    )


def check_equal(got: Output, want: Output, name: str) -> None:
    assert got.token_ids == want.token_ids, name
    assert got.logprobs == want.logprobs, name
    assert (got.finish_reason, got.stop_id) == (want.finish_reason, want.stop_id), name


@pytest.mark.parametrize("trial", range(36))
def test_tokens_are_those_of_each_request_alone(trial: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "_PAUSE_EVERY", 7)
    rng = random.Random(trial)
    block_size = rng.choice([32, 64])
    max_context = 320
    fits = -(-max_context // block_size)
    num_blocks = rng.choice([fits, fits + 3, 3 * fits, 20 * fits])  # from "one at a time" to "no eviction ever"
    runner = FakeRunner(
        num_blocks=num_blocks,
        block_size=block_size,
        max_context=max_context,
        vocab_size=VOCAB,
        max_under_way=rng.choice([1, 2, 2]),
        cost=Cost(0.01, 0.0005, 1e-6),
    )
    driver = Driver(
        runner,
        prefix_caching=rng.random() < 0.75,
        max_num_seqs=rng.choice([1, 3, 8, 64]),
        max_tokens_per_step=rng.choice([1, 7, 33, 64, 512]),
        itl_target_s=rng.choice([0.0, 0.015, 0.05]),
    )
    bases = [[rng.randrange(VOCAB) for _ in range(120)] for _ in range(3)]
    requests = [random_request(rng, f"r{i}", bases, max_context) for i in range(rng.choice([4, 12, 24]))]
    cancelled: set[tuple[str, int]] = set()
    waiting = list(requests)
    while waiting or driver.engine.has_work:
        if waiting and (rng.random() < 0.3 or not driver.engine.has_work):
            driver.add(*(waiting.pop() for _ in range(min(len(waiting), rng.randint(1, 4)))))
        if rng.random() < 0.01:
            victim = rng.choice(requests)
            n = victim.sampling.n
            index = rng.choice([None, *range(n)])
            driver.engine.cancel(victim.request_id, index)
            cancelled |= {(victim.request_id, i) for i in (range(n) if index is None else [index])}
            driver.engine.check_invariants()
        driver.step()
    assert not driver.failures
    for message in requests:
        want = alone(message, block_size=block_size, vocab_size=VOCAB, max_context=max_context)
        for index, output in want.items():
            got = driver.outputs[message.request_id, index]
            if (message.request_id, index) in cancelled and got.finish_reason is None:
                assert got.token_ids == output.token_ids[: len(got.token_ids)]
            else:
                check_equal(got, output, f"{message.request_id}[{index}]")
    assert driver.engine.scheduler.pool.num_used == 0


@pytest.mark.parametrize("max_under_way", [1, 2])
def test_the_random_trials_reach_what_they_should(max_under_way: int) -> None:
    """A small pool preempts and evicts, and a warm prefix tree is used, or the trials above prove nothing."""
    runner = FakeRunner(num_blocks=11, max_context=320, max_under_way=max_under_way)
    driver = Driver(runner, max_num_seqs=8)
    requests = [request(f"r{i}", 40 + i, max_tokens=100, n=2, temperature=1.0, seed=i) for i in range(6)]
    driver.add(*requests)
    driver.run()
    stats = driver.engine.stats()
    assert stats.num_preemptions > 3 and stats.prefix_hits_tokens > 0
    for message in requests:
        for index, output in alone(message, max_context=320).items():
            check_equal(driver.outputs[message.request_id, index], output, message.request_id)
    assert max(o.timings.num_preemptions for o in driver.outputs.values() if o.timings) > 0


@pytest.mark.parametrize("max_under_way", [1, 2])
def test_streams_that_pause_say_the_same(max_under_way: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "_PAUSE_EVERY", 7)
    runner = FakeRunner(num_blocks=200, max_context=320, max_under_way=max_under_way, cost=Cost(0.01, 0.0005, 1e-6))
    driver = Driver(runner, max_num_seqs=8, max_tokens_per_step=33, itl_target_s=0.03)
    streams = [request(f"s{i}", 20 + i, max_tokens=100, temperature=1.0, seed=i, presence_penalty=i) for i in range(3)]
    prompts = [request(f"p{i}", [30 + i] * 150, max_tokens=3, temperature=1.0, seed=i) for i in range(10)]
    driver.add(*streams)
    num_paused = 0
    for number in range(150):
        if number % 12 == 10 and number // 12 < len(prompts):
            driver.add(prompts[number // 12])
        if driver.engine.has_work:
            driver.step()
            lengths = driver.runner.batches[-1].seq_starts
            num_paused += len(lengths) == 2 and len(driver.engine.scheduler.running) > 3
    driver.run()
    assert num_paused >= 20, "steps with the prompt alone, while streams run"
    for message in [*streams, *prompts]:
        check_equal(driver.outputs[message.request_id, 0], alone(message, max_context=320)[0], message.request_id)


@pytest.mark.parametrize("salt", ["", "tenant"])
def test_a_warm_tree_changes_nothing_but_the_work(salt: str) -> None:
    driver = Driver()
    driver.add(request("cold", 200))
    driver.run()
    num_steps = driver.engine.stats().num_steps
    driver.add(request("warm", 200, salt=salt))
    driver.run()
    assert driver.tokens("warm") == driver.tokens("cold")
    timings = driver.outputs["warm", 0].timings
    assert timings is not None and timings.num_cached_tokens == (0 if salt else 192)
    assert driver.engine.stats().num_steps == 2 * num_steps
