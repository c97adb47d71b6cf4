"""`EngineLoop` and `InProcessClient` on the fake engine."""

from __future__ import annotations

import gc
import os
import random
import threading
import time

import pytest
from fake_engine import BUG, LONG, REFUSED, SLOW, UNFIT, FakeAssembled, continuation
from listening import Listener, request

from trivet.engine.in_process import InProcessClient
from trivet.engine.messages import Accepted, EngineStats, Failed, Tokens
from trivet.errors import TrivetError


@pytest.fixture
def assembled():
    return FakeAssembled()


@pytest.fixture
def listener():
    return Listener()


@pytest.fixture
def client(assembled, listener):
    client = InProcessClient(assembled)
    client.set_listener(listener)
    yield client
    client.close()


def test_a_request_is_accepted_then_gets_its_tokens_in_order(client, listener):
    client.submit(request("a", seed=5, n=2))
    listener.wait_finished("a", n=2)
    events = listener.of("a")
    assert events[0] == Accepted(request_id="a", seed=5)
    assert all(isinstance(e, Tokens) for e in events[1:])
    assert listener.tokens("a", 0) == continuation(5, 0, 8)
    assert listener.tokens("a", 1) == continuation(5, 1, 8)


def test_the_verdict_does_not_wait_for_the_step_under_way(client, listener):
    client.submit(request("long", chr(LONG), max_tokens=2))
    listener.wait(lambda: bool(listener.tokens("long")))
    start = time.monotonic()
    client.submit(request("refused", chr(REFUSED)))
    client.submit(request("taken"))
    listener.wait(lambda: bool(listener.of("refused") and listener.of("taken")))
    assert time.monotonic() - start < 1.0  # the step takes 2
    failed = listener.failed("refused")
    assert failed is not None and (failed.kind, failed.retry_after_s) == ("Overloaded", 7.0)


def test_an_idle_loop_uses_no_cpu_and_has_published_its_last_stats(client, listener):
    client.submit(request("a"))
    listener.wait_finished("a")
    listener.wait(lambda: isinstance(listener.events[-1], EngineStats))
    gc.collect()
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.02
    assert client.stats() == listener.events[-1]
    assert client.stats().num_running == 0


def test_stats_come_at_most_every_tenth_of_a_second(client, listener):
    start = time.monotonic()
    client.submit(request("a", chr(SLOW), max_tokens=12))  # 0.6 s
    listener.wait_finished("a")
    num_stats = sum(isinstance(e, EngineStats) for e in listener.events)
    assert 3 <= num_stats <= (time.monotonic() - start) / 0.1 + 3


def test_events_of_one_step_come_in_one_batch(client, listener, assembled):
    client.submit(request("a", chr(SLOW), n=4, max_tokens=4))
    listener.wait_finished("a", n=4)
    token_batches = [size for size in listener.batches if size >= 4]
    assert len(token_batches) >= 3


def test_cancel_ends_a_request_and_one_of_its_sequences(client, listener, assembled):
    client.submit(request("a", chr(SLOW), n=2, max_tokens=100))
    client.submit(request("b", chr(SLOW), max_tokens=100))
    listener.wait(lambda: bool(listener.tokens("a", 1) and listener.tokens("b")))
    client.cancel("b")
    client.cancel("a", 1)
    client.cancel("unknown")
    engine = assembled.engines[0]
    deadline = time.monotonic() + 5
    while set(engine.running) != {("a", 0)} and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(engine.running) == {("a", 0)}
    client.cancel("a")


def test_cancelled_at_random_moments_nothing_is_left(client, listener, assembled):
    rng = random.Random(1)
    for i in range(200):
        client.submit(request(f"r{i}", n=rng.randint(1, 3), max_tokens=rng.randint(1, 50)))
        if rng.random() < 0.3:
            time.sleep(rng.random() * 0.002)
        client.cancel(f"r{rng.randint(0, i)}")
    for i in range(200):
        client.cancel(f"r{i}")
    client.submit(request("last"))
    listener.wait_finished("last")
    engine = assembled.engines[0]
    assert not engine.running and not engine.admission.open


def test_an_id_in_use_is_refused(client, listener):
    client.submit(request("a", chr(SLOW)))
    with pytest.raises(ValueError, match="'a' is still running"):
        client.submit(request("a"))
    listener.wait_finished("a")
    client.submit(request("a"))
    listener.wait(lambda: listener.num_finished("a") == 2)


def test_a_bug_in_a_step_fails_what_runs_by_name_and_the_next_request_is_served(client, listener, assembled, caplog):
    client.submit(request("bystander", chr(SLOW), max_tokens=1000))
    listener.wait(lambda: bool(listener.tokens("bystander")))
    client.submit(request("bug", chr(BUG)))
    listener.wait_finished("bug", "bystander")
    for request_id in ("bug", "bystander"):
        failed = listener.failed(request_id)
        assert failed is not None and failed.kind == "EngineDied"
        assert "ZeroDivisionError: a planted bug" in failed.message
    client.submit(request("after"))
    listener.wait_finished("after")
    assert listener.tokens("after") == continuation(7, 0, 8)
    assert len(assembled.engines) == 2 and client.alive
    assert "a planted bug" in caplog.text


def test_a_client_that_retries_at_once_is_served_by_the_new_engine(assembled, listener, monkeypatch):
    """The retry is sent from within the delivery of the failure, while the loop is still busy with it."""
    made = assembled.make_engine

    def make_slowly():
        if assembled.engines:
            time.sleep(0.3)
        return made()

    monkeypatch.setattr(assembled, "make_engine", make_slowly)
    client = InProcessClient(assembled)

    def retrying(events):
        listener(events)
        if any(isinstance(e, Failed) and e.request_id == "bug" for e in events):
            client.submit(request("retry"))

    client.set_listener(retrying)
    client.submit(request("bug", chr(BUG)))
    listener.wait_finished("retry")
    assert listener.failed("retry") is None and listener.tokens("retry") == continuation(7, 0, 8)
    assert len(assembled.engines) == 2 and client.alive
    client.close()


def test_what_is_submitted_while_an_engine_is_made_is_failed_once_and_counted_nowhere(assembled, listener, monkeypatch):
    made, making, go_on = assembled.make_engine, threading.Event(), threading.Event()

    def make_when_told():
        if assembled.engines:
            making.set()
            assert go_on.wait(10)
        return made()

    monkeypatch.setattr(assembled, "make_engine", make_when_told)
    client = InProcessClient(assembled)
    client.set_listener(listener)
    client.submit(request("bug", chr(BUG)))
    assert making.wait(10)
    client.submit(request("between"))  # the old engine takes it
    go_on.set()
    listener.wait_finished("bug", "between")
    client.submit(request("between", seed=8))
    listener.wait(lambda: listener.num_finished("between") == 1)
    assert listener.tokens("between") == continuation(8, 0, 8)
    assert len([e for e in listener.of("between") if isinstance(e, Failed)]) == 1
    assert len(assembled.engines) == 2 and not assembled.engines[1].admission.open
    client.close()


def test_a_request_that_cannot_be_added_fails_alone(client, listener, assembled, caplog):
    client.submit(request("bystander", chr(SLOW), max_tokens=6))
    listener.wait(lambda: bool(listener.tokens("bystander")))
    for i in range(4):
        client.submit(request(f"unfit{i}", chr(UNFIT)))
        listener.wait_finished(f"unfit{i}")
        failed = listener.failed(f"unfit{i}")
        assert failed is not None and "LookupError" in failed.message and "no place for it" in failed.message
    listener.wait_finished("bystander")
    assert listener.tokens("bystander") == continuation(7, 0, 6)
    assert client.alive and len(assembled.engines) == 1 and not assembled.engines[0].admission.open
    assert "no place for it" in caplog.text


def test_in_a_forked_process_every_use_is_refused_by_name(client, listener):
    client.submit(request("a"))
    listener.wait_finished("a")
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = []
        for use in (lambda: client.submit(request("b")), client.stats, lambda: client.info):
            try:
                use()
                said.append("nothing was raised")
            except TrivetError as error:
                said.append(f"{type(error).__name__}: {error} {error.hint}")
        client.cancel("a")  # what tidies up is silent
        client.close()
        os.write(write, "\n".join([*said, str(client.alive)]).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        *said, alive = pipe.read().split("\n")
    assert os.waitpid(pid, 0)[1] == 0
    assert len(said) == 3 and alive == "False"
    for line in said:
        assert str(os.getpid()) in line and str(pid) in line and "after the fork" in line, line
    client.submit(request("c"))
    listener.wait_finished("c")
    assert listener.tokens("c") == continuation(7, 0, 8)


def test_after_three_failed_steps_in_a_row_the_loop_gives_up(client, listener, caplog):
    for i in range(3):
        assert client.alive
        client.submit(request(f"bug{i}", chr(BUG)))
        listener.wait_finished(f"bug{i}")
    client._loop.join(5)
    assert not client.alive
    kinds = [failed.kind for i in range(3) if (failed := listener.failed(f"bug{i}")) is not None]
    assert kinds == ["EngineDied", "EngineDied", "EngineGone"], "sending the third again is of no use"
    client.submit(request("late"))
    listener.wait_finished("late")
    failed = listener.failed("late")
    assert failed is not None and failed.kind == "EngineGone" and "repeated failures" in failed.message


def test_a_listener_that_raises_does_not_stop_the_engine(assembled, caplog):
    seen = Listener()

    def listener(events):
        seen(events)
        raise RuntimeError("not my day")

    client = InProcessClient(assembled)
    client.set_listener(listener)
    client.submit(request("a"))
    seen.wait_finished("a")
    client.close()
    assert "not my day" in caplog.text


def test_close_with_drain_finishes_what_runs_and_refuses_what_comes(assembled, listener):
    client = InProcessClient(assembled)
    client.set_listener(listener)
    client.submit(request("a", chr(SLOW), max_tokens=6))
    closer = threading.Thread(target=client.close, kwargs={"drain_s": 10})
    closer.start()
    listener.wait(lambda: bool(listener.tokens("a")))
    client.submit(request("late"))
    closer.join(10)
    assert listener.tokens("a") == continuation(7, 0, 6)
    late = listener.failed("late")
    assert late is not None and late.kind == "NotReady"
    assert assembled.closed and not client.alive
    client.close()  # idempotent
    client.submit(request("later"))
    later = listener.failed("later")
    assert later is not None and later.kind == "NotReady"


def test_close_without_drain_fails_what_runs(assembled, listener):
    client = InProcessClient(assembled)
    client.set_listener(listener)
    client.submit(request("a", chr(SLOW), max_tokens=1000))
    listener.wait(lambda: bool(listener.tokens("a")))
    client.close()
    failed = listener.failed("a")
    assert isinstance(failed, Failed) and failed.kind == "EngineDied" and "closed" in failed.message
