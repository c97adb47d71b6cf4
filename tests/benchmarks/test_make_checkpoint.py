"""`benchmarks/make_checkpoint.py`: exact public shapes, sound files, sane activations."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "make_checkpoint.py"
PARAMETERS = {"tiny": 125_248, "smollm2-135m": 134_515_008, "qwen3-0.6b": 596_049_920, "llama-3.2-1b": 1_235_814_400}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_checkpoint", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_checkpoint"] = module
    spec.loader.exec_module(module)
    return module


def bf16(path: Path, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """A bf16 tensor as float32 (NumPy has no bf16, so the file is read by hand)."""
    with safe_open(path, "np") as file:
        assert file.get_slice(name).get_dtype() == "BF16"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    entry = json.loads(raw[8 : 8 + length])[name]
    begin, end = entry["data_offsets"]
    bits = np.frombuffer(raw[8 + length + begin : 8 + length + end], np.uint16).astype(np.uint32) << 16
    return bits.view(np.float32).reshape(entry["shape"])


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_shape_has_the_parameters_of_the_public_model(script: ModuleType, name: str) -> None:
    listed = list(script.tensors(script.SHAPES[name].config))
    assert sum(math.prod(shape) for _, shape, _ in listed) == PARAMETERS[name]
    assert len({tensor for tensor, _, _ in listed}) == len(listed)


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_tokenizer_has_the_vocabulary_and_ids_of_the_model(script: ModuleType, name: str) -> None:
    shape = script.SHAPES[name]
    tokenizer = script.make_tokenizer(shape, None)
    assert tokenizer.get_vocab_size() == shape.config["vocab_size"]
    assert sorted(tokenizer.get_vocab().values()) == list(range(shape.config["vocab_size"]))
    eos = shape.config["eos_token_id"]
    assert tokenizer.token_to_id(shape.eos) == eos
    text = "The three heaters don't melt, naïve 漢字\n\n  x = 10"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text
    assert len(ids) < len(text.encode())  # merges are used
    with_specials = tokenizer.encode(text).ids
    assert with_specials == ([shape.config["bos_token_id"], *ids] if shape.bos else ids)


def test_checkpoint_files_fit_together(script: ModuleType, tmp_path: Path) -> None:
    made = script.make_checkpoint("tiny", tmp_path / "a")
    assert (made["parameters"], made["vocab_size"]) == (PARAMETERS["tiny"], 512)
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    with safe_open(tmp_path / "a" / "model.safetensors", "np") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert shapes == {name: shape for name, shape, _ in script.tensors(config)}
    assert Tokenizer.from_file(str(tmp_path / "a" / "tokenizer.json")).get_vocab_size() == config["vocab_size"]
    weights = tmp_path / "a" / "model.safetensors"
    assert np.all(bf16(weights, "model.norm.weight") == 1)
    gate = bf16(weights, "model.layers.1.mlp.gate_proj.weight")
    assert gate.std() == pytest.approx(64**-0.5, rel=0.03)
    assert abs(gate.mean()) < 5 * gate.std() / math.sqrt(gate.size)
    assert len(np.unique(gate, axis=0)) == len(gate)


def test_seed_decides_the_weights(script: ModuleType, tmp_path: Path) -> None:
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        script.make_checkpoint("tiny", tmp_path / folder, seed=seed)
    files = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in "abc"]
    assert files[0] == files[1] != files[2]


def test_shards_hold_the_same_weights(script: ModuleType, tmp_path: Path) -> None:
    script.make_checkpoint("tiny", tmp_path / "one")
    script.make_checkpoint("tiny", tmp_path / "many", shard_bytes=60_000)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    shards = sorted({*index["weight_map"].values()})
    assert len(shards) > 2
    assert sorted(p.name for p in (tmp_path / "many").glob("*.safetensors")) == shards
    assert index["metadata"]["total_size"] == 2 * PARAMETERS["tiny"]
    for name, shard in index["weight_map"].items():
        np.testing.assert_array_equal(
            bf16(tmp_path / "many" / shard, name), bf16(tmp_path / "one" / "model.safetensors", name)
        )


def test_activations_keep_their_size(script: ModuleType, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    script.make_checkpoint("tiny", tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert tokenizer.eos_token_id == 0
    with torch.no_grad():
        out = model(torch.arange(200)[None], output_hidden_states=True)
    sizes = [float(h.std()) for h in out.hidden_states]
    assert all(0.005 < size < 5 for size in sizes), sizes
    assert 0.05 < float(out.logits.std()) < 5


def test_real_vocabulary_of_the_wrong_size_is_refused(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    with pytest.raises(SystemExit, match=r"has 3 tokens, but this shape has 495 beside its 17 special ones"):
        script.make_checkpoint("tiny", tmp_path / "out", vocab=tmp_path)


def test_real_vocabulary_is_used(script: ModuleType, tmp_path: Path) -> None:
    tokens, merges = script.made_up_bpe(495)
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    read = script.make_tokenizer(script.SHAPES["tiny"], tmp_path)
    assert read.to_str() == script.make_tokenizer(script.SHAPES["tiny"], None).to_str()


def test_a_full_folder_is_refused_and_the_command_says_what_it_made(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--shape", "tiny", str(tmp_path / "m"), "--json"]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(made.stdout)["parameters"] == PARAMETERS["tiny"]
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert f"{tmp_path / 'm'} is not empty" in again.stderr
