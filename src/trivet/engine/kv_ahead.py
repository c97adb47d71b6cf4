"""`KvAhead`: which KV memory is brought in before it is needed.

On a virtual machine the first use of a page waits until the host has found the memory: up to 12 us (docs/lab.md). An
idle engine brings in much. One that runs brings in the next blocks of its sequences, a piece or a few in a step that
has time left: streams that grow by a block in the same step would wait together, 60 ms for eight of them.
"""

from __future__ import annotations

from collections.abc import Callable

AHEAD_BYTES = 256 * 2**20  # and at most a quarter of the cache
CHUNK_BYTES = 2**20  # half a huge page: 5 ms, where the host has yet to find it, for a request that comes in meanwhile


def most_ahead(kv_bytes: int) -> int:
    """Bytes beyond what was ever used that an idle engine brings in."""
    return min(AHEAD_BYTES, kv_bytes // 4)


class KvAhead:
    """Goes through the KV cache from its start, as the block pool does, and stays within it."""

    def __init__(self, kv_bytes: int, block_bytes: int, touch: Callable[[int, int], None]) -> None:
        """`touch` brings the bytes from its first argument to its second into memory."""
        self._kv_bytes = kv_bytes
        self._block_bytes = block_bytes
        self._touch = touch
        self._end = 0  # what lies before it was touched, or belongs to blocks that were used

    def advance(self, num_used: int, num_ahead: int | None = None) -> bool:
        """Brings in one chunk beyond the blocks below `num_used`; False: there was nothing to do.

        `num_ahead`: so many blocks are enough; None: what an idle engine brings in.
        """
        used = num_used * self._block_bytes
        begin = max(self._end, used)
        most = most_ahead(self._kv_bytes)
        if num_ahead is not None:
            most = min(most, num_ahead * self._block_bytes)
        end = min(begin + CHUNK_BYTES, used + most, self._kv_bytes)
        if end <= begin:
            return False
        self._touch(begin, end)
        self._end = end
        return True
