"""config.json in both dialects -> ModelSpec, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from checkpoints import LLAMA3_ROPE, make_checkpoint
from trivet.errors import ModelFormatError
from trivet.models.hf_config import model_spec
from trivet.models.spec import LayerSpec, ModelSpec, RopeSpec

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 100, "num_attention_heads": 4,
    "num_hidden_layers": 2, "vocab_size": 300, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
}  # fmt: skip
QWEN3 = {**LLAMA, "architectures": ["Qwen3ForCausalLM"], "head_dim": 20}


def test_a_plain_llama() -> None:
    layer = LayerSpec(num_heads=4, num_kv_heads=4, head_dim=16, ffn_dim=100, softmax_scale=0.25)
    assert model_spec(LLAMA) == ModelSpec(
        family="llama",
        dim=64,
        vocab_size=300,
        max_context=512,
        norm_eps=1e-5,
        tied_head=False,
        rope=RopeSpec(theta=10000.0),
        layers=(layer, layer),
    )


def test_a_qwen3_with_all_that_differs() -> None:
    spec = model_spec({**QWEN3, "num_key_value_heads": 2, "tie_word_embeddings": True, "attention_bias": True,
                       "sliding_window": 4096, "use_sliding_window": False, "rope_theta": 1000000})  # fmt: skip
    assert spec.family == "qwen3" and spec.tied_head and spec.rope == RopeSpec(theta=1e6)
    assert spec.layers[0] == LayerSpec(num_heads=4, num_kv_heads=2, head_dim=20, ffn_dim=100, qkv_bias=True,
                                       out_bias=True, qk_norm=True, softmax_scale=20**-0.5)  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("rope", [{"rope_type": "default", "rope_theta": 1e6}, LLAMA3_ROPE,
                                  {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}])  # fmt: skip
def test_both_dialects_say_the_same(tmp_path: Path, family: Any, rope: dict[str, Any]) -> None:
    specs = []
    for dialect in ("v4", "v5"):
        folder = make_checkpoint(tmp_path / dialect, family, dialect=dialect, rope_parameters=rope)
        specs.append(model_spec(json.loads((folder / "config.json").read_text())))
    assert specs[0] == specs[1]
    assert specs[0].rope.theta == rope["rope_theta"] and specs[0].rope.factor == rope.get("factor", 1.0)


@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_llama3_scaling_in_its_older_spelling(key: str) -> None:
    scaling = {key: "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192}  # fmt: skip
    rope = model_spec({**LLAMA, "rope_theta": 500000.0, "rope_scaling": scaling}).rope
    assert rope == RopeSpec(theta=5e5, scaling="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
                            original_max_position=8192)  # fmt: skip


def test_what_may_be_absent_or_null() -> None:
    null = dict.fromkeys(("num_key_value_heads", "head_dim", "rope_scaling", "attention_bias", "mlp_bias",
                          "tie_word_embeddings", "rope_theta", "quantization_config", "sliding_window",
                          "layer_types", "rope_parameters"))  # fmt: skip
    assert model_spec({**LLAMA, **null}) == model_spec(LLAMA)
    assert model_spec({**LLAMA, "architectures": None, "model_type": "llama"}) == model_spec(LLAMA)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM, .* LlamaForCausalLM, Qwen3ForCausalLM"),
    ({"architectures": [7]}, "describes a 7"),
    ({"architectures": None}, "names no known model"),
    ({"architectures": None, "model_type": "gpt2"}, "`model_type` is 'gpt2'"),
    ({"hidden_act": "gelu"}, "`hidden_act` .* 'gelu'"),
    ({"hidden_act": ["silu"]}, "`hidden_act`"),
    ({"quantization_config": {"quant_method": "gptq"}}, "`quantization_config`: 'gptq'"),
    ({"quantization_config": "awq"}, "`quantization_config`: 'awq'"),
    ({"partial_rotary_factor": 0.5}, "`partial_rotary_factor` .* 0.5"),
    ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "`partial_rotary_factor`"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "`layer_types` .* sliding_attention"),
    ({"sliding_window": 128}, "`sliding_window` .* 128"),
    ({"use_sliding_window": True}, "`use_sliding_window`"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "`rope_type` in `rope_scaling` .* 'yarn'"),
    ({"rope_parameters": {"rope_type": "longrope"}}, "`rope_type` in `rope_parameters` .* 'longrope'"),
    ({"rope_scaling": 3}, "`rope_scaling` .* is 3, but it must be an object"),
    ({"rope_scaling": {"type": "linear"}}, "`factor` is missing"),
    ({"rope_scaling": {"type": "linear", "factor": "x"}}, "`factor` .* 'x', but it must be a number"),
    ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "`factor` .* 0.5, but it must be at least 1"),
    ({"rope_theta": 0.5}, "`rope_theta` .* 0.5, but it must be a number from 1 to 1e.15"),
    ({"rope_parameters": {"rope_theta": 1e16}}, "`rope_theta` .* 1e.16, but it must be a number from 1 to 1e.15"),
    ({"rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}},
     "`low_freq_factor` .* below high_freq_factor"),
    ({"head_dim": 15}, "head width .* is 15, but .* even ones up to 256"),
    ({"head_dim": 258}, "head width .* is 258"),
    ({"head_dim": -2}, "`head_dim` .* -2"),
    ({"num_attention_heads": 5}, "`num_attention_heads` .* is 5"),
    ({"num_key_value_heads": 3}, "`num_key_value_heads` .* is 3, but it must be a divisor"),
    ({"num_key_value_heads": "2"}, "`num_key_value_heads` .* '2'"),
    ({"attention_bias": "yes"}, "`attention_bias` .* 'yes', but it must be true or false"),
    ({"tie_word_embeddings": 1}, "`tie_word_embeddings` .* is 1"),
    ({"rms_norm_eps": -1}, "`rms_norm_eps` .* -1"),
    ({"rms_norm_eps": True}, "`rms_norm_eps` .* True"),
    ({"vocab_size": 3.5}, "`vocab_size` .* 3.5"),
    ({"vocab_size": True}, "`vocab_size` .* True"),
    ({"num_hidden_layers": 0}, "`num_hidden_layers` .* is 0"),
    ({"num_hidden_layers": 10**9}, "`num_hidden_layers`"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFormatError, match=message):
        model_spec({**LLAMA, **change})


@pytest.mark.parametrize("key", ["hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers",
                                 "vocab_size", "max_position_embeddings"])  # fmt: skip
def test_missing_keys_are_named(key: str) -> None:
    content = {k: v for k, v in LLAMA.items() if k != key}
    with pytest.raises(ModelFormatError, match=rf"`{key}` is missing from .*config\.json"):
        model_spec(content)
