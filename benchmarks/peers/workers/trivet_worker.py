"""This project's engine, in-process. Settings: the arguments of `trivet.LLM`."""

from __future__ import annotations

import time
from contextlib import closing

from common import Message, Times, serve

import trivet
from trivet import LLM, SamplingParams


class Trivet:
    def __init__(self, llm: LLM) -> None:
        self.llm = llm

    def generate(self, prompts: list[list[int]], output: int, shared: int) -> Times:
        params = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)
        builders = [self.llm._builder(prompt, params, rest="completion") for prompt in prompts]
        times: Times = [[] for _ in prompts]
        with closing(self.llm._blocking.run(builders)) as deltas:
            for number, delta in deltas:
                times[number] += [time.perf_counter()] * len(delta.token_ids)
        return times


def load(settings: Message) -> tuple[Trivet, Message]:
    llm = LLM(**settings, generation_config="none")
    info = llm.info
    about = {"versions": {"trivet": trivet.__version__}, "weight_bytes": info.weight_bytes, "isa": info.isa,
             "threads": info.num_threads, "notes": info.notes}  # fmt: skip
    return Trivet(llm), about


if __name__ == "__main__":
    serve(load)
