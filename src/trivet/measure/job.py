"""From flags to what is to be done; ConfigError names the flag that cannot be, or the two that exclude each other."""

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
from trivet.measure.traces import TraceFormat
from trivet.measure.units import parse_seconds
from trivet.measure.workload import TraceChoice, Workload, parse_lengths

DEFAULT_RATE = 1.0
DEFAULT_DURATION_S = 30.0
DEFAULT_WARMUP_S = 2.0
AFTER_SPIKE_S = 30.0  # what a run has by default, to show how the server comes back

T = TypeVar("T")

# flags that do nothing alone, by what they need
NEEDS = {
    "--trace": ("trace_format", "trace_start", "trace_for", "time_scale", "length_scale", "max_input", "max_output"),
    "--spike": ("spike_at", "spike_for"),
    "--find-capacity": ("attainment",),
    "--compare": ("rounds",),
}


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
    _check_together(options)
    _check_effect(options)
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


def _check_together(options: Options) -> None:
    """Raises ConfigError for flags that exclude or need each other, and for counts that cannot be."""
    given = {name for name in ("sweep", "find_capacity", "compare") if getattr(options, name)}
    _exclude("--sweep, --find-capacity and --compare", len(given) > 1, "do one of them at a time")
    closed = options.concurrency is not None
    _exclude("`--rate` and `--concurrency`", closed and options.rate is not None, "an open loop, or a closed one")
    shaped = options.ramp_to is not None or options.spike is not None
    _exclude("`--ramp-to` and `--spike`", options.ramp_to is not None and options.spike is not None, "take one of them")
    _exclude("`--concurrency` and a rate that changes", closed and shaped, "a closed loop has no rate")
    _exclude("`--trace` and a rate that changes", options.trace is not None and shaped, "a trace has its own times")
    _exclude("`--trace` and `--turns`", options.trace is not None and options.turns > 1, "a trace has its own chats")
    _exclude("`--find-capacity` and `--concurrency`", closed and options.find_capacity, "capacity is an open-loop rate")
    searched = options.find_capacity
    _exclude("`--find-capacity` and `--ramp-to`", searched and options.ramp_to is not None, "capacity is a steady rate")
    _exclude("`--find-capacity` and `--turns`", searched and options.turns > 1, "a chat's later turns wait for answers")
    swept = options.sweep is not None
    _exclude("`--sweep` and `--rate`", swept and options.rate is not None, "name all values in `--sweep`")
    _exclude("`--sweep` and `--concurrency`", swept and closed, "name all values in `--sweep`")
    _exclude(
        "`--sweep concurrency` and a rate that changes",
        swept and shaped and (options.sweep or "").startswith("concurrency"),
        "a closed loop has no rate",
    )
    traced = options.trace is not None
    _exclude("`--trace` and `--shared-prefix`", traced and options.shared_prefix > 0, "a trace has its own prefixes")
    _exclude(
        "`--time-scale` and `--rate`",
        options.time_scale != 1 and options.rate is not None,
        "`--rate` scales a trace's times to that rate",
    )
    if options.ramp_to is not None and options.requests is not None and options.duration is None:
        raise ConfigError("`--ramp-to` needs `--duration`", hint="that is the time in which the rate changes")
    for flag in ("find_capacity", "require"):
        if getattr(options, flag) and options.slo is None:
            raise ConfigError(
                f"`--{flag.replace('_', '-')}` needs limits to meet", hint="such as --slo ttft=500ms,itl=60ms"
            )
    for flag in ("requests", "concurrency", "turns", "rounds", "workers", "max_input", "max_output"):
        _at_least_one(flag, getattr(options, flag))
    for flag in ("rate", "cv", "ramp_to", "spike", "time_scale", "length_scale"):
        value = getattr(options, flag)
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"`--{flag.replace('_', '-')}` is {value:g}, but it must be above 0")
    for flag in ("shared_prefix", "seed"):
        if (getattr(options, flag) or 0) < 0:
            raise ConfigError(f"`--{flag.replace('_', '-')}` is {getattr(options, flag)}, but it must be 0 or more")
    for flag in ("require", "attainment"):
        value = getattr(options, flag)
        if value is not None and not 0 < value <= 1:
            raise ConfigError(f"`--{flag}` is {value:g}, but it must be above 0 and at most 1")


def _check_effect(options: Options) -> None:
    """Raises ConfigError for a flag that would do nothing, as another that it needs was not given."""
    defaults = Options()
    for needed, flags in NEEDS.items():
        has_it = getattr(options, needed[2:].replace("-", "_"))
        for flag in flags:
            _need(flag, not has_it and getattr(options, flag) != getattr(defaults, flag), f"`{needed}`")
    _need("think_time", options.turns == 1 and options.think_time != defaults.think_time, "`--turns`")
    _need("cv", options.arrivals != "gamma" and options.cv != defaults.cv, "`--arrivals gamma`")


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


def _need(flag: str, missing: bool, needed: str) -> None:
    if missing:
        raise ConfigError(f"`--{flag.replace('_', '-')}` does nothing without {needed}")


def _exclude(what: str, both: bool, instead: str) -> None:
    if both:
        raise ConfigError(f"{what} exclude each other", hint=instead)


def _at_least_one(flag: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ConfigError(f"`--{flag.replace('_', '-')}` is {value}, but it must be 1 or more")
