"""Text to token ids and back; streams of ids are turned into text by `detokenizer.py`.

`tokenizers` is imported when the first tokenizer is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trivet.errors import ModelFormatError
from trivet.formats.checkpoint import read_json
from trivet.models.detokenizer import Detokenizer, Utf8Detokenizer, WindowDetokenizer

if TYPE_CHECKING:
    import tokenizers


def _byte_alphabet() -> dict[str, int]:
    """The characters that stand for bytes in byte-level vocabularies: printable Latin-1 as itself, others from 256."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


BYTE_OF_CHAR = _byte_alphabet()


class Tokenizer:
    """The tokenizer of a model folder; ids are the model's."""

    def __init__(self, backend: tokenizers.Tokenizer, settings: dict[str, Any]) -> None:
        self._backend = backend
        backend.no_truncation()
        backend.no_padding()
        self.bos_id = self._special_id(settings.get("bos_token"))
        self.eos_id = self._special_id(settings.get("eos_token"))
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        decoder = backend.decoder.__getstate__() if backend.decoder is not None else b""
        self.is_byte_level = b'"type":"ByteLevel"' in decoder and b"Sequence" not in decoder
        self._bytes: dict[int, bytes] = {}
        self._prepend_bos = bool(settings.get("add_bos_token")) and self.bos_id is not None
        self.byte_ids = frozenset(
            i for i in (backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256)) if i is not None
        )

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Reads tokenizer.json and, if it is there, tokenizer_config.json; ModelFormatError if that is not possible."""
        path = folder / "tokenizer.json"
        if not path.exists():
            found = [n for n in ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt") if (folder / n).exists()]
            what = f"only {found[0]}" if found else "no tokenizer"
            raise ModelFormatError(
                f"{folder} has {what}, but Trivet reads tokenizer.json",
                hint="convert it once with transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
            )
        import tokenizers

        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises bare Exception
            raise ModelFormatError(f"{path} cannot be read: {error}") from None
        settings: dict[str, Any] = {}
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            if (folder / name).exists():
                settings |= read_json(folder / name)
        return cls(backend, settings)

    def _special_id(self, token: Any) -> int | None:
        """The id of a token that a config names by its text, or by an object with `content`."""
        text = token.get("content") if isinstance(token, dict) else token
        return self._backend.token_to_id(text) if isinstance(text, str) else None

    @property
    def vocab_size(self) -> int:
        """How many ids the tokenizer knows, added tokens included; the model may have more rows."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of the text; with special tokens as the tokenizer says for a bare prompt: BOS once, or none."""
        # the batch call gives the interpreter lock up: one long text must not stop every stream
        [encoding] = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids = list(encoding.ids)
        if add_special_tokens and self.bos_id is not None:
            if self._prepend_bos and ids[:1] != [self.bos_id]:
                ids.insert(0, self.bos_id)
            elif ids[:2] == [self.bos_id, self.bos_id]:  # the text began with it already
                del ids[0]
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of the ids; bytes that are not UTF-8 become U+FFFD, ids that are unknown become nothing."""
        return str(self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens))

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one id adds to a text, special tokens by name; empty for an unknown id."""
        found = self._bytes.get(token_id)
        if found is None:
            found = self._bytes[token_id] = self._find_bytes(token_id)
        return found

    def _find_bytes(self, token_id: int) -> bytes:
        token = self._backend.id_to_token(token_id) if token_id >= 0 else None
        if token is None:
            return b""
        if self.is_byte_level:
            known = all(char in BYTE_OF_CHAR for char in token)
            return bytes(BYTE_OF_CHAR[char] for char in token) if known else token.encode()
        if token_id in self.byte_ids:  # <0xE2>
            return bytes([int(token[3:5], 16)])
        return token.replace("\u2581", " ").encode()

    def detokenizer(self, *, skip_special_tokens: bool = True) -> Detokenizer:
        """A new stream of ids to text."""
        if self.is_byte_level:
            return Utf8Detokenizer(self.token_bytes, self.special_ids if skip_special_tokens else frozenset())
        skipped = self.special_ids if skip_special_tokens else frozenset()

        def decode(token_ids: Sequence[int]) -> str:
            return self.decode(token_ids, skip_special_tokens=skip_special_tokens)

        return WindowDetokenizer(decode, self.token_bytes, skipped, self.byte_ids)
