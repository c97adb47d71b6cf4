"""KV memory that is brought in ahead of its use: how much, when idle and beside steps, and that nothing changes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_engine import FakeEngine
from fake_runner import Cost, FakeRunner
from listening import Listener, request

from checkpoints import make_checkpoint
from steps import batch_of_one, logits_of, make_runner
from trivet.config import CacheConfig, SchedulerConfig
from trivet.engine.block_pool import BlockPool
from trivet.engine.engine import Engine
from trivet.engine.kv_ahead import AHEAD_BYTES, CHUNK_BYTES, KvAhead
from trivet.engine.loop import EngineLoop
from trivet.engine.messages import Accepted, EngineEvent, Tokens
from trivet.engine.step import StepBatch, StepResult

MIB = 2**20
BLOCK = 3 * MIB + 4160
VOCAB = 320


class Touched:
    """Keeps what was touched, and that each byte was touched once, in order and in small pieces."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []

    def __call__(self, begin: int, end: int) -> None:
        assert 0 < end - begin <= CHUNK_BYTES
        assert not self.ranges or begin >= self.ranges[-1][1]
        self.ranges.append((begin, end))

    @property
    def num_bytes(self) -> int:
        return sum(end - begin for begin, end in self.ranges)


def run_out(ahead: KvAhead, num_used: int) -> None:
    while ahead.advance(num_used):
        pass


def test_so_much_is_brought_in_ahead_of_the_highest_block_and_no_more() -> None:
    touched = Touched()
    ahead = KvAhead(1000 * BLOCK, BLOCK, touched)
    run_out(ahead, 0)
    assert touched.num_bytes == AHEAD_BYTES
    run_out(ahead, 2)
    assert touched.ranges[-1][1] == AHEAD_BYTES + 2 * BLOCK
    assert touched.num_bytes == AHEAD_BYTES + 2 * BLOCK
    assert not ahead.advance(1), "what was used before does not count for less later"
    run_out(ahead, 500)  # far beyond: what blocks in use have touched themselves is passed over
    assert touched.num_bytes == 2 * AHEAD_BYTES + 2 * BLOCK
    assert touched.ranges[-1][1] == AHEAD_BYTES + 500 * BLOCK


def test_a_number_of_blocks_may_be_enough() -> None:
    touched = Touched()
    ahead = KvAhead(1000 * BLOCK, BLOCK, touched)
    while ahead.advance(3, 2):
        pass
    assert (touched.ranges[0][0], touched.ranges[-1][1]) == (3 * BLOCK, 5 * BLOCK)
    run_out(ahead, 3)
    assert touched.ranges[-1][1] == 3 * BLOCK + AHEAD_BYTES
    assert not ahead.advance(3, 20)
    assert not KvAhead(8 * BLOCK, BLOCK, touched).advance(1, 0)


def test_many_blocks_are_bounded_as_those_of_an_idle_engine() -> None:
    touched = Touched()
    ahead = KvAhead(8 * BLOCK, BLOCK, touched)
    while ahead.advance(1, 100):
        pass
    assert touched.num_bytes == 2 * BLOCK


class WatchedRunner(FakeRunner):
    """Time goes by while a step is waited for, not while it is submitted; keeps how much was prepared before each."""

    def __init__(self) -> None:
        super().__init__(max_under_way=2, num_blocks=64)
        self.num_prepared: list[int] = []
        self._times: deque[tuple[float, float]] = deque()  # begin and end of the steps under way

    def submit(self, batch: StepBatch) -> int:
        before = self.clock.now
        handle = super().submit(batch)
        begin = self._times[-1][1] if self._times else before
        self._times.append((begin, begin + self.clock.now - before))
        self.clock.now = before
        return handle

    def wait(self, handle: int, timeout_s: float) -> bool:
        self.num_prepared.append(len(self.prepared_busy))
        return super().wait(handle, timeout_s)

    def collect(self, handle: int) -> StepResult:
        start_s, end_s = self._times.popleft()
        self.clock.now = max(self.clock.now, end_s)
        return replace(super().collect(handle), start_s=start_s, end_s=end_s)


def watched(base_s: float) -> WatchedRunner:
    """An engine that runs one stream in steps of so many seconds, and knows it."""
    runner = WatchedRunner()
    runner.cost = Cost(base_s, 0.0)
    engine = Engine(runner, SchedulerConfig(), CacheConfig(prefix_caching=False), clock=runner.clock)
    engine.submit(request("a", "\x05" * 97, max_tokens=60))
    for _ in range(10):
        engine.step()
    runner.prepared_busy.clear()
    runner.num_prepared.clear()
    for _ in range(10):
        engine.step()
    return runner


def test_an_engine_gets_memory_ready_while_a_step_has_long_to_go() -> None:
    runner = watched(0.032)
    assert set(runner.prepared_busy) == {(4, 2)}, "two blocks for one sequence, beyond those in use"
    assert runner.num_prepared[:4] == [1, 2, 3, 4], "one piece in 20 ms that are left"


def test_a_long_step_gets_more_memory_ready() -> None:
    runner = watched(0.090)
    assert runner.num_prepared[:3] == [3, 4, 5], "and looks once a step when there was nothing to do"


def test_short_steps_get_one_piece_ready_if_they_have_time_for_it() -> None:
    assert watched(0.014).num_prepared[:3] == [1, 2, 3]


def test_steps_without_time_for_it_get_none_ready() -> None:
    runner = watched(0.012)
    assert runner.prepared_busy == [] and runner.num_prepared


def test_an_engine_that_cannot_get_memory_ready_serves_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    runner = WatchedRunner()
    runner.cost = Cost(0.050, 0.0)
    runner.fail_preparing = OSError("no memory ahead")
    engine = Engine(runner, SchedulerConfig(), CacheConfig(), clock=runner.clock)
    assert isinstance(engine.submit(request("a", "\x05", max_tokens=40)), Accepted)
    tokens = []
    while engine.has_work:
        tokens += [t for event in engine.step() if isinstance(event, Tokens) for t in event.token_ids]
    assert len(tokens) == 40
    assert caplog.text.count("could not be got ready ahead") == 1


def test_never_more_than_a_quarter_ahead_nor_than_the_cache_has() -> None:
    touched = Touched()
    ahead = KvAhead(8 * BLOCK, BLOCK, touched)
    run_out(ahead, 1)
    assert (touched.ranges[0][0], touched.ranges[-1][1]) == (BLOCK, 3 * BLOCK)
    run_out(ahead, 7)
    assert touched.ranges[-1] == (8 * BLOCK - BLOCK % CHUNK_BYTES or 8 * BLOCK - CHUNK_BYTES, 8 * BLOCK)
    assert not ahead.advance(8)


@pytest.fixture
def listener() -> Listener:
    return Listener()


def closing(loop: EngineLoop) -> None:
    loop.drain()
    assert loop.join(10)


def test_an_idle_loop_prepares_until_nothing_is_left_and_again_after_work(listener: Listener) -> None:
    engine = FakeEngine()
    engine.num_to_prepare = 5
    loop = EngineLoop(lambda: engine, listener, idle_s=0.0)
    looked_again = threading.Event()
    num_prepared_at_step: list[int] = []
    step = engine.step

    def noting_step(take_in: Callable[[], None] | None = None) -> list[EngineEvent]:
        num_prepared_at_step.append(engine.num_prepared)
        return step(take_in)

    def preparing() -> None:
        if engine.num_prepared == 3:
            loop.submit(request("while preparing", max_tokens=1))
        if engine.num_prepared == 5:
            loop.submit(request("when done", max_tokens=1))
        if engine.num_prepared == 6:
            looked_again.set()

    engine.step = noting_step  # type: ignore[method-assign]
    engine.preparing = preparing
    loop.start()
    listener.wait_finished("while preparing", "when done")
    assert num_prepared_at_step == [3, 5], "a request waits for one piece, and nothing is prepared before it"
    assert looked_again.wait(10)
    closing(loop)
    assert engine.num_prepared == 6, "after work it looks once, and then sleeps for good"


def test_a_loop_that_was_not_idle_for_long_prepares_nothing(listener: Listener) -> None:
    engine = FakeEngine()
    engine.num_to_prepare = 1000
    loop = EngineLoop(lambda: engine, listener, idle_s=600.0)
    loop.start()
    for number in range(20):
        loop.submit(request(str(number)))
        listener.wait_finished(str(number))
    closing(loop)
    assert engine.num_prepared == 0


def test_a_loop_that_cannot_prepare_serves(listener: Listener, caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine()
    tried = threading.Event()

    def failing() -> None:
        tried.set()
        raise OSError("no memory ahead")

    engine.preparing = failing
    loop = EngineLoop(lambda: engine, listener, idle_s=0.0)
    loop.start()
    assert tried.wait(10)
    loop.submit(request("a"))
    listener.wait_finished("a")
    assert len(listener.tokens("a")) == 8
    closing(loop)
    assert "could not get ready ahead" in caplog.text


def test_the_engine_says_how_far_its_blocks_were_used() -> None:
    runner = FakeRunner(num_blocks=16)
    engine = Engine(runner, SchedulerConfig(), CacheConfig(prefix_caching=False), clock=runner.clock)
    assert engine.prepare()
    engine.submit(request("a", "\x05" * 70))
    while engine.has_work:
        engine.step()
    assert engine.prepare()
    assert not engine.prepare()
    assert runner.prepared == [0, 3, 3]  # 78 tokens in blocks of 32


def test_blocks_used_before_go_before_fresh_ones() -> None:
    pool = BlockPool(8)
    table = [pool.allocate() for _ in range(3)]
    assert pool.num_ever_used == 3
    pool.release(table)
    again = [pool.allocate() for _ in range(4)]
    assert set(again[:3]) == set(table) and pool.num_ever_used == 4
    for block in again[:3]:
        pool.keep(block)
    pool.release(again)
    pool.forget_kept()
    assert {pool.allocate() for _ in range(4)} == set(again)
    assert pool.num_ever_used == 4


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_resident_memory_grows_by_what_is_touched_and_what_is_stored_stays(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m")
    runner = make_runner(folder, num_blocks=2048)
    kv_bytes = runner.info_fields()["kv_bytes"]
    assert 16 * MIB < kv_bytes < 4 * AHEAD_BYTES
    ids = [5, 9, 2, 7]
    expected = logits_of(runner, ids, [1])[3:].tobytes()
    runner.collect(runner.submit(batch_of_one(ids[:3], 0, VOCAB, [0])))
    before = resident_bytes()
    num_chunks = 0
    while runner.prepare(0):  # the block in use too
        num_chunks += 1
    grown = resident_bytes() - before
    ahead = kv_bytes // 4
    assert num_chunks == -(-ahead // CHUNK_BYTES)
    assert ahead - MIB < grown < ahead + MIB
    assert not runner.prepare(0) and resident_bytes() - before < ahead + MIB
    last = runner.collect(runner.submit(batch_of_one(ids[3:], 3, VOCAB, [0])))
    assert np.asarray(last.logits).tobytes() == expected


def test_a_range_outside_the_cache_is_refused(tmp_path: Path) -> None:
    runner = make_runner(make_checkpoint(tmp_path / "m"), num_blocks=4)
    executor = runner._executor
    assert executor is not None
    executor.touch_kv(0, 4 * executor.block_bytes)
    for begin, end in ((0, 4 * executor.block_bytes + 1), (2, 1)):
        with pytest.raises(ValueError, match="not within the"):
            executor.touch_kv(begin, end)
    runner.close()
    assert not runner.prepare(4)
