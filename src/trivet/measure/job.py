"""From flags to what is to be done; ConfigError names the flag that cannot be."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, cast, get_args

import msgspec

from trivet.errors import ConfigError
from trivet.measure.arrivals import Process
from trivet.measure.options import Options
from trivet.measure.probe import Asked
from trivet.measure.slo import Slo, parse_slo
from trivet.measure.target import Target, parse_target
from trivet.measure.together import check_together
from trivet.measure.traces import TraceFormat
from trivet.measure.units import parse_seconds
from trivet.measure.workload import TraceChoice, Workload, parse_lengths

DEFAULT_RATE = 1.0
DEFAULT_DURATION_S = 30.0
DEFAULT_WARMUP_S = 2.0
AFTER_SPIKE_S = 30.0  # what a run has by default, to show how the server comes back

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchJob:
    """A session of `trivet bench`."""

    kind: Literal["run", "sweep", "capacity", "compare"]
    targets: tuple[Target, ...]
    asked: tuple[Asked, ...]  # of each target
    workloads: tuple[Workload, ...]  # one, or one for each point of a sweep
    sweep_of: str = ""
    slo: Slo | None
    require: float | None
    attainment: float
    rounds: int
    workers: int | None
    seed: int  # of times and lengths
    words_seed: int  # of the prompts' words: another each time, or a server would find them in its prefix cache
    options: Options


def job_from(options: Options) -> BenchJob:
    """The job that the flags describe."""
    check_together(options)
    workload = _workload(options)
    sweep_of, workloads = _sweep(options, workload)
    kind: Literal["run", "sweep", "capacity", "compare"] = "run"
    if options.sweep is not None:
        kind = "sweep"
    elif options.find_capacity:
        kind = "capacity"
    elif options.compare:
        kind = "compare"
    urls = (options.target, *(options.compare or []))
    asked = Asked(
        endpoint=cast(Literal["completions", "chat"], _word("endpoint", options.endpoint, ("completions", "chat"))),
        extra=_extra(options.body),
        timeout_s=parse_seconds(options.timeout, "--timeout"),
        many_turns=options.turns > 1 or options.trace is not None,
    )
    models = _for_each("--model", options.model, len(urls))
    folders = _for_each("--tokenizer", options.tokenizer, len(urls))
    return BenchJob(
        kind=kind,
        targets=tuple(parse_target(url, api_key=options.api_key, verify=not options.insecure) for url in urls),
        asked=tuple(replace(asked, model=m, tokenizer=f) for m, f in zip(models, folders, strict=True)),
        workloads=workloads,
        sweep_of=sweep_of,
        slo=None if options.slo is None else parse_slo(options.slo),
        require=options.require,
        attainment=options.attainment,
        rounds=options.rounds,
        workers=options.workers,
        seed=options.seed or 0,
        words_seed=int.from_bytes(os.urandom(4)) if options.seed is None else options.seed,
        options=options,
    )


def _workload(options: Options) -> Workload:
    trace = None if options.trace is None else _trace(options)
    is_open = options.concurrency is None
    made_up_warmup_s = 0.0 if trace else DEFAULT_WARMUP_S
    warmup_s = made_up_warmup_s if options.warmup is None else parse_seconds(options.warmup, "--warmup")
    bounded = options.requests is not None or (trace is not None and is_open)
    spike_at_s, spike_for_s = (
        parse_seconds(getattr(options, flag), f"--{flag.replace('_', '-')}") for flag in ("spike_at", "spike_for")
    )
    usual_s = DEFAULT_DURATION_S if options.spike is None else spike_at_s + spike_for_s + AFTER_SPIKE_S
    duration_s = None if bounded else usual_s
    if options.duration is not None:
        duration_s = parse_seconds(options.duration, "--duration")
        if duration_s == 0:
            raise ConfigError("`--duration` is 0, but it must be above 0")
    inputs = parse_lengths(options.input_tokens, "--input-tokens")
    if options.shared_prefix > inputs.low:
        raise ConfigError(
            f"`--shared-prefix` is {options.shared_prefix}, but the shortest prompt has {inputs.low} tokens",
            hint="make it shorter, or `--input-tokens` longer",
        )
    return Workload(
        rate=options.rate if trace or not is_open else options.rate or DEFAULT_RATE,
        concurrency=options.concurrency,
        process=cast(Process, _word("arrivals", options.arrivals, ("poisson", "gamma", "constant"))),
        cv=options.cv,
        ramp_to=options.ramp_to,
        spike=options.spike,
        spike_at_s=spike_at_s,
        spike_for_s=spike_for_s,
        duration_s=duration_s,
        num_requests=options.requests,
        warmup_s=warmup_s,
        input=inputs,
        output=parse_lengths(options.output_tokens, "--output-tokens"),
        shared_prefix=options.shared_prefix,
        turns=options.turns,
        think_s=parse_seconds(options.think_time, "--think-time"),
        trace=trace,
    )


def _trace(options: Options) -> TraceChoice:
    assert options.trace is not None
    kind = _word("trace-format", options.trace_format, ("auto", *get_args(TraceFormat)))
    return TraceChoice(
        path=options.trace,
        kind=None if kind == "auto" else cast(TraceFormat, kind),
        start_s=parse_seconds(options.trace_start, "--trace-start"),
        duration_s=None if options.trace_for is None else parse_seconds(options.trace_for, "--trace-for"),
        time_scale=options.time_scale,
        length_scale=options.length_scale,
        max_input=options.max_input,
        max_output=options.max_output,
    )


def _sweep(options: Options, workload: Workload) -> tuple[str, tuple[Workload, ...]]:
    """(what is swept, a workload for each value)."""
    if options.sweep is None:
        return "", (workload,)
    name, _, values = options.sweep.partition("=")
    try:
        numbers = [float(value) for value in values.split(",")]
        if name not in ("rate", "concurrency") or not all(0 < n < float("inf") for n in numbers):
            raise ValueError
        if name == "concurrency" and not all(n.is_integer() for n in numbers):
            raise ValueError
    except ValueError:
        raise ConfigError(
            f"`--sweep` is {options.sweep!r}, but it must be a list of values above 0",
            hint="such as rate=1,2,4 or concurrency=1,8,32",
        ) from None
    if name == "rate":
        return name, tuple(replace(workload, rate=n, concurrency=None) for n in numbers)
    duration_s = workload.duration_s or (DEFAULT_DURATION_S if workload.num_requests is None else None)
    return name, tuple(replace(workload, rate=None, concurrency=int(n), duration_s=duration_s) for n in numbers)


def _extra(body: str | None) -> dict[str, Any] | None:
    if body is None:
        return None
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise ConfigError(f"`--body` is {body!r}, but it must be a JSON object: {error}") from None


def _word(flag: str, value: str, words: Sequence[str]) -> str:
    if value not in words:
        raise ConfigError(f"`--{flag}` is {value!r}, but it must be one of {', '.join(words)}")
    return value


def _for_each(flag: str, values: Sequence[T] | None, num: int) -> Sequence[T | None]:
    """A value for each target: one that is given once is for all of them."""
    if not values:
        return [None] * num
    if len(values) not in (1, num):
        raise ConfigError(
            f"`{flag}` is given {len(values)} times, but there {'is 1 target' if num == 1 else f'are {num} targets'}",
            hint="give it once for all, or once for each in their order",
        )
    return values if len(values) == num else list(values) * num
