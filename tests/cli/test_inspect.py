"""`trivet inspect` on the bundled model, and on what does not load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open

from trivet.cli.inspect import count_parameters, examine, lines_of
from trivet.cli.main import main
from trivet.config import ModelConfig
from trivet.formats import cache
from trivet.models.hf_config import model_spec
from trivet.models.load import load_model


def test_demo(demo_path: Path) -> None:
    facts = examine(ModelConfig(path="demo"))
    assert (facts["name"], facts["family"], facts["folder"]) == ("demo", "llama", str(demo_path.resolve()))
    assert facts["checkpoint"]["tensors"] == len(facts["checkpoint"]["dtypes"]) * facts["checkpoint"]["dtypes"]["BF16"]
    assert 2 * facts["parameters"] == facts["checkpoint"]["bytes"]
    sizes = [facts["precisions"][precision]["bytes"] for precision in ("bf16", "int8", "int4")]
    assert sizes == sorted(sizes, reverse=True)
    assert facts["text"]["chat_template"] is False
    text = "\n".join(lines_of(facts))
    for word in ("M parameters", "10 x 4 heads", "tied to the embedding", "not packed yet", "no chat template"):
        assert word in text


def test_the_size_is_that_of_the_packed_file_and_packed_is_said(tmp_path: Path, demo_small_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(demo_small_path, folder)
    config = ModelConfig(path=str(folder), precision="int8")
    assert examine(config)["precisions"]["int8"]["packed"] is None
    packed = load_model(config).packed
    found = examine(config)["precisions"]
    assert found["int8"]["packed"] == str(packed.path)
    assert found["int4"]["packed"] is None
    assert found["int8"]["bytes"] == sum(size for t in packed.tensors.values() for _, size in t.parts.values())
    cache.clear(cache.cache_folder().path)


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_counted(tied: bool) -> None:
    config = {
        "architectures": ["Qwen3ForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96, "vocab_size": 100, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64, "tie_word_embeddings": tied, "attention_bias": True,
    }  # fmt: skip
    attention = 64 * 64 + 2 * 32 * 64 + 64 * 64 + (64 + 2 * 32) + 64 + 2 * 16
    layer = attention + 3 * 64 * 96 + 2 * 64
    assert count_parameters(model_spec(config, "config.json")) == 100 * 64 * (1 if tied else 2) + 64 + 2 * layer


def test_what_the_spec_cannot_express_is_refused_by_name(
    tmp_path: Path, demo_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((demo_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_act": "gelu"}))
    with pytest.raises(SystemExit) as caught:
        main(["inspect", str(tmp_path)])
    assert caught.value.code == 1
    assert capsys.readouterr().err.startswith("error: `hidden_act` in ")


def test_without_a_tokenizer(tmp_path: Path, demo_small_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(demo_small_path / name, tmp_path)
    facts = examine(ModelConfig(path=str(tmp_path)))
    assert "no tokenizer" in facts["text"]["problem"]
    assert "no tokenizer" in "\n".join(lines_of(facts))


def test_json(capsys: pytest.CaptureFixture[str], demo_small_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["inspect", "demo-small", "--json"])
    assert not caught.value.code
    facts = json.loads(capsys.readouterr().out)
    with safe_open(demo_small_path / "model.safetensors", "pt") as file:
        assert facts["parameters"] == sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
