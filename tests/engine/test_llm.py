"""`LLM` and the two clients on the bundled model."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import signal
import threading
import time

import numpy as np
import pytest
from listening import Listener

from trivet import (
    LLM,
    ConfigError,
    ContextTooLong,
    EngineDied,
    InvalidRequest,
    Overloaded,
    RequestOutput,
    SamplingParams,
)
from trivet.config import CacheConfig, EngineConfig, ModelConfig
from trivet.engine.child import ChildProcessClient
from trivet.engine.defaults import make_request
from trivet.engine.progress import Progress

PROMPT = "def read_json(path):"
GREEDY = SamplingParams(max_tokens=24, temperature=0.0)
DRAWN = SamplingParams(max_tokens=24, temperature=1.0, seed=11)


@pytest.fixture(scope="module")
def llm():
    with LLM("demo", max_context=512, memory=32 * 2**20) as llm:
        yield llm


@pytest.fixture(scope="module")
def greedy(llm):
    return llm.generate(PROMPT, GREEDY)[0]


def idle_stats(llm):
    deadline = time.monotonic() + 10
    while (stats := llm.stats()) is None or stats.num_running or stats.num_waiting or stats.kv_blocks_used:
        assert time.monotonic() < deadline, stats
        time.sleep(0.01)
    return stats


def test_an_answer_carries_what_was_asked_and_what_it_took(llm, greedy):
    [completion] = greedy.outputs
    assert greedy.prompt == PROMPT and greedy.prompt_token_ids == llm.tokenizer.encode(PROMPT)
    assert len(completion.token_ids) == 24 and completion.finish_reason == "length"
    assert completion.text == llm.tokenizer.decode(completion.token_ids)
    assert completion.logprobs is None and greedy.prompt_logprobs is None
    assert greedy.fingerprint == llm.info.fingerprint and greedy.fingerprint.startswith("fp_")
    assert greedy.prefill_s > 0 and greedy.decode_s > 0 and greedy.e2e_s >= greedy.prefill_s + greedy.decode_s
    assert greedy.finished and isinstance(greedy, RequestOutput)


def test_prompts_may_be_strings_token_ids_or_lists_of_both(llm, greedy):
    ids = llm.tokenizer.encode(PROMPT)
    outs = llm.generate([PROMPT, ids], GREEDY) + llm.generate(ids, GREEDY) + llm.generate(np.array(ids), GREEDY)
    assert [o.outputs[0].token_ids for o in outs] == [greedy.outputs[0].token_ids] * 4
    assert [o.prompt for o in outs] == [PROMPT, None, None, None]
    assert llm.generate([], GREEDY) == []


def test_each_prompt_may_have_its_own_parameters(llm):
    outs = llm.generate([PROMPT] * 3, [SamplingParams(max_tokens=n) for n in (1, 5, 3)])
    assert [len(o.outputs[0].token_ids) for o in outs] == [1, 5, 3]
    with pytest.raises(InvalidRequest, match="3 prompts, but 2 sampling params"):
        llm.generate([PROMPT] * 3, [GREEDY] * 2)


def test_a_batch_gives_what_each_prompt_gives_alone(llm):
    prompts = [f"class Parser{i}:\n    def " for i in range(12)]
    together = llm.generate(prompts, DRAWN)
    assert together == sorted(together, key=lambda o: prompts.index(o.prompt))
    for prompt, out in zip(prompts, together, strict=True):
        assert llm.generate(prompt, DRAWN)[0].outputs[0].token_ids == out.outputs[0].token_ids


def test_max_tokens_is_16_and_sampling_is_the_models_unless_said(llm, greedy):
    [out] = llm.generate(PROMPT)
    assert out.outputs[0].token_ids == greedy.outputs[0].token_ids[:16]  # demo says `do_sample: false`
    with LLM("demo", max_context=256, memory=8 * 2**20, generation_config="none") as plain:
        assert plain.defaults.temperature == 1.0 and llm.defaults.temperature == 0.0
        assert plain.defaults.eos_ids == llm.defaults.eos_ids == (0,)


def test_a_seed_repeats_and_without_one_a_drawn_seed_is_reported(llm):
    [a], [b] = llm.generate(PROMPT, DRAWN), llm.generate(PROMPT, DRAWN)
    assert a.outputs[0].token_ids == b.outputs[0].token_ids and a.seed == b.seed == 11
    [c] = llm.generate(PROMPT, SamplingParams(max_tokens=24, temperature=1.0))
    again = SamplingParams(max_tokens=24, temperature=1.0, seed=c.seed)
    assert llm.generate(PROMPT, again)[0].outputs[0].token_ids == c.outputs[0].token_ids


def test_n_sequences_are_the_first_n_sample_indices(llm):
    def drawn(n):
        params = SamplingParams(n=n, seed=5, temperature=1.0, max_tokens=16)
        return [o.token_ids for o in llm.generate(PROMPT, params)[0].outputs]

    three = drawn(3)
    assert len({tuple(ids) for ids in three}) == 3
    assert drawn(1) == three[:1] and drawn(2) == three[:2]


def test_stop_strings_end_a_sequence_wherever_the_tokens_are_cut(llm, greedy):
    text = greedy.outputs[0].text
    for start in (3, 7, 11):
        stop = text[start : start + 5]
        [out] = llm.generate(PROMPT, SamplingParams(max_tokens=24, temperature=0.0, stop=("\x00", stop)))
        [completion] = out.outputs
        assert completion.text == text[: text.index(stop)]
        assert (completion.finish_reason, completion.stop_reason) == ("stop", stop)
        assert llm.tokenizer.decode(completion.token_ids).startswith(completion.text + stop)
    idle_stats(llm)


def test_stop_token_ids_end_a_sequence_and_are_not_part_of_it(llm, greedy):
    ids = greedy.outputs[0].token_ids
    stop = ids[6]
    [out] = llm.generate(PROMPT, SamplingParams(max_tokens=24, temperature=0.0, stop_token_ids=(stop,)))
    assert out.outputs[0].token_ids == ids[: ids.index(stop)]
    assert (out.outputs[0].finish_reason, out.outputs[0].stop_reason) == ("stop", stop)


def test_eos_ends_a_sequence_unless_ignored_or_before_min_tokens(llm):
    eos = llm.defaults.eos_ids[0]
    forced = {"temperature": 0.0, "logit_bias": {eos: 100.0}, "max_tokens": 6}
    [out] = llm.generate(PROMPT, SamplingParams(**forced))
    assert (out.outputs[0].token_ids, out.outputs[0].finish_reason) == ([], "stop")
    [out] = llm.generate(PROMPT, SamplingParams(**forced, ignore_eos=True))
    assert (out.outputs[0].token_ids, out.outputs[0].finish_reason) == ([eos] * 6, "length")
    [out] = llm.generate(PROMPT, SamplingParams(**forced, min_tokens=4))
    assert len(out.outputs[0].token_ids) == 4 and eos not in out.outputs[0].token_ids


def test_logits_are_what_the_tokens_are_drawn_from(llm, greedy):
    ids = greedy.prompt_token_ids + greedy.outputs[0].token_ids
    logits = llm.logits(ids)
    assert logits.shape == (len(ids), llm.info.vocab_size) and logits.dtype == np.float32
    first = len(greedy.prompt_token_ids) - 1
    assert logits[first:-1].argmax(1).tolist() == greedy.outputs[0].token_ids
    [out] = llm.generate(ids, SamplingParams(max_tokens=1, temperature=0.0, logprobs=3, prompt_logprobs=0))
    last = logits[-1] - logits[-1].max()
    expected = last - np.log(np.exp(last.astype(np.float64)).sum())
    [logprob] = out.outputs[0].logprobs
    assert logprob.top_ids == np.argsort(-logits[-1], kind="stable")[:3].tolist()
    assert logprob.top_logprobs == pytest.approx(expected[logprob.top_ids].tolist(), abs=1e-4)
    assert len(out.prompt_logprobs) == len(ids) and out.prompt_logprobs[0] is None


def test_streams_add_up_to_the_whole_answer(llm, greedy):
    async def main():
        deltas = [d async for d in llm.stream(PROMPT, GREEDY)]
        assert "".join(d.text for d in deltas) == greedy.outputs[0].text
        assert [i for d in deltas for i in d.token_ids] == greedy.outputs[0].token_ids
        assert len(deltas) == 24 and deltas[-1].finish_reason == "length"
        outs = await asyncio.gather(*(collect(i) for i in range(4)))
        assert outs == [llm.generate(PROMPT, seeded(i))[0].outputs[0].text for i in range(4)]

    def seeded(seed):
        return SamplingParams(max_tokens=12, temperature=1.0, seed=seed)

    async def collect(seed):
        return "".join([d.text async for d in llm.stream(PROMPT, seeded(seed))])

    asyncio.run(main())
    *deltas, out = llm.iterate(PROMPT, GREEDY)
    assert "".join(d.text for d in deltas) == out.outputs[0].text == greedy.outputs[0].text


def test_what_does_not_fit_is_refused_before_anything_runs(llm):
    steps = idle_stats(llm).num_steps
    with pytest.raises(ContextTooLong, match="512") as caught:
        llm.generate([PROMPT, [5] * 600], GREEDY)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(InvalidRequest, match="5000"):
        llm.generate([5, 5000], GREEDY)
    with pytest.raises(InvalidRequest, match="no tokens"):
        llm.generate("", GREEDY)
    assert idle_stats(llm).num_steps == steps


def test_chat_renders_the_template_and_takes_the_rest_of_the_context(tmp_path):
    from checkpoints import make_checkpoint  # brings torch and transformers

    with LLM(make_checkpoint(tmp_path / "m"), memory=2**20, max_context=100) as llm:
        conversation = [{"role": "user", "content": "hello"}]
        [out] = llm.chat(conversation, SamplingParams(temperature=0.0, ignore_eos=True))
        assert out.prompt == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
        assert out.prompt_token_ids == llm.tokenizer.encode(out.prompt, add_special_tokens=False)
        assert len(out.outputs[0].token_ids) == 100 - len(out.prompt_token_ids)
        short = SamplingParams(max_tokens=3, temperature=0.0)
        two = llm.chat([conversation, [*conversation, {"role": "assistant", "content": "hi"}]], short)
        assert [o.prompt.count("assistant") for o in two] == [1, 2]
        assert two[0].outputs[0].token_ids == out.outputs[0].token_ids[:3]
        assert llm.chat(conversation, short, add_generation_prompt=False)[0].prompt.count("assistant") == 0


def test_chat_without_a_template_is_refused_by_name(llm):
    assert not llm.has_chat_template
    with pytest.raises(InvalidRequest, match="`demo` has no chat template"):
        llm.chat([{"role": "user", "content": "hello"}])


def test_the_chosen_precision_is_logged(caplog):
    with caplog.at_level(logging.INFO, "trivet"), LLM("demo", max_context=64, memory=2**20) as llm:
        assert llm.info.precision == "int8"
    assert "demo is computed in int8" in caplog.text


def test_two_models_at_once_do_not_disturb_each_other(llm, greedy):
    with LLM("demo-small", max_context=256, memory=8 * 2**20, precision="int4", kv_precision="int8") as small:
        expected = small.generate(PROMPT, GREEDY)[0].outputs[0].token_ids
        outs: dict[str, list[list[int]]] = {"big": [], "small": []}

        def work(name, model):
            outs[name] += [model.generate(PROMPT, GREEDY)[0].outputs[0].token_ids for _ in range(5)]

        threads = [threading.Thread(target=work, args=pair) for pair in (("big", llm), ("small", small))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert outs == {"big": [greedy.outputs[0].token_ids] * 5, "small": [expected] * 5}


def test_cancelled_at_random_moments_no_block_is_lost(llm):
    rng = random.Random(3)

    async def main():
        async def one(i):
            params = SamplingParams(max_tokens=60, n=rng.randint(1, 3), temperature=1.0, seed=i)
            async for _ in llm.stream(f"# {i}\n" + "import os\n" * rng.randint(1, 40), params):
                pass

        tasks = [asyncio.create_task(one(i)) for i in range(30)]
        for task in rng.sample(tasks, 30):
            await asyncio.sleep(rng.random() * 0.05)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())
    assert idle_stats(llm).kv_blocks_used == 0


def test_ctrl_c_cancels_everything(llm, monkeypatch):
    def interrupt(self, num_done, total, *, num_tokens=0):
        if num_tokens > 5:
            raise KeyboardInterrupt

    monkeypatch.setattr("trivet.engine.progress.Progress.update", interrupt)
    before = idle_stats(llm).generation_tokens
    with pytest.raises(KeyboardInterrupt):
        llm.generate([PROMPT] * 4, SamplingParams(max_tokens=400, ignore_eos=True))
    assert idle_stats(llm).generation_tokens - before < 400


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_bar_is_shown_on_a_terminal_for_what_takes_a_while(is_terminal, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal)
    times = iter([0.0, 1.0, 4.0])
    with Progress("requests", clock=lambda: next(times)) as progress:
        progress.update(0, 1)  # of one thing no bar is made
        progress.update(1, 8, num_tokens=10)
        assert capsys.readouterr().err == ""
        progress.update(2, 8, num_tokens=20)
    err = capsys.readouterr().err
    assert ("requests" in err) == ("5.0 tokens/s" in err) == is_terminal


def test_closing_fails_what_runs_and_what_comes():
    llm = LLM("demo", max_context=2048, memory=2**24)
    running = llm.iterate(PROMPT, SamplingParams(max_tokens=2000, ignore_eos=True))
    next(running)
    llm.close()
    llm.close()
    with pytest.raises(EngineDied, match="closed"):
        list(running)
    with pytest.raises(Overloaded, match="closing"):
        llm.generate(PROMPT)


def test_a_dropped_model_ends_its_threads():
    before = set(threading.enumerate())  # some of an earlier test may be ending
    llm = LLM("demo", max_context=64, memory=2**20)
    llm.generate(PROMPT, SamplingParams(max_tokens=2))
    assert set(threading.enumerate()) - before
    del llm
    gc.collect()
    assert not set(threading.enumerate()) - before


def test_a_setting_that_cannot_be_is_refused():
    with pytest.raises(ConfigError, match=r"`model\.precision` is 'int3'"):
        LLM("demo", precision="int3")
    with pytest.raises(ConfigError):
        LLM("/no/such/model")


# --- the same model behind a process boundary ----------------------------------------------------------------


@pytest.fixture(scope="module")
def child(llm):
    config = EngineConfig(model=ModelConfig(path="demo", max_context=512), cache=CacheConfig(memory_bytes=32 * 2**20))
    client = ChildProcessClient(config)
    client.wait_ready(60)
    yield client
    client.close()


def child_tokens(llm, child, listener, request_id, params):
    ids = llm.tokenizer.encode(PROMPT)
    child.submit(make_request(request_id, ids, params, llm.defaults))
    listener.wait_finished(request_id)
    return listener.tokens(request_id)


def test_in_a_child_process_the_answers_are_the_same(llm, child, greedy):
    listener = Listener()
    child.set_listener(listener)
    assert child.info.fingerprint == llm.info.fingerprint
    assert child_tokens(llm, child, listener, "greedy", GREEDY) == greedy.outputs[0].token_ids
    [drawn] = llm.generate(PROMPT, DRAWN)
    assert child_tokens(llm, child, listener, "drawn", DRAWN) == drawn.outputs[0].token_ids


def test_a_segfault_mid_stream_ends_the_stream_and_the_next_answer_is_the_same(llm, child, greedy):
    listener = Listener()
    child.set_listener(listener)
    endless = SamplingParams(max_tokens=400, ignore_eos=True)
    child.submit(make_request("a", llm.tokenizer.encode(PROMPT), endless, llm.defaults))
    listener.wait(lambda: len(listener.tokens("a")) > 3)
    os.kill(child.pid, signal.SIGSEGV)
    listener.wait_finished("a")
    failed = listener.failed("a")
    assert failed is not None and failed.kind == "EngineDied" and "SIGSEGV" in failed.message
    assert child_tokens(llm, child, listener, "b", GREEDY) == greedy.outputs[0].token_ids
    assert child.num_restarts == 1
