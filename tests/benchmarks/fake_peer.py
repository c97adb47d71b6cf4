"""A worker whose engine only sleeps: `first_s` to the first token, `step_s` for each after it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "peers" / "workers"))

from common import Message, Times, serve


class Sleeper:
    def __init__(self, settings: Message) -> None:
        self.settings = settings

    def generate(self, prompts: list[list[int]], output: int, shared: int) -> Times:
        print("noise of the peer")  # must not reach the harness
        if len(prompts) == self.settings.get("dies_at"):
            sys.exit(7)
        moments = []
        for token in range(output - (len(prompts) == self.settings.get("short_at"))):
            time.sleep(self.settings["step_s"] if token else self.settings["first_s"])
            moments.append(time.perf_counter())
        return [moments for _ in prompts]


def load(settings: Message) -> tuple[Sleeper, Message]:
    print("loading", file=sys.stderr)
    return Sleeper(settings), {"versions": {"fake": "1"}, "weight_bytes": 1000}


if __name__ == "__main__":
    serve(load)
