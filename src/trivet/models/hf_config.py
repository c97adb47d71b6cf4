"""config.json -> ModelSpec, in the dialects of transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`).

What the spec cannot express is refused by the name of its key, so that a model never runs with a part left out.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, TypeVar

from trivet.errors import ModelFormatError
from trivet.models.spec import LayerSpec, ModelSpec, RopeSpec

FAMILIES = {"LlamaForCausalLM": "llama", "Qwen3ForCausalLM": "qwen3"}
MODEL_TYPES = {"llama": "llama", "qwen3": "qwen3"}
MAX_HEAD_DIM = 256
MAX_ROPE_THETA = 1e15  # what the core makes tables for
T = TypeVar("T")
REQUIRED: Any = object()

# Keys that change what is computed, with the values that change nothing. Any other value is refused.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "quantization_config": (None,),
    "use_sliding_window": (False, None),
    "partial_rotary_factor": (1, None),
    "pretraining_tp": (None, *range(1, 65)),  # how transformers cut the same product when it was trained
    "rope_interleaved": (False, None),
    "attn_logit_softcapping": (None, 0),
    "final_logit_softcapping": (None, 0),
    "logit_scale": (None, 1),
    "embedding_multiplier": (None, 1),
    "attention_multiplier": (None,),
    "residual_multiplier": (None, 1),
    "logits_scaling": (None, 1),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
    "no_rope_layers": (None, []),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
}


class Config:
    """A config.json with typed access; each error names the file and the key."""

    def __init__(self, content: dict[str, Any], where: str) -> None:
        self.content = content
        self.where = where

    def error(self, key: str, expected: str) -> ModelFormatError:
        """The error for a key with an impossible value."""
        if key not in self.content:
            return ModelFormatError(f"`{key}` is missing from {self.where}; it must be {expected}")
        return ModelFormatError(f"`{key}` in {self.where} is {self.content[key]!r}, but it must be {expected}")

    def integer(self, key: str, default: Any = REQUIRED, *, least: int = 1, most: int = 2**31 - 1) -> int:
        value = self.content.get(key)
        if value is None and default is not REQUIRED:
            return int(default)
        if type(value) is not int or not least <= value <= most:
            raise self.error(key, f"an integer from {least} to {most}")
        return value

    def number(self, key: str, default: Any = REQUIRED, *, least: float = 0, most: float = math.inf) -> float:
        """A number above 0, at least `least` and at most `most`."""
        value = self.content.get(key)
        if value is None and default is not REQUIRED:
            return float(default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise self.error(key, "a number above 0")
        if not least <= value <= most:
            raise self.error(key, f"a number from {least:g} to {most:g}" if most < math.inf else f"at least {least:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.content.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value


def model_spec(content: dict[str, Any], where: Path | str = "config.json") -> ModelSpec:
    """The spec that config.json (already parsed) describes; ModelFormatError names the key that is wrong or refused."""
    config = Config(content, str(where))
    family = _family(config)
    _refuse_what_is_not_expressed(config, family)
    dim = config.integer("hidden_size")
    num_heads = config.integer("num_attention_heads")
    num_kv_heads = config.integer("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads != 0:
        raise config.error("num_key_value_heads", f"a divisor of num_attention_heads, which is {num_heads}")
    head_dim = _head_dim(config, family, dim, num_heads)
    attention_bias = config.flag("attention_bias", False)
    layer = LayerSpec(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        ffn_dim=config.integer("intermediate_size"),
        qkv_bias=attention_bias,
        out_bias=attention_bias,
        mlp_bias=config.flag("mlp_bias", False) if family == "llama" else False,
        qk_norm=family == "qwen3",
        softmax_scale=1 / math.sqrt(head_dim),  # of exact operations, unlike pow: it is part of the digest
    )
    max_context = config.integer("max_position_embeddings")
    return ModelSpec(
        family=family,
        dim=dim,
        vocab_size=config.integer("vocab_size"),
        max_context=max_context,
        norm_eps=config.number("rms_norm_eps", 1e-6),
        tied_head=config.flag("tie_word_embeddings", False),
        rope=_rope(config, max_context),
        layers=(layer,) * config.integer("num_hidden_layers", most=4096),
    )


def _family(config: Config) -> str:
    supported = ", ".join(FAMILIES)
    architectures = config.content.get("architectures")
    if isinstance(architectures, list) and architectures:
        name = architectures[0]
        if isinstance(name, str) and name in FAMILIES:
            return FAMILIES[name]
        raise ModelFormatError(f"{config.where} describes a {name}, which Trivet cannot run; it runs {supported}")
    model_type = config.content.get("model_type")
    if isinstance(model_type, str) and model_type in MODEL_TYPES:
        return MODEL_TYPES[model_type]
    raise ModelFormatError(
        f"{config.where} names no known model: `architectures` is {architectures!r} and `model_type` is "
        f"{model_type!r}; Trivet runs {supported}"
    )


def _refuse_what_is_not_expressed(config: Config, family: str) -> None:
    for key, neutral in NEUTRAL.items():
        if key in config.content and config.content[key] not in neutral:
            value = config.content[key]
            if key == "quantization_config":
                method = value.get("quant_method", "?") if isinstance(value, dict) else value
                raise ModelFormatError(
                    f"{config.where} says that the weights are quantized already (`quantization_config`: {method!r}), "
                    "which Trivet cannot read yet",
                    hint="use the original checkpoint: Trivet makes its own int8 or int4 weights when it loads it",
                )
            raise ModelFormatError(f"`{key}` in {config.where} is {value!r}, which Trivet cannot compute yet")
    kinds = config.content.get("layer_types")
    other = sorted({str(k) for k in kinds if k != "full_attention"}) if isinstance(kinds, list) else []
    if other:
        raise ModelFormatError(
            f"`layer_types` in {config.where} has {', '.join(other)}: Trivet can compute only full_attention yet"
        )
    window = config.content.get("sliding_window")
    if window is not None and family != "qwen3" and config.content.get("use_sliding_window") is not False:
        raise ModelFormatError(
            f"`sliding_window` in {config.where} is {window!r}: Trivet cannot compute windowed attention yet"
        )


def _head_dim(config: Config, family: str, dim: int, num_heads: int) -> int:
    if config.content.get("head_dim") is None and family == "qwen3":
        head_dim = 128  # the default of transformers for this family
    elif config.content.get("head_dim") is None:
        if dim % num_heads != 0:
            raise config.error("num_attention_heads", f"a divisor of hidden_size, which is {dim}, or head_dim be given")
        head_dim = dim // num_heads
    else:
        head_dim = config.integer("head_dim")
    if head_dim % 2 != 0 or head_dim > MAX_HEAD_DIM:
        raise ModelFormatError(
            f"the head width of {config.where} is {head_dim}, but Trivet runs even ones up to {MAX_HEAD_DIM}"
        )
    return head_dim


def _rope(config: Config, max_context: int) -> RopeSpec:
    """Of `rope_parameters` (transformers 5), else of `rope_theta` and `rope_scaling` (transformers 4)."""
    key = "rope_parameters" if config.content.get("rope_parameters") is not None else "rope_scaling"
    value = config.content.get(key)
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise config.error(key, "an object")
    rope = Config(value, f"`{key}` of {config.where}")
    outer = config.number("rope_theta", 10000.0, least=1, most=MAX_ROPE_THETA)
    theta = rope.number("rope_theta", outer, least=1, most=MAX_ROPE_THETA)
    kind = value.get("rope_type", value.get("type", "default"))
    if value.get("partial_rotary_factor") not in (None, 1):
        raise rope.error("partial_rotary_factor", "1 or absent: Trivet rotates whole heads")
    if kind == "default":
        return RopeSpec(theta=theta)
    if kind == "linear":
        return RopeSpec(theta=theta, scaling="linear", factor=rope.number("factor", least=1))
    if kind == "llama3":
        low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
        if low >= high:
            raise rope.error("low_freq_factor", f"below high_freq_factor, which is {high}")
        return RopeSpec(
            theta=theta,
            scaling="llama3",
            factor=rope.number("factor", least=1),
            low_freq_factor=low,
            high_freq_factor=high,
            original_max_position=rope.integer("original_max_position_embeddings", max_context),
        )
    raise ModelFormatError(
        f"`rope_type` in `{key}` of {config.where} is {kind!r}, but Trivet can compute default, linear and llama3"
    )
