"""The block pool against a plain list: every block is in one place, references add up, double frees raise."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trivet.engine.block_pool import BlockPool, OutOfBlocks

NUM_BLOCKS = 6


class PoolMachine(RuleBasedStateMachine):
    """Tables that take, share, keep and give back blocks; the model is the tables and a list of what is parked."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS)
        self.pool.on_evict = self._on_evict
        self.tables: list[list[int]] = []
        self.kept: set[int] = set()
        self.parked: list[int] = []  # the longest parked first
        self.evicted: list[int] = []

    def _on_evict(self, block: int) -> None:
        self.evicted.append(block)

    def _held(self) -> set[int]:
        return {block for table in self.tables for block in table}

    @rule(count=st.integers(1, 3))
    def allocate(self, count: int) -> None:
        table: list[int] = []
        self.tables.append(table)
        for _ in range(count):
            free = NUM_BLOCKS - len(self._held()) - len(self.parked)
            if free + len(self.parked) == 0:
                with pytest.raises(OutOfBlocks):
                    self.pool.allocate()
                return
            block = self.pool.allocate()
            assert block not in self._held()
            if free == 0:
                assert self.evicted.pop() == block == self.parked.pop(0), "the longest parked goes first"
                self.kept.discard(block)
            assert not self.evicted and block not in self.parked
            table.append(block)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        table = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        self.pool.release(table)
        for block in reversed(table):
            if block not in self._held() and block in self.kept and block not in self.parked:
                self.parked.append(block)

    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        blocks = sorted(self._held() | set(self.parked))
        if blocks:
            block = data.draw(st.sampled_from(blocks))
            self.pool.share(block)
            if block in self.parked:
                self.parked.remove(block)
            self.tables.append([block])

    @rule(data=st.data())
    def keep(self, data: st.DataObject) -> None:
        if held := sorted(self._held()):
            block = data.draw(st.sampled_from(held))
            self.pool.keep(block)
            self.kept.add(block)

    @rule()
    def forget(self) -> None:
        self.pool.forget_kept()
        self.kept.clear()
        self.parked.clear()

    @rule(block=st.integers(0, NUM_BLOCKS - 1))
    def what_is_not_held_cannot_be_freed_or_kept(self, block: int) -> None:
        if block not in self._held():
            with pytest.raises(ValueError, match=f"block {block} is freed twice"):
                self.pool.release([block])
            with pytest.raises(ValueError, match=f"block {block} is not in use"):
                self.pool.keep(block)
            if block not in self.parked:
                with pytest.raises(ValueError, match=f"block {block} is free"):
                    self.pool.share(block)

    @invariant()
    def counts_agree(self) -> None:
        self.pool.check(self.tables)
        assert self.pool.num_used == len(self._held())
        assert self.pool.num_parked == len(self.parked)
        assert all(map(self.pool.is_parked, self.parked))
        assert self.pool.num_free + self.pool.num_parked == self.pool.num_available
        assert self.pool.num_used + self.pool.num_available == NUM_BLOCKS


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)
TestBlockPool = PoolMachine.TestCase


def test_freed_twice_raises() -> None:
    pool = BlockPool(2)
    block = pool.allocate()
    pool.release([block])
    with pytest.raises(ValueError, match="block 0 is freed twice"):
        pool.release([block])


def test_few_pages_are_touched() -> None:
    """What was freed last is used first, and fresh blocks come in order."""
    pool = BlockPool(100)
    first = [pool.allocate() for _ in range(3)]
    assert first == [0, 1, 2]
    pool.release(first)
    assert sorted(pool.allocate() for _ in range(3)) == [0, 1, 2]


def test_check_finds_a_lost_reference() -> None:
    pool = BlockPool(3)
    block = pool.allocate()
    with pytest.raises(AssertionError, match="do not add up"):
        pool.check([])
    with pytest.raises(AssertionError, match="do not add up"):
        pool.check([[block, block]])
