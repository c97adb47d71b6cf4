"""Who is taken and who is refused, decided at once, with the numbers and a time to come back."""

from __future__ import annotations

import threading

import pytest
from driving import Driver, request
from fake_runner import Cost, FakeClock, FakeRunner

from trivet.config import SchedulerConfig
from trivet.engine.admission import Admission
from trivet.engine.messages import Accepted, Failed


def gate(**config: object) -> Admission:
    """An admission with 2 slots that has measured 100 prompt tokens/s and 2 finished requests/s, all slots taken."""
    settings = {"max_num_seqs": 2, "max_waiting": 4, "max_wait_s": 10.0, **config}
    admission = Admission(
        SchedulerConfig(**settings), FakeRunner(num_blocks=1024, max_context=32768).capabilities, FakeClock()
    )
    admission.report(num_free_slots=0, prefill_per_s=100.0, finished_per_s=2.0)
    return admission


def accepted(admission: Admission, name: str, **kwargs: object) -> Accepted:
    answer = admission.check(request(name, **kwargs))
    assert isinstance(answer, Accepted), answer
    return answer


def refused(admission: Admission, name: str, **kwargs: object) -> Failed:
    answer = admission.check(request(name, **kwargs))
    assert isinstance(answer, Failed)
    return answer


# --- what is impossible -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "param", "words"),
    [
        ({"prompt": []}, "prompt", ["no tokens", "at least 1"]),
        ({"prompt": [1, 50]}, "prompt", ["token id 50", "0 to 49"]),
        ({"prompt": [-1]}, "prompt", ["token id -1"]),
        ({"logit_bias": {77: 1.0}}, "logit_bias", ["token id 77", "0 to 49"]),
        ({"allowed_token_ids": (3, 50)}, "allowed_token_ids", ["token id 50"]),
        ({"allowed_token_ids": ()}, "allowed_token_ids", ["empty"]),
        ({"allowed_token_ids": (1, 2), "stop_ids": (1, 2, 3), "min_tokens": 1}, "min_tokens", ["allows only tokens"]),
    ],
)
def test_impossible_requests_name_their_field(kwargs: dict[str, object], param: str, words: list[str]) -> None:
    failure = Driver().refuse(request(**kwargs))
    assert failure.kind == "InvalidRequest" and failure.param == param
    assert all(word in failure.message for word in words), failure.message


def test_too_long_for_the_context_says_both_numbers() -> None:
    driver = Driver(FakeRunner(max_context=64))
    failure = driver.refuse(request(prompt=60, max_tokens=5))
    assert failure.kind == "ContextTooLong" and failure.code == "context_length_exceeded"
    assert failure.param == "max_tokens" and failure.hint
    assert all(number in failure.message for number in ("60", "5", "64"))
    assert driver.refuse(request(prompt=64, max_tokens=None)).param == "prompt"
    driver.add(request(prompt=60, max_tokens=4))
    driver.run()


def test_too_long_for_the_cache_says_both_numbers() -> None:
    driver = Driver(FakeRunner(num_blocks=3))
    failure = driver.refuse(request(prompt=90, max_tokens=8))
    assert failure.kind == "ContextTooLong" and failure.code == "context_length_exceeded"
    assert all(number in failure.message for number in ("90", "8", "96"))
    driver.add(request(prompt=90, max_tokens=7))
    driver.run()
    assert len(driver.tokens()) == 7


def test_logits_alone_need_no_room_for_an_answer() -> None:
    driver = Driver(FakeRunner(max_context=64, num_blocks=2))
    driver.add(request(prompt=64, max_tokens=1, return_logits=True))
    driver.run()
    info = driver.prompts["r"]
    assert info.logits is not None and len(info.logits) == 4 * 64 * driver.runner.vocab_size
    assert driver.refuse(request(prompt=64, max_tokens=2, return_logits=True)).kind == "ContextTooLong"
    assert driver.refuse(request(prompt=65, max_tokens=1, return_logits=True)).kind == "ContextTooLong"
    assert driver.refuse(request(prompt=64, max_tokens=1)).kind == "ContextTooLong"


def test_scores_of_a_prompt_alone_need_no_room_for_an_answer() -> None:
    driver = Driver(FakeRunner(max_context=64, num_blocks=2))
    driver.add(request(prompt=64, max_tokens=1, prompt_only=True, prompt_logprobs=0))
    driver.run()
    logprobs = driver.prompts["r"].logprobs
    assert logprobs is not None and len(logprobs) == 64 and None not in logprobs[1:]
    for wrong in ({"prompt": 64, "max_tokens": 2}, {"prompt": 65, "max_tokens": 1}):
        assert driver.refuse(request(prompt_only=True, **wrong)).kind == "ContextTooLong"


@pytest.mark.parametrize("deadline_s", [0.0, -1.0, 86_401.0, float("inf"), float("nan")])
def test_a_deadline_is_within_a_day(deadline_s: float) -> None:
    failure = Driver(FakeRunner()).refuse(request(deadline_s=deadline_s))
    assert failure.kind == "InvalidRequest" and failure.param == "deadline_s" and "86,400" in failure.message


def test_logits_beyond_two_gib_are_refused() -> None:
    failure = Driver(FakeRunner(vocab_size=2**21)).refuse(request(prompt=300, max_tokens=1, return_logits=True))
    assert failure.kind == "InvalidRequest" and "2,147,483,648" in failure.message


def test_an_open_id_is_refused() -> None:
    driver = Driver()
    driver.add(request("twice"))
    failure = driver.refuse(request("twice"))
    assert failure.kind == "InvalidRequest" and "'twice'" in failure.message
    driver.run()
    assert len(driver.tokens("twice")) == 8


# --- what would wait too long -----------------------------------------------------------------------------------------


def test_one_more_than_may_wait_is_refused() -> None:
    driver = Driver(max_num_seqs=2, max_waiting=3)
    driver.add(*(request(f"r{i}") for i in range(5)))  # two can start, three may wait
    failure = driver.refuse(request("r5"))
    assert failure.kind == "Overloaded" and failure.retry_after_s == 1.0
    assert "5 requests are waiting" in failure.message and "at most 3" in failure.message
    driver.step()  # the same once two of them run
    assert driver.refuse(request("r5")).kind == "Overloaded"
    assert driver.engine.stats().requests_rejected == 2
    driver.run()
    driver.add(request("r5"))


def test_each_of_n_sequences_waits() -> None:
    driver = Driver(max_num_seqs=2, max_waiting=6)
    driver.add(request("r0", n=4), request("r1", n=4))  # two of eight can start
    failure = driver.refuse(request("r2"))
    assert failure.kind == "Overloaded" and "2 requests with 8 sequences are waiting" in failure.message
    driver.run()
    driver.add(request("r2"))


def test_a_turnover_is_of_sequences() -> None:
    admission = gate(max_wait_s=4.0, max_waiting=9)
    admission.report(num_free_slots=0, prefill_per_s=0.0, finished_per_s=2.0)
    accepted(admission, "a", prompt=1, n=8)
    failure = refused(admission, "b", prompt=1)
    assert "4.5 s" in failure.message


@pytest.mark.parametrize("seed", [-3, 0, 2**64 - 1, -(2**63)])
def test_a_seed_is_reported_as_it_was_sent(seed: int) -> None:
    admission = gate()
    answer = admission.check(request("a", seed=seed))
    assert isinstance(answer, Accepted) and answer.seed == seed
    assert admission.decision("a")[0] == seed % 2**64


def test_nobody_may_wait_but_who_can_start_may_come() -> None:
    driver = Driver(max_num_seqs=1, max_waiting=0)
    for i in range(3):
        driver.add(request(f"r{i}", max_tokens=50))
        assert driver.refuse(request("more")).kind == "Overloaded"
        driver.step()
        assert driver.refuse(request("more")).kind == "Overloaded"
        if i == 0:
            driver.engine.cancel("r0")
        driver.run()


def test_free_slots_do_not_count_while_there_are_no_blocks() -> None:
    driver = Driver(FakeRunner(num_blocks=4), max_num_seqs=64, max_waiting=1)
    driver.add(request("big", [1] * 90, max_tokens=30), request("next", [2] * 90, max_tokens=30))
    driver.step()
    driver.step()
    assert driver.refuse(request("third")).kind == "Overloaded"
    driver.run()


def test_a_wait_beyond_the_bound_is_refused_with_the_time_to_come_back() -> None:
    admission = gate()
    accepted(admission, "a", prompt=900)
    accepted(admission, "b", prompt=400)  # 9 s of work are before it
    failure = refused(admission, "c")
    assert failure.kind == "Overloaded"
    assert "13.0 s" in failure.message and "10 s" in failure.message
    assert failure.retry_after_s == 3.0
    admission.progress("a", 300)  # 700 tokens are left
    accepted(admission, "c")


def test_a_slow_turnover_is_a_wait_too() -> None:
    admission = gate(max_wait_s=1.0)
    admission.report(num_free_slots=0, prefill_per_s=100.0, finished_per_s=0.5)
    failure = refused(admission, "a", prompt=1)
    assert failure.retry_after_s == 1.0 and "2.0 s" in failure.message
    admission.report(num_free_slots=1, prefill_per_s=100.0, finished_per_s=0.5)
    accepted(admission, "a", prompt=1)


def test_a_deadline_includes_the_own_prompt() -> None:
    admission = gate()
    accepted(admission, "a", prompt=100)
    failure = refused(admission, "b", prompt=300, deadline_s=2.0)
    assert failure.kind == "Overloaded" and failure.retry_after_s == 2.0
    assert "4.00 s" in failure.message and "2 s" in failure.message
    accepted(admission, "b", prompt=300, deadline_s=4.5)


def test_before_anything_was_measured_only_the_queue_is_bounded() -> None:
    admission = gate(max_wait_s=0.001)
    admission.report(num_free_slots=2, prefill_per_s=0.0, finished_per_s=0.0)
    for i in range(6):
        accepted(admission, f"r{i}", prompt=5000, deadline_s=0.001)
    failure = refused(admission, "r6")
    assert "6 requests are waiting" in failure.message and failure.retry_after_s == 1.0


def test_a_full_queue_says_when_one_will_have_started() -> None:
    admission = gate(max_wait_s=1000.0)
    for i in range(4):
        accepted(admission, f"r{i}", prompt=600)
    assert refused(admission, "r4").retry_after_s == 6.0  # 2,400 tokens at 100 a second, a quarter of it


def test_what_was_measured_is_used() -> None:
    """100 ms a token: after one request, ten seconds of prompts are too much for a bound of five."""
    driver = Driver(FakeRunner(cost=Cost(0.0, 0.1)), max_wait_s=5.0)
    driver.add(request("first", 20, max_tokens=1))
    driver.run()
    assert driver.engine.stats().prefill_tokens_per_s == pytest.approx(10.0)
    driver.add(request("second", [1] * 100, max_tokens=1))
    failure = driver.refuse(request("third"))
    assert failure.kind == "Overloaded" and failure.retry_after_s == 5.0
    driver.run()
    driver.add(request("third"))


# --- counting ---------------------------------------------------------------------------------------------------------


def test_forgetting_is_idempotent_and_frees_the_place() -> None:
    admission = gate(max_waiting=1)
    accepted(admission, "a", prompt=100)
    assert refused(admission, "b").kind == "Overloaded"
    admission.forget("a")
    admission.forget("a")
    admission.progress("a", 5)
    assert admission.num_open == 0
    accepted(admission, "b")
    assert refused(admission, "c", prompt=[]).kind == "InvalidRequest"
    assert admission.num_open == 1 and admission.num_rejected == 1


def test_what_is_forgotten_is_no_longer_waited_for() -> None:
    admission = gate()
    for i in range(20):
        accepted(admission, f"r{i}", prompt=900)
        admission.forget(f"r{i}")


def test_threads_may_ask_at_once() -> None:
    admission = gate(max_waiting=50, max_wait_s=1e9)
    answers: list[Accepted | Failed] = []

    def ask(first: int) -> None:
        for i in range(first, first + 40):
            answers.append(admission.check(request(f"r{i}")))

    threads = [threading.Thread(target=ask, args=(40 * t,)) for t in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = [a.request_id for a in answers if isinstance(a, Accepted)]
    assert len(taken) == 50 == admission.num_open and admission.num_rejected == 110
    for request_id in taken:
        admission.forget(request_id)
    assert admission.num_open == 0
    accepted(admission, "after")
