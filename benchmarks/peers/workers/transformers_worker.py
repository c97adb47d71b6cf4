"""transformers' own generate loop in bf16 with scaled-dot-product attention. Settings: `model` (folder), `threads`."""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from common import Message, Times, serve
from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList


class Clock(StoppingCriteria):
    """Asked after every token: notes when, and never stops."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **rest: Any) -> torch.Tensor:
        self.moments.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


class Transformers:
    def __init__(self, model: Any) -> None:
        self.model = model

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], output: int, shared: int) -> Times:
        ids, clock = torch.tensor(prompts), Clock()
        self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=output, min_new_tokens=output, do_sample=False,
            pad_token_id=0, stopping_criteria=StoppingCriteriaList([clock]),
        )  # fmt: skip
        return [list(clock.moments) for _ in prompts]


def load(settings: Message) -> tuple[Transformers, Message]:
    torch.set_num_threads(settings["threads"])
    model = AutoModelForCausalLM.from_pretrained(
        settings["model"], dtype=torch.bfloat16, attn_implementation="sdpa"
    ).eval()
    model.generation_config.eos_token_id = None
    about = {
        "versions": {name: version(name) for name in ("transformers", "torch")},
        "weight_bytes": sum(path.stat().st_size for path in Path(settings["model"]).glob("*.safetensors")),
    }
    return Transformers(model), about


if __name__ == "__main__":
    serve(load)
