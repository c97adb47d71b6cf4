"""What was measured, as columns: one row a request, and one for each read with tokens after a request's first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.measure.messages import Result
from trivet.measure.outcomes import Exchange, Outcome

REQUEST_COLUMNS = {
    "index": "i8", "turn": "i4", "intended_s": "f8", "sent_s": "f8", "first_s": "f8", "last_s": "f8",
    "first_tokens": "i4", "num_tokens": "i4", "wished_output": "i4", "wished_input": "i4", "prompt_tokens": "i4",
    "cached_tokens": "i4", "outcome": "u1", "status": "i4", "retry_after_s": "f8", "num_events": "i4",
    "num_reads": "i4", "reused": "u1",
}  # fmt: skip
FLAT_COLUMNS = {"gap_s": "f8", "gap_tokens": "u4", "num_gaps": "i4", "lag_s": "f8"}

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Array = NDArray[Any]


def columns_of(exchanges: Sequence[Exchange], lags_s: Iterable[float]) -> dict[str, bytes]:
    """The columns of finished exchanges, as bytes."""
    columns = {
        name: np.array([getattr(exchange, name) for exchange in exchanges], dtype).tobytes()
        for name, dtype in REQUEST_COLUMNS.items()
    }
    columns["gap_s"] = b"".join(exchange.gaps.tobytes() for exchange in exchanges)
    columns["gap_tokens"] = b"".join(exchange.gap_tokens.tobytes() for exchange in exchanges)
    columns["num_gaps"] = np.array([len(exchange.gaps) for exchange in exchanges], "i4").tobytes()
    columns["lag_s"] = np.array(list(lags_s), "f8").tobytes()
    return columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """All requests of a run, in order of their index. Times are seconds from the run's start; NaN: it never came."""

    columns: dict[str, Array]
    gap_s: Floats
    gap_tokens: Ints
    gap_owner: Ints  # row of the request that each gap belongs to
    lag_s: Floats

    def __len__(self) -> int:
        return len(self.columns["index"])

    def __getitem__(self, name: str) -> Array:
        return self.columns[name]

    @property
    def is_ok(self) -> Array:
        return np.asarray(self.columns["outcome"] == Outcome.ok)

    def where(self, chosen: Array) -> Requests:
        """Only the rows that a boolean array names."""
        rows = np.flatnonzero(chosen)
        new_row = np.full(len(self), -1)
        new_row[rows] = np.arange(len(rows))
        kept = chosen[self.gap_owner] if len(self.gap_owner) else np.zeros(0, bool)
        return Requests(
            columns={name: column[rows] for name, column in self.columns.items()},
            gap_s=self.gap_s[kept],
            gap_tokens=self.gap_tokens[kept],
            gap_owner=new_row[self.gap_owner[kept]],
            lag_s=self.lag_s,
        )


def requests_of(results: Sequence[Result], start_s: float) -> Requests:
    """The requests of all workers; `start_s` is the run's start on the monotonic clock."""

    def joined(name: str, dtype: str) -> Array:
        return np.concatenate([np.frombuffer(result.columns[name], dtype) for result in results])

    columns = {name: joined(name, dtype) for name, dtype in REQUEST_COLUMNS.items()}
    for name in ("intended_s", "sent_s", "first_s", "last_s"):
        columns[name] = np.where(columns[name] < 0, np.nan, columns[name] - start_s)
    num_gaps = joined("num_gaps", "i4").astype(np.int64)
    owner = np.repeat(np.arange(len(num_gaps)), num_gaps)
    order = np.argsort(columns["index"], kind="stable")
    new_row = np.empty(len(order), np.int64)
    new_row[order] = np.arange(len(order))
    owner = new_row[owner]
    by_owner = np.argsort(owner, kind="stable")
    return Requests(
        columns={name: column[order] for name, column in columns.items()},
        gap_s=joined("gap_s", "f8")[by_owner],
        gap_tokens=joined("gap_tokens", "u4").astype(np.int64)[by_owner],
        gap_owner=owner[by_owner],
        lag_s=joined("lag_s", "f8"),
    )
