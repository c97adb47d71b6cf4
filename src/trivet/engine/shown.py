"""A refused value as a message shows it: short, whatever was sent, and made in a time that does not grow with it."""

from __future__ import annotations

import reprlib
from itertools import islice
from typing import Any

SHOWN_CHARS = 100  # of a value that is refused


class _Short(reprlib.Repr):
    """`repr` in bounded time, cut at the end and not in the middle."""

    def repr_str(self, x: str, level: int) -> str:
        return repr(x[:SHOWN_CHARS]) + "..." * (len(x) > SHOWN_CHARS)

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= 320 else f"an integer of {x.bit_length():,} bits"

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        if level <= 0:
            return "{...}"
        items = [f"{self.repr1(k, level - 1)}: {self.repr1(v, level - 1)}" for k, v in islice(x.items(), 20)]
        return "{" + ", ".join(items) + ", ..." * (len(x) > 20) + "}"


_SHORT = _Short()
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = _SHORT.maxfrozenset = 20
_SHORT.maxother = SHOWN_CHARS


def shown(value: object) -> str:
    """`value` as Python writes it, in at most a hundred characters and in a time that does not grow with it."""
    text = _SHORT.repr(value)
    return text if len(text) <= SHOWN_CHARS + 5 else f"{text[:SHOWN_CHARS]}..."


def shown_name(name: str) -> str:
    """`name` without quotes, cut like `shown`."""
    return name if len(name) <= SHOWN_CHARS else f"{name[:SHOWN_CHARS]}..."
