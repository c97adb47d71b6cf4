"""W8A8 of a checkpoint in compressed-tensors' layout, which vLLM reads: write_w8a8.py CHECKPOINT OUT

Linear layers: int8, one scale an output channel (absmax / 127, round to nearest), activations int8 by token at run
time. Embedding and head stay bf16, as the recipes for this form have them.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 [N, K] and bf16 [N, 1]."""
    scale = weight.float().abs().amax(1, keepdim=True).clamp(min=1e-8) / 127
    return torch.round(weight.float() / scale).clamp(-127, 127).to(torch.int8), scale.to(torch.bfloat16)


def part(*, strategy: str, dynamic: bool) -> dict[str, object]:
    """How weights, or activations, are coded."""
    return {"num_bits": 8, "type": "int", "symmetric": True, "strategy": strategy, "dynamic": dynamic}


def main(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    tensors = {}
    for path in sorted(source.iterdir()):
        if path.suffix != ".safetensors":
            if not path.name.endswith(".safetensors.index.json"):  # it names files that are one here
                shutil.copy(path, target)
            continue
        for name, tensor in load_file(path).items():
            if name.endswith("_proj.weight"):
                tensors[name], tensors[name + "_scale"] = quantize(tensor)
            else:
                tensors[name] = tensor
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    scheme = {"targets": ["Linear"], "weights": part(strategy="channel", dynamic=False),
              "input_activations": part(strategy="token", dynamic=True), "output_activations": None}  # fmt: skip
    config["quantization_config"] = {
        "quant_method": "compressed-tensors", "format": "int-quantized", "quantization_status": "compressed",
        "ignore": ["lm_head"], "config_groups": {"group_0": scheme},
    }  # fmt: skip
    (target / "config.json").write_text(json.dumps(config, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
