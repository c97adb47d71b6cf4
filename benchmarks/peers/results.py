"""What has been measured: a file of one JSON object a line, only ever appended to.

Two kinds. A `survey`: one turn of one rival, which says who the finalists of a row are. A `row`: ours and the finalists
in turn, with the limits of the machine around them. A later record of the same thing counts instead of an earlier one.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

Record = dict[str, Any]
SAME_SURVEY = ("row", "contestant", "model", "host", "cpu", "tier", "kv_gib")
SAME_ROW = ("row", "model", "host", "cpu", "tier", "commit")


class Results:
    """The file, and what it says so far."""

    def __init__(self, path: Path, where: Record) -> None:
        """`where` is written into every record: commit, host, cpu, model, tier, ..."""
        self.path, self.where = path, where
        self.records = read(path)

    def append(self, record: Record) -> None:
        whole = {**record, **self.where, "at": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(whole) + "\n")
        self.records.append(whole)

    def surveys(self, row: str) -> dict[str, Record]:
        """The latest survey of each rival of a row, with this model on this machine, whatever our commit was."""
        return {r["contestant"]: r for r in self._of("survey") if r["row"] == row and self._is_same(r, SAME_SURVEY)}

    def is_done(self, row: str) -> bool:
        """Whether the row was measured at this commit."""
        return any(r["row"] == row and self._is_same(r, SAME_ROW) for r in self._of("row"))

    def _of(self, kind: str) -> list[Record]:
        return [r for r in self.records if r["kind"] == kind]

    def _is_same(self, record: Record, names: tuple[str, ...]) -> bool:
        return all(record.get(name) == self.where[name] for name in names if name in self.where)


def read(path: Path) -> list[Record]:
    """All whole lines; the last one may have been cut off."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records
