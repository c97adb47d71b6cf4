"""Ids of one sequence to text, as they come: all pieces together are the text of all ids, whatever the cuts.

A piece never ends inside a code point. Two ways: byte-level vocabularies (GPT-2, Llama 3, Qwen) are bytes of UTF-8, so
an incremental decoder does it; for any other decoder (SentencePiece) a window of ids is decoded again and again.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"


class Detokenizer(Protocol):
    """A stream of token ids to text."""

    def add(self, token_ids: Sequence[int]) -> str:
        """The text that is certain now and was not given out before; may be empty."""
        ...

    def finish(self) -> str:
        """The rest, at the end of the sequence; an unfinished code point is U+FFFD."""
        ...


class Utf8Detokenizer:
    """For vocabularies whose tokens are bytes."""

    def __init__(self, token_bytes: Callable[[int], bytes], skipped: Collection[int]) -> None:
        self._token_bytes = token_bytes
        self._skipped = skipped
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token_ids: Sequence[int]) -> str:
        return self._decoder.decode(b"".join(self._token_bytes(i) for i in token_ids if i not in self._skipped))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """For any decoder: decodes the ids since the last clean cut, and those of the cut before it as context.

    The context is there because a leading space may depend on what stands before. Held back are a last U+FFFD, which
    may be the beginning of a code point, and a run of byte tokens, which decodes as one.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        token_bytes: Callable[[int], bytes],
        skipped: Collection[int],
        byte_ids: Collection[int],
    ) -> None:
        self._decode = decode
        self._token_bytes = token_bytes
        self._skipped = skipped
        self._byte_ids = byte_ids
        self._window: list[int] = []
        self._sent = 0  # characters of the window's text that were given out

    def add(self, token_ids: Sequence[int]) -> str:
        self._window += token_ids
        if self._ends_in_byte_run():
            return ""
        text = self._decode(self._window)
        piece = text[self._sent :].removesuffix(REPLACEMENT)
        self._sent += len(piece)
        context = self._decode(token_ids) if piece and self._sent == len(text) else ""
        if context:
            self._window, self._sent = list(token_ids), len(context)
        return piece

    def finish(self) -> str:
        piece = self._decode(self._window)[self._sent :]
        self._window, self._sent = [], 0
        return piece

    def _ends_in_byte_run(self) -> bool:
        for token_id in reversed(self._window):
            if token_id in self._byte_ids:
                return True
            if token_id not in self._skipped and self._token_bytes(token_id):
                return False
        return False
