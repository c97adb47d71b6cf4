"""The prefix tree against a plain dictionary from texts to what is in their blocks."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trivet.engine.block_pool import BlockPool
from trivet.engine.prefix_tree import Parent, PrefixTree

SIZE = 2  # tokens per block
texts = st.lists(st.integers(0, 1), min_size=1, max_size=9)


class Text:
    """A sequence as the scheduler would run it: a block table, of which the first `done` blocks are in the tree."""

    def __init__(self, root: str, tokens: list[int], found: list[int], epoch: int) -> None:
        self.root = root
        self.tokens = np.array(tokens, np.int32)
        self.blocks = found
        self.done = len(found)
        self.parent: Parent = found[-1] if found else root
        self.epoch = epoch

    def prefix(self, num_blocks: int) -> tuple[str, tuple[int, ...]]:
        return self.root, tuple(self.tokens[: num_blocks * SIZE].tolist())


class TreeMachine(RuleBasedStateMachine):
    """`content` says what was last computed in each block; a match must lead to exactly the matched text."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(8)
        self.tree = PrefixTree(self.pool, SIZE)
        self.content: dict[int, tuple[str, tuple[int, ...]]] = {}
        self.running: list[Text] = []

    @rule(root=st.sampled_from(["a", "b"]), tokens=texts)
    def start(self, root: str, tokens: list[int]) -> None:
        array = np.array(tokens, np.int32)
        found = self.tree.match(root, array, len(tokens))
        text = Text(root, tokens, found, self.tree.epoch)
        for i, block in enumerate(found):
            assert self.content[block] == text.prefix(i + 1)
        num_new = -(-len(tokens) // SIZE) - len(found)
        if num_new + sum(map(self.pool.is_parked, found)) > self.pool.num_available:
            return
        for block in found:
            self.pool.share(block)
        text.blocks = found + [self.pool.allocate() for _ in range(num_new)]
        self.running.append(text)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def compute_a_block(self, data: st.DataObject) -> None:
        text = data.draw(st.sampled_from(self.running))
        if text.epoch != self.tree.epoch or (text.done + 1) * SIZE > len(text.tokens):
            return
        mine = text.blocks[text.done]
        self.content[mine] = text.prefix(text.done + 1)
        key = self.tree.key(text.parent, text.tokens, text.done)
        known = self.tree.find(key)
        block = self.tree.insert(key, mine)
        assert block == (mine if known is None else known)
        assert self.content[block] == text.prefix(text.done + 1), "another text's block"
        text.blocks[text.done] = block
        text.parent = block
        text.done += 1
        assert self.tree.match(text.root, text.tokens, text.done * SIZE) == text.blocks[: text.done]

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        text = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.pool.release(text.blocks)

    @rule()
    def clear(self) -> None:
        self.tree.clear()
        assert len(self.tree) == self.pool.num_parked == 0

    @invariant()
    def sound(self) -> None:
        self.pool.check(text.blocks for text in self.running)
        self.tree.check()


TreeMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=50, deadline=None, derandomize=True)
TestPrefixTree = TreeMachine.TestCase


def run_text(pool: BlockPool, tree: PrefixTree, root: str, tokens: list[int]) -> list[int]:
    """Computes a text and ends it; returns its block table."""
    text = Text(root, tokens, [], tree.epoch)
    text.blocks = [pool.allocate() for _ in range(len(tokens) // SIZE)]
    for i in range(len(text.blocks)):
        text.blocks[i] = tree.insert(tree.key(text.parent, text.tokens, i), text.blocks[i])
        text.parent = text.blocks[i]
    pool.release(text.blocks)
    return text.blocks


def test_a_match_is_the_longest_within_the_limit() -> None:
    pool = BlockPool(8)
    tree = PrefixTree(pool, SIZE)
    blocks = run_text(pool, tree, "root", [1, 2, 3, 4, 5, 6])
    query = np.array([1, 2, 3, 4, 9, 9], np.int32)
    assert tree.match("root", query, 6) == blocks[:2]
    assert tree.match("root", query, 3) == blocks[:1]
    assert tree.match("root", query, 1) == []
    assert tree.match("other", query, 6) == []


def test_the_same_text_is_stored_once() -> None:
    pool = BlockPool(8)
    tree = PrefixTree(pool, SIZE)
    first = run_text(pool, tree, "root", [1, 2, 3, 4])
    assert run_text(pool, tree, "root", [1, 2, 3, 4]) == first
    assert pool.num_parked == 2 and pool.num_free == 6


def test_the_end_of_the_oldest_text_is_given_up_first() -> None:
    pool = BlockPool(4)
    tree = PrefixTree(pool, SIZE)
    old = run_text(pool, tree, "root", [1, 1, 2, 2])
    new = run_text(pool, tree, "root", [3, 3, 4, 4])
    assert pool.num_free == 0
    assert pool.allocate() == old[1]
    assert tree.match("root", np.array([1, 1, 2, 2], np.int32), 4) == old[:1]
    assert pool.allocate() == old[0]
    assert tree.match("root", np.array([3, 3, 4, 4], np.int32), 4) == new
