"""What is sent: from settings to the jobs of one run. The same settings and seed give the same jobs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import takewhile
from pathlib import Path

import numpy as np

from trivet.errors import ConfigError
from trivet.measure.arrivals import unit_gaps
from trivet.measure.messages import Block, Job, Turn
from trivet.measure.servegen import WINDOW_S, client_times, covered_seconds, read_clients
from trivet.measure.traces import TraceFormat, TraceRow, cut_window, detect_format, read_rows, scale_lengths
from trivet.measure.workload import TraceChoice, Workload

SHARED_KEY = 0  # of the beginning that all made-up prompts share; traces have their own keys from 1 on
USUAL = Workload()
CLOSED_LOOP_JOBS = 4096  # made beforehand; after that the same lengths come again, with other prompts


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The jobs of a run, in order of time, and what they add up to."""

    jobs: list[Job]
    num_requests: int
    span_s: float  # in which they are meant to begin; 0 in a closed loop
    mean_output: float
    longest: int  # tokens of prompt and answer of the longest request
    left_out: int = 0  # later turns of chats, beyond the run's end or its number of requests
    num_lengthened: int = 0  # prompts of a trace that are no longer than what the server adds

    @property
    def rate(self) -> float:
        """Requests a second, on average; 0 in a closed loop."""
        return self.num_requests / self.span_s if self.span_s else 0.0


def plan(workload: Workload, seed: int, *, overhead: int = 0, turn_overhead: int = 0) -> Plan:
    """The jobs. `overhead`: prompt tokens that the server adds; the prompts are made shorter by as many.

    `turn_overhead`: what it adds to each further turn of a chat, beside the turn's own length.
    """
    rng = np.random.default_rng([seed, 1])
    chats = _from_trace(workload, seed) if workload.trace is not None else _made_up(workload, rng)
    whole = chats
    if workload.concurrency is None:
        chats = [_in_time(workload, chat) for chat in chats]
        if workload.num_requests is not None:
            num_warm = sum(len(chat) for chat in chats if chat[0].time_s < workload.warmup_s)
            chats = _first_requests(chats, num_warm + workload.num_requests)
        _check_spike(workload, chats)
    if not chats:
        raise ConfigError("no request falls into this run", hint="make it longer, or the rate higher")
    _check_overhead(workload, overhead)
    jobs, index, num_lengthened = [], 0, 0
    names: dict[tuple[str, str], int] = {}
    for chat in chats:
        turns = []
        for i, row in enumerate(chat):
            think_s = _think_s(workload) if i else 0.0
            length = max(1, row.input_len - (overhead if i == 0 else 0))
            blocks = [] if row.prompt is not None else _blocks(row, length, index + i, names)
            turns.append(Turn(row.output_len, blocks, row.time_s, think_s, row.prompt))
        jobs.append(Job(index, turns))
        num_lengthened += chat[0].prompt is None and chat[0].input_len <= overhead
        index += len(chat)
    rows = [row for chat in chats for row in chat]
    return Plan(
        jobs=jobs,
        num_requests=len(rows),
        span_s=0.0 if workload.concurrency else max([_span(workload), *(chat[0].time_s for chat in chats)]),
        mean_output=sum(row.output_len for row in rows) / len(rows),
        longest=max(_whole_len(chat, overhead, turn_overhead) for chat in chats),
        left_out=sum(len(chat) for chat in whole[: len(chats)]) - len(rows),
        num_lengthened=num_lengthened,
    )


def check_fits(planned: Plan, max_len: int | None, model: str, *, takes_texts: bool = True) -> None:
    """Raises ConfigError if a request is longer than the model can hold, or a chat of texts is sent as ids."""
    if not takes_texts and any(
        turn.text is not None for job in planned.jobs if len(job.turns) > 1 for turn in job.turns
    ):
        raise ConfigError(
            "the trace has sessions whose prompts are texts, which cannot be mixed with the token ids of answers",
            hint="send them with `--endpoint chat`",
        )
    if max_len is not None and planned.longest > max_len:
        raise ConfigError(
            f"the longest request has {planned.longest:,} tokens with its answer, but `{model}` can hold {max_len:,}",
            hint="shorten them with `--input-tokens`, `--output-tokens` or `--turns`; those of a trace with "
            "`--max-input`, `--max-output` or `--length-scale`",
        )


def _check_overhead(workload: Workload, overhead: int) -> None:
    """Raises ConfigError if prompts of the wished lengths leave no place for what the server adds."""
    has_own_lengths = workload.trace is not None and _kind(workload.trace) != "servegen"
    if not has_own_lengths and workload.input.low <= overhead:
        raise ConfigError(
            f"`--input-tokens` is {workload.input}, but the server adds {overhead:,} tokens to each prompt",
            hint=f"such as the template of a chat; ask for {overhead + 1:,} tokens or more",
        )


def _whole_len(chat: Sequence[TraceRow], overhead: int, turn_overhead: int) -> int:
    """Tokens of the chat's last request with its answer."""
    first_len = max(chat[0].input_len, overhead + 1)
    later = sum(row.input_len + turn_overhead for row in chat[1:])
    return first_len + later + sum(row.output_len for row in chat)


def _span(workload: Workload) -> float:
    if workload.trace is None and workload.num_requests is None and workload.duration_s is not None:
        return workload.warmup_s + workload.duration_s
    return 0.0


def _made_up(workload: Workload, rng: np.random.Generator) -> list[list[TraceRow]]:
    """Chats of turns with drawn lengths, at drawn times."""
    if workload.concurrency is not None:
        times = [0.0] * min(CLOSED_LOOP_JOBS, workload.num_requests or CLOSED_LOOP_JOBS)
    else:
        times = _times(workload, rng)
    num = len(times) * workload.turns
    inputs, outputs = workload.input.draw(num, rng), workload.output.draw(num, rng)
    prefix = min(workload.shared_prefix, workload.input.low)
    rows = (
        TraceRow(
            time_s=time_s if turn == 0 else 0.0,
            input_len=inputs[i * workload.turns + turn],
            output_len=outputs[i * workload.turns + turn],
            prefix="" if prefix and turn == 0 else None,
            prefix_len=prefix if turn == 0 else 0,
        )
        for i, time_s in enumerate(times)
        for turn in range(workload.turns)
    )
    return [[next(rows) for _ in range(workload.turns)] for _ in times]


def _times(workload: Workload, rng: np.random.Generator) -> list[float]:
    """Begins of chats, until the run's time is over or there are enough of them."""
    arriving = workload.profile().times(unit_gaps(workload.process, rng, cv=workload.cv))
    if workload.duration_s is not None:
        return list(takewhile(lambda time_s: time_s < workload.end_s, arriving))
    times: list[float] = []
    counted = 0
    while counted < (workload.num_requests or 0):
        times.append(next(arriving))
        counted += workload.turns if times[-1] >= workload.warmup_s else 0
    return times


def _check_spike(workload: Workload, chats: Sequence[list[TraceRow]]) -> None:
    """Raises ConfigError if the last of the chats that are kept begins before the spike does."""
    if workload.spike is None:
        return
    counted = sum(len(chat) for chat in chats if chat[0].time_s >= workload.warmup_s)
    is_cut = workload.num_requests is not None and counted >= workload.num_requests
    end_s = chats[-1][0].time_s if is_cut else workload.end_s
    if end_s <= workload.warmup_s + workload.spike_at_s:
        raise ConfigError(
            f"the run ends {end_s - workload.warmup_s:.3g} s after its warm-up, but the spike begins at "
            f"{workload.spike_at_s:g} s",
            hint=f"make {'`--requests` more' if is_cut else 'the run longer'}, or `--spike-at` earlier",
        )


def _think_s(workload: Workload) -> float:
    return workload.think_s if workload.trace is None else 0.0  # a trace has its own times


def _in_time(workload: Workload, chat: list[TraceRow]) -> list[TraceRow]:
    """The first turns, as far as they can be due before the run's end: if each answer before them takes no time."""
    due_s = (max(row.time_s, chat[0].time_s + i * _think_s(workload)) for i, row in enumerate(chat))
    return [row for row, _ in takewhile(lambda pair: pair[1] < workload.end_s, zip(chat, due_s, strict=True))]


def _from_trace(workload: Workload, seed: int) -> list[list[TraceRow]]:
    """The trace's window as chats, at scaled times."""
    trace = workload.trace
    assert trace is not None
    kind = _kind(trace)
    if kind == "servegen":
        if trace.length_scale != 1 or trace.max_input or trace.max_output:
            raise ConfigError(
                "a ServeGen trace has no lengths that `--length-scale`, `--max-input` or `--max-output` could change",
                hint="its lengths are those of `--input-tokens` and `--output-tokens`",
            )
        rows, covered_s = _servegen_rows(workload, trace, seed)
    else:
        if (workload.input, workload.output) != (USUAL.input, USUAL.output):
            raise ConfigError(
                f"`--input-tokens` and `--output-tokens` do nothing with a {kind} trace: it has its own lengths",
                hint="change them with `--length-scale`, `--max-input` or `--max-output`",
            )
        recorded = _read_once(trace.path, kind, seed)
        rows = cut_window(recorded, trace.start_s, trace.duration_s)
        covered_s = min(trace.duration_s or math.inf, recorded[-1].time_s - trace.start_s)
        rows = [scale_lengths(row, trace.length_scale, trace.max_input, trace.max_output) for row in rows]
    scale = trace.time_scale
    if workload.rate is not None and len(rows) > 1:
        scale = len(rows) / workload.rate / (covered_s or 1.0)  # the trace may end before its window does
    chats: dict[str, list[TraceRow]] = defaultdict(list)
    for i, row in enumerate(rows):
        chats[f"row {i}" if row.session is None else f"session {row.session}"].append(
            replace(row, time_s=row.time_s * scale)
        )
    if workload.concurrency is not None:  # its lengths only
        return [[replace(row, time_s=0.0) for row in chat] for chat in chats.values()]
    return [chat for chat in chats.values() if chat[0].time_s < workload.end_s]


def _kind(trace: TraceChoice) -> TraceFormat:
    return trace.kind or detect_format(trace.path)


@lru_cache(maxsize=4)
def _read_once(path: Path, kind: TraceFormat, seed: int) -> list[TraceRow]:
    """The rows of a file, which several plans of one session are made of."""
    return read_rows(path, kind, seed=seed)


def _servegen_rows(workload: Workload, trace: TraceChoice, seed: int) -> tuple[list[TraceRow], float]:
    """Requests drawn from a ServeGen file's processes, and the seconds of the window that the file covers.

    Lengths are those of the workload, as the file has none.
    """
    clients, duration_s = read_clients(trace.path), trace.duration_s or WINDOW_S
    times = client_times(clients, trace.start_s, duration_s, seed=seed)
    rng = np.random.default_rng([seed, 7])
    lengths = zip(times, workload.input.draw(len(times), rng), workload.output.draw(len(times), rng), strict=True)
    rows = [TraceRow(time_s=time_s, input_len=n, output_len=m) for (time_s, _), n, m in lengths]
    return rows, min(duration_s, covered_seconds(clients) - trace.start_s)


def _first_requests(chats: Sequence[list[TraceRow]], num: int) -> list[list[TraceRow]]:
    kept, total = [], 0
    for chat in chats:
        if total >= num:
            break
        kept.append(chat[: num - total])
        total += len(chat)
    return kept


def _blocks(row: TraceRow, length: int, index: int, names: dict[tuple[str, str], int]) -> list[Block]:
    """The row's prompt as blocks that add up to `length`, which at most is the row's. Own parts have keys below 0."""

    def key(kind: str, name: str) -> int:
        return names.setdefault((kind, name), len(names) + 1)

    own = -1 - index
    if row.blocks:
        keys = [key("block", str(i)) for i in row.blocks]
        whole = [(k, min(row.block_len, length - i * row.block_len)) for i, k in enumerate(keys)]
        return [(k, num) for k, num in whole if num > 0]
    if row.prefix is None:
        return [(own, length)]
    shared = min(row.prefix_len, length)
    prefix_key = SHARED_KEY if row.prefix == "" else key("prefix", row.prefix)
    return [(prefix_key, shared)] if shared == length else [(prefix_key, shared), (own, length - shared)]
