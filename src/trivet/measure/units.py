"""Times as people write and read them: `500ms`, `2s`, `1.5m`; a bare number is seconds."""

from __future__ import annotations

import math
import re

from trivet.errors import ConfigError

UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_TIME = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)")


def parse_seconds(text: str, name: str) -> float:
    """Seconds in `text`, 0 or more. Raises ConfigError naming the setting `name`."""
    found = _TIME.fullmatch(text.strip().lower())
    if found is None or found[2] not in UNITS_S:
        raise ConfigError(
            f"`{name}` is {text!r}, but it must be a time", hint="write it as 500ms, 30s, 5m or in seconds"
        )
    return float(found[1]) * UNITS_S[found[2]]


def show_seconds(seconds: float) -> str:
    """A time with three significant digits in its unit: `812 us`, `43.1 ms`, `2.50 s`."""
    if math.isnan(seconds):
        return "-"
    for least, factor, unit in ((1.0, 1.0, "s"), (1e-3, 1e3, "ms"), (0.0, 1e6, "us")):
        if abs(seconds) >= least * 0.9995:
            value = seconds * factor
            digits = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
            return f"{value:,.{digits}f} {unit}"
    return f"{seconds:g} s"
