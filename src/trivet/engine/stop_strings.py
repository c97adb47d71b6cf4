"""`StopStrings`: finds stop strings in streamed text, also when one arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Releases text that can no longer be part of a stop string; `found` is the one that was met.

    The one that is complete first wins, the longer of two that end together, so that cuts make no difference.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        """`include`: the stop string itself is released too."""
        self.found: str | None = None
        self._stops = tuple(stops)
        self._include = include
        self._held = ""

    def add(self, text: str) -> str:
        """Text to release now."""
        if self.found is not None:
            return ""
        held = self._held + text
        met = [(start + len(stop), start, stop) for stop in self._stops if (start := held.find(stop)) >= 0]
        if met:
            end, start, self.found = min(met)
            self._held = ""
            return held[:end] if self._include else held[:start]
        cut = len(held) - max(_overlap(held, stop) for stop in self._stops)
        self._held = held[cut:]
        return held[:cut]

    def finish(self) -> str:
        """What was held back when the stream ended without a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop` and is shorter than it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
