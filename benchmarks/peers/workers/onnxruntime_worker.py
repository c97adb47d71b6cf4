"""onnxruntime-genai: a batch of equal lengths, token by token. Settings: `model` (folder)."""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as genai
from common import Message, Times, serve


class OnnxRuntime:
    def __init__(self, model: Any) -> None:
        self.model = model

    def generate(self, prompts: list[list[int]], output: int, shared: int) -> Times:
        length = len(prompts[0]) + output
        params = genai.GeneratorParams(self.model)
        params.set_search_options(max_length=length, min_length=length, do_sample=False, batch_size=len(prompts))
        generator = genai.Generator(self.model, params)
        generator.append_tokens(np.array(prompts, np.int32))
        moments = []
        for _ in range(output):
            generator.generate_next_token()
            moments.append(time.perf_counter())
        return [list(moments) for _ in prompts]


def load(settings: Message) -> tuple[OnnxRuntime, Message]:
    folder = Path(settings["model"])
    about = {
        "versions": {name: version(name) for name in ("onnxruntime-genai", "onnxruntime")},
        "weight_bytes": sum(path.stat().st_size for path in folder.glob("*.onnx.data")),
    }
    return OnnxRuntime(genai.Model(str(folder))), about


if __name__ == "__main__":
    serve(load)
