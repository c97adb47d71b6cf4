"""`ChildProcessClient`: a real process with the fake engine in it; the real one is in test_llm.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from fake_engine import BUG, CRASH, LONG, REFUSED, SLOW, FakeAssembled, continuation
from listening import Listener, request

from trivet.config import EngineConfig, ModelConfig, SchedulerConfig
from trivet.engine.child import ChildProcessClient, ChildState
from trivet.engine.in_process import InProcessClient
from trivet.engine.messages import EngineInfo, EngineStats
from trivet.engine.restart_policy import RestartPolicy
from trivet.errors import EngineDied, EngineGone, ModelFormatError, NotReady

HERE = Path(__file__).parent
COMMAND = (sys.executable, str(HERE / "fake_child.py"))


def start(path: str = "fake", command: tuple[str, ...] = COMMAND, **policy: float) -> ChildProcessClient:
    return ChildProcessClient(
        EngineConfig(model=ModelConfig(path=path)),
        policy=RestartPolicy(**policy),  # type: ignore[arg-type]
        command=command,
    )


@pytest.fixture
def listener():
    return Listener()


@pytest.fixture
def client(listener):
    client = start()
    client.set_listener(listener)
    client.wait_ready(20)
    yield client
    client.close()


def gated(folder: Path) -> tuple[tuple[str, ...], Path]:
    """A command that waits for the file `gate` before it starts, and that file."""
    gate = folder / "gate"
    gate.touch()
    waits = "import pathlib, runpy, sys, time\n" \
        f"while not pathlib.Path({str(gate)!r}).exists(): time.sleep(0.01)\n" \
        f"sys.path.insert(0, {str(HERE)!r}); runpy.run_path({COMMAND[1]!r}, run_name='__main__')"  # fmt: skip
    return (sys.executable, "-c", waits), gate


def wait_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    raise AssertionError(f"process {pid} still runs")


def test_it_answers_as_in_process_does(client, listener):
    inside = Listener()
    other = InProcessClient(FakeAssembled())
    other.set_listener(inside)
    for c in (client, other):
        c.submit(request("a", n=3, seed=9))
        c.submit(request("b", stop_ids=(continuation(7, 0, 8)[3],)))
        c.submit(request("c", chr(REFUSED)))
    for a_listener in (listener, inside):
        a_listener.wait_finished("a", n=3)
        a_listener.wait_finished("b")
        a_listener.wait(lambda a_listener=a_listener: bool(a_listener.failed("c")))
    other.close()
    for request_id in "abc":
        assert listener.of(request_id) == inside.of(request_id)


def test_info_and_stats_come_over(client, listener):
    assert isinstance(client.info, EngineInfo) and client.info.fingerprint == "fp_fake"
    assert client.alive and client.state is ChildState.READY
    client.submit(request("a"))
    listener.wait(lambda: isinstance(client.stats(), EngineStats) and client.stats().num_running == 0)


def test_what_is_submitted_before_it_is_ready_waits_for_it(listener):
    client = start()
    client.set_listener(listener)
    with pytest.raises(EngineDied, match="still starting"):
        _ = client.info
    client.submit(request("a"))
    client.submit(request("b"))
    client.cancel("b")
    listener.wait_finished("a")
    assert listener.of("b") == []
    client.close()


def test_before_the_first_start_only_so_many_wait_as_the_engine_would_let_wait(listener, tmp_path):
    command, gate = gated(tmp_path)
    gate.unlink()
    config = EngineConfig(model=ModelConfig(path="fake"), scheduler=SchedulerConfig(max_waiting=3))
    client = ChildProcessClient(config, command=command)
    client.set_listener(listener)
    for i in range(5):
        client.submit(request(f"r{i}"))
    listener.wait_finished("r3", "r4")
    for i in (3, 4):
        failed = listener.failed(f"r{i}")
        assert failed is not None and failed.kind == "NotReady" and "starting" in failed.message
        assert "3" in failed.message and failed.retry_after_s is not None and failed.retry_after_s >= 1
    client.cancel("r0")
    client.submit(request("r5"))  # there is room again
    gate.touch()
    listener.wait_finished("r1", "r2", "r5")
    assert listener.tokens("r5") == continuation(7, 0, 8) and listener.of("r0") == []
    client.close()


def test_a_submit_is_answered_while_a_step_runs(client, listener):
    client.submit(request("long", chr(LONG), max_tokens=2))
    listener.wait(lambda: bool(listener.tokens("long")))
    began = time.monotonic()
    client.submit(request("a", chr(REFUSED)))
    listener.wait(lambda: bool(listener.failed("a")))
    assert time.monotonic() - began < 1.0  # the step takes 2


def test_an_idle_engine_uses_no_cpu(client, listener):
    client.submit(request("a"))
    listener.wait_finished("a")
    time.sleep(0.1)
    process = psutil.Process(client.pid)
    before = sum(process.cpu_times()[:2])
    time.sleep(0.5)
    used = sum(process.cpu_times()[:2]) - before
    assert round(used * os.sysconf("SC_CLK_TCK")) <= 1  # one tick of the clock that counts it


def test_a_large_prompt_crosses(client, listener):
    client.submit(request("a", "x" * 300_000))
    listener.wait_finished("a")
    assert listener.tokens("a") == continuation(7, 0, 8)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_killed_engine_fails_open_requests_and_comes_back(client, listener, number):
    client.submit(request("a", chr(SLOW), max_tokens=1000))
    listener.wait(lambda: bool(listener.tokens("a")))
    pid = client.pid
    os.kill(pid, number)
    listener.wait_finished("a")
    failed = listener.failed("a")
    assert failed is not None and failed.kind == "EngineDied" and number.name in failed.message
    client.submit(request("b"))  # waits for the restart
    listener.wait_finished("b")
    assert listener.tokens("b") == continuation(7, 0, 8)
    assert client.alive and client.num_restarts == 1 and client.pid != pid


def test_a_native_crash_says_where_on_stderr(listener, capfd):
    client = start()
    client.set_listener(listener)
    client.submit(request("a", chr(CRASH)))
    listener.wait_finished("a")
    client.close()
    assert "Fatal Python error: Segmentation fault" in capfd.readouterr().err


def test_an_engine_that_keeps_dying_is_left_dead(listener):
    client = start(max_quick_deaths=3, first_delay_s=0.05)
    client.set_listener(listener)
    client.wait_ready(20)
    for i in range(3):
        client.submit(request(f"r{i}", chr(CRASH)))
        listener.wait_finished(f"r{i}")
    with pytest.raises(EngineGone, match=r"died 3 times in a row, the last time because .* SIGSEGV"):
        client.wait_ready(20)
    assert client.state is ChildState.GAVE_UP and client.pid is None
    last = listener.failed("r2")
    assert last is not None and last.kind == "EngineGone" and last.hint is not None and "not started" in last.hint
    assert client.stats() is None, "the numbers of the dead are nobody's"
    client.submit(request("late"))
    listener.wait_finished("late")
    late = listener.failed("late")
    assert late is not None and late.kind == "EngineGone" and "3 times" in late.message
    client.close()


def test_a_restart_that_comes_back_as_another_model_is_not_served(listener, tmp_path):
    client = start(f"changing:{tmp_path / 'starts'}")
    client.set_listener(listener)
    assert client.wait_ready(20).fingerprint == "fp_1"
    client.submit(request("a", chr(CRASH)))
    client.submit(request("b"))
    listener.wait_finished("a", "b")
    with pytest.raises(EngineGone, match=r"another model: fp_2 .* instead of fp_1") as caught:
        client.wait_ready(20)
    assert caught.value.hint is not None and "was changed while it was served" in caught.value.hint
    assert client.state is ChildState.GAVE_UP and client.info.fingerprint == "fp_1"
    client.submit(request("late"))
    listener.wait_finished("late")
    late = listener.failed("late")
    assert late is not None and late.kind == "EngineGone" and "another model" in late.message
    client.close()


def test_while_a_restart_takes_too_long_requests_are_refused_with_a_time(listener):
    client = start(first_delay_s=30.0, hold_s=1.0)
    client.set_listener(listener)
    client.wait_ready(20)
    client.submit(request("a", chr(CRASH)))
    listener.wait_finished("a")
    client.submit(request("b", chr(CRASH)))
    listener.wait_finished("b")  # two quick deaths: a pause of 30 s
    deadline = time.monotonic() + 10
    while client.pid is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    client.submit(request("c"))
    listener.wait_finished("c")
    failed = listener.failed("c")
    assert failed is not None and failed.kind == "NotReady"
    assert failed.retry_after_s is not None and 25 < failed.retry_after_s < 35
    with pytest.raises(EngineDied, match=r"not ready after 0\.1 s"):
        client.wait_ready(0.1)
    client.close()
    with pytest.raises(NotReady, match="closing"):
        client.wait_ready(0.1)


def test_requests_that_wait_for_a_slow_restart_are_refused_after_hold_s(listener, tmp_path):
    command, gate = gated(tmp_path)
    client = start(command=command, hold_s=5.0)
    client.set_listener(listener)
    client.wait_ready(20)
    gate.unlink()
    client._policy = RestartPolicy(hold_s=0.5)
    client._start_s = 0.1  # a busy machine may have needed longer
    os.kill(client.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while client.state is not ChildState.RESTARTING and time.monotonic() < deadline:
        time.sleep(0.001)
    client.submit(request("a"))
    listener.wait_finished("a", n=1)
    failed = listener.failed("a")
    assert failed is not None and failed.kind == "NotReady" and "longer than usual" in failed.message
    gate.touch()
    client.wait_ready(20)
    client.submit(request("b"))
    listener.wait_finished("b")
    client.close()


def test_who_comes_while_a_death_is_told_waits_for_the_next_engine(listener, monkeypatch):
    client = start()
    client.set_listener(listener)
    client.wait_ready(20)
    monkeypatch.setattr("trivet.engine.child.log.error", lambda *_: client.submit(request("a")))
    os.kill(client.pid, signal.SIGKILL)
    listener.wait_finished("a")
    assert listener.failed("a") is None
    client.close()


def test_a_model_that_cannot_be_loaded_is_a_named_error_and_not_tried_again(listener):
    client = start("broken")
    client.set_listener(listener)
    client.submit(request("a"))
    with pytest.raises(ModelFormatError, match="`broken` is broken") as caught:
        client.wait_ready(20)
    assert caught.value.hint == "mend it"
    listener.wait_finished("a")
    assert client.num_restarts == 0
    client.close()


def test_an_engine_that_dies_at_its_first_start_is_an_error(listener):
    client = start("dies")
    with pytest.raises(EngineDied, match="SIGSEGV"):
        client.wait_ready(20)
    assert client.num_restarts == 0
    client.close()


def test_a_command_that_does_not_exist_is_an_error():
    client = start(command=("/does/not/exist",))
    with pytest.raises(EngineDied, match="could not be started"):
        client.wait_ready(20)
    client.close()


def test_repeated_failures_inside_end_the_process_and_a_fresh_one_takes_over(client, listener):
    pid = client.pid
    for i in range(3):
        client.submit(request(f"bug{i}", chr(BUG)))
        listener.wait_finished(f"bug{i}")
        failed = listener.failed(f"bug{i}")
        assert failed is not None and "ZeroDivisionError" in failed.message
    wait_gone(pid)
    client.submit(request("after"))
    listener.wait_finished("after")
    assert listener.tokens("after") == continuation(7, 0, 8)


def test_ctrl_c_and_sigterm_are_left_to_the_parent(client, listener):
    os.kill(client.pid, signal.SIGINT)
    os.kill(client.pid, signal.SIGTERM)
    client.submit(request("a"))
    listener.wait_finished("a")
    assert listener.tokens("a") == continuation(7, 0, 8) and client.num_restarts == 0


def test_drain_finishes_what_runs(client, listener):
    client.submit(request("a", chr(SLOW), max_tokens=6))
    listener.wait(lambda: bool(listener.tokens("a")))
    pid = client.pid
    client.close(drain_s=10)
    assert listener.tokens("a") == continuation(7, 0, 6)
    assert client.state is ChildState.CLOSED and not client.alive
    wait_gone(pid)
    client.close()  # idempotent
    client.submit(request("late"))
    late = listener.failed("late")
    assert late is not None and late.kind == "NotReady" and "closing" in late.message


def test_close_without_drain_fails_what_runs_and_ends_the_process(client, listener):
    client.submit(request("a", chr(SLOW), max_tokens=1000))
    listener.wait(lambda: bool(listener.tokens("a")))
    pid = client.pid
    client.close()
    wait_gone(pid)
    failed = listener.failed("a")
    assert failed is not None and "closed" in failed.message


def test_when_the_parent_dies_the_child_ends():
    parent = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from test_child import start\n"
        "client = start(); client.wait_ready(20); print(client.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", parent, str(HERE)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        os.kill(pid, 0)
        process.kill()
    wait_gone(pid)


def test_the_collector_of_the_child_leaves_alone_what_was_loaded():
    script = "import gc; from trivet.engine.child_main import _calm_collector as calm; calm(); " \
        "print(gc.get_freeze_count(), gc.isenabled(), gc.get_threshold()[0])"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    frozen, is_enabled, threshold = done.stdout.split()
    assert int(frozen) > 1000 and is_enabled == "True" and int(threshold) >= 50_000


def test_pauses_grow_and_end():
    policy = RestartPolicy()
    assert [policy.delay_s(n) for n in range(6)] == [0.0, 0.0, 0.5, 1.0, 2.0, None]
    assert RestartPolicy(max_quick_deaths=99).delay_s(50) == 30.0
