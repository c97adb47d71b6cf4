"""llama.cpp through the C API, by the bindings of llama-cpp-python: the library as llama-batched-bench uses it.

Settings: `model` (GGUF), `library` and `package` (folders), `threads`, `context` (tokens of KV of all streams), and
`batch`, `micro_batch`. Flash attention is on. Every stream has a KV buffer of its own; only where prompts share a
beginning is there one buffer for all (measured: 55 s instead of 80 for 32 requests that share 1,024 tokens), and the
beginning is computed once and copied to the other sequences, which its server does not do by itself. The next token is
the largest logit, found by NumPy: faster than llama.cpp's own sampler over so large a vocabulary.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import numpy as np
from common import Message, Times, serve

FLASH_ATTENTION_ON = 1


class LlamaCpp:
    def __init__(self, api: Any, model: Any, settings: Message) -> None:
        self.api, self.model, self.settings = api, model, settings
        self.vocab_size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
        self.context: Any = None
        self.shape = (0, 0, False)
        self.kept: list[list[int]] = []  # prompts whose KV is in the context
        self.batch = api.llama_batch_init(settings["batch"], 0, 1)

    def generate(self, prompts: list[list[int]], output: int, shared: int) -> Times:
        api, streams = self.api, len(prompts)
        self._make_context(streams, len(prompts[0]) + output, unified=shared > 0)
        memory, length = api.llama_get_memory(self.context), len(prompts[0])
        if prompts == self.kept:  # all but the last token is there, as in a prefix cache
            shared = length - 1
            for stream in range(streams):
                api.llama_memory_seq_rm(memory, stream, shared, -1)
        else:
            api.llama_memory_clear(memory, False)
            self.kept = prompts
        if shared and shared < length - 1:
            self._decode([(token, at, 0) for at, token in enumerate(prompts[0][:shared])])
            for stream in range(1, streams):
                api.llama_memory_seq_cp(memory, 0, stream, -1, -1)
        rows = [(token, at, stream) for stream, prompt in enumerate(prompts) for at, token in enumerate(prompt)]
        rows = [row for row in rows if row[1] >= shared]
        times: Times = [[] for _ in prompts]
        for at in range(length, length + output):
            answers = self._decode(rows, last=at - 1)
            for stream, _, moment in answers:
                times[stream].append(moment)
            rows = [(token, at, stream) for stream, token, _ in answers]
        return times

    def _decode(self, rows: list[tuple[int, int, int]], last: int = -1) -> list[tuple[int, int, float]]:
        """Computes (token, position, sequence) rows; of those at position `last` (sequence, next token, when)."""
        api, batch, size = self.api, self.batch, self.settings["batch"]
        answers = []
        for begin in range(0, len(rows), size):
            part = rows[begin : begin + size]
            batch.n_tokens = len(part)
            for i, (token, position, sequence) in enumerate(part):
                batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
                batch.seq_id[i][0], batch.logits[i] = sequence, position == last
            status = api.llama_decode(self.context, batch)
            if status:
                raise RuntimeError(f"llama_decode returned {status}")
            for i, (_, position, sequence) in enumerate(part):
                if position == last:
                    logits = api.llama_get_logits_ith(self.context, i)
                    token = int(np.ctypeslib.as_array(logits, (self.vocab_size,)).argmax())
                    answers.append((sequence, token, time.perf_counter()))
        return answers

    def _make_context(self, streams: int, length: int, *, unified: bool) -> None:
        """A context for so many sequences, each of so many tokens; kept while the need is the same."""
        api, shape = self.api, (streams, -(-length // 256) * 256, unified)
        if self.shape == shape:
            return
        if self.context:
            api.llama_free(self.context)
        params = api.llama_context_default_params()
        params.n_seq_max, params.n_ctx = streams, max(streams * shape[1], self.settings.get("context", 0))
        params.n_batch, params.n_ubatch = self.settings["batch"], self.settings["micro_batch"]
        params.n_threads = params.n_threads_batch = self.settings["threads"]
        params.flash_attn_type, params.kv_unified, params.no_perf = FLASH_ATTENTION_ON, unified, True
        self.kept = []
        self.context, self.shape = api.llama_init_from_model(self.model, params), shape
        if not self.context:
            raise RuntimeError("llama.cpp could not make a context")


def load(settings: Message) -> tuple[LlamaCpp, Message]:
    os.environ["LLAMA_CPP_LIB_PATH"] = settings["library"]
    sys.path.insert(0, settings["package"])
    import llama_cpp
    from llama_cpp import llama_cpp as api

    api.llama_backend_init()
    model = api.llama_model_load_from_file(settings["model"].encode(), api.llama_model_default_params())
    if not model:
        raise RuntimeError(f"llama.cpp could not load {settings['model']}")
    about = {
        "versions": {"llama-cpp-python": llama_cpp.__version__, "llama.cpp": version(api)},
        "weight_bytes": api.llama_model_size(model),
        "system": api.llama_print_system_info().decode(),
    }
    return LlamaCpp(api, model, settings), about


def version(api: Any) -> str:
    return api.llama_version().decode() if hasattr(api, "llama_version") else "vendored"


if __name__ == "__main__":
    serve(load)
