"""`/v1/completions` through the `openai` package: every shape of prompt, whole and streamed."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import openai
import pytest
from live_server import Server
from scripted import BOS, EOS, MAX_CONTEXT


def ask(client: openai.OpenAI, prompt: Any = "hello", **fields: Any) -> Any:
    return client.completions.create(model="scripted", prompt=prompt, **fields)


def test_a_prompt_is_continued(client: openai.OpenAI) -> None:
    reply = ask(client, "hello", max_tokens=8, seed=5)
    [choice] = reply.choices
    assert (choice.text, choice.index, choice.finish_reason, choice.logprobs) == ("hellohel", 0, "length", None)
    assert (reply.object, reply.model) == ("text_completion", "scripted")
    assert reply.system_fingerprint == "fp_0123456789abcdef"
    assert reply.id.startswith("cmpl-")
    usage = reply.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (6, 8, 14)
    assert usage.prompt_tokens_details.cached_tokens == 3
    assert choice.trivet == {
        "seed": 5, "cached_tokens": 3, "queued_ms": 1.0, "prefill_ms": 2.0, "decode_ms": 3.0, "preemptions": 0
    }  # fmt: skip


def test_sixteen_tokens_are_the_default_and_the_drawn_seed_is_told(client: openai.OpenAI) -> None:
    reply = ask(client, "hello")
    assert reply.usage.completion_tokens == 16
    assert reply.choices[0].trivet["seed"] == 4242


@pytest.mark.parametrize(
    ("prompt", "texts", "prompt_tokens"),
    [
        ("ab", ["aba"], 3),
        (["ab", "cd"], ["aba", "cdc"], 6),
        ([97, 98], ["aba"], 2),
        ([[97, 98], [99, 100], [101]], ["aba", "cdc", "eee"], 5),
    ],
)
def test_each_shape_of_prompt(client: openai.OpenAI, prompt: Any, texts: list[str], prompt_tokens: int) -> None:
    reply = ask(client, prompt, max_tokens=3)
    assert [choice.text for choice in reply.choices] == texts
    assert [choice.index for choice in reply.choices] == list(range(len(texts)))
    assert reply.usage.prompt_tokens == prompt_tokens
    assert reply.usage.prompt_tokens_details.cached_tokens == 3 * len(texts)


def test_a_string_gets_bos_and_ids_get_none(client: openai.OpenAI, server: Server) -> None:
    ask(client, "ab", max_tokens=1)
    ask(client, [97, 98], max_tokens=1)
    assert [request.prompt_token_ids for request in server.client.requests[-2:]] == [[BOS, 97, 98], [97, 98]]


def test_n_gives_n_choices_a_prompt(client: openai.OpenAI) -> None:
    reply = ask(client, ["ab", "cd"], max_tokens=2, n=3, best_of=3)
    assert [choice.text for choice in reply.choices] == ["ab"] * 3 + ["cd"] * 3
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3, 4, 5]
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (6, 12)


def test_a_stream_gives_the_same_as_the_whole_answer(client: openai.OpenAI) -> None:
    whole = ask(client, ["hello", "wörld"], max_tokens=12, n=2)
    texts = dict.fromkeys(range(4), "")
    reasons = {}
    for chunk in ask(client, ["hello", "wörld"], max_tokens=12, n=2, stream=True):
        assert chunk.object == "text_completion"
        assert chunk.system_fingerprint == "fp_0123456789abcdef"
        [choice] = chunk.choices
        texts[choice.index] += choice.text
        if choice.finish_reason is not None:
            reasons[choice.index] = choice.finish_reason
            assert choice.trivet["cached_tokens"] == 3
    assert [texts[choice.index] for choice in whole.choices] == [choice.text for choice in whole.choices]
    assert reasons == dict.fromkeys(range(4), "length")


def test_a_stream_never_splits_a_code_point(client: openai.OpenAI) -> None:
    parts = [chunk.choices[0].text for chunk in ask(client, "☃ö€", max_tokens=16, stream=True)]
    assert "".join(parts) == "☃ö€☃ö€"
    assert "\ufffd" not in "".join(parts)


def test_the_events_of_a_stream(http: httpx.Client) -> None:
    body = {"prompt": "ab", "max_tokens": 2, "stream": True, "stream_options": {"include_usage": True}}
    reply = http.post("/v1/completions", json=body)
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = reply.text.removesuffix("\n\n").split("\n\n")
    assert events[-1] == "data: [DONE]"
    chunks = [httpx.Response(200, content=event.removeprefix("data: ")).json() for event in events[:-1]]
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None, None]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 2
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert reply.headers["x-request-id"] == chunks[0]["id"]


def test_usage_in_every_chunk(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(ask(client, "ab", max_tokens=3, stream=True, stream_options=options))
    assert [chunk.usage.completion_tokens for chunk in chunks] == [1, 2, 3, 3]


@pytest.mark.parametrize("stop", ["lo", ["xyz", "lo"], ["q"] * 50 + ["lo"]])
def test_stop_strings(client: openai.OpenAI, stop: Any) -> None:
    [choice] = ask(client, "hello", max_tokens=20, stop=stop).choices
    assert (choice.text, choice.finish_reason, choice.stop_reason) == ("hel", "stop", "lo")
    chunks = list(ask(client, "hello", max_tokens=20, stop=stop, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "hel"


def test_logprobs(client: openai.OpenAI) -> None:
    [choice] = ask(client, "aö", max_tokens=4, logprobs=2).choices
    assert choice.text == "aöa"
    logprobs = choice.logprobs
    assert logprobs.tokens == ["a", "bytes:\\xc3", "bytes:\\xb6", "a"]
    assert logprobs.token_logprobs == [-0.5] * 4
    assert logprobs.top_logprobs[0] == {"a": -0.5, "b": -1.5}
    assert logprobs.text_offset == [0, 1, 1, 2]


def test_streamed_logprobs_are_the_same(client: openai.OpenAI) -> None:
    whole = ask(client, "aö", max_tokens=6, logprobs=1).choices[0].logprobs
    chunks = [c.choices[0].logprobs for c in ask(client, "aö", max_tokens=6, logprobs=1, stream=True)]
    assert [token for chunk in chunks for token in chunk.tokens] == whole.tokens
    assert [offset for chunk in chunks for offset in chunk.text_offset] == whole.text_offset


def test_echo(client: openai.OpenAI) -> None:
    assert ask(client, "hello", max_tokens=2, echo=True).choices[0].text == "hellohe"
    assert ask(client, [104, 105], max_tokens=2, echo=True).choices[0].text == "hihi"
    chunks = list(ask(client, "hello", max_tokens=2, echo=True, stream=True))
    assert [chunk.choices[0].text for chunk in chunks] == ["hello", "h", "e"]


def test_echo_with_logprobs_scores_the_prompt(client: openai.OpenAI) -> None:
    [choice] = ask(client, "ab", max_tokens=1, echo=True, logprobs=1).choices
    assert choice.text == "aba"
    assert choice.logprobs.tokens == ["<bos>", "a", "b", "a"]
    assert choice.logprobs.token_logprobs == [None, -0.5, -0.5, -0.5]
    assert choice.logprobs.top_logprobs[0] is None
    assert choice.logprobs.text_offset == [0, 0, 1, 2]


def test_offsets_are_those_of_the_text_that_was_sent(client: openai.OpenAI) -> None:
    """Special tokens are left out of the text, so they take no room in it."""
    [choice] = ask(
        client, [BOS, 97, EOS, 98], max_tokens=3, echo=True, logprobs=0, extra_body={"ignore_eos": True}
    ).choices
    logprobs = choice.logprobs
    assert logprobs.tokens == ["<bos>", "a", "<eos>", "b", "a", "b", "a"]
    assert (choice.text, logprobs.text_offset) == ("ababa", [0, 0, 1, 1, 2, 3, 4])


def test_echo_without_output_only_scores(client: openai.OpenAI) -> None:
    reply = ask(client, [97, 98], max_tokens=0, echo=True, logprobs=0)
    [choice] = reply.choices
    assert choice.text == "ab"
    assert choice.logprobs.token_logprobs == [None, -0.5]
    assert reply.usage.completion_tokens == 0


def test_a_prompt_that_fills_the_context_can_be_scored(client: openai.OpenAI) -> None:
    [choice] = ask(client, [97] * MAX_CONTEXT, max_tokens=0, echo=True, logprobs=0).choices
    assert len(choice.logprobs.token_logprobs) == MAX_CONTEXT
    with pytest.raises(openai.BadRequestError, match="4,097"):
        ask(client, [97] * (MAX_CONTEXT + 1), max_tokens=0, echo=True, logprobs=0)
    with pytest.raises(openai.BadRequestError, match="4,096"):
        ask(client, [97] * MAX_CONTEXT, max_tokens=1)


def test_token_ids_on_request(http: httpx.Client) -> None:
    body = {"prompt": "ab", "max_tokens": 3, "return_token_ids": True}
    [choice] = http.post("/v1/completions", json=body).json()["choices"]
    assert choice["token_ids"] == [97, 98, 97]
    assert choice["prompt_token_ids"] == [BOS, 97, 98]


def test_every_sampling_field_reaches_the_engine(http: httpx.Client, server: Server) -> None:
    fields = {
        "max_tokens": 7, "min_tokens": 3, "temperature": 0.25, "top_p": 0.5, "top_k": 9, "min_p": 0.125, "n": 2,
        "presence_penalty": 0.5, "frequency_penalty": -1.5, "seed": -3, "stop_token_ids": [1, 2], "ignore_eos": True,
        "include_stop_str_in_output": True, "skip_special_tokens": False, "allowed_token_ids": [97, 98],
    }  # fmt: skip
    extra = {"stop": ["x"], "logit_bias": {"97": -100, "5": 1.5}, "priority": -2, "cache_salt": "s", "deadline_s": 9.5}
    assert http.post("/v1/completions", json={"prompt": "ab", **fields, **extra}).status_code == 200
    request = server.client.requests[-1]
    sampling = request.sampling
    said = {name: getattr(sampling, name) for name in fields}
    assert said == {**fields, "stop_token_ids": (1, 2), "allowed_token_ids": (97, 98)}
    assert (sampling.stop, sampling.logit_bias) == (("x",), {97: -100.0, 5: 1.5})
    assert (request.priority, request.cache_salt, request.deadline_s) == (-2, "s", 9.5)
    assert request.stop_ids == [1, 2]


def test_harmless_fields_are_taken(http: httpx.Client) -> None:
    fields = {
        "user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "suffix": None,
        "repetition_penalty": 1.0, "logprobs": None, "best_of": 1, "tools": [], "model": None,
    }  # fmt: skip
    assert http.post("/v1/completions", json={"prompt": "ab", **fields}).status_code == 200


def test_streams_run_side_by_side(server: Server) -> None:
    texts: dict[int, str] = {}

    def one(number: int) -> None:
        with server.openai() as client:
            chunks = ask(client, f"!slow {number}", max_tokens=10, stream=True)
            texts[number] = "".join(chunk.choices[0].text for chunk in chunks)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {number: (f"!slow {number}" * 3)[:10] for number in range(12)}


def test_a_body_of_a_megabyte(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, "x" * 2**20)
    assert caught.value.code == "context_length_exceeded"
    assert "1,048,577 tokens" in caught.value.message and "4,096" in caught.value.message
