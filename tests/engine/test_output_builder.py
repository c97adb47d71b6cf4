"""`OutputBuilder`: events in, text out."""

from __future__ import annotations

import pytest
from fake_engine import FakeText
from listening import request

from trivet.engine.messages import Accepted, Failed, FinishReason, PromptInfo, Timings, TokenLogprob, Tokens
from trivet.engine.output_builder import OutputBuilder
from trivet.errors import ContextTooLong, EngineDied, Overloaded, TrivetError

TIMINGS = Timings(queued_s=0.1, prefill_s=0.2, decode_s=0.3, num_cached_tokens=4, num_preemptions=0)


def tokens(text: str, index: int = 0, **kw: object) -> Tokens:
    return Tokens(request_id="r", index=index, token_ids=[ord(c) for c in text], **kw)  # type: ignore[arg-type]


def builder(**kw: object) -> OutputBuilder:
    return OutputBuilder(request(**kw), FakeText(), prompt="hi", fingerprint="fp_1")  # type: ignore[arg-type]


def test_deltas_add_up_to_the_output():
    b = builder(n=2)
    b.on_event(Accepted(request_id="r", seed=11))
    b.on_event(PromptInfo(request_id="r", num_cached_tokens=32, logprobs=[None]))
    events = [
        tokens("ab"), tokens("x", 1), tokens("c", finish_reason=FinishReason.LENGTH, timings=TIMINGS),
        tokens("", 1, finish_reason=FinishReason.STOP, stop_id=3, timings=TIMINGS),
    ]  # fmt: skip
    deltas = [d for d in map(b.on_event, events) if d is not None]
    assert b.finished and b.take_cancels() == []
    out = b.result()
    assert out.finished and [o.text for o in out.outputs] == ["abc", "x"]
    for index in (0, 1):
        assert "".join(d.text for d in deltas if d.index == index) == out.outputs[index].text
    assert [(o.finish_reason, o.stop_reason) for o in out.outputs] == [("length", None), ("stop", 3)]
    assert (out.seed, out.fingerprint, out.prompt, out.num_cached_tokens) == (11, "fp_1", "hi", 32)
    assert (out.queued_s, out.prefill_s, out.decode_s) == (0.1, 0.2, 0.3)
    assert out.prompt_logprobs == [None] and out.outputs[0].logprobs is None


def test_a_stop_string_over_several_events_ends_one_sequence_and_asks_to_cancel_it():
    b = builder(n=2, stop=("end",))
    first = b.on_event(tokens("a e", timings=TIMINGS))
    assert first is not None and first.text == "a "
    assert b.on_event(tokens("n", 1)) is not None
    last = b.on_event(tokens("nd of it"))
    assert last is not None and (last.text, last.finish_reason, last.stop_reason) == ("", "stop", "end")
    assert last.token_ids == [ord("n"), ord("d")]
    assert last.timings is not None and last.timings.num_cached_tokens == 4 and last.timings.decode_s != 0.3
    assert b.take_cancels() == [0] and b.take_cancels() == [] and not b.finished
    assert b.on_event(tokens("more")) is None  # was under way
    b.on_event(tokens("d", 1, finish_reason=FinishReason.LENGTH))
    assert b.finished and b.take_cancels() == []
    assert [o.text for o in b.result().outputs] == ["a ", "nd"]


def test_a_stop_string_that_the_last_token_completes_needs_no_cancel():
    b = builder(stop=("end",))
    delta = b.on_event(tokens("the end", finish_reason=FinishReason.LENGTH, timings=TIMINGS))
    assert delta is not None and (delta.text, delta.finish_reason, delta.stop_reason) == ("the ", "stop", "end")
    assert delta.timings == TIMINGS and b.take_cancels() == []


def test_what_was_held_back_comes_with_the_end():
    b = builder(stop=("end",))
    b.on_event(tokens("the e"))
    delta = b.on_event(tokens("n", finish_reason=FinishReason.LENGTH))
    assert delta is not None and (delta.text, delta.finish_reason) == ("en", "length")
    assert b.result().outputs[0].text == "the en"


def test_stop_strings_count_only_after_min_tokens():
    b = builder(stop=("e",), min_tokens=3)
    b.on_event(tokens("ee"))
    b.on_event(tokens("eae", finish_reason=FinishReason.LENGTH))
    assert b.result().outputs[0].text == "eeea"


def test_the_stop_string_stays_where_asked_for():
    b = builder(stop=("end",), include_stop_str_in_output=True)
    b.on_event(tokens("the ending"))
    assert b.result().outputs[0].text == "the end"


def test_logprobs_go_with_their_tokens():
    b = builder(logprobs=0, stop=("b",))
    lps = [TokenLogprob(token_id=ord(c), logprob=-1.0, rank=1, top_ids=[], top_logprobs=[]) for c in "abc"]
    delta = b.on_event(tokens("abc", logprobs=lps))
    assert delta is not None and delta.logprobs == lps[:2]
    assert b.result().outputs[0].logprobs == lps[:2]


@pytest.mark.parametrize(
    ("failed", "kind"),
    [
        (Failed(request_id="r", kind="Overloaded", message="m", hint="h", retry_after_s=3.0), Overloaded),
        (Failed(request_id="r", kind="ContextTooLong", message="m", hint="h", param="p", code="c"), ContextTooLong),
        (Failed(request_id="r", kind="EngineDied", message="m", hint="h"), EngineDied),
        (Failed(request_id="r", kind="annotations", message="m", hint="h"), TrivetError),
    ],
)
def test_a_failure_is_kept_as_the_error_it_stands_for(failed, kind):
    b = builder()
    assert b.on_event(failed) is None and b.finished
    assert type(b.error) is kind and (str(b.error), b.error.hint) == ("m", "h")
    for name in ("retry_after_s", "param", "code"):
        if hasattr(b.error, name):
            assert getattr(b.error, name) == getattr(failed, name)
