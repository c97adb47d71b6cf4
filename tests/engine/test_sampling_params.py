"""What SamplingParams refuse, by name, with the value and what was expected."""

from __future__ import annotations

from typing import Any

import pytest

from trivet.engine.sampling_params import SamplingParams
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


def test_min_tokens_beyond_max_tokens() -> None:
    with pytest.raises(InvalidRequest, match="`min_tokens` is 5, but it must be at most `max_tokens`"):
        SamplingParams(min_tokens=5, max_tokens=4)


def test_the_edges_are_allowed() -> None:
    SamplingParams(n=128, temperature=0.0, top_p=1.0, top_k=-1, min_p=1.0, seed=-(2**63), logprobs=20, max_tokens=1)
    SamplingParams(seed=2**64 - 1, presence_penalty=-2.0, frequency_penalty=2.0, logit_bias={0: -100.0})
