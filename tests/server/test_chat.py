"""`/v1/chat/completions` through the `openai` package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from live_server import Server


def ask(client: openai.OpenAI, content: Any = "hi", **fields: Any) -> Any:
    messages: Any = content if isinstance(content, list) else [{"role": "user", "content": content}]
    return client.chat.completions.create(model="scripted", messages=messages, **fields)


def test_an_answer(client: openai.OpenAI, server: Server) -> None:
    reply = ask(client, max_completion_tokens=8, seed=1)
    [choice] = reply.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "user: hi")
    assert (choice.finish_reason, choice.logprobs) == ("length", None)
    assert (reply.object, reply.system_fingerprint) == ("chat.completion", "fp_0123456789abcdef")
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (8, 8)
    assert choice.trivet["seed"] == 1
    assert bytes(server.client.requests[-1].prompt_token_ids) == b"user: hi", "a template's prompt gets no second BOS"


def test_the_rest_of_the_context_is_the_default(client: openai.OpenAI, server: Server) -> None:
    ask(client, "hi", stop="u")
    assert server.client.requests[-1].sampling.max_tokens == 4096 - len("user: hi")


def test_a_stream(client: openai.OpenAI) -> None:
    chunks = list(ask(client, max_tokens=8, stream=True, stream_options={"include_usage": True}, n=2))
    assert all(chunk.object == "chat.completion.chunk" for chunk in chunks)
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 16
    for index in (0, 1):
        deltas = [c.choices[0] for c in chunks[:-1] if c.choices[0].index == index]
        assert deltas[0].delta.role == "assistant"
        assert "".join(d.delta.content or "" for d in deltas) == "user: hi"
        assert [d.finish_reason for d in deltas] == [None] * 8 + ["length"]
        assert deltas[-1].trivet["cached_tokens"] == 3


def test_logprobs(client: openai.OpenAI) -> None:
    [choice] = ask(client, max_tokens=2, logprobs=True, top_logprobs=2).choices
    first = choice.logprobs.content[0]
    assert (first.token, first.logprob, first.bytes) == ("u", -0.5, [117])
    assert [(top.token, top.logprob) for top in first.top_logprobs] == [("u", -0.5), ("a", -1.5)]
    chunks = list(ask(client, max_tokens=2, logprobs=True, stream=True))
    entries = [entry for c in chunks for choice in c.choices if choice.logprobs for entry in choice.logprobs.content]
    assert [entry.token for entry in entries] == ["u", "s"]
    assert entries[0].top_logprobs == []


def test_roles_and_text_parts(client: openai.OpenAI) -> None:
    messages = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "refusal": None, "tool_calls": None, "reasoning": None},
        {"role": "user", "content": "d"},
    ]
    rendered = "system: be kind\nuser: a\nb\nassistant: c\nuser: d"
    assert ask(client, messages, max_tokens=len(rendered)).choices[0].message.content == rendered


def test_template_arguments(client: openai.OpenAI) -> None:
    extra = {"chat_template_kwargs": {"shout": True}}
    assert ask(client, max_tokens=8, extra_body=extra).choices[0].message.content == "USER: HI"


def test_harmless_fields_are_taken(http: httpx.Client) -> None:
    fields = {
        "user": "u", "store": False, "service_tier": "default", "tools": [], "tool_choice": "none", "audio": None,
        "parallel_tool_calls": True, "response_format": {"type": "text"}, "modalities": ["text"], "logprobs": False,
        "max_tokens": 3, "max_completion_tokens": 3,
    }  # fmt: skip
    messages = [{"role": "user", "content": "hi", "name": "ann"}]
    assert http.post("/v1/chat/completions", json={"messages": messages, **fields}).status_code == 200


def test_without_a_template(start: Callable[..., Server]) -> None:
    server = start(template=False)
    with server.openai() as client, pytest.raises(openai.BadRequestError, match="has no chat template") as caught:
        ask(client)
    assert caught.value.code == "no_chat_template"
    assert caught.value.param == "messages"
