"""Request bodies: prompts of exact token counts, the same for the same seed and key.

A piece is one token, as digits or as text, so a prompt is a join of pieces, and nothing is tokenized while load runs.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec
import numpy as np

from trivet.measure.messages import Block, Dialect, Turn

CACHED_BLOCKS = 4096


class BodyMaker:
    """Makes bodies in the dialect of one server."""

    def __init__(self, dialect: Dialect, seed: int) -> None:
        self.dialect = dialect
        self._seed = seed
        self._comma = b"," if dialect.form == "ids" else b""
        self._shared: OrderedDict[Block, bytes] = OrderedDict()

    def tokens(self, block: Block) -> bytes:
        """The block's tokens, joined. A shorter block of the same key is the beginning of a longer one."""
        found = self._shared.get(block)
        if found is not None:
            self._shared.move_to_end(block)
            return found
        key, num = block
        pieces = self.dialect.pieces
        rng = np.random.default_rng([self._seed, int(key < 0), abs(key)])
        made = self._comma.join([pieces[i] for i in rng.integers(0, len(pieces), num).tolist()])
        if key >= 0:
            self._shared[block] = made
            if len(self._shared) > CACHED_BLOCKS:
                self._shared.popitem(last=False)
        return made

    def prompt(self, turn: Turn) -> bytes:
        """What a turn adds, as it stands in the body."""
        if turn.text is not None:
            text = _escaped(turn.text)
            return text if self.dialect.form == "text" else b'"%b"' % text
        return self._comma.join([self.tokens(block) for block in turn.blocks])

    def body(self, parts: list[bytes], output_len: int) -> bytes:
        """The whole body: `parts` are what users and assistant said, in turn."""
        dialect = self.dialect
        if dialect.endpoint == "chat":
            roles = (b"user", b"assistant")
            prompt = b'"messages":[%b]' % b",".join(
                [b'{"role":"%b","content":"%b"}' % (roles[i % 2], part) for i, part in enumerate(parts)]
            )
        elif dialect.form == "ids":
            is_text = parts[0][:1] == b'"'  # only alone: `plan.check_fits` refuses chats of texts
            prompt = b'"prompt":%b' % parts[0] if is_text else b'"prompt":[%b]' % b",".join(parts)
        else:
            prompt = b'"prompt":"%b"' % b"".join(parts)
        return b'{%b,"max_tokens":%d,%b}' % (prompt, output_len, dialect.options)

    def answer(self, kept: list[object], index: int, num_tokens: int) -> tuple[bytes, int]:
        """(what the assistant said, as it stands in the next body; its tokens, -1 if that is not known).

        Where the server gave no ids, and ids are sent, ids of the same number stand in for it.
        """
        if self.dialect.form == "text":
            return _escaped("".join(str(part) for part in kept)), -1
        if all(isinstance(part, int) for part in kept) and kept:
            return b",".join(b"%d" % part for part in kept if isinstance(part, int)), len(kept)
        return self.tokens((-(1 << 40) - index, max(1, num_tokens))), max(1, num_tokens)


def _escaped(text: str) -> bytes:
    """The text as it stands between the quotes of JSON."""
    return msgspec.json.encode(text)[1:-1]
