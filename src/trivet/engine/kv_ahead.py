"""`KvAhead`: which KV memory is brought in before it is needed.

On a virtual machine the first use of a page waits until the host has found the memory: up to 12 us (docs/lab.md). An
idle engine brings in much. One that runs keeps a little ready, a piece a step: streams that grow by a block in the same
step would wait together, 60 ms for eight of them.
"""

from __future__ import annotations

from collections.abc import Callable

AHEAD_BYTES = 256 * 2**20  # and at most a quarter of the cache
BUSY_AHEAD_BYTES = 64 * 2**20  # the same
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

    def advance(self, num_used: int, *, is_busy: bool = False) -> bool:
        """Brings in one chunk beyond the blocks below `num_used`; False: there was nothing to do."""
        used = num_used * self._block_bytes
        begin = max(self._end, used)
        most = min(BUSY_AHEAD_BYTES if is_busy else AHEAD_BYTES, most_ahead(self._kv_bytes))
        end = min(begin + CHUNK_BYTES, used + most, self._kv_bytes)
        if end <= begin:
            return False
        self._touch(begin, end)
        self._end = end
        return True
