"""`LLM` at its edges: the whole context, memory given back, a fork, two at once."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trivet import LLM, SamplingParams, TrivetError

PROMPT = "def read_json(path):"
GREEDY = SamplingParams(max_tokens=24, temperature=0.0)
KV = 16 * 2**20


@pytest.fixture(scope="module")
def llm():
    with LLM("demo", max_context=512, memory=KV) as llm:
        yield llm


def ids_of(llm: LLM, length: int, seed: int) -> list[int]:
    rng = np.random.default_rng(seed)
    return [int(i) for i in rng.integers(1, llm.info.vocab_size, length)]


def test_a_stop_may_be_one_string(llm):
    text = llm.generate(PROMPT, GREEDY)[0].outputs[0].text
    stop: Any = text[5:8]
    [out] = llm.generate(PROMPT, SamplingParams(max_tokens=24, temperature=0.0, stop=stop))
    assert out.outputs[0].text == text[: text.index(stop)] and out.outputs[0].stop_reason == stop
    never: Any = "zz\x00"
    assert llm.generate(PROMPT, SamplingParams(max_tokens=24, temperature=0.0, stop=never))[0].outputs[0].text == text


def test_logits_of_the_whole_context(llm):
    ids = ids_of(llm, llm.info.max_context, seed=1)
    whole = llm.logits(ids)
    assert whole.shape == (len(ids), llm.info.vocab_size)
    assert np.array_equal(whole[:-1], llm.logits(ids[:-1]))
    with pytest.raises(TrivetError, match="513"):
        llm.logits([*ids, 1])
    with pytest.raises(TrivetError, match="512"):
        llm.generate(ids, SamplingParams(max_tokens=1))


def test_closing_gives_the_memory_back():
    big = LLM("demo-small", memory=256 * 2**20, max_num_seqs=1)
    assert len(big.generate(PROMPT, GREEDY)[0].outputs[0].token_ids) == 24
    kv_bytes = big.info.kv_bytes
    with_it = address_space()
    big.close()
    assert with_it - address_space() >= kv_bytes > 200 * 2**20


def test_after_a_fork_it_says_to_make_a_new_one(llm):
    llm.generate(PROMPT, GREEDY)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = []
        uses = (lambda: llm.generate(PROMPT, GREEDY), lambda: llm.logits([1, 2]), lambda: list(llm.iterate(PROMPT)))
        for use in uses:
            try:
                use()
                said.append("nothing was raised")
            except TrivetError as error:
                said.append(f"{error} {error.hint}")
        llm.close()
        os.write(write, "\n".join(said).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read().split("\n")
    assert os.waitpid(pid, 0)[1] == 0
    assert len(said) == 3 and all(str(pid) in line and "make the LLM after the fork" in line for line in said), said


def test_two_models_that_step_at_the_same_time_give_what_each_gives_alone(llm):
    with LLM("demo-small", max_context=512, memory=KV, precision="bf16", kv_precision="int8") as small:
        models = {"big": llm, "small": small}
        prompts = {name: [ids_of(m, n, seed=n) for n in (300, 401, 500)] for name, m in models.items()}
        alone = {name: [m.logits(ids) for ids in prompts[name]] for name, m in models.items()}
        both = threading.Barrier(2)
        counts, wrong = {"big": 0, "small": 0}, []

        def work(name: str) -> None:
            both.wait(10)
            end = time.monotonic() + 3.0
            while time.monotonic() < end or counts[name] < 3:
                which = counts[name] % 3
                if not np.array_equal(models[name].logits(prompts[name][which]), alone[name][which]):
                    wrong.append((name, counts[name]))
                counts[name] += 1

        threads = [threading.Thread(target=work, args=(name,)) for name in models]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not wrong and min(counts.values()) >= 3, (wrong, counts)


def address_space() -> int:
    """Bytes of address space of this process: what the KV cache reserves counts, touched or not."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * 4096
