"""OpenVINO GenAI's continuous batching pipeline, stepped by hand so that every token has its time.

Settings: `model` (folder), `kv_gib`, `max_tokens` (in a step), `properties` (of the CPU plugin). A common beginning is
computed once, by the first request, so that the others find it in the prefix cache.
"""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai as genai
from common import Message, Times, serve


class OpenVino:
    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self.count = 0

    def generate(self, prompts: list[list[int]], output: int, shared: int) -> Times:
        if shared:
            self._run([prompts[0][: shared + 1]], 1)
        return self._run(prompts, output)

    def _run(self, prompts: list[list[int]], output: int) -> Times:
        config = genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = output
        config.ignore_eos, config.do_sample = True, False
        handles = []
        for prompt in prompts:
            self.count += 1
            ids = openvino.Tensor(np.array([prompt], np.int64))
            handles.append(self.pipeline.add_request(self.count, ids, config))
        times: Times = [[] for _ in prompts]
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
            now = time.perf_counter()
            for moments, handle in zip(times, handles, strict=True):
                while handle.can_read():
                    for answer in handle.read().values():
                        moments.extend([now] * len(answer.generated_ids))
        return times


def load(settings: Message) -> tuple[OpenVino, Message]:
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = settings["kv_gib"]
    scheduler.max_num_batched_tokens, scheduler.max_num_seqs = settings["max_tokens"], 64
    scheduler.dynamic_split_fuse, scheduler.enable_prefix_caching = True, True
    pipeline = genai.ContinuousBatchingPipeline(settings["model"], scheduler, "CPU", settings["properties"])
    about = {
        "versions": {name: version(name) for name in ("openvino-genai", "openvino")},
        "weight_bytes": (Path(settings["model"]) / "openvino_model.bin").stat().st_size,
    }
    return OpenVino(pipeline), about


if __name__ == "__main__":
    serve(load)
