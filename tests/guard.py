"""Arrays that end where memory ends: an over-read by one byte, which sanitizers miss in vector code, is a segfault."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any, TypeVar

import numpy as np

A = TypeVar("A", bound=np.ndarray[Any, Any])


def at_page_end(a: A) -> A:
    """A copy of `a` (C order) that ends exactly where an unreadable page begins."""
    page = mmap.PAGESIZE
    num_bytes = -(-a.nbytes // page) * page
    buffer = mmap.mmap(-1, num_bytes + page)
    base = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(base + num_bytes), ctypes.c_size_t(page), 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    out = np.frombuffer(buffer, a.dtype, a.size, num_bytes - a.nbytes).reshape(a.shape)
    out[...] = a
    return out  # type: ignore[return-value]
