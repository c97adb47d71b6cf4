"""What a model is, as data: `ModelSpec` is a list of layer specs, since pruned models have unequal layers."""

from __future__ import annotations

import msgspec


class RopeSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Rotary position embedding; the table itself is made once, while packing.

    `scaling` "llama3" uses all four numbers below, "linear" only `factor`, "none" nothing.
    """

    theta: float = 10000.0
    scaling: str = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192


class LayerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One transformer block: x += attention(norm(x)); x += mlp(norm(x)), gate activation SiLU."""

    num_heads: int  # H
    num_kv_heads: int  # K, divides H
    head_dim: int  # P, even, at most 256
    ffn_dim: int  # F
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # RMS norm of each query and key head before rope (Qwen3)
    softmax_scale: float  # usually P ** -0.5


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A decoder-only transformer that the native core can run."""

    family: str  # "llama" or "qwen3": for messages only, nothing branches on it
    dim: int  # D
    vocab_size: int  # V
    max_context: int  # positions the model was made for
    norm_eps: float
    tied_head: bool
    rope: RopeSpec
    layers: tuple[LayerSpec, ...]

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def kv_bytes_per_token(self, kv_dtype: str) -> int:
        """Bytes of KV cache one token takes over all layers, head width padded to 32 as the core stores it."""
        per_value = 2 if kv_dtype == "bf16" else 1
        total = 0
        for layer in self.layers:
            padded = -(-layer.head_dim // 32) * 32
            total += layer.num_kv_heads * 2 * (padded * per_value + (0 if kv_dtype == "bf16" else 4))
        return total
