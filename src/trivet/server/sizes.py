"""Sizes as people write and read them: `2GiB`, `500MB`, `1073741824`."""

from __future__ import annotations

import re

from trivet.errors import ConfigError

UNITS = {
    "": 1, "B": 1,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
    "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40,
}  # fmt: skip
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


def parse_size(text: str, name: str = "size") -> int:
    """Bytes in `text`; GB is 10^9 and GiB (or G) 2^30. Raises ConfigError naming the setting `name`."""
    found = _SIZE.fullmatch(text.strip())
    if found is None or found[2].upper() not in UNITS:
        raise ConfigError(f"`{name}` is {text!r}, but it must be a size", hint="write it as 2GiB, 500MB or in bytes")
    size = int(float(found[1]) * UNITS[found[2].upper()])
    if size < 1:
        raise ConfigError(f"`{name}` is {text!r}, but it must be at least one byte")
    return size


def show_size(num_bytes: float) -> str:
    """`num_bytes` in the binary unit in which it has up to four digits: `1.5 GiB`, `812 MiB`."""
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= size:
            value = num_bytes / size
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.1f} {unit}"
    return f"{num_bytes:.0f} B"
