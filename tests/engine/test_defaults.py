"""What a request did not say."""

from __future__ import annotations

import pytest

from trivet.engine.defaults import SamplingDefaults, make_request, resolve_sampling, stop_ids
from trivet.engine.sampling_params import SamplingParams
from trivet.errors import ContextTooLong

QWEN3 = {"temperature": 0.6, "top_k": 20, "top_p": 0.95}


def defaults(generation: dict[str, float | None]) -> SamplingDefaults:
    return SamplingDefaults.of(generation, max_context=100, eos_ids=[5, 3, 5], model_name="tiny")


@pytest.mark.parametrize(
    ("generation_config", "expected"),
    [
        ({}, (1.0, 1.0, 0, 0.0)),
        (QWEN3, (0.6, 0.95, 20, 0.0)),
        ({"do_sample": False}, (0.0, 1.0, 0, 0.0)),
        ({"do_sample": False, "temperature": 0.3}, (0.3, 1.0, 0, 0.0)),
        ({"temperature": 0}, (0.0, 1.0, 0, 0.0)),
        ({"temperature": None, "top_k": 5}, (1.0, 1.0, 5, 0.0)),
        ({"min_p": 0.1}, (1.0, 1.0, 0, 0.1)),
    ],
)
def test_a_model_supplies_what_was_not_said(generation_config, expected):
    p = resolve_sampling(SamplingParams(), defaults(generation_config), num_prompt_tokens=1)
    assert (p.temperature, p.top_p, p.top_k, p.min_p) == expected


def test_what_was_said_stands():
    said = SamplingParams(temperature=0.0, top_p=0.5, top_k=-1, min_p=0.2, max_tokens=7, seed=3)
    p = resolve_sampling(said, defaults(QWEN3), num_prompt_tokens=1)
    assert (p.temperature, p.top_p, p.top_k, p.min_p, p.max_tokens, p.seed) == (0.0, 0.5, 0, 0.2, 7, 3)


@pytest.mark.parametrize(
    ("rest", "num_prompt", "min_tokens", "expected"),
    [
        ("completion", 10, 0, 16), ("completion", 90, 0, 10), ("completion", 10, 30, 30),
        ("context", 10, 0, 90), ("context", 99, 0, 1),
    ],
)  # fmt: skip
def test_max_tokens_is_16_or_the_rest_of_the_context(rest, num_prompt, min_tokens, expected):
    sampling = SamplingParams(min_tokens=min_tokens)
    assert resolve_sampling(sampling, defaults({}), num_prompt_tokens=num_prompt, rest=rest).max_tokens == expected


@pytest.mark.parametrize(
    ("num_prompt", "sampling", "param", "numbers"),
    [
        (1234, SamplingParams(), "prompt", ("1,234", "100")),
        (100, SamplingParams(), "prompt", ("100",)),
        (60, SamplingParams(max_tokens=41), "max_tokens", ("60", "41", "101", "100")),
        (90, SamplingParams(min_tokens=11), "min_tokens", ("11", "90", "10")),
    ],
)
def test_what_does_not_fit_is_refused_with_the_numbers(num_prompt, sampling, param, numbers):
    with pytest.raises(ContextTooLong) as caught:
        resolve_sampling(sampling, defaults({}), num_prompt_tokens=num_prompt)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", param)
    assert "`tiny`" in str(caught.value)
    for number in numbers:
        assert number in str(caught.value)


@pytest.mark.parametrize("wanted", ["return_logits", "prompt_only"])
def test_a_prompt_alone_needs_no_room_for_an_answer(wanted):
    one = SamplingParams(max_tokens=1)
    assert make_request("id", [1] * 100, one, defaults({}), **{wanted: True}).sampling.max_tokens == 1
    for prompt, params in (([1] * 101, one), ([1] * 100, SamplingParams(max_tokens=2))):
        with pytest.raises(ContextTooLong):
            make_request("id", prompt, params, defaults({}), **{wanted: True})


def test_stop_ids_are_the_eos_set_and_what_was_asked_for():
    assert stop_ids(SamplingParams(), defaults({})) == [3, 5]
    assert stop_ids(SamplingParams(stop_token_ids=(9, 5)), defaults({})) == [3, 5, 9]
    assert stop_ids(SamplingParams(stop_token_ids=(9,), ignore_eos=True), defaults({})) == [9]


def test_a_request_carries_everything_resolved():
    request = make_request("id", [1, 2], SamplingParams(), defaults(QWEN3), rest="context", priority=3, cache_salt="x")
    assert request.stop_ids == [3, 5] and (request.priority, request.cache_salt) == (3, "x")
    assert request.sampling.max_tokens == 98 and request.sampling.top_k == 20
