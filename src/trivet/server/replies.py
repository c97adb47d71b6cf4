"""Answers in OpenAI's two shapes, whole and in chunks. A choice's `trivet` object says what it took (law 2)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from trivet.engine.answers import Delta
from trivet.engine.messages import TokenLogprob
from trivet.server.logprobs import CompletionLogprobs, TokenTexts, chat_logprobs, join
from trivet.server.params import Wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedPrompt:
    """A prompt as ids, and as text where it is echoed."""

    token_ids: list[int]
    text: str = ""
    num_unwritten: int = 0  # tokens at the beginning that are not in the text: BOS
    skips_special: bool = False  # the text was made of the ids, without special tokens


@dataclass(slots=True)
class Choice:
    """One choice of an answer while it grows; `number` is prompt * n + index."""

    number: int
    prompt: PreparedPrompt
    seed: int
    prompt_logprobs: Sequence[TokenLogprob | None] | None = None
    opened: bool = False
    num_tokens: int = 0
    num_cached_tokens: int = 0
    finish_reason: str | None = None
    deltas: list[Delta] = field(default_factory=list)  # kept where the answer is sent whole

    def facts(self, delta: Delta) -> dict[str, Any]:
        """What this choice took: `trivet` in its last chunk."""
        facts: dict[str, Any] = {"seed": self.seed}
        if (timings := delta.timings) is not None:
            facts |= {
                "cached_tokens": timings.num_cached_tokens,
                "queued_ms": round(timings.queued_s * 1e3, 3),
                "prefill_ms": round(timings.prefill_s * 1e3, 3),
                "decode_ms": round(timings.decode_s * 1e3, 3),
                "preemptions": timings.num_preemptions,
            }
        return facts


class Replies(ABC):
    """Builds the bodies of one answer."""

    object: str
    chunk_object: str

    def __init__(self, *, reply_id: str, created: int, model: str, fingerprint: str, texts: TokenTexts, wanted: Wanted):
        self._id = reply_id
        self._created = created
        self._model = model
        self._fingerprint = fingerprint
        self._texts = texts
        self._wanted = wanted

    @abstractmethod
    def opening(self, choice: Choice) -> list[dict[str, Any]]:
        """Choices of the chunks that come before the first piece of text."""

    @abstractmethod
    def piece(self, choice: Choice, delta: Delta) -> dict[str, Any]:
        """The choice of a chunk."""

    @abstractmethod
    def whole_choice(self, choice: Choice) -> dict[str, Any]:
        """The finished choice of an answer that is sent whole."""

    def chunk(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None) -> dict[str, Any]:
        body = self._body(self.chunk_object, choices)
        if self._wanted.include_usage or self._wanted.usage_always:
            body["usage"] = usage
        return body

    def whole(self, choices: list[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
        return {**self._body(self.object, choices), "usage": usage}

    def _body(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "system_fingerprint": self._fingerprint,
            "choices": choices,
        }

    def _end(self, choice: Choice, delta: Delta, token_ids: list[int]) -> dict[str, Any]:
        """What every choice has at its end: why it ended, what it took, its ids if they were asked for."""
        end: dict[str, Any] = {"finish_reason": delta.finish_reason}
        if self._wanted.token_ids:
            end["token_ids"] = token_ids
        if delta.finish_reason is not None:
            end["stop_reason"] = delta.stop_reason
            end["trivet"] = choice.facts(delta)
        return end


class CompletionReplies(Replies):
    """`/v1/completions`: text, with `echo` after the prompt's."""

    object = chunk_object = "text_completion"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._logprobs: dict[int, CompletionLogprobs] = {}

    def opening(self, choice: Choice) -> list[dict[str, Any]]:
        prompt = choice.prompt
        if not self._wanted.echo:
            return []
        made: dict[str, Any] = {"index": choice.number, "text": prompt.text, "logprobs": None, "finish_reason": None}
        if self._wanted.logprobs:
            made["logprobs"] = self._prompt_part(choice)
        return [made]

    def piece(self, choice: Choice, delta: Delta) -> dict[str, Any]:
        logprobs = self._part(choice, delta) if self._wanted.logprobs else None
        made = {"index": choice.number, "text": delta.text, "logprobs": logprobs}
        return made | self._end(choice, delta, delta.token_ids)

    def whole_choice(self, choice: Choice) -> dict[str, Any]:
        pieces = [*self.opening(choice), *(self.piece(choice, delta) for delta in choice.deltas)]
        made = pieces[-1] | {"text": "".join(piece["text"] for piece in pieces)}
        if self._wanted.logprobs:
            made["logprobs"] = join([piece["logprobs"] for piece in pieces])
        if self._wanted.token_ids:
            made["token_ids"] = [token_id for delta in choice.deltas for token_id in delta.token_ids]
            made["prompt_token_ids"] = choice.prompt.token_ids
        return made

    def _prompt_part(self, choice: Choice) -> dict[str, Any]:
        prompt = choice.prompt
        entries = choice.prompt_logprobs or [None] * len(prompt.token_ids)
        maker = self._maker(choice)
        return join([
            maker.unwritten(prompt.token_ids[: prompt.num_unwritten], entries[: prompt.num_unwritten]),
            maker.part(
                prompt.token_ids[prompt.num_unwritten :],
                entries[prompt.num_unwritten :],
                skip_special=prompt.skips_special,
            ),
        ])  # fmt: skip

    def _part(self, choice: Choice, delta: Delta) -> dict[str, Any]:
        skip_special = self._wanted.sampling.skip_special_tokens
        return self._maker(choice).part(delta.token_ids, delta.logprobs or [], skip_special=skip_special)

    def _maker(self, choice: Choice) -> CompletionLogprobs:
        if choice.number not in self._logprobs:
            self._logprobs[choice.number] = CompletionLogprobs(self._texts)
        return self._logprobs[choice.number]


class ChatReplies(Replies):
    """`/v1/chat/completions`: an assistant message."""

    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def opening(self, choice: Choice) -> list[dict[str, Any]]:
        delta = {"role": "assistant", "content": "", "refusal": None}
        return [{"index": choice.number, "delta": delta, "logprobs": None, "finish_reason": None}]

    def piece(self, choice: Choice, delta: Delta) -> dict[str, Any]:
        content = {"content": delta.text} if delta.text else {}
        logprobs = chat_logprobs(self._texts, delta.logprobs or []) if self._wanted.logprobs else None
        made = {"index": choice.number, "delta": content, "logprobs": logprobs}
        return made | self._end(choice, delta, delta.token_ids)

    def whole_choice(self, choice: Choice) -> dict[str, Any]:
        deltas = choice.deltas
        content = "".join(delta.text for delta in deltas)
        logprobs = [entry for delta in deltas for entry in delta.logprobs or []]
        made = {
            "index": choice.number,
            "message": {"role": "assistant", "content": content, "refusal": None},
            "logprobs": chat_logprobs(self._texts, logprobs) if self._wanted.logprobs else None,
        }
        return made | self._end(choice, deltas[-1], [token_id for delta in deltas for token_id in delta.token_ids])


def usage_of(prompts: Sequence[PreparedPrompt], choices: Sequence[Choice]) -> dict[str, Any]:
    """`usage` so far: a prompt counts once whatever `n` is; cached is what its first sequence found."""
    prompt_tokens = sum(len(prompt.token_ids) for prompt in prompts)
    completion_tokens = sum(choice.num_tokens for choice in choices)
    n = len(choices) // len(prompts)
    cached = sum(choices[i * n].num_cached_tokens for i in range(len(prompts)))
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
