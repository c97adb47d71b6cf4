"""What a request did not say: sampling defaults, the number of tokens, the ids that end a sequence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import msgspec

from trivet.engine.messages import EngineRequest
from trivet.engine.sampling_params import SamplingParams
from trivet.errors import ContextTooLong

COMPLETION_MAX_TOKENS = 16  # OpenAI's default for /v1/completions

Number = TypeVar("Number", int, float)
Rest = Literal["completion", "context"]  # what `max_tokens=None` means: 16 tokens, or the rest of the context


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingDefaults:
    """What a model supplies where a request is silent."""

    model_name: str = "the model"  # for messages only
    max_context: int  # tokens of prompt and output together
    eos_ids: tuple[int, ...] = ()  # union of generation_config, config and tokenizer
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0

    @classmethod
    def of(
        cls, generation_config: Mapping[str, Any], *, max_context: int, eos_ids: Iterable[int], model_name: str
    ) -> SamplingDefaults:
        """What a generation_config.json says, and OpenAI's defaults for what it does not; `{}` says nothing.

        An explicit `do_sample: false` means greedy, as in transformers, unless a temperature is stated beside it.
        """
        said: dict[str, Any] = {
            name: kind(generation_config[name])
            for name, kind in (("temperature", float), ("top_p", float), ("top_k", int), ("min_p", float))
            if generation_config.get(name) is not None
        }
        if generation_config.get("do_sample") is False:
            said.setdefault("temperature", 0.0)
        return cls(model_name=model_name, max_context=max_context, eos_ids=tuple(sorted(set(eos_ids))), **said)


def make_request(
    request_id: str,
    prompt_token_ids: list[int],
    sampling: SamplingParams,
    defaults: SamplingDefaults,
    *,
    rest: Rest = "completion",
    priority: int = 0,
    cache_salt: str = "",
    deadline_s: float | None = None,
    return_logits: bool = False,
    prompt_only: bool = False,
) -> EngineRequest:
    """The request with everything resolved. Raises ContextTooLong with the numbers."""
    num_given_up = 1 if (return_logits or prompt_only) and sampling.max_tokens == 1 else 0
    return EngineRequest(
        request_id=request_id,
        prompt_token_ids=prompt_token_ids,
        sampling=resolve_sampling(
            sampling, defaults, num_prompt_tokens=len(prompt_token_ids), rest=rest, num_given_up=num_given_up
        ),
        stop_ids=stop_ids(sampling, defaults),
        priority=priority,
        cache_salt=cache_salt,
        deadline_s=deadline_s,
        return_logits=return_logits,
        prompt_only=prompt_only,
    )


def resolve_sampling(
    sampling: SamplingParams,
    defaults: SamplingDefaults,
    *,
    num_prompt_tokens: int,
    rest: Rest = "completion",
    num_given_up: int = 0,
) -> SamplingParams:
    """`sampling` without a None but `seed`: what was said, then the model's defaults, then OpenAI's.

    `num_given_up` is 1 when only the prompt's logits or scores are wanted: the token drawn after them needs no room.
    Raises ContextTooLong when the prompt leaves no room, or less than `max_tokens` asks for.
    """
    room = defaults.max_context - num_prompt_tokens + num_given_up
    if room < 1:
        raise ContextTooLong(
            f"the prompt has {num_prompt_tokens:,} tokens, but `{defaults.model_name}` can hold "
            f"{defaults.max_context:,}{'' if num_given_up else ' with at least one to answer'}",
            hint="shorten it, or load the model with a larger `--max-context` if it was made for more",
            param="prompt",
            code="context_length_exceeded",
        )
    if sampling.max_tokens is not None and sampling.max_tokens > room:
        raise ContextTooLong(
            f"the prompt has {num_prompt_tokens:,} tokens and `max_tokens` asks for {sampling.max_tokens:,} more, "
            f"{num_prompt_tokens + sampling.max_tokens:,} together, but `{defaults.model_name}` can hold "
            f"{defaults.max_context:,}",
            hint=f"ask for at most {room:,} tokens, or shorten the prompt",
            param="max_tokens",
            code="context_length_exceeded",
        )
    max_tokens = sampling.max_tokens
    if max_tokens is None:
        least = max(COMPLETION_MAX_TOKENS, sampling.min_tokens)
        max_tokens = room if rest == "context" else min(least, room)
    if sampling.min_tokens > max_tokens:
        raise ContextTooLong(
            f"`min_tokens` is {sampling.min_tokens:,}, but after a prompt of {num_prompt_tokens:,} tokens "
            f"`{defaults.model_name}` has room for {max_tokens:,}",
            param="min_tokens",
            code="context_length_exceeded",
        )
    return msgspec.structs.replace(
        sampling,
        max_tokens=max_tokens,
        temperature=_first(sampling.temperature, defaults.temperature),
        top_p=_first(sampling.top_p, defaults.top_p),
        top_k=max(0, _first(sampling.top_k, defaults.top_k)),  # -1 means all, as in vLLM
        min_p=_first(sampling.min_p, defaults.min_p),
    )


def stop_ids(sampling: SamplingParams, defaults: SamplingDefaults) -> list[int]:
    """Token ids that end a sequence, ascending: the model's EOS set unless `ignore_eos`, and `stop_token_ids`."""
    eos = () if sampling.ignore_eos else defaults.eos_ids
    return sorted({*eos, *sampling.stop_token_ids})


def _first(said: Number | None, default: Number) -> Number:
    return default if said is None else said
