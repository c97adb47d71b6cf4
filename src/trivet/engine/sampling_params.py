"""`SamplingParams`: how the next token is chosen and when a sequence ends."""

from __future__ import annotations

import msgspec

from trivet.errors import InvalidRequest


_INT32 = 2**31  # ids and counts reach the core as int32


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How tokens are drawn; the defaults are OpenAI's, except that a model's generation_config may supply others.

    A field left at None means "not said": the model's generation_config, then OpenAI's default, fills it in
    (`resolve_sampling` in `engine/defaults.py`). `seed=None` draws one and reports it.
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
        def check(ok: bool, param: str, value: object, expected: str) -> None:
            if not ok:
                raise InvalidRequest(f"`{param}` is {value!r}, but it must be {expected}", param=param)

        check(1 <= self.n <= 128, "n", self.n, "between 1 and 128")
        check(self.max_tokens is None or 1 <= self.max_tokens < _INT32, "max_tokens", self.max_tokens, "1 or more")
        check(0 <= self.min_tokens < _INT32, "min_tokens", self.min_tokens, "0 or more")
        if self.max_tokens is not None:
            check(self.min_tokens <= self.max_tokens, "min_tokens", self.min_tokens, "at most `max_tokens`")
        t = self.temperature
        check(t is None or 0.0 <= t <= 100.0, "temperature", t, "between 0 and 100")
        check(self.top_p is None or 0.0 < self.top_p <= 1.0, "top_p", self.top_p, "above 0 and at most 1")
        check(self.top_k is None or -1 <= self.top_k < _INT32, "top_k", self.top_k, "0 (all) or more")
        check(self.min_p is None or 0.0 <= self.min_p <= 1.0, "min_p", self.min_p, "between 0 and 1")
        for param in ("presence_penalty", "frequency_penalty"):
            check(-2.0 <= getattr(self, param) <= 2.0, param, getattr(self, param), "between -2 and 2")
        check(self.seed is None or -(2**63) <= self.seed < 2**64, "seed", self.seed, "a 64-bit integer")
        check(all(self.stop), "stop", self.stop, "non-empty strings")
        check(all(-100.0 <= b <= 100.0 for b in self.logit_bias.values()), "logit_bias", self.logit_bias,
              "between -100 and 100 for each token")
        for param, ids in (("stop_token_ids", self.stop_token_ids), ("logit_bias", self.logit_bias),
                           ("allowed_token_ids", self.allowed_token_ids or ())):
            check(all(0 <= i < _INT32 for i in ids), param, getattr(self, param), "token ids")
        for param in ("logprobs", "prompt_logprobs"):
            value = getattr(self, param)
            check(value is None or 0 <= value <= 20, param, value, "between 0 and 20")
