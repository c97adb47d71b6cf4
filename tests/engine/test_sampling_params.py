"""What SamplingParams refuse, by name, with the value and what was expected."""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import Any

import msgspec
import numpy as np
import pytest

from trivet.engine.sampling_params import SamplingParams
from trivet.engine.shown import shown
from trivet.errors import InvalidRequest


@pytest.mark.parametrize(
    "param,value",
    [
        ("n", 0), ("n", 129), ("max_tokens", 0), ("max_tokens", 2**31), ("min_tokens", -1), ("min_tokens", 2**31),
        ("temperature", -0.1), ("temperature", float("nan")), ("temperature", 101.0), ("top_p", 0.0), ("top_p", 1.1),
        ("top_k", -2), ("top_k", 2**31), ("min_p", -0.1), ("min_p", 1.1), ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1), ("seed", 2**64), ("seed", -(2**63) - 1), ("stop", ("a", "")),
        ("stop_token_ids", (-1,)), ("stop_token_ids", (2**31,)), ("logit_bias", {1: 101.0}), ("logit_bias", {-1: 1.0}),
        ("allowed_token_ids", (2**40,)), ("logprobs", 21), ("prompt_logprobs", -1),
    ],
)  # fmt: skip
def test_refuses_by_name(param: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"`{param}` is .*, but it must be ") as caught:
        SamplingParams(**{param: value})
    assert caught.value.param == param


@pytest.mark.parametrize(
    "param,value",
    [
        ("n", True), ("n", 1.0), ("n", None), ("max_tokens", "5"), ("max_tokens", 5.0), ("min_tokens", False),
        ("temperature", "0"), ("temperature", True), ("top_p", [1.0]), ("top_p", float("nan")), ("top_k", 2.5),
        ("min_p", float("nan")), ("presence_penalty", None), ("presence_penalty", float("nan")),
        ("frequency_penalty", "1"), ("seed", 1.5), ("seed", True), ("stop", 5), ("stop", ("a", 5)), ("stop", {"a": 1}),
        ("stop", b"a"), ("stop", None), ("stop", ""), ("stop_token_ids", 5), ("stop_token_ids", "5"),
        ("stop_token_ids", (1.0,)), ("stop_token_ids", (True,)), ("ignore_eos", 1), ("ignore_eos", None),
        ("logit_bias", [(1, 2.0)]), ("logit_bias", {"1": 2.0}), ("logit_bias", {True: 2.0}), ("logit_bias", {1: "2"}),
        ("logit_bias", {1: True}), ("logit_bias", {1: float("nan")}), ("logit_bias", None),
        ("allowed_token_ids", "ab"), ("allowed_token_ids", ("a",)), ("logprobs", True), ("prompt_logprobs", 1.0),
        ("include_stop_str_in_output", "yes"), ("skip_special_tokens", 0),
    ],
)  # fmt: skip
def test_refuses_another_type_by_name(param: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"`{param}` is .*, but it must be ") as caught:
        SamplingParams(**{param: value})
    assert caught.value.param == param and repr(value) in caught.value.message


def test_what_is_refused_is_shown_in_short() -> None:
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams(stop_token_ids=tuple(range(100_000, -2, -1)))
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("stop", ["x" * 4097, ("x" * 2048, "y" * 2049), ("x",) * 129], ids=range(3))
def test_stop_strings_are_bounded(stop: Any) -> None:
    with pytest.raises(
        InvalidRequest, match=r"at most 128, all non-empty, together at most 4,096 characters"
    ) as caught:
        SamplingParams(stop=stop)
    assert len(caught.value.message) < 300
    SamplingParams(stop=("x" * 4096,))
    SamplingParams(stop=("x",) * 128)


@pytest.mark.parametrize(
    "value",
    ["x" * 10**7, 10**5000, {str(i): i for i in range(10**5)}, [[["y" * 10**6]]] * 10**5, object(), "é" * 101],
    ids=range(6),
)
def test_a_value_is_shown_in_short(value: Any) -> None:
    began = time.thread_time()
    assert len(shown(value)) <= 105
    assert time.thread_time() - began < 0.02
    assert shown([1, "a", None]) == "[1, 'a', None]"


def test_a_string_is_one_stop_and_lists_become_tuples() -> None:
    said: Any = {"stop": "abc", "stop_token_ids": [5, 3], "allowed_token_ids": [1]}
    params = SamplingParams(**said)
    assert (params.stop, params.stop_token_ids, params.allowed_token_ids) == (("abc",), (5, 3), (1,))
    many: Any = ["a", "b"]
    assert SamplingParams(stop=many).stop == ("a", "b")
    assert msgspec.structs.replace(params, max_tokens=3).stop == ("abc",)


def test_a_subclass_of_a_number_or_a_string_becomes_the_plain_one_and_can_be_sent() -> None:
    class Text(str):
        pass

    params = SamplingParams(
        temperature=np.float64(0.5),
        n=HTTPStatus.CONTINUE,
        stop=(Text("a"),),
        stop_token_ids=(HTTPStatus.OK,),
        logit_bias={HTTPStatus.OK: np.float64(2.0)},
    )
    assert type(params.temperature) is float and type(params.n) is int
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams)
    assert again == params and again.logit_bias == {200: 2.0}


def test_an_int_stands_where_a_float_is_expected() -> None:
    params = SamplingParams(temperature=0, top_p=1, min_p=0, presence_penalty=1, logit_bias={3: 5})
    assert (params.temperature, params.top_p, params.logit_bias) == (0, 1, {3: 5})


def test_min_tokens_beyond_max_tokens() -> None:
    with pytest.raises(InvalidRequest, match="`min_tokens` is 5, but it must be at most `max_tokens`"):
        SamplingParams(min_tokens=5, max_tokens=4)


def test_the_edges_are_allowed() -> None:
    SamplingParams(n=128, temperature=0.0, top_p=1.0, top_k=-1, min_p=1.0, seed=-(2**63), logprobs=20, max_tokens=1)
    SamplingParams(seed=2**64 - 1, presence_penalty=-2.0, frequency_penalty=2.0, logit_bias={0: -100.0})
