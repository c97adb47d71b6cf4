"""`Progress`: a bar on the terminal for what takes a while."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

BEGIN_S = 2.0  # what is quicker shows no bar


class Progress:
    """Shows nothing unless stderr is a terminal and `BEGIN_S` have passed; then a bar on stderr."""

    def __init__(self, what: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`what`: the words before the bar."""
        self._what = what
        self._clock = clock
        self._start = clock()
        self._wanted = sys.stderr.isatty()
        self._bar: Any = None  # rich.progress.Progress, imported when first shown
        self._task: Any = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, num_done: int, total: int, *, num_tokens: int | None = None) -> None:
        """So many of `total` are done; with `num_tokens` generated, their rate is shown too."""
        if not self._wanted or total < 2:
            return
        elapsed_s = self._clock() - self._start
        if elapsed_s < BEGIN_S:
            return
        if self._bar is None:
            self._show()
        rate = "" if num_tokens is None else f"{num_tokens / elapsed_s:,.1f} tokens/s"
        self._bar.update(self._task, completed=num_done, total=total, rate=rate)

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn(self._what),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task(self._what, rate="")
        self._bar.start()
