"""What the inter-token target makes of a prompt that comes in beside streams, in simulated time.

    python -m benchmarks.engine.itl_target

Eight streams run, steps take 20 ms + 0.5 ms a token + 20 ns a pair, and the longest prompt before was one of 300
tokens. A line tells, for each length of prompt, when its first token came, the longest and the median gap of a stream
beside it, and how many of its gaps were longer than the target. The real scheduler decides; nothing is computed, so the
times are the same on every machine.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from statistics import median

import numpy as np

from benchmarks.engine.step_host_time import NullRunner
from benchmarks.record import Record, show
from trivet.config import CacheConfig, SchedulerConfig
from trivet.engine.engine import Engine
from trivet.engine.messages import Accepted, EngineRequest, Tokens
from trivet.engine.sampling_params import SamplingParams
from trivet.engine.step import StepBatch

BASE_S, TOKEN_S, PAIR_S = 20e-3, 0.5e-3, 20e-9
NUM_STREAMS = 8
SETTINGS = [(0.0, None), (0.2, None), (0.2, 0.0), (0.1, None), (0.05, None)]  # target and longest pause
LENGTHS = [300, 2000, 4000]


class SimulatedRunner(NullRunner):
    """Its steps take as long as the model above says."""

    capabilities = replace(NullRunner.capabilities, max_context=8192)

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def submit(self, batch: StepBatch) -> int:
        start_s = self.now_s
        ends = zip(np.diff(batch.seq_starts).tolist(), batch.context_lens.tolist(), strict=True)
        num_pairs = sum(n * (end - n) + n * (n + 1) // 2 for n, end in ends)
        self.now_s += BASE_S + TOKEN_S * len(batch.token_ids) + PAIR_S * num_pairs
        handle = super().submit(batch)
        assert self._result is not None
        self._result = replace(self._result, start_s=start_s, end_s=self.now_s)
        return handle


def beside_streams(length: int, scheduler: SchedulerConfig) -> tuple[float, list[float]]:
    """Seconds until the first token of a prompt of so many tokens, and the gaps of a stream until then."""
    runner = SimulatedRunner()
    engine = Engine(runner, scheduler, CacheConfig(), clock=lambda: runner.now_s)

    def add(name: str, prompt: list[int], max_tokens: int) -> None:
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0)
        answer = engine.submit(EngineRequest(request_id=name, prompt_token_ids=prompt, sampling=sampling))
        assert isinstance(answer, Accepted), answer

    def step() -> set[str]:
        return {event.request_id for event in engine.step() if isinstance(event, Tokens)}

    add("before", [9] * 300, 1)
    while engine.has_work:
        step()
    for i in range(NUM_STREAMS):
        add(f"stream {i}", [i] * 5, 2000)
    for _ in range(50):
        step()
    began_s = last_s = runner.now_s
    add("prompt", [i % 50 for i in range(length)], 1)
    first_s, gaps = 0.0, []
    while not first_s or last_s < first_s:
        told = step()
        if "stream 0" in told:
            gaps.append(runner.now_s - last_s)
            last_s = runner.now_s
        if "prompt" in told:
            first_s = runner.now_s
    return first_s - began_s, gaps


def measured(length: int, target_s: float, max_pause_s: float | None) -> Record:
    """What a cell of the table tells; times in ms but for the first token's."""
    first_s, gaps = beside_streams(length, SchedulerConfig(itl_target_s=target_s, max_pause_s=max_pause_s))
    return {
        "bench": "engine.itl_target", "itl_target_s": target_s, "max_pause_s": max_pause_s, "prompt": length,
        "first_s": first_s, "longest_ms": max(gaps) * 1e3, "median_ms": median(gaps) * 1e3, "num_gaps": len(gaps),
        "num_long": sum(gap > 1.02 * target_s for gap in gaps) if target_s else 0,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    args = parser.parse_args()
    rows = [[measured(length, *setting) for length in LENGTHS] for setting in SETTINGS]
    if args.json:
        return show([record for row in rows for record in row], [], as_json=True)
    print("| target | longest pause | " + " | ".join(f"{length:,} tokens" for length in LENGTHS) + " |")
    print("| --- | --- |" + " --- |" * len(LENGTHS))
    for (target_s, max_pause_s), row in zip(SETTINGS, rows, strict=True):
        cells = ["off" if target_s == 0 else f"{target_s * 1e3:.0f} ms"]
        cells.append("-" if target_s == 0 else "ten targets" if max_pause_s is None else "none")
        for cell in row:
            gaps = f"{cell['longest_ms']:,.0f} / {cell['median_ms']:,.0f} ms, {cell['num_long']} of {cell['num_gaps']}"
            cells.append(f"{cell['first_s']:.2f} s, {gaps}")
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
