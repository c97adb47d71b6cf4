"""What a checkpoint's config.json says of the work that any engine has to do for a token."""

from __future__ import annotations

import json
from pathlib import Path


def model_facts(folder: Path) -> dict[str, int]:
    """`body_weights` of all linear layers but embedding and head; `kv_values` that a token adds to the KV cache."""
    config = json.loads((folder / "config.json").read_text())
    dim, layers, heads = config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]
    width = config.get("head_dim") or dim // heads
    kv = config["num_key_value_heads"] * width
    layer = dim * (2 * heads * width + 2 * kv + 3 * config["intermediate_size"])
    return {"body_weights": layers * layer, "kv_values": 2 * layers * kv}
