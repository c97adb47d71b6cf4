"""`BlockPool`: which KV blocks are free, which are held by sequences, which only wait to be used again.

A block is in exactly one of three places:

    free      nobody needs what is in it
    used      num_refs[block] >= 1 sequences have it in their block table
    parked    no sequence has it, but the prefix tree knows its content; the longest parked goes first

The pool does not know tokens. The prefix tree tells it which blocks to `keep`, and is told (`on_evict`) when a parked
block's content is given up.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence


class OutOfBlocks(Exception):
    """No block is free or parked: the scheduler must preempt somebody. Never leaves the engine."""


def _nothing(block: int) -> None:
    """Nobody wants to know about evictions."""


class BlockPool:
    """Block ids 0..num_blocks-1 with reference counts; every operation is O(1) a block."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.on_evict: Callable[[int], None] = _nothing
        self.num_ever_used = 0  # 1 + the highest id that was ever given out
        self._num_refs = [0] * num_blocks
        self._kept = bytearray(num_blocks)
        # A stack: the lowest ids first and what was freed last, so that few memory pages are ever touched.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._parked: OrderedDict[int, None] = OrderedDict()

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_parked(self) -> int:
        return len(self._parked)

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can give out."""
        return len(self._free) + len(self._parked)

    @property
    def num_used(self) -> int:
        """Blocks that sequences hold."""
        return self.num_blocks - self.num_available

    def num_refs(self, block: int) -> int:
        return self._num_refs[block]

    def is_parked(self, block: int) -> bool:
        return block in self._parked

    def allocate(self) -> int:
        """A block with one reference; the longest parked one is given up if none is free. Raises OutOfBlocks."""
        if self._free:
            block = self._free.pop()
            if block >= self.num_ever_used:
                self.num_ever_used = block + 1
        elif self._parked:
            block = self._parked.popitem(last=False)[0]
            self._kept[block] = 0
            self.on_evict(block)
        else:
            raise OutOfBlocks
        self._num_refs[block] = 1
        return block

    def share(self, block: int) -> None:
        """One more reference to a block that is used or parked. Raises ValueError for a free one."""
        if self._num_refs[block] == 0:
            if block not in self._parked:
                raise ValueError(f"block {block} is free, it cannot be shared")
            del self._parked[block]
        self._num_refs[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """One reference less to each block of a table, the last block first.

        From the end, so that of two parked blocks the later in a text is always the first to be given up: the tree
        never loses a block that another one follows. Raises ValueError for a block that nobody holds.
        """
        for block in reversed(blocks):
            num_refs = self._num_refs[block]
            if num_refs == 0:
                raise ValueError(f"block {block} is freed twice")
            self._num_refs[block] = num_refs - 1
            if num_refs == 1:
                if self._kept[block]:
                    self._parked[block] = None
                else:
                    self._free.append(block)

    def keep(self, block: int) -> None:
        """From now on a used block is parked, not freed, when its last reference goes."""
        if self._num_refs[block] == 0:
            raise ValueError(f"block {block} is not in use, it cannot be kept")
        self._kept[block] = 1

    def forget_kept(self) -> None:
        """Every parked block becomes free, and nothing is kept any more."""
        self._free.extend(reversed(self._parked))
        self._parked.clear()
        self._kept = bytearray(self.num_blocks)

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Raises AssertionError unless every block is in one place and the references are those of `tables`."""
        counted = [0] * self.num_blocks
        for table in tables:
            for block in table:
                counted[block] += 1
        assert counted == self._num_refs, "the references do not add up"
        free = set(self._free)
        assert len(free) == len(self._free), "a block is twice in the free list"
        for block, num_refs in enumerate(self._num_refs):
            places = (block in free) + (block in self._parked) + (num_refs > 0)
            assert places == 1, f"block {block} is in {places} places"
            assert not (self._kept[block] and block in free), f"block {block} is kept and free"
            assert self._kept[block] or block not in self._parked, f"block {block} is parked and not kept"
