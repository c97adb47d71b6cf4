"""`PrefixTree`: from runs of token ids to the blocks that hold their keys and values.

A node is a full block. Its key is (parent, the block's token ids), where the parent is the block id of the node before
it, or, for the first block of a text, the root key: what the numbers depend on besides the tokens (numerics fingerprint
and tenant salt). So a look-up is one dictionary access a block, nothing is hashed twice, and two texts share exactly
their common full blocks.

Three facts keep this sound, and `check` tests them:
- a sequence that holds a node holds all nodes above it, and `BlockPool.release` parks the later block first, so a node
  is given up only when nothing follows it: no key ever names a parent that is gone;
- a block that is inserted twice (two sequences computed the same text at once) stays once in the tree: the second
  sequence swaps to the first one's block, which holds the same bits by law 1;
- after `clear`, sequences that were running may not insert any more: their parents are gone. `epoch` tells.
"""

from __future__ import annotations

import numpy as np

from trivet.engine.block_pool import BlockPool
from trivet.engine.step import I32

Parent = str | int  # root key, or the block id of the node before
Key = tuple[Parent, bytes]


class PrefixTree:
    """Shares blocks of a `BlockPool` between sequences that begin alike."""

    def __init__(self, pool: BlockPool, block_size: int) -> None:
        self.epoch = 0
        self.num_inserted = 0  # ever; changes whenever a look-up could find more
        self._pool = pool
        self._block_size = block_size
        self._blocks: dict[Key, int] = {}
        self._keys: dict[int, Key] = {}
        pool.on_evict = self._on_evict

    def __len__(self) -> int:
        return len(self._blocks)

    def key(self, parent: Parent, token_ids: I32, block_idx: int) -> Key:
        """The key of block `block_idx` of a text; `token_ids` int32 [>= (block_idx + 1) * block_size]."""
        start = block_idx * self._block_size
        return parent, token_ids[start : start + self._block_size].tobytes()

    def find(self, key: Key) -> int | None:
        """The block under `key`; a reference is not taken."""
        return self._blocks.get(key)

    def match(self, root: str, token_ids: I32, max_tokens: int) -> list[int]:
        """Blocks of the longest known beginning of `token_ids`, at most `max_tokens` long; no reference is taken."""
        blocks: list[int] = []
        parent: Parent = root
        size = self._block_size
        for start in range(0, max_tokens - size + 1, size):
            block = self._blocks.get((parent, token_ids[start : start + size].tobytes()))
            if block is None:
                break
            blocks.append(block)
            parent = block
        return blocks

    def insert(self, key: Key, block: int) -> int:
        """The block that is in the tree under `key` now: `block`, or the one that was there before it.

        In the second case the caller's reference has moved: `block` was released and the other one shared.
        """
        known = self._blocks.get(key)
        if known is None:
            self._blocks[key] = block
            self._keys[block] = key
            self._pool.keep(block)
            self.num_inserted += 1
            return block
        if known != block:
            self._pool.share(known)
            self._pool.release((block,))
        return known

    def clear(self) -> None:
        """Forgets everything: what is parked becomes free, and running sequences may not insert any more."""
        self._blocks.clear()
        self._keys.clear()
        self._pool.forget_kept()
        self.epoch += 1

    def _on_evict(self, block: int) -> None:
        del self._blocks[self._keys.pop(block)]

    def check(self) -> None:
        """Raises AssertionError unless keys and blocks mirror each other and every parent is in the tree."""
        assert {block: key for key, block in self._blocks.items()} == self._keys, "a block has two keys"
        for (parent, tokens), block in self._blocks.items():
            assert len(tokens) == self._block_size * np.dtype(np.int32).itemsize
            held = self._pool.num_refs(block) > 0
            assert held or self._pool.is_parked(block), f"block {block} is in the tree and free"
            if isinstance(parent, int):
                assert parent in self._keys, f"block {block} follows block {parent}, which is gone"
                assert self._pool.num_refs(parent) >= self._pool.num_refs(block), f"block {block} outlives {parent}"
