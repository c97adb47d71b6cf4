"""Runs rows: every rival alone, then ours in turn with the two best of them, five times.

    python -m benchmarks.peers --rows R1,R2.512 --home /tmp/peers --model /tmp/qwen3-0.6b

Called again it goes on: rivals that were surveyed on this machine are not surveyed again, rows that were measured at
this commit are left out (--again measures them). The rounds of a row end after --limit seconds, and so does its survey;
what is missing then is left out (rounds; the record says how many there were), or done by the next call (a survey).
While one works, the others are stopped (SIGSTOP). `python -m benchmarks.peers.table FILE` prints the table.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from benchmarks.peers.contestants import (
    CONTESTANTS,
    Contestant,
    Place,
    kv_fills,
    memory_need,
    shown_settings,
    worker_command,
    worker_environment,
)
from benchmarks.peers.model_facts import model_facts
from benchmarks.peers.pool import Pool
from benchmarks.peers.results import Results
from benchmarks.peers.rows import FINALISTS, ROWS, Row, select
from benchmarks.peers.worker import Message, Worker, WorkerFailed
from benchmarks.record import environment, limits

LOAD_S = 400.0  # vLLM compiles for more than a minute
WARM_UP_TOKENS = 16
SURVEY_ROUND, WARM_UP_ROUND = 90, 95
SHORT_TURN_S = 20.0  # of the work alone: who is loaded and warm may as well have a second one


class Measure(Protocol):
    """One turn of one contestant: its figures, `value` among them."""

    def __call__(self, row: Row, contestant: Contestant, number: int) -> Message: ...


def say(*words: object) -> None:
    print(time.strftime("%H:%M:%S"), *words, file=sys.stderr, flush=True)


# --- a turn -------------------------------------------------------------------------------------------------------


def seed_of(row: Row, number: int) -> int:
    """Of the prompts: another in every row and round, the same for everybody in it."""
    return zlib.crc32(row.name.encode()) % 100_000 * 100 + (0 if row.repeat_prompts else number)


def value_of(row: Row, answer: Message) -> float:
    """The figure that is compared."""
    if row.figure == "tok_per_s":
        return float(answer["tokens"] / answer["seconds"])
    return float(answer["seconds" if row.figure == "seconds" else "peak_mib"])


def warm_up(row: Row) -> Message:
    """A shorter piece of the row's work; only its prompts where they are to stay in a prefix cache.

    Before they are there, the first stream may be through with its answer before the last has begun its own.
    """
    work = dict(row.work)
    if row.repeat_prompts:
        work.update(work="prefill", output=1)
    elif work["work"] in ("decode", "shared"):
        work["output"] = min(WARM_UP_TOKENS, work["output"])
    if "requests" in work:
        work["requests"] = work["streams"]
    return {**work, "seed": seed_of(row, WARM_UP_ROUND)}


def fill(row: Row, number: int) -> Message:
    """Work that takes the KV of one turn and decodes nothing: prompts as long as the row's with their answers."""
    work = row.work["work"]
    return {
        **row.work, "work": "prefill" if work == "decode" else work, "output": 1,
        "prompt": row.work["prompt"] + row.work["output"] - 1, "seed": -1 - number - seed_of(row, 0),
    }  # fmt: skip


class Turns:
    """Turns of contestants, each in a worker that stays loaded while there is memory for it."""

    def __init__(self, place: Place, pool: Pool) -> None:
        self.place, self.pool = place, pool

    def __call__(self, row: Row, contestant: Contestant, number: int) -> Message:
        """Raises WorkerFailed."""
        answer = {
            "work": self._work, "start": self._start, "first start": self._start, "memory": self._memory,
        }[row.measure](row, contestant, number)  # fmt: skip
        return {**answer, "value": value_of(row, answer)}

    def _work(self, row: Row, contestant: Contestant, number: int) -> Message:
        command = worker_command(contestant, self.place, row.work)
        need = memory_need(contestant, self.place, row.work)
        with self.pool.use(tuple(command), lambda: self._begin(contestant, command), need_bytes=need) as worker:
            if not (worker.filled or row.repeat_prompts or contestant.kind == "server"):
                for fills in range(kv_fills(contestant, self.place, row.work)):
                    worker.ask(fill(row, fills), timeout_s=row.turn_s)
                worker.filled = True
            if row.name not in worker.warm:
                worker.ask(warm_up(row), timeout_s=row.turn_s)
                worker.warm.add(row.name)
            begin_s = time.monotonic()
            answer = worker.ask({**row.work, "seed": seed_of(row, number)}, timeout_s=row.turn_s)
            return {**answer, "turn_s": round(time.monotonic() - begin_s, 3), "about": worker.about}

    def _start(self, row: Row, contestant: Contestant, number: int) -> Message:
        """Seconds from a new process to its first token, the files in the page cache."""
        with ExitStack() as stack:
            worker = self._alone(stack, row, contestant)
            if "first_token_s" in worker.about:
                return {"seconds": worker.about["first_token_s"], "about": worker.about}
            worker.ask({**row.work, "seed": seed_of(row, number)}, timeout_s=row.turn_s)
            return {"seconds": time.perf_counter() - worker.started_s, "about": worker.about}

    def _memory(self, row: Row, contestant: Contestant, number: int) -> Message:
        """The most that was resident, of a process with room for 1 GiB of KV."""
        with ExitStack() as stack:
            worker = self._alone(stack, row, contestant)
            answer = worker.ask({**row.work, "seed": seed_of(row, number)}, timeout_s=row.turn_s)
            return {**answer, "peak_mib": round(worker.rss_bytes("VmHWM") / 2**20), "about": worker.about}

    def _alone(self, stack: ExitStack, row: Row, contestant: Contestant) -> Worker:
        """A new worker that ends with the turn; nobody else runs."""
        place = replace(self.place, kv_gib=1, fill_kv=True) if row.measure == "memory" else self.place
        self.pool.stop_all()
        cache = (
            stack.enter_context(tempfile.TemporaryDirectory(dir=place.home)) if row.measure == "first start" else None
        )
        worker = self._begin(contestant, worker_command(contestant, place, row.work), cache)
        stack.callback(worker.end)
        return worker

    def _begin(self, contestant: Contestant, command: list[str], cache: str | None = None) -> Worker:
        log = self.place.home / "logs" / f"{contestant.name.replace('/', '-')}.log"
        env = worker_environment(contestant, self.place, cache=cache)
        say("starting", contestant.name)
        worker = Worker(command, env, log, timeout_s=LOAD_S)
        worker.about["settings"] = shown_settings(command, self.place)
        return worker


# --- a row --------------------------------------------------------------------------------------------------------


def turn_order(names: Sequence[str], number: int) -> list[str]:
    """Forwards, then backwards: a drift of the machine favours nobody."""
    return list(names) if number % 2 == 0 else list(reversed(names))


def better(row: Row, one: Message, two: Message) -> Message:
    """The turn with the better value."""
    return min(one, two, key=lambda turn: turn["value"] if row.lower_is_better else -turn["value"])


def survey(row: Row, results: Results, names: Sequence[str], measure: Measure, deadline_s: float) -> bool:
    """A turn of every rival (the better of two, if that is soon done), but for those that had theirs.

    False if time was up before.
    """
    for name in names:
        if name in results.surveys(row.name):
            continue
        if time.monotonic() > deadline_s:
            return False
        record: Message = {"kind": "survey", "row": row.name, "contestant": name}
        try:
            answer = measure(row, CONTESTANTS[name], SURVEY_ROUND)
            if row.measure == "work" and answer.get("turn_s", 0.0) < SHORT_TURN_S:
                answer = better(row, answer, measure(row, CONTESTANTS[name], SURVEY_ROUND + 1))
        except WorkerFailed as error:
            say(row.name, name, error)
            results.append({**record, "error": str(error)})
            continue
        say(row.name, name, f"{answer['value']:.4g}")
        results.append({**record, "value": answer["value"], "turn": answer})
    return True


def finalists(row: Row, results: Results, names: Sequence[str], count: int = FINALISTS) -> list[str]:
    """The best form of each of the best peers, of those that were surveyed."""
    values = {n: r["value"] for n, r in results.surveys(row.name).items() if n in names and "value" in r}
    best: dict[str, str] = {}
    for name in sorted(values, key=lambda name: values[name], reverse=not row.lower_is_better):
        best.setdefault(CONTESTANTS[name].peer, name)
    return list(best.values())[:count]


def alternate(
    row: Row, names: Sequence[str], measure: Measure, deadline_s: float
) -> tuple[dict[str, list[Message]], int]:
    """Rounds of one turn each: (turns by name, rounds that were whole). Who fails once takes no further turn."""
    turns: dict[str, list[Message]] = {name: [] for name in names}
    failed: set[str] = set()
    whole = 0
    for number in range(row.rounds):
        begin_s = time.monotonic()
        for name in turn_order(names, number):
            if name in failed:
                continue
            try:
                turns[name].append(measure(row, CONTESTANTS[name], number))
            except WorkerFailed as error:
                say(row.name, name, error)
                failed.add(name)
                turns[name].append({"error": str(error)})
        whole += 1
        say(row.name, f"round {whole}:", *(f"{n} {t[-1].get('value', 0):.4g}" for n, t in turns.items() if t))
        if time.monotonic() + (time.monotonic() - begin_s) > deadline_s:
            break
    return turns, whole


def run_row(
    row: Row, results: Results, rivals: Sequence[str], measure: Measure, *, limit_s: float, count: int = FINALISTS,
    machine: Callable[[], Message],
) -> bool:  # fmt: skip
    """Surveys and alternates, each within the limit. False if the survey is not whole yet."""
    if not survey(row, results, rivals, measure, time.monotonic() + limit_s):
        return False
    best = finalists(row, results, rivals, count)
    begin_s, before = time.monotonic(), machine()
    turns, rounds = alternate(row, [*row.ours, *best], measure, begin_s + limit_s)
    results.append({
        "kind": "row", "row": row.name, "ours": row.ours, "finalists": best, "rounds": rounds,
        "rounds_wished": row.rounds, "work": row.work, "figure": row.figure, "limits_before": before,
        "limits_after": machine(), "turns": turns, "wall_s": round(time.monotonic() - begin_s, 1),
    })  # fmt: skip
    return True


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default=",".join(ROWS), help="names, or what they begin with: R1,R2.512")
    parser.add_argument("--peers", help="only these: llama.cpp,openvino,vllm,onnxruntime,transformers")
    parser.add_argument("--rivals", help="only these, such as llama.cpp/Q8_0,vllm/w8a8")
    parser.add_argument("--home", type=Path, required=True, help="the folder that benchmarks.peers.setup filled")
    parser.add_argument("--model", type=Path, required=True, help="a checkpoint folder")
    parser.add_argument("--results", type=Path, default=Path("results/peers.jsonl"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tier", default="native", help="native, avx512 or avx2: for the rows of R11")
    parser.add_argument("--limit", type=float, default=900, help="seconds for the rounds of a row, and for its survey")
    parser.add_argument("--finalists", type=int, default=FINALISTS, help="rivals that take turns with ours")
    parser.add_argument("--rounds", type=int, help="turns of each; default: what the row says")
    parser.add_argument("--again", action="store_true", help="also rows that were measured at this commit")
    args = parser.parse_args()
    place = Place(home=args.home.resolve(), model=args.model.resolve(), threads=args.threads, tier=args.tier)
    where: dict[str, Any] = {
        **environment(), "host": platform.node(), "model": place.model.name, "tier": place.tier,
        "threads": place.threads, "kv_gib": place.kv_gib, "model_facts": model_facts(place.model),
    }  # fmt: skip
    results = Results(args.results, where)
    peers = args.peers.split(",") if args.peers else None
    names = args.rivals.split(",") if args.rivals else None
    with Pool() as pool:
        turns = Turns(place, pool)
        for row in select(args.rows.split(",")):
            if (place.tier != "native") != row.name.startswith("R11"):
                say(row.name, "is left out: it is for", "lower tiers" if place.tier == "native" else "the native tier")
                continue
            if results.is_done(row.name) and not args.again:
                say(row.name, "was measured at this commit")
                continue
            rivals = [
                n for n in row.rivals
                if (peers is None or CONTESTANTS[n].peer in peers) and (names is None or n in names)
            ]  # fmt: skip
            asked = replace(row, rounds=args.rounds or row.rounds)
            done = run_row(asked, results, rivals, turns, limit_s=args.limit, count=args.finalists,
                           machine=lambda: limits(place.threads, place.isa))  # fmt: skip
            say(row.name, "done" if done else "has rivals left to survey: call again")


if __name__ == "__main__":
    main()
