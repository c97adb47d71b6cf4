"""From an `EngineConfig` to a model in memory and what is needed to run engines on it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property

from trivet.config import EngineConfig
from trivet.engine.cpu_runner import CpuRunner, build_runner
from trivet.engine.defaults import SamplingDefaults
from trivet.engine.engine import Engine
from trivet.engine.messages import EngineInfo
from trivet.engine.progress import Progress
from trivet.models.load import LoadedModel, load_model


@dataclass(frozen=True, kw_only=True)
class AssembledEngine:
    """A loaded model, its runner, and what they say of themselves."""

    config: EngineConfig
    loaded: LoadedModel
    runner: CpuRunner
    info: EngineInfo

    @cached_property
    def defaults(self) -> SamplingDefaults:
        """What the model supplies where a request is silent; reads the tokenizer for its EOS."""
        loaded = self.loaded
        return SamplingDefaults.of(
            loaded.generation_config,
            max_context=self.info.max_context,
            eos_ids=loaded.eos_ids,
            model_name=loaded.name,
        )

    def make_engine(self) -> Engine:
        """A fresh engine on the runner: no requests, no blocks in use."""
        return Engine(self.runner, self.config.scheduler, self.config.cache, kv_bytes=self.info.kv_bytes)

    def close(self) -> None:
        self.runner.close()


def assemble(config: EngineConfig) -> AssembledEngine:
    """Loads the model and builds its runner. Raises ConfigError, ModelFormatError, CacheError, UnsupportedCpu."""
    with Progress("packing weights, once:") as progress:
        loaded = load_model(config.model, progress=progress.update)
    start = time.perf_counter()
    runner = build_runner(loaded, config)
    timings = {**loaded.timings, "runner_s": time.perf_counter() - start}
    return AssembledEngine(
        config=config, loaded=loaded, runner=runner, info=engine_info(loaded, runner, config, timings)
    )


def engine_info(
    loaded: LoadedModel, runner: CpuRunner, config: EngineConfig, timings_s: dict[str, float]
) -> EngineInfo:
    """What the engine says when it is ready."""
    fields = runner.info_fields()
    capabilities = runner.capabilities
    return EngineInfo(
        model_path=config.model.path,
        family=loaded.spec.family,
        precision=loaded.precision,
        kv_dtype=config.cache.dtype,
        isa=fields["isa"],
        num_threads=fields["num_threads"],
        fingerprint=fingerprint(capabilities.numerics),
        vocab_size=capabilities.vocab_size,
        max_context=min(capabilities.max_context, loaded.max_context),
        block_size=capabilities.block_size,
        num_blocks=capabilities.num_blocks,
        max_num_seqs=min(config.scheduler.max_num_seqs, capabilities.max_seqs_per_step),
        max_waiting=config.scheduler.max_waiting,
        weight_bytes=fields["weight_bytes"],
        kv_bytes=fields["kv_bytes"],
        notes=[*loaded.notes, *fields.get("notes", [])],
        timings_s={**timings_s, **fields.get("timings_s", {})},
    )


def fingerprint(numerics: str) -> str:
    """The `system_fingerprint` of a runner's numerics: "fp_" and 16 hexadecimal digits."""
    return f"fp_{numerics[:16]}"
