"""Streams of events, in any pieces, to counts of tokens and the times of reads."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trivet.measure.answers import StreamReader, message_of, message_of_body, outcome_of_status
from trivet.measure.client import seconds_to_wait
from trivet.measure.outcomes import Exchange, Outcome
from trivet.measure.sse import MAX_EVENT_BYTES, EventScanner, EventTooLong


def event(text: str | None = None, *, finish: str | None = None, usage: int | None = None, **choice: Any) -> bytes:
    if text is not None:
        choice["text"] = text
    body: dict[str, Any] = {"choices": [{"index": 0, "finish_reason": finish, **choice}]}
    if usage is not None:
        body["usage"] = {"prompt_tokens": 5, "completion_tokens": usage, "prompt_tokens_details": {"cached_tokens": 3}}
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def read(*reads: bytes, clean: bool = True, kept: bool = False) -> Exchange:
    """The exchange after reads at 1 s, 2 s, and so on."""
    exchange = Exchange(0, 0.0, b"")
    exchange.kept = [] if kept else None
    reader = StreamReader(exchange)
    for at_s, piece in enumerate(reads, 1):
        reader.feed(piece)
        reader.end_of_read(float(at_s))
    reader.end(clean=clean)
    return exchange


# --- events -------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 9)), st.sampled_from([b"\n", b"\r\n"]))
def test_a_piece_may_end_anywhere(sizes: list[int], newline: bytes) -> None:
    """Also inside a character, inside `data:`, and between the two newlines."""
    data = ['{"text": "wörd€ 😀"}', "[DONE]"]
    stream = newline.join([b": comment", *(b"data: " + d.encode() + newline for d in data), b""])
    scanner, found, at = EventScanner(), [], 0
    for size in [*sizes, len(stream)]:
        found += scanner.feed(stream[at : at + size])
        at += size
    assert [d.decode() for d in found] == data
    assert scanner.is_between_events


def test_fields_other_than_data_are_passed_over() -> None:
    scanner = EventScanner()
    assert scanner.feed(b"event: x\nid: 7\ndata:a\ndata: b\nretry: 10\n\n\n\n") == [b"a\nb"]
    assert scanner.feed(b"data: half") == [] and not scanner.is_between_events


def test_an_event_without_end_is_given_up() -> None:
    with pytest.raises(EventTooLong):
        EventScanner().feed(b"x" * (MAX_EVENT_BYTES + 1))
    assert read(b"x" * (MAX_EVENT_BYTES + 1)).outcome is Outcome.malformed


# --- tokens -------------------------------------------------------------------------------------------------------


def test_events_with_text_are_tokens() -> None:
    exchange = read(event("a"), event("b"), event("c", finish="length") + DONE)
    assert exchange.outcome is Outcome.ok
    assert (exchange.first_s, exchange.last_s, exchange.num_tokens) == (1.0, 3.0, 3)
    assert (list(exchange.gaps), list(exchange.gap_tokens)) == ([1.0, 1.0], [1, 1])


def test_empty_deltas_are_no_tokens() -> None:
    exchange = read(
        event(delta={"role": "assistant", "content": ""}), event(delta={}), event(delta={"content": "a"}),
        event(delta={"content": None}), event(delta={"reasoning_content": "b"}), event(delta={}, finish="stop") + DONE,
    )  # fmt: skip
    assert (exchange.first_s, exchange.last_s, exchange.num_tokens) == (3.0, 5.0, 2)


def test_tool_calls_and_reasoning_are_tokens() -> None:
    exchange = read(
        event(delta={"reasoning": "x"}), event(delta={"tool_calls": [{}]}), event(delta={}, finish="s") + DONE
    )
    assert exchange.num_tokens == 2


def test_usage_says_how_many_an_event_holds() -> None:
    exchange = read(event("ab", usage=2), event("", usage=3), event("cd", usage=5, finish="length") + DONE)
    assert (exchange.num_tokens, exchange.first_tokens, list(exchange.gap_tokens)) == (5, 2, [3])
    assert (exchange.num_events, exchange.num_reads) == (2, 2)
    assert (exchange.prompt_tokens, exchange.cached_tokens) == (5, 3)


def test_ids_say_it_before_usage_does() -> None:
    exchange = read(event("", token_ids=[1], usage=1), event("x", token_ids=[2, 3], usage=3, finish="length") + DONE)
    assert (exchange.first_s, exchange.num_tokens, list(exchange.gap_tokens)) == (1.0, 3, [2])


def test_usage_at_the_end_is_the_count() -> None:
    last = b'data: {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 7}}\n\n'
    exchange = read(event("a"), event("b", finish="length"), last + DONE)
    assert (exchange.num_tokens, exchange.num_events, exchange.prompt_tokens, exchange.last_s) == (7, 2, 9, 2.0)


def test_the_last_tokens_need_not_bring_text() -> None:
    """64 tokens 1 s apart, all but the first two of them without text."""
    events = [event("x" if k < 3 else "", usage=k, finish="length" if k == 64 else None) for k in range(1, 65)]
    exchange = read(*events, DONE)
    assert (exchange.first_s, exchange.last_s, exchange.num_tokens) == (1.0, 64.0, 64)
    assert (list(exchange.gaps), list(exchange.gap_tokens)) == ([1.0, 62.0], [1, 62])


def test_tokens_that_only_the_last_usage_knows_came_until_the_answer_ended() -> None:
    last = b'data: {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3}}\n\n'
    assert read(event("a"), event("b"), event(""), event("", finish="length"), last + DONE).last_s == 4.0
    assert read(event("a"), event("b"), event("c"), event("", finish="length"), last + DONE).last_s == 3.0


def test_an_answer_without_any_text_has_no_tokens() -> None:
    assert read(event("", usage=1), event("", usage=2, finish="length") + DONE).outcome is Outcome.no_tokens


def test_what_one_read_brings_comes_at_once() -> None:
    exchange = read(event("a") + event("b"), event("c") + event("d") + event("e", finish="length") + DONE)
    assert (exchange.first_tokens, list(exchange.gaps), list(exchange.gap_tokens)) == (2, [1.0], [3])
    assert (exchange.num_events, exchange.num_reads) == (5, 2)


def test_the_answer_is_kept_for_a_chat() -> None:
    assert read(event("a", token_ids=[7]), event("b", token_ids=[8], finish="s") + DONE, kept=True).kept == [7, 8]
    assert read(event("a"), event(delta={"content": "b"}, finish="s") + DONE, kept=True).kept == ["a", "b"]


# --- ends ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reads", "clean", "outcome"),
    [
        ([event("a")], True, Outcome.died_mid_stream),
        ([event("a", finish="length")], True, Outcome.ok),
        ([event("a", finish="length")], False, Outcome.died_mid_stream),
        ([event("a", finish="length") + b"data: {"], True, Outcome.died_mid_stream),
        ([event("a") + DONE], False, Outcome.ok),
        ([], True, Outcome.died_mid_stream),
        ([event("", finish="stop") + DONE], True, Outcome.no_tokens),
        ([event("a"), b'data: {"error": {"message": "boom"}}\n\n'], True, Outcome.error_event),
        ([event("a"), b"data: {oops\n\n" + DONE], True, Outcome.malformed),
        ([b'data: {"choices": [{"text": 7}]}\n\n' + DONE], True, Outcome.malformed),
        ([b"data: \xff\xff\n\n"], True, Outcome.malformed),
    ],
)
def test_how_an_answer_ends(reads: list[bytes], clean: bool, outcome: Outcome) -> None:
    exchange = read(*reads, clean=clean)
    assert exchange.outcome is outcome
    assert bool(exchange.message) is (outcome is not Outcome.ok)


def test_messages_of_errors() -> None:
    assert message_of_body(b'{"error": {"message": "no room", "code": 3}}') == "no room"
    assert message_of_body(b'{"detail": "bad"}') == "bad" or "bad" in message_of_body(b'{"detail": "bad"}')
    assert message_of_body(b"<html>Bad Gateway</html>") == "<html>Bad Gateway</html>"
    assert message_of({"error": "plain"}) == "plain"
    assert message_of(["x"]) == "['x']"


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (429, Outcome.http_429), (404, Outcome.wrong_model), (400, Outcome.http_4xx), (503, Outcome.http_5xx),
        (307, Outcome.http_3xx), (204, Outcome.malformed),
    ],
)  # fmt: skip
def test_statuses(status: int, outcome: Outcome) -> None:
    assert outcome_of_status(status) is outcome


@pytest.mark.parametrize(
    ("retry_after", "date", "seconds"),
    [
        ("7", "", 7.0), ("1.5", "", 1.5), ("", "", -1.0), ("soon", "", -1.0), ("-3", "", -1.0), ("inf", "", -1.0),
        ("Wed, 21 Oct 2015 07:28:30 GMT", "Wed, 21 Oct 2015 07:28:00 GMT", 30.0),
        ("Wed, 21 Oct 2015 07:27:00 GMT", "Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Wed, 21 Oct 2015 07:28:30 GMT", "", -1.0),
    ],
)  # fmt: skip
def test_when_to_come_back(retry_after: str, date: str, seconds: float) -> None:
    assert seconds_to_wait(retry_after, date) == seconds
