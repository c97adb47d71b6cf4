"""`RestartPolicy`: how soon a dead engine process is started again, and when to stop trying."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """The first death is followed by a restart at once; deaths soon after a start by ever longer pauses."""

    quick_death_s: float = 10.0  # a process that served for less than this died quickly
    first_delay_s: float = 0.5
    max_delay_s: float = 30.0
    max_quick_deaths: int = 5  # in a row; then it is left dead
    hold_s: float = 10.0  # requests may wait this long for a restart

    def delay_s(self, quick_deaths: int) -> float | None:
        """Seconds to wait after this many quick deaths in a row; None: do not start again."""
        if quick_deaths >= self.max_quick_deaths:
            return None
        return 0.0 if quick_deaths <= 1 else min(self.max_delay_s, self.first_delay_s * 2.0 ** (quick_deaths - 2))
