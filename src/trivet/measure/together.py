"""Which flags exclude or need each other, and which counts cannot be: nothing that was typed goes without effect."""

from __future__ import annotations

from trivet.errors import ConfigError
from trivet.measure.options import Options

# flags that do nothing alone, by the one that they need
NEEDS = {
    "--trace": ("trace_format", "trace_start", "trace_for", "time_scale", "length_scale", "max_input", "max_output"),
    "--spike": ("spike_at", "spike_for"),
    "--find-capacity": ("attainment",),
    "--compare": ("rounds",),
}


def check_together(options: Options) -> None:
    """Raises ConfigError for the first flag that cannot be, beside the others or at all."""
    _check_exclusions(options)
    _check_needs(options)
    _check_ranges(options)
    _check_effect(options)


def _check_exclusions(options: Options) -> None:
    """What is given twice over, or is overruled."""
    modes = sum(bool(mode) for mode in (options.sweep, options.find_capacity, options.compare))
    has_rate, closed = options.rate is not None, options.concurrency is not None
    ramps, spikes = options.ramp_to is not None, options.spike is not None
    shaped, chats = ramps or spikes, options.turns > 1
    traced, searched, swept = options.trace is not None, options.find_capacity, options.sweep is not None
    sweeps_places = (options.sweep or "").startswith("concurrency")
    arrives = options.arrivals != Options().arrivals
    scaled = has_rate or closed or searched or swept
    for what, both, instead in (
        ("--sweep, --find-capacity and --compare", modes > 1, "do one of them at a time"),
        ("`--rate` and `--concurrency`", closed and has_rate, "an open loop, or a closed one"),
        ("`--ramp-to` and `--spike`", ramps and spikes, "take one of them"),
        ("`--concurrency` and a rate that changes", closed and shaped, "a closed loop has no rate"),
        ("`--sweep concurrency` and a rate that changes", sweeps_places and shaped, "a closed loop has no rate"),
        ("`--sweep` and `--rate`", swept and has_rate, "name all values in `--sweep`"),
        ("`--sweep` and `--concurrency`", swept and closed, "name all values in `--sweep`"),
        ("`--find-capacity` and `--concurrency`", searched and closed, "capacity is an open-loop rate"),
        ("`--find-capacity` and `--ramp-to`", searched and ramps, "capacity is a steady rate"),
        ("`--find-capacity` and `--spike`", searched and spikes, "capacity is a steady rate"),
        ("`--find-capacity` and `--require`", searched and options.require is not None, "its share is `--attainment`"),
        ("`--find-capacity` and `--turns`", searched and chats, "a chat's later turns wait for answers"),
        ("`--trace` and a rate that changes", traced and shaped, "a trace has its own times"),
        ("`--trace` and `--arrivals`", traced and arrives, "a trace has its own times"),
        ("`--concurrency` and `--arrivals`", closed and arrives, "a closed loop has no arrivals"),
        (
            "`--sweep concurrency` and `--arrivals`",
            sweeps_places and arrives,
            "a closed loop sends when it is answered",
        ),
        ("`--trace` and `--turns`", traced and chats, "a trace has its own chats"),
        ("`--trace` and `--shared-prefix`", traced and options.shared_prefix > 0, "a trace has its own prefixes"),
        ("`--time-scale` and a rate", scaled and options.time_scale != 1, "a trace's times are scaled to the rate"),
    ):
        if both:
            raise ConfigError(f"{what} exclude each other", hint=instead)


def _check_needs(options: Options) -> None:
    for flag in ("find_capacity", "require"):
        if getattr(options, flag) and options.slo is None:
            raise ConfigError(f"{_spelled(flag)} needs limits to meet", hint="such as --slo ttft=500ms,itl=60ms")
    if options.ramp_to is not None and options.requests is not None and options.duration is None:
        raise ConfigError("`--ramp-to` needs `--duration`", hint="that is the time in which the rate changes")


def _check_ranges(options: Options) -> None:
    for flag in ("requests", "concurrency", "turns", "rounds", "workers", "max_input", "max_output"):
        value = getattr(options, flag)
        if value is not None and value < 1:
            raise ConfigError(f"{_spelled(flag)} is {value}, but it must be 1 or more")
    for flag in ("rate", "cv", "ramp_to", "spike", "time_scale", "length_scale"):
        value = getattr(options, flag)
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"{_spelled(flag)} is {value:g}, but it must be above 0")
    for flag in ("shared_prefix", "seed"):
        if (getattr(options, flag) or 0) < 0:
            raise ConfigError(f"{_spelled(flag)} is {getattr(options, flag)}, but it must be 0 or more")
    for flag in ("require", "attainment"):
        value = getattr(options, flag)
        if value is not None and not 0 < value <= 1:
            raise ConfigError(f"{_spelled(flag)} is {value:g}, but it must be above 0 and at most 1")


def _check_effect(options: Options) -> None:
    """What would do nothing, as the flag that it needs was not given."""
    lacks = {flag: needed for needed, flags in NEEDS.items() if not _has(options, needed) for flag in flags}
    if options.turns == 1:
        lacks["think_time"] = "--turns"
    if options.arrivals != "gamma":
        lacks["cv"] = "--arrivals gamma"
    for flag, needed in lacks.items():
        if getattr(options, flag) != getattr(Options(), flag):
            raise ConfigError(f"{_spelled(flag)} does nothing without `{needed}`")


def _has(options: Options, flag: str) -> bool:
    return bool(getattr(options, flag[2:].replace("-", "_")))


def _spelled(name: str) -> str:
    return f"`--{name.replace('_', '-')}`"
