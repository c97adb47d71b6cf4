"""A search for violations of law 1: the same tokens, and the same bits of their log probabilities, whatever the load.

Run as a script it prints what it found and exercised: `python law_one.py FOLDER PRECISION KV SAMPLING SECONDS`.
"""

from __future__ import annotations

import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from steps import make_runner
from trivet.config import CacheConfig, SchedulerConfig
from trivet.engine.engine import Engine
from trivet.engine.messages import Accepted, EngineRequest, Failed, Tokens
from trivet.engine.sampling_params import SamplingParams

Sampling = Literal["greedy", "seeded"]
Output = list[tuple[int, float]]  # (token id, its log probability) of one sequence
NUM_PROMPTS = 10
MOST_OPEN = 32


@dataclass
class Search:
    """What a search found, and what it exercised on the way."""

    violation: str | None = None
    rounds: int = 0
    preemptions: int = 0
    cached_tokens: int = 0
    most_open: int = 0

    @property
    def was_one(self) -> bool:
        """Whether there were many at once, preempted ones among them, with shared prefixes."""
        return self.preemptions > 0 and self.cached_tokens > 0 and self.most_open >= 10


@dataclass(frozen=True)
class Case:
    """One request and what it gives when it runs alone."""

    prompt: list[int]
    sampling: SamplingParams
    alone: list[Output]


def draw_requests(rng: random.Random, vocab_size: int, sampling: Sampling) -> list[tuple[list[int], SamplingParams]]:
    """Prompts of 1 to 300 tokens and one of 1,100, half of them beginning alike, with one to three sequences each."""
    common = [rng.randrange(vocab_size) for _ in range(150)]
    drawn = []
    for i in range(NUM_PROMPTS):
        length = rng.choice([1, 31, 32, 33, rng.randint(2, 60), rng.randint(60, 300)]) if i != 2 else 20
        prompt = [rng.randrange(vocab_size) for _ in range(length)]
        if i == 0:
            prompt = [rng.randrange(vocab_size) for _ in range(1100)]  # over the segments that attention merges
        if i % 2:
            prompt = common[: rng.randint(1, 150)] + prompt[: rng.randint(1, 40)]
        params: dict[str, Any] = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
        if sampling == "seeded":
            params = {
                "temperature": rng.choice([0.5, 1.0]),
                "top_p": rng.choice([0.9, 1.0]),
                "top_k": rng.choice([0, 20]),
                "min_p": 0.0,
                "n": rng.choice([1, 1, 3]),
                "presence_penalty": 0.5 if i == 3 else 0.0,  # with it the next step waits for the token
            }
        drawn.append(
            (
                prompt,
                SamplingParams(
                    max_tokens=rng.randint(1, 40) if i % 2 else 190, seed=rng.randrange(2**63), logprobs=0, **params
                ),
            )
        )
    return drawn


class Harness:
    """Engines of different sizes on one checkpoint; runners are kept, since making one costs more than a step."""

    def __init__(self, folder: Path | str, precision: str, kv: str) -> None:
        self.folder, self.precision, self.kv = folder, precision, kv
        self._runners: dict[tuple[int, int], Any] = {}

    def engine(self, *, threads: int, num_blocks: int, max_tokens: int, prefix_caching: bool) -> Engine:
        key = (threads, num_blocks)
        if key not in self._runners:
            self._runners[key] = make_runner(
                self.folder,
                precision=self.precision,
                kv=self.kv,
                threads=threads,
                num_blocks=num_blocks,
                max_tokens=512,
                max_num_seqs=MOST_OPEN,
            )
        return Engine(
            self._runners[key],
            SchedulerConfig(
                max_num_seqs=MOST_OPEN,
                max_tokens_per_step=max_tokens,
                itl_target_s=0.0,
                max_waiting=1000,
                max_wait_s=1e9,
            ),
            CacheConfig(prefix_caching=prefix_caching, dtype=self.kv),  # type: ignore[arg-type]
        )


def submit(engine: Engine, request_id: str, prompt: list[int], sampling: SamplingParams) -> None:
    answer = engine.submit(EngineRequest(request_id=request_id, prompt_token_ids=prompt, sampling=sampling))
    assert isinstance(answer, Accepted), answer


def collect(engine: Engine, into: dict[str, list[Output]]) -> None:
    """One step; its tokens go to `into[request_id][index]`."""
    for event in engine.step():
        assert not isinstance(event, Failed), event
        if isinstance(event, Tokens) and event.request_id in into:
            logprobs = event.logprobs or []
            into[event.request_id][event.index] += [(p.token_id, p.logprob) for p in logprobs]


def run_alone(harness: Harness, prompt: list[int], sampling: SamplingParams) -> list[Output]:
    engine = harness.engine(threads=1, num_blocks=200, max_tokens=512, prefix_caching=False)
    got: dict[str, list[Output]] = {"alone": [[] for _ in range(sampling.n)]}
    submit(engine, "alone", prompt, sampling)
    while engine.has_work:
        collect(engine, got)
    return got["alone"]


def find_violation(
    folder: Path | str, precision: str, kv: str, sampling: Sampling, seconds: float, *, seed: int = 0
) -> Search:
    """What differed first, if anything did within the time, and what was exercised.

    On a slow or busy machine the time alone may hold too few rounds, so they go on until everything was exercised.
    """
    rng, harness = random.Random(f"{seed} {precision} {kv} {sampling}"), Harness(folder, precision, kv)
    runner = harness.engine(threads=1, num_blocks=200, max_tokens=512, prefix_caching=False).capabilities
    cases = [Case(p, s, run_alone(harness, p, s)) for p, s in draw_requests(rng, runner.vocab_size, sampling)]
    deadline, search = time.monotonic() + seconds, Search()
    while time.monotonic() < deadline or (not search.was_one and search.rounds < 40):
        settings = {
            "threads": rng.choice([1, 2, 2, 3]),
            "num_blocks": rng.choice([48, 64, 200]),
            "max_tokens": rng.choice([32, 47, 64, 200, 512]),
            "prefix_caching": search.rounds % 3 > 0,
        }
        among, crowd = cases, rng.random() < 0.5
        if search.rounds == 0:  # short prompts with long outputs, all at once on few blocks: somebody must give way
            settings["num_blocks"], among, crowd = 48, cases[2:3], True
        violation = play(harness.engine(**settings), among, rng, num_requests=40, crowd=crowd, search=search)
        if violation is not None:
            search.violation = f"round {search.rounds}, {settings}: {violation}"
            break
        search.rounds += 1
    return search


def play(
    engine: Engine, cases: list[Case], rng: random.Random, *, num_requests: int, crowd: bool, search: Search
) -> str | None:
    """Requests join and leave at random until `num_requests` have come and the rest is done."""
    joining_choices = [num_requests] if crowd else [0, 0, 1, 2, 8]
    got: dict[str, list[Output]] = {}
    of: dict[str, Case] = {}
    cancelled: set[str] = set()
    while engine.has_work or len(of) < num_requests:
        joining = rng.choice(joining_choices) if engine.has_work else joining_choices[-1]
        for _ in range(min(joining, num_requests - len(of))):
            name, case = f"r{len(of)}", rng.choice(cases)
            got[name], of[name] = [[] for _ in range(case.sampling.n)], case
            submit(engine, name, case.prompt, case.sampling)
        if rng.random() < 0.02 and of:
            name = rng.choice(list(of))
            engine.cancel(name)
            cancelled.add(name)
        collect(engine, got)
        if rng.random() < 0.05:
            engine.check_invariants()
        stats = engine.stats()
        search.most_open = max(search.most_open, stats.num_running)
    search.preemptions += stats.num_preemptions
    search.cached_tokens += stats.prefix_hits_tokens
    for name, outputs in got.items():
        for index, (output, want) in enumerate(zip(outputs, of[name].alone, strict=True)):
            expected = want[: len(output)] if name in cancelled else want
            if output != expected:
                at = next(
                    (i for i, (a, b) in enumerate(zip(output, expected, strict=False)) if a != b),
                    min(len(output), len(expected)),
                )
                found, alone = output[at : at + 1], expected[at : at + 1]
                return f"{name}[{index}] differs from its run alone at token {at}: {found} instead of {alone}"
    return None


if __name__ == "__main__":
    print(find_violation(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], float(sys.argv[5])))  # type: ignore[arg-type]
