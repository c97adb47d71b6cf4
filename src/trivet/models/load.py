"""`load_model`: all that a server needs to know of a model. The tokenizer is read on first use."""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from trivet.config import ModelConfig
from trivet.errors import ConfigError, ModelFormatError
from trivet.formats.checkpoint import read_json
from trivet.formats.packed import Progress
from trivet.models.chat import ChatTemplate
from trivet.models.packing import PackedModel, load_packed
from trivet.models.source import find_model
from trivet.models.spec import ModelSpec
from trivet.models.tokenizer import Tokenizer

log = logging.getLogger("trivet.models")


@dataclass(kw_only=True)
class LoadedModel:
    """A model, ready to be computed with; `tokenizer`, `chat_template` and `eos_ids` are read on first use."""

    name: str  # the last part of its path
    folder: Path
    spec: ModelSpec
    packed: PackedModel
    precision: str  # never `auto`
    max_context: int  # tokens: the model's, or less if so configured
    generation_config: dict[str, Any]  # what the model says about sampling, checked; {} if told to ignore it
    notes: tuple[str, ...]  # what was chosen or given up while loading
    timings: dict[str, float]  # seconds: `find_s` (download included), `weights_s` (packing included)
    packed_now: bool
    config_eos_ids: frozenset[int]  # of config.json and generation_config.json

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; ModelFormatError if the folder has none that can be read."""
        begin = time.perf_counter()
        tokenizer = Tokenizer.from_folder(self.folder)
        self.timings["tokenizer_s"] = time.perf_counter() - begin
        return tokenizer

    @cached_property
    def chat_template(self) -> ChatTemplate | None:
        """The chat template, None if the model has none; ModelFormatError if it cannot be read."""
        return ChatTemplate.from_folder(self.folder)

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a sequence: the union of generation_config, config and tokenizer, ascending."""
        ids = set(self.config_eos_ids)
        if (self.folder / "tokenizer.json").exists() and self.tokenizer.eos_id is not None:
            ids.add(self.tokenizer.eos_id)
        return tuple(sorted(i for i in ids if i < self.spec.vocab_size))


def load_model(config: ModelConfig, *, progress: Progress | None = None) -> LoadedModel:
    """The model that the config names, its weights packed (now, or from the cache) and mapped.

    ConfigError if it cannot be found, ModelFormatError if it is damaged or not expressible, CacheError if there is no
    room to pack it.
    """
    begin = time.perf_counter()
    folder, name = find_model(config.path)
    if not (folder / "config.json").exists():
        raise ModelFormatError(
            f"{folder} has no config.json",
            hint="a model is a folder with config.json, safetensors weights and tokenizer.json",
        )
    found = time.perf_counter()
    precision = "int8" if config.precision == "auto" else config.precision
    packed, packed_now = load_packed(folder, precision=precision, group_size=config.group_size, progress=progress)
    spec = packed.spec
    if config.max_context is not None and config.max_context > spec.max_context:
        raise ConfigError(
            f"`model.max_context` is {config.max_context:,}, but {name} was made for {spec.max_context:,} tokens",
            hint="leave it out to use all of them",
        )
    notes = list(packed.notes)
    if config.precision == "auto":
        notes.append("precision auto: int8")
    generation = read_json(folder / "generation_config.json") if (folder / "generation_config.json").exists() else {}
    applied = generation if config.generation_config == "auto" else {}
    notes += _check_sampling(applied, folder / "generation_config.json")
    for note in notes:
        log.info("%s: %s", name, note)
    return LoadedModel(
        name=name,
        folder=folder,
        spec=spec,
        packed=packed,
        precision=precision,
        max_context=config.max_context or spec.max_context,
        generation_config=applied,
        notes=tuple(notes),
        timings={"find_s": found - begin, "weights_s": time.perf_counter() - found},
        packed_now=packed_now,
        config_eos_ids=_eos_ids(generation, folder / "generation_config.json")
        | _eos_ids(read_json(folder / "config.json"), folder / "config.json"),
    )


def _eos_ids(content: dict[str, Any], where: Path) -> frozenset[int]:
    value = content.get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(i) is int and i >= 0 for i in ids):
        raise ModelFormatError(f"`eos_token_id` in {where} is {value!r}, but it must be a token id or a list of them")
    return frozenset(ids)


# What `SamplingParams` take: (type, least, most, in words). A model with defaults that no request may have is refused.
SAMPLING_RANGES: dict[str, tuple[type, float, float, str]] = {
    "temperature": (float, 0, 100, "from 0 to 100"),
    "top_p": (float, sys.float_info.min, 1, "from above 0 to 1"),
    "top_k": (int, -1, 2**31 - 1, "from -1 to 2147483647, and whole"),
    "min_p": (float, 0, 1, "from 0 to 1"),
}
NOT_APPLIED = {"repetition_penalty": 1, "no_repeat_ngram_size": 0, "typical_p": 1, "num_beams": 1}


def _check_sampling(content: dict[str, Any], where: Path) -> list[str]:
    """A note for each sampling setting that Trivet does not apply; ModelFormatError for an impossible value."""
    for key, (kind, least, most, words) in SAMPLING_RANGES.items():
        value = content.get(key)
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (numeric and least <= value <= most and kind(value) == value):
            raise ModelFormatError(
                f"`{key}` in {where} is {value!r}, but it must be {words}",
                hint="correct it, or load with `--generation-config none`",
            )
    return [
        f"`{key}` = {content[key]!r} of generation_config.json is not applied"
        for key, neutral in NOT_APPLIED.items()
        if content.get(key) not in (None, neutral)
    ]
