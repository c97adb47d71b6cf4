"""`SamplingParams`: how the next token is chosen and when a sequence ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec.structs import force_setattr

from trivet.engine.shown import shown
from trivet.errors import InvalidRequest

_INT32 = 2**31  # ids and counts reach the core as int32
MAX_STOPS, MAX_STOP_CHARS = 128, 4096  # they are looked for in every piece of text


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How tokens are drawn; the defaults are OpenAI's, except that a model's generation_config may supply others.

    A field left at None means "not said": the model's generation_config, then OpenAI's default, fills it in
    (`resolve_sampling` in `engine/defaults.py`). `seed=None` draws one and reports it. A string as `stop` is one stop
    string, and lists become tuples. Raises InvalidRequest for a value of another type or out of its range.
    """

    n: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float | None = None  # 1.0; 0 is greedy
    top_p: float | None = None  # 1.0
    top_k: int | None = None  # 0: all
    min_p: float | None = None  # 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logit_bias: dict[int, float] = {}
    allowed_token_ids: tuple[int, ...] | None = None
    logprobs: int | None = None  # None: none; 0: of the sampled token only; k: also of the k most likely (at most 20)
    prompt_logprobs: int | None = None
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        for param, default, plain, expected in _CHECKS:
            value = getattr(self, param)
            if value is default:
                continue
            try:
                kept = plain(value)
            except (TypeError, ValueError, OverflowError):
                raise _refused(param, value, expected) from None
            if kept is not value:
                force_setattr(self, param, kept)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise _refused("min_tokens", self.min_tokens, "at most `max_tokens`")


def _refused(param: str, value: object, expected: str) -> InvalidRequest:
    return InvalidRequest(f"`{param}` is {shown(value)}, but it must be {expected}", param=param)


# Each of these makes a check: it returns the value in its plain form, the same object if it has it already, and raises
# TypeError or ValueError for what cannot be. Plain, because a subclass (of NumPy, or an enum) cannot be sent.


def _whole(least: int, most: int) -> Callable[[Any], int]:
    def plain(value: Any) -> Any:
        if type(value) is not int:
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError
            value = int(value)
        if not least <= value <= most:
            raise ValueError
        return value

    return plain


def _real(least: float, most: float, *, above: bool = False) -> Callable[[Any], float]:
    def plain(value: Any) -> Any:
        kind = type(value)
        if kind is not float and kind is not int:
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise TypeError
            value = float(value)
        if not least <= value <= most or (above and value == least):  # NaN is neither
            raise ValueError
        return value

    return plain


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise TypeError
    return value


def _stops(value: Any) -> tuple[str, ...]:
    listed = (value,) if isinstance(value, str) else value
    if not isinstance(listed, tuple | list) or len(listed) > MAX_STOPS:
        raise TypeError
    if not all(isinstance(stop, str) and stop for stop in listed) or sum(map(len, listed)) > MAX_STOP_CHARS:
        raise TypeError
    if type(listed) is tuple and all(type(stop) is str for stop in listed):
        return listed
    return tuple(map(str, listed))


def _ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple | list):
        raise TypeError
    if type(value) is tuple and set(map(type, value)) <= {int}:  # quick, because there may be a vocabulary of them
        if value and not 0 <= min(value) <= max(value) < _INT32:
            raise ValueError
        return value
    return tuple(map(_token_id, value))


def _bias(value: Any) -> dict[int, float]:
    if not isinstance(value, dict):
        raise TypeError
    plain = {_token_id(key): _bias_value(bias) for key, bias in value.items()}
    return value if all(type(part) in (int, float) for item in value.items() for part in item) else plain


_token_id = _whole(0, _INT32 - 1)
_bias_value = _real(-100.0, 100.0)

_ALWAYS = object()  # is no default

# (field, the default, for which nothing is checked, the check, what is expected)
_CHECKS: tuple[tuple[str, object, Callable[[Any], Any], str], ...] = (
    ("n", 1, _whole(1, 128), "a whole number between 1 and 128"),
    ("max_tokens", None, _whole(1, _INT32 - 1), "a whole number of 1 or more"),
    ("min_tokens", 0, _whole(0, _INT32 - 1), "a whole number of 0 or more"),
    ("temperature", None, _real(0.0, 100.0), "a number between 0 and 100"),
    ("top_p", None, _real(0.0, 1.0, above=True), "a number above 0 and at most 1"),
    ("top_k", None, _whole(-1, _INT32 - 1), "a whole number: 0 (all) or more"),
    ("min_p", None, _real(0.0, 1.0), "a number between 0 and 1"),
    ("presence_penalty", _ALWAYS, _real(-2.0, 2.0), "a number between -2 and 2"),
    ("frequency_penalty", _ALWAYS, _real(-2.0, 2.0), "a number between -2 and 2"),
    ("seed", None, _whole(-(2**63), 2**64 - 1), "a 64-bit integer"),
    (
        "stop",
        (),
        _stops,
        f"one string or a list of at most {MAX_STOPS}, all non-empty, together at most {MAX_STOP_CHARS:,} characters",
    ),
    ("stop_token_ids", (), _ids, "a list of token ids"),
    ("ignore_eos", False, _flag, "True or False"),
    ("logit_bias", _ALWAYS, _bias, "a dict from token ids to numbers between -100 and 100"),
    ("allowed_token_ids", None, _ids, "a list of token ids"),
    ("logprobs", None, _whole(0, 20), "a whole number between 0 and 20"),
    ("prompt_logprobs", None, _whole(0, 20), "a whole number between 0 and 20"),
    ("include_stop_str_in_output", False, _flag, "True or False"),
    ("skip_special_tokens", True, _flag, "True or False"),
)
