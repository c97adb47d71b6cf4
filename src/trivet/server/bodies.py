"""Request bodies of the OpenAI API as structs: bytes in, a checked body out, or an error that names the field.

Nothing is ignored in silence. A field is honoured, or it is refused by name, or it stands in `HARMLESS` because OpenAI
itself gives it no effect on the answer, or it has the value in `NEUTRAL` that asks for nothing.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from trivet.engine.messages import EngineInfo
from trivet.engine.shown import shown_name
from trivet.errors import ContextTooLong, InvalidRequest
from trivet.server.json_errors import decode_object, near, not_of_type

TokenIds = list[int]
Prompt = str | TokenIds

HARMLESS = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"})

_NO_TOOLS = "tool calls are not supported yet"
_NO_GRAMMAR = "constrained output is not supported yet"
_TEXT_ONLY = "text is the only kind of input and output"
NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "store": ((False,), "answers are not stored"),
    "service_tier": (("auto", "default"), "there is one tier"),
    "tools": (([],), _NO_TOOLS),
    "tool_choice": (("none",), _NO_TOOLS),
    "parallel_tool_calls": ((True, False), _NO_TOOLS),
    "functions": (([],), _NO_TOOLS),
    "function_call": (("none",), _NO_TOOLS),
    "response_format": (({"type": "text"},), _NO_GRAMMAR),
    "guided_json": ((), _NO_GRAMMAR),
    "guided_regex": ((), _NO_GRAMMAR),
    "guided_choice": ((), _NO_GRAMMAR),
    "guided_grammar": ((), _NO_GRAMMAR),
    "structured_outputs": ((), _NO_GRAMMAR),
    "grammar": ((), _NO_GRAMMAR),
    "modalities": ((["text"],), _TEXT_ONLY),
    "audio": ((), _TEXT_ONLY),
    "prediction": ((), "predicted outputs are not supported"),
    "web_search_options": ((), "there is no web search"),
    "moderation": ((), "there is no moderation"),
    "reasoning_effort": ((), "the model has no such control"),
    "verbosity": (("medium",), "the model has no such control"),
    "suffix": (("",), "text is only continued, nothing is filled in"),
    "repetition_penalty": ((1,), "`presence_penalty` and `frequency_penalty` are supported"),
    "length_penalty": ((1,), "there is no beam search"),
    "early_stopping": ((False,), "there is no beam search"),
    "use_beam_search": ((False,), "there is no beam search"),
    "truncate_prompt_tokens": ((), "prompts are never truncated"),
    "chat_template": ((), "the model's own template is used"),
    "documents": (([],), "retrieval is not part of the server"),
    "bad_words": (([],), "`logit_bias` with -100 forbids a token"),
}


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """`stream_options`; obfuscation is OpenAI's padding against traffic analysis, which is not made here."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None  # usage in every chunk, as vLLM has it
    include_obfuscation: bool | None = None

    def __post_init__(self) -> None:
        if self.include_obfuscation:
            raise ValueError("`include_obfuscation` is true, but chunks are not padded here")


class Body(msgspec.Struct, kw_only=True):
    """What both endpoints take. None is "not said": the model's generation_config, then OpenAI's default decides."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    allowed_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    priority: int | None = None  # lower runs first
    cache_salt: str | None = None  # requests share cached prefixes only with the same salt
    deadline_s: float | None = None  # the first token comes within this, or the answer is 429


class CompletionBody(Body, kw_only=True):
    """`POST /v1/completions`."""

    prompt: str | list[str | int | list[int]]
    best_of: int | None = None
    echo: bool | None = None
    logprobs: int | None = None


class ChatBody(Body, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None


def _fields(cls: type[Body]) -> frozenset[str]:
    return frozenset(cls.__struct_fields__)


_OTHER = {
    CompletionBody: (_fields(ChatBody), "/v1/chat/completions"),
    ChatBody: (_fields(CompletionBody), "/v1/completions"),
}


def _check_names(fields: dict[str, Any], cls: type[Body]) -> None:
    """Every field is honoured, harmless or neutral, else InvalidRequest says which it is not."""
    known = _fields(cls)
    for name, value in fields.items():
        if name in known or name in HARMLESS or value is None:
            if name not in known and name not in HARMLESS and name not in NEUTRAL:
                raise _unknown(name, cls)
            continue
        if name not in NEUTRAL:
            raise _unknown(name, cls)
        accepted, why = NEUTRAL[name]
        if not any(value == a and isinstance(value, bool) == isinstance(a, bool) for a in accepted):
            raise InvalidRequest(f"`{name}` cannot be honoured: {why}", hint="leave it out", param=name)


def _unknown(name: str, cls: type[Body]) -> InvalidRequest:
    known = _fields(cls)
    other, path = _OTHER[cls]
    hint = f"it belongs to {path}" if name in other else near(name, known | HARMLESS | NEUTRAL.keys())
    name = shown_name(name)
    return InvalidRequest(f"unknown field `{name}`", hint=hint, param=name, code="unknown_parameter")


B = TypeVar("B", bound=Body)


def parse(raw: bytes, cls: type[B], info: EngineInfo) -> B:
    """The checked body; raises InvalidRequest naming the position in bad JSON, or the field and what was expected.

    What is too long for the engine is refused before anything is copied.
    """
    fields = decode_object(raw)
    _check_names(fields, cls)
    _check_lengths(fields, info)
    try:
        return msgspec.convert(fields, cls)
    except msgspec.ValidationError as error:
        raise not_of_type(error, fields) from None


def _check_lengths(fields: dict[str, Any], info: EngineInfo) -> None:
    prompt, messages = fields.get("prompt"), fields.get("messages")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
        _check_fits(prompt, "prompt", info)
    elif isinstance(prompt, list):
        most = info.max_waiting + info.max_num_seqs
        if len(prompt) > most:
            raise InvalidRequest(
                f"`prompt` holds {len(prompt):,} prompts, but at most {most:,} can run and wait at once",
                hint="send them in several requests",
                param="prompt",
            )
        for i, item in enumerate(prompt):
            if isinstance(item, list):
                _check_fits(item, f"prompt[{i}]", info)
    if isinstance(messages, list) and len(messages) > info.max_context:
        raise ContextTooLong(
            f"`messages` holds {len(messages):,} messages, but the context has {info.max_context:,} tokens",
            param="messages",
            code="context_length_exceeded",
        )
    for name in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
        value = fields.get(name)
        if isinstance(value, list | dict) and len(value) > info.vocab_size:
            raise InvalidRequest(
                f"`{name}` holds {len(value):,} token ids, but the model knows {info.vocab_size:,}", param=name
            )


def _check_fits(ids: list[Any], where: str, info: EngineInfo) -> None:
    if len(ids) > info.max_context:
        raise ContextTooLong(
            f"`{where}` holds {len(ids):,} token ids, but the context has {info.max_context:,} tokens",
            hint="shorten it, or load the model with a larger `--max-context` if it was made for more",
            param="prompt",
            code="context_length_exceeded",
        )


def prompts_of(body: CompletionBody, vocab_size: int) -> list[Prompt]:
    """The prompts, one for each completion asked for; a list must be all text, all ids or all lists of ids."""
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InvalidRequest("`prompt` is an empty list, but it must hold at least one prompt", param="prompt")
    kinds = {type(item) for item in prompt}
    if kinds == {int}:
        return [_checked_ids([item for item in prompt if isinstance(item, int)], "prompt", vocab_size)]
    if kinds == {str}:
        return [item for item in prompt if isinstance(item, str)]
    if kinds == {list}:
        return [
            _checked_ids(item, f"prompt[{i}]", vocab_size) for i, item in enumerate(prompt) if isinstance(item, list)
        ]
    raise InvalidRequest(
        "`prompt` mixes kinds, but it must be a string, a list of strings, a list of token ids, or a list of "
        "lists of token ids",
        param="prompt",
    )


def _checked_ids(ids: TokenIds, where: str, vocab_size: int) -> TokenIds:
    if not ids:
        raise InvalidRequest(f"`{where}` is an empty list of token ids", param="prompt")
    for token_id in (min(ids), max(ids)):
        if not 0 <= token_id < vocab_size:
            raise InvalidRequest(
                f"`{where}` holds token id {token_id}, but the model knows the ids 0 to {vocab_size - 1:,}",
                param="prompt",
            )
    return ids
