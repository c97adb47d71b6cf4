"""Whatever a body holds, it is understood or refused as InvalidRequest: nothing else may come of it."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import INFO

from trivet.errors import InvalidRequest
from trivet.server.bodies import HARMLESS, NEUTRAL, ChatBody, CompletionBody, parse, prompts_of
from trivet.server.json_errors import decode_object
from trivet.server.messages import chat_messages
from trivet.server.params import chat_wanted, completion_wanted

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = sorted({*CompletionBody.__struct_fields__, *ChatBody.__struct_fields__, *HARMLESS, *NEUTRAL, "nonsense"})
BODIES = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=5)
LIKELY: st.SearchStrategy[Any] = st.sampled_from([None, 0, 1, 2.5, "x", ["x"], [1], [[1]], {}, True, -1])
LIKELY_BODIES = st.dictionaries(st.sampled_from(NAMES), LIKELY, max_size=3)
PARTS = st.sampled_from(["user", "a", 1, [{"type": "text", "text": "b"}], [3]])
MESSAGE = st.dictionaries(st.sampled_from(["role", "content", "name", "x"]), PARTS)


@settings(max_examples=150, deadline=None)
@given(BODIES | LIKELY_BODIES)
def test_any_completion(fields: dict[str, Any]) -> None:
    with suppress(InvalidRequest):
        body = parse(json.dumps({"prompt": "a", **fields}).encode(), CompletionBody, INFO)
        wanted = completion_wanted(body, 260)
        assert prompts_of(body, 260)
        assert msgspec.msgpack.encode(msgspec.structs.replace(wanted.sampling, max_tokens=1, min_tokens=0)), (
            "it travels"
        )
        assert 1 <= wanted.sampling.n <= 128
        assert wanted.sampling.max_tokens is None or wanted.sampling.max_tokens >= 1


@settings(max_examples=150, deadline=None)
@given(BODIES | LIKELY_BODIES, st.lists(MESSAGE, max_size=3))
def test_any_chat(fields: dict[str, Any], messages: list[Any]) -> None:
    with suppress(InvalidRequest):
        body = parse(json.dumps({"messages": messages, **fields}).encode(), ChatBody, INFO)
        chat_wanted(body, 260)
        assert all(isinstance(message["content"], str) for message in chat_messages(body.messages))


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=40) | st.text(max_size=20).map(lambda text: f'{{"prompt": "{text}'.encode("utf-8", "replace"))
)
def test_any_bytes(raw: bytes) -> None:
    with suppress(InvalidRequest):
        assert isinstance(decode_object(raw), dict)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'{"a": "\\ud800"}', "is not valid JSON"),
        (b'{"a": "\\ud800 and more text after it"}', "is not valid JSON"),
        (b'{"a": 1e999}', "is not valid JSON"),
        (b'{"a": "\x01"}', "at byte 7"),
        (b"null", "the body is null, but it must be a JSON object"),
    ],
)
def test_json_that_is_none(raw: bytes, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        decode_object(raw)


def test_a_long_value_is_shortened_in_the_message() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(msgspec.json.encode({"prompt": "a", "seed": "x" * 1000}), CompletionBody, INFO)
    assert len(caught.value.message) < 120
    assert "..." in caught.value.message


def test_every_neutral_value_is_taken_and_every_other_refused() -> None:
    for name, (accepted, _) in NEUTRAL.items():
        for value in accepted:
            parse(msgspec.json.encode({"prompt": "a", name: value}), CompletionBody, INFO)
        with pytest.raises(InvalidRequest, match=f"`{name}` cannot be honoured"):
            parse(msgspec.json.encode({"prompt": "a", name: "something else"}), CompletionBody, INFO)
