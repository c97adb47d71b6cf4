"""`load_model`: what it knows of a model, what it notes, what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from checkpoints import EOS, edit_json, make_checkpoint, write_json
from trivet.config import ModelConfig
from trivet.errors import ConfigError, ModelFormatError
from trivet.models.load import load_model


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIVET_CACHE_DIR", str(tmp_path / "cache"))


def test_all_that_is_known(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "tiny", "qwen3", generation_config={"temperature": 0.6, "top_k": 20})
    model = load_model(ModelConfig(path=str(folder)))
    assert (model.name, model.folder, model.precision, model.max_context) == ("tiny", folder, "int8", 256)
    assert model.spec.family == "qwen3" and model.packed.spec == model.spec and model.packed.precision == "int8"
    assert model.generation_config == {"temperature": 0.6, "top_k": 20}
    assert model.chat_template is not None and model.tokenizer.vocab_size == 320
    assert model.packed_now and not load_model(ModelConfig(path=str(folder))).packed_now
    assert "precision auto: int8" in model.notes
    assert set(model.timings) == {"find_s", "weights_s", "tokenizer_s"}
    assert all(seconds >= 0 for seconds in model.timings.values())


def test_a_bare_folder_is_enough(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "tiny", "llama", tokenizer=False)
    model = load_model(ModelConfig(path=str(folder), precision="bf16"))
    assert (model.generation_config, model.chat_template, model.eos_ids, model.notes) == ({}, None, (0,), ())
    with pytest.raises(ModelFormatError, match=r"has no tokenizer, but Trivet reads tokenizer\.json"):
        _ = model.tokenizer


def test_stop_ids_are_a_union(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "tiny", "llama", eos_token_id=7, generation_config={"eos_token_id": [3, 9]})
    model = load_model(ModelConfig(path=str(folder)))
    assert model.eos_ids == (0, 3, 7, 9)  # 0: the tokenizer's
    edit_json(folder / "tokenizer_config.json", eos_token={"content": "<|im_end|>"})
    edit_json(folder / "config.json", eos_token_id=None)
    assert load_model(ModelConfig(path=str(folder), generation_config="none")).eos_ids == (3, 9)
    (folder / "tokenizer_config.json").unlink()
    write_json(folder / "special_tokens_map.json", {"eos_token": EOS})
    assert load_model(ModelConfig(path=str(folder))).eos_ids == (0, 3, 9)


@pytest.mark.parametrize("value", ["</s>", [1, "x"], -1, True, 2.0])
def test_impossible_stop_ids_are_named(tmp_path: Path, value: Any) -> None:
    folder = make_checkpoint(tmp_path / "tiny", "llama", generation_config={"eos_token_id": value})
    with pytest.raises(ModelFormatError, match=r"`eos_token_id` in .*generation_config\.json is "):
        load_model(ModelConfig(path=str(folder)))


@pytest.mark.parametrize(("key", "value"), [("temperature", "hot"), ("temperature", -1), ("top_p", 1.5),
                                            ("top_k", True), ("min_p", 2), ("temperature", float("nan")),
                                            ("top_p", 0), ("top_k", 2**31), ("top_k", 2.5)])  # fmt: skip
def test_impossible_sampling_is_named_unless_ignored(tmp_path: Path, key: str, value: Any) -> None:
    folder = make_checkpoint(tmp_path / "tiny", "llama", generation_config={key: value})
    with pytest.raises(ModelFormatError, match=rf"`{key}` in .*generation_config\.json is .*must be from") as caught:
        load_model(ModelConfig(path=str(folder)))
    assert "--generation-config none" in str(caught.value.hint)
    assert load_model(ModelConfig(path=str(folder), generation_config="none")).generation_config == {}


def test_what_is_not_applied_is_noted(tmp_path: Path) -> None:
    folder = make_checkpoint(
        tmp_path / "tiny", "llama", generation_config={"repetition_penalty": 1.1, "num_beams": 1, "typical_p": 0.9}
    )
    notes = load_model(ModelConfig(path=str(folder), precision="int8")).notes
    assert notes == ("`repetition_penalty` = 1.1 of generation_config.json is not applied",
                     "`typical_p` = 0.9 of generation_config.json is not applied")  # fmt: skip


def test_fall_backs_are_noted(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "tiny", "llama", intermediate_size=100)
    notes = load_model(ModelConfig(path=str(folder), precision="int4")).notes
    assert notes == ("int8 instead of int4 for layers.0.down, layers.1.down: no group size divides K = 100",)


def test_context_may_be_shortened_but_not_stretched(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "tiny", "llama")
    assert load_model(ModelConfig(path=str(folder), max_context=100)).max_context == 100
    with pytest.raises(ConfigError, match=r"`model.max_context` is 257, but tiny was made for 256 tokens"):
        load_model(ModelConfig(path=str(folder), max_context=257))


def test_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=r"has no config\.json"):
        load_model(ModelConfig(path=str(tmp_path)))


@pytest.mark.parametrize("content", ["", "{", "[1]", '"x"', "\x00", '{"a": NaN'])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_damaged_json_names_the_file(tmp_path: Path, file: str, content: str) -> None:
    folder = make_checkpoint(tmp_path / "tiny", "llama")
    (folder / file).write_text(content)
    with pytest.raises(ModelFormatError, match=file):
        load_model(ModelConfig(path=str(folder)))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "tiny", "llama")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelFormatError, match=r"pickle \(pytorch_model\.bin\)") as caught:
        load_model(ModelConfig(path=str(folder)))
    assert "safetensors" in str(caught.value.hint)
