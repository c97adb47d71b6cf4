"""Log probabilities in both dialects: parallel lists for completions, one object a token for chat."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from trivet.engine.messages import TokenLogprob
from trivet.server.backend import Tokenizer


class TokenTexts:
    """Names of tokens as OpenAI writes them: the text, or `bytes:\\xe2\\x82` where it is not whole UTF-8."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def is_special(self, token_id: int) -> bool:
        return token_id in self._tokenizer.special_ids

    def bytes(self, token_id: int) -> bytes:
        return self._tokenizer.token_bytes(token_id)

    def text(self, token_id: int) -> str:
        raw = self.bytes(token_id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


class CompletionLogprobs:
    """Makes `logprobs` of a completion choice; keeps the offset, in characters of the choice's text, between parts."""

    def __init__(self, texts: TokenTexts) -> None:
        self._texts = texts
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def part(
        self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob | None], *, skip_special: bool = False
    ) -> dict[str, Any]:
        """The lists for these tokens; a prompt's first token has no log probability and gives None.

        `skip_special`: special tokens are not in the text, and take no room in it.
        """
        offsets = []
        for token_id in token_ids:
            offsets.append(self._offset)
            if not (skip_special and self._texts.is_special(token_id)):
                self._offset += len(self._decoder.decode(self._texts.bytes(token_id)))
        return {
            "tokens": [self._texts.text(token_id) for token_id in token_ids],
            "token_logprobs": [None if entry is None else entry.logprob for entry in logprobs],
            "top_logprobs": [None if entry is None else self._top(entry) for entry in logprobs],
            "text_offset": offsets,
        }

    def unwritten(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob | None]) -> dict[str, Any]:
        """The same for tokens that are not part of the text, such as BOS: they take no room in it."""
        offset, decoder = self._offset, self._decoder
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        part = self.part(token_ids, logprobs)
        self._offset, self._decoder = offset, decoder
        return {**part, "text_offset": [offset] * len(token_ids)}

    def _top(self, entry: TokenLogprob) -> dict[str, float]:
        """The alternatives by name, most likely first, and the token itself if it is not among them."""
        top = {self._texts.text(i): p for i, p in zip(entry.top_ids, entry.top_logprobs, strict=True)}
        top.setdefault(self._texts.text(entry.token_id), entry.logprob)
        return top


def join(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Parts of `CompletionLogprobs`, one after the other."""
    return {key: [item for part in parts for item in part[key]] for key in
            ("tokens", "token_logprobs", "top_logprobs", "text_offset")}  # fmt: skip


def chat_logprobs(texts: TokenTexts, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    """`logprobs` of a chat choice for these tokens."""

    def named(token_id: int, logprob: float) -> dict[str, Any]:
        return {"token": texts.text(token_id), "logprob": logprob, "bytes": list(texts.bytes(token_id))}

    return {
        "content": [
            {
                **named(entry.token_id, entry.logprob),
                "top_logprobs": [named(i, p) for i, p in zip(entry.top_ids, entry.top_logprobs, strict=True)],
            }
            for entry in logprobs
        ],
        "refusal": None,
    }
