"""Every setting, as one tree of frozen dataclasses; flags, TOML keys and keyword arguments are spellings of these."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from numbers import Integral
from typing import Annotated, Any, Literal, get_args, get_type_hints

from trivet.errors import ConfigError

Precision = Literal["auto", "bf16", "int8", "int4"]
KvDtype = Literal["bf16", "int8"]

ISAS = ("baseline", "avx2", "avx512", "avx512_bf16", "amx")  # kernel tiers; `trivet doctor` says which is in use

ENVIRONMENT = {
    "TRIVET_ISA": f"force a kernel tier: {', '.join(ISAS[:-1])} or {ISAS[-1]}",
    "TRIVET_THREADS": "compute threads of this process",
    "TRIVET_CACHE_DIR": "where packed weights are kept",
    "TRIVET_LOG": "debug, info, warning or error",
    "TRIVET_PROFILE": "1: time each operation of a step; a table goes to stderr at the end",
}


def _check_word(where: str, value: str, kind: Any) -> None:
    if value not in get_args(kind):
        raise ConfigError(f"`{where}` is {value!r}, but it must be one of {', '.join(get_args(kind))}")


def _check_at_least(where: str, value: Any, least: int) -> None:
    if value is None:
        return
    if not isinstance(value, Integral):  # from Python anything may come, such as "2GiB"
        raise ConfigError(f"`{where}` is {value!r}, but it must be a whole number, {least} or more")
    if value < least:
        raise ConfigError(f"`{where}` is {value}, but it must be {least} or more")


def _check_seconds(where: str, value: float, *, above: bool = True, endless: bool = False) -> None:
    """Raises ConfigError for what is negative (or 0, if it must be above), no number, or endless unless it may be."""
    if not 0 <= value <= float("inf") or (above and value == 0) or (value == float("inf") and not endless):
        raise ConfigError(f"`{where}` is {value:g}, but it must be {'above 0' if above else '0 or more'} seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Which model, and in what form it is computed."""

    path: Annotated[
        str, "a folder in Hugging Face layout, `demo`, `demo-small`, or a hub id such as Qwen/Qwen3-0.6B"
    ] = "demo"
    precision: Annotated[Precision, "auto: int8"] = "auto"
    group_size: Annotated[int, "weights that share a multiplier in int4: 32, 64 or 128"] = 32
    max_context: Annotated[
        int | None, "longest prompt + output, in tokens; unless said: what the model was made for"
    ] = None
    generation_config: Annotated[Literal["auto", "none"], "none: ignore the model's own sampling defaults"] = "auto"

    def __post_init__(self) -> None:
        _check_word("model.precision", self.precision, Precision)
        _check_word("model.generation_config", self.generation_config, Literal["auto", "none"])
        _check_at_least("model.max_context", self.max_context, 1)
        if self.group_size not in (32, 64, 128):
            raise ConfigError(f"`model.group_size` is {self.group_size}, but it must be 32, 64 or 128")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """How the KV cache is cut into blocks."""

    block_size: Annotated[int, "tokens per block: 32, 64 or 128 (a tile of the matrix unit holds 32 keys)"] = 32
    memory_bytes: Annotated[
        int | None, "unless said: what max_num_seqs full contexts need, at most a quarter of the machine or cgroup"
    ] = None
    dtype: Annotated[KvDtype, "how keys and values are stored"] = "bf16"
    prefix_caching: Annotated[bool, "share the KV of common prompt beginnings"] = True

    def __post_init__(self) -> None:
        _check_word("cache.dtype", self.dtype, KvDtype)
        _check_at_least("cache.memory_bytes", self.memory_bytes, 1)
        if self.block_size not in (32, 64, 128):
            raise ConfigError(
                f"`cache.block_size` is {self.block_size}, but it must be 32, 64 or 128",
                hint="32 wastes the least memory on short prompts",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """How much one step carries and how much may wait."""

    max_num_seqs: Annotated[int, "sequences in one step"] = 64
    max_tokens_per_step: Annotated[int, "token budget of a step: the most it may carry"] = 512
    itl_target_s: Annotated[
        float,
        "inter-token latency, in seconds, that 99 of 100 tokens of running streams shall keep while prompts come in: "
        "the budget shrinks. 0: off",
    ] = 0.2
    max_pause_s: Annotated[
        float | None,
        "once in 128 steps streams may wait so long for a long prompt to come in, a fifth more if it turns out slow; "
        "unless said: ten inter-token targets. 0: never",
    ] = None
    max_waiting: Annotated[int, "sequences (a request has `n` of them) that may wait; one more is refused with 429"] = (
        256
    )
    max_wait_s: Annotated[float, "refuse at once what would wait longer than this, by the measured rate"] = 120.0

    def __post_init__(self) -> None:
        _check_at_least("scheduler.max_num_seqs", self.max_num_seqs, 1)
        _check_at_least("scheduler.max_tokens_per_step", self.max_tokens_per_step, 1)
        _check_at_least("scheduler.max_waiting", self.max_waiting, 0)
        _check_seconds("scheduler.max_wait_s", self.max_wait_s, endless=True)
        if self.itl_target_s is None:
            raise ConfigError("`scheduler.itl_target_s` is None, but it must be 0 or more seconds", hint="0: off")
        _check_seconds("scheduler.itl_target_s", self.itl_target_s, above=False)
        if self.max_pause_s is not None:
            _check_seconds("scheduler.max_pause_s", self.max_pause_s, above=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """One engine: a model, its cache, its scheduler and its threads."""

    model: ModelConfig = field(default_factory=ModelConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    threads: Annotated[int | None, "compute threads; unless said: one a core, as affinity mask and CPU quota allow"] = (
        None
    )

    def __post_init__(self) -> None:
        _check_at_least("threads", self.threads, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The HTTP side."""

    host: Annotated[str, "address to bind"] = "127.0.0.1"
    port: Annotated[int, "TCP port; 0: any free one"] = 8000
    served_model_name: Annotated[
        str | None, "name in /v1/models; unless said: the last part of the path, and the path itself is accepted too"
    ] = None
    api_keys: Annotated[tuple[str, ...], "accepted bearer tokens; empty: no check"] = ()
    in_process: Annotated[bool, "run the engine in the server's process instead of a child"] = False
    max_body_bytes: Annotated[int, "largest request body"] = 16 * 2**20
    max_bodies_bytes: Annotated[int, "request bodies in memory together; what comes beyond is refused with 429"] = (
        256 * 2**20
    )
    max_connections: Annotated[
        int, "open connections, fewer where the process may not open so many files; one more is refused with 503"
    ] = 4096
    drain_s: Annotated[float, "after SIGTERM, running requests get this long"] = 20.0
    stall_s: Annotated[
        float, "an engine that has work and has ended no step for this long is not healthy: /health answers 503"
    ] = 300.0
    timings: Annotated[bool, "print how long each part of the start took"] = False

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"`server.port` is {self.port}, but it must be between 0 and 65535")
        if not all(key and key == key.strip() for key in self.api_keys):
            raise ConfigError("`server.api_keys` has a key that is empty, or begins or ends with a blank")
        _check_seconds("server.drain_s", self.drain_s, above=False)
        _check_seconds("server.stall_s", self.stall_s)
        _check_at_least("server.max_body_bytes", self.max_body_bytes, 1)
        _check_at_least("server.max_bodies_bytes", self.max_bodies_bytes, self.max_body_bytes)
        _check_at_least("server.max_connections", self.max_connections, 1)


def setting_help(cls: type, name: str) -> str:
    """The help text of a field: the annotation of the dataclass is the only place it is written."""
    hint = get_type_hints(cls, include_extras=True)[name]
    return str(hint.__metadata__[0])


def check_threads(where: str, threads: int) -> int:
    """The number itself. Raises ConfigError when it is more than 4 for each CPU: they would only wait."""
    num_cpus = os.cpu_count() or 1
    if threads > 4 * num_cpus:
        raise ConfigError(
            f"`{where}` is {threads}, but this machine has {num_cpus} CPUs, so at most {4 * num_cpus} make sense",
            hint="leave it out: then it is one a core, as the affinity mask and the CPU quota allow",
        )
    return threads


def env_threads() -> int | None:
    """`TRIVET_THREADS`, None if unset. Raises ConfigError unless it is a whole number from 1 to 4 for each CPU."""
    text = env("TRIVET_THREADS")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or int(text[:20]) < 1:
        raise ConfigError(f"`TRIVET_THREADS` is {text!r}, but it must be a number of 1 or more")
    return check_threads("TRIVET_THREADS", int(text[:20]))


def env(name: str) -> str | None:
    """An environment variable of ENVIRONMENT, None if unset or empty."""
    if name not in ENVIRONMENT:
        raise KeyError(name)
    return os.environ.get(name) or None
