"""Sizes as people write and read them: `2GiB`, `500MB`, `64K`."""

from __future__ import annotations

import re

from trivet.engine.shown import shown
from trivet.errors import ConfigError

UNITS = {
    "B": 1,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
    "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40,
}  # fmt: skip
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


def parse_size(text: str, name: str = "size") -> int:
    """Bytes in `text`; GB is 10^9 and GiB (or G) 2^30. Raises ConfigError naming the setting `name`.

    A number without a unit is refused: who writes 20 may mean bytes, or GiB.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is not None and not found[2]:
        raise ConfigError(
            f"`{name}` is {shown(text)}, but it must have a unit", hint="write it as 20GiB, 500MB or 4096B"
        )
    if found is None or found[2].upper() not in UNITS:
        raise ConfigError(f"`{name}` is {shown(text)}, but it must be a size", hint="write it as 20GiB, 500MB or 4096B")
    size = float(found[1]) * UNITS[found[2].upper()]
    if not 1 <= size < 2**63:
        raise ConfigError(f"`{name}` is {shown(text)}, but it must be at least one byte and below 2^63")
    return int(size)


def show_size(num_bytes: float) -> str:
    """`num_bytes` in the binary unit in which it has up to four digits: `1.5 GiB`, `812 MiB`."""
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= size:
            value = num_bytes / size
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.1f} {unit}"
    return f"{num_bytes:.0f} B"
