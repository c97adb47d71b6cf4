"""Pieces of one token each, of which prompts of exact lengths are made.

They come from the server's tokenizer, read from a folder, or from the server itself: servers that return the ids of a
prompt (Trivet, vLLM) have thereby told which ids are plain ones.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from trivet.errors import ConfigError, TargetError
from trivet.measure.target import ServedModel, Target, ask

if TYPE_CHECKING:
    from trivet.models.tokenizer import Tokenizer

Form = Literal["ids", "text"]
ENOUGH = 4096
TOO_FEW = 32
LOOKED_AT = 20_000  # ids of a vocabulary, at most
CONTEXT = "the"
TEXT = (
    "The quick brown fox jumps over the lazy dog while seven small birds sing in an old tree near the river; their "
    "song is about rain, bread, two friends, a long road and the first light of a winter morning. def read(path): "
    "return open(path).read() for line in range(100): print(line, value + 1) if name else None. "
)


def tokenizer_folder(given: Path | None, target: Target, model: ServedModel) -> Path | None:
    """Where the server's tokenizer lies: as given, or where the server says its checkpoint is; None: not known."""
    if given is not None:
        if not (given / "tokenizer.json").exists():
            raise ConfigError(f"`--tokenizer` is {str(given)!r}, but there is no tokenizer.json in it")
        return given
    if model.root and target.is_local and (Path(model.root) / "tokenizer.json").exists():
        return Path(model.root)
    if target.is_local and model.owner == "trivet":
        from trivet.models.source import BUNDLED, find_model

        if model.name in BUNDLED:
            return find_model(model.name)[0]
    return None


def pieces_from_tokenizer(tokenizer: Tokenizer, form: Form) -> list[bytes]:
    """Words of one token each that stay one token wherever they stand; ConfigError if the tokenizer has too few."""
    ids = [i for i in range(tokenizer.vocab_size) if i not in tokenizer.special_ids]
    random.Random(0).shuffle(ids)
    before = tokenizer.encode(CONTEXT, add_special_tokens=False)
    found: list[tuple[int, str]] = []
    for token_id in ids[:LOOKED_AT]:
        text = tokenizer.token_bytes(token_id)
        if text[:1] != b" " or not text[1:].isalpha() or not text.isascii():
            continue
        if tokenizer.encode(CONTEXT + text.decode(), add_special_tokens=False) == [*before, token_id]:
            found.append((token_id, text.decode()))
            if len(found) == ENOUGH:
                break
    if form == "ids":
        chosen = [token_id for token_id, _ in found] if len(found) >= TOO_FEW else ids[:ENOUGH]
        return [b"%d" % token_id for token_id in chosen]
    _check_words(tokenizer, [text for _, text in found])
    return [text.encode() for _, text in found]


def pieces_from_server(target: Target, model: ServedModel) -> list[bytes]:
    """Plain ids, taken from what the server says that a text's tokens are; ConfigError if it does not say."""
    body = {"model": model.name, "prompt": TEXT, "max_tokens": 1, "return_token_ids": True}
    status, raw = ask(target, "POST", "completions", body)
    ids = _prompt_ids(raw) if status == 200 else None
    if not ids:
        raise ConfigError(
            "prompts of exact token counts need the server's tokenizer, and this server does not return token ids",
            hint="give the folder that holds its tokenizer.json with `--tokenizer`",
        )
    return [b"%d" % token_id for token_id in sorted(set(ids[1:]))]  # the first may be BOS


def _prompt_ids(raw: bytes) -> list[int] | None:
    try:
        answer: dict[str, Any] = msgspec.json.decode(raw)
        ids = answer["choices"][0].get("prompt_token_ids") or answer.get("prompt_token_ids")
    except (msgspec.DecodeError, KeyError, IndexError, TypeError, AttributeError):
        return None
    is_list = isinstance(ids, list) and len(ids) > TOO_FEW and all(isinstance(i, int) for i in ids)
    return ids if is_list else None


def _check_words(tokenizer: Tokenizer, words: list[str]) -> None:
    """Raises TargetError unless words in a row are as many tokens."""
    if len(words) < TOO_FEW:
        raise TargetError(
            f"the tokenizer has only {len(words)} words that always are one token, so texts of exact lengths are not "
            "possible",
            hint="`--endpoint completions` sends token ids instead",
        )
    rng = random.Random(1)
    for num in (10, 100, 500):
        text = CONTEXT + "".join(rng.choices(words, k=num))
        counted = len(tokenizer.encode(text, add_special_tokens=False)) - len(
            tokenizer.encode(CONTEXT, add_special_tokens=False)
        )
        if counted != num:
            raise TargetError(
                f"{num} words of one token each are {counted} tokens in a row: texts of exact lengths are not possible",
                hint="`--endpoint completions` sends token ids instead",
            )
