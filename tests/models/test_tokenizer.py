"""Text to ids with BOS once, ids to text in any cuts."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from checkpoints import BOS, EOS, SPECIALS, edit_json, make_tokenizer, write_json
from trivet.errors import ModelFormatError
from trivet.models.tokenizer import BYTE_OF_CHAR, Tokenizer

CHAR_OF_BYTE = {byte: char for char, byte in BYTE_OF_CHAR.items()}
SENTENCEPIECE = decoders.Sequence(
    [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)


def byte_level(folder: Path, **options: Any) -> Tokenizer:
    make_tokenizer(folder, 320, **options)
    return Tokenizer.from_folder(folder)


@cache
def backend(kind: str) -> Backend:
    """A small vocabulary with every kind of trouble: single bytes, spaces, emoji, U+FFFD, special and added tokens."""
    spaces = ["\u2581", "\u2581a", "\u2581\u2581", "\u2581x\u2581"]
    pieces = ["a", "b", *spaces, "é", "\U0001f600", "\ufffd", "ab", ".", "\n"]
    if kind == "byte-level":
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {token: i for i, token in enumerate([*alphabet, "Ġa", "ðŁ", "ĺĢ", "ðŁĺĢ", "ï¿½", "âĤ", "aðŁ"])}
        tokenizer = Backend(models.BPE(vocabulary, []))
        tokenizer.decoder = decoders.ByteLevel()
    else:
        byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
        vocabulary = {token: i for i, token in enumerate([*byte_tokens, *pieces])}
        tokenizer = Backend(models.BPE(vocabulary, [], byte_fallback=True))
        tokenizer.decoder = SENTENCEPIECE if kind == "sentencepiece" else decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    tokenizer.add_tokens([AddedToken("<tool call>"), AddedToken("ünïcode")])
    return tokenizer


def id_of(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that is there."""
    found = tokenizer._backend.token_to_id(token)
    assert found is not None
    return found


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece", "metaspace"])
@settings(deadline=None)
@given(data=st.data())
def test_any_cuts_give_the_text_of_all(kind: str, data: st.DataObject) -> None:
    tokenizer = Tokenizer(backend(kind), {})
    size = tokenizer.vocab_size
    ids = data.draw(st.lists(st.one_of(st.integers(0, size + 1), st.integers(size - 20, size - 1)), max_size=24))
    skip = data.draw(st.booleans())
    stream = tokenizer.detokenizer(skip_special_tokens=skip)
    pieces, at = [], 0
    while at < len(ids):
        step = data.draw(st.integers(1, 4))
        pieces.append(stream.add(ids[at : at + step]))
        at += step
    pieces.append(stream.finish())
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
@settings(deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=12))
def test_a_piece_never_ends_inside_a_code_point(kind: str, text: str) -> None:
    """Given byte by byte."""
    tokenizer = Tokenizer(backend(kind), {})
    names = [CHAR_OF_BYTE[byte] if kind == "byte-level" else f"<0x{byte:02X}>" for byte in text.encode()]
    stream = tokenizer.detokenizer()
    pieces = [stream.add([id_of(tokenizer, name)]) for name in names]
    assert all("\ufffd" not in piece for piece in pieces)
    assert "".join(pieces) + stream.finish() == (text.removeprefix(" ") if kind == "sentencepiece" else text)


def test_unfinished_code_point_comes_at_the_end() -> None:
    tokenizer = Tokenizer(backend("byte-level"), {})
    stream = tokenizer.detokenizer()
    assert stream.add([id_of(tokenizer, "\u00f0\u0141")]) == ""  # the first half of an emoji
    assert stream.finish() == "\ufffd"


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
def test_bytes_of_tokens(kind: str) -> None:
    tokenizer = Tokenizer(backend(kind), {})
    for token_id in range(tokenizer.vocab_size):
        text = tokenizer.decode([token_id], skip_special_tokens=False)
        raw = tokenizer.token_bytes(token_id)
        assert raw.decode(errors="replace").removeprefix(" " if kind == "sentencepiece" else "") == text
    assert tokenizer.token_bytes(10**6) == tokenizer.token_bytes(-1) == b""
    assert set(CHAR_OF_BYTE.values()) == set(pre_tokenizers.ByteLevel.alphabet())


def test_bos_of_the_post_processor_comes_once(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path, add_bos=True)
    assert tokenizer.encode("ab")[0] == tokenizer.bos_id == 1 and tokenizer.encode("ab").count(1) == 1
    assert tokenizer.encode("ab", add_special_tokens=False) == tokenizer.encode("ab")[1:]
    assert tokenizer.encode("") == [1]
    edit_json(tmp_path / "tokenizer_config.json", add_bos_token=True)
    assert Tokenizer.from_folder(tmp_path).encode("ab") == tokenizer.encode("ab")
    assert tokenizer.encode(f"{BOS}ab") == tokenizer.encode("ab")  # the text has its own


def test_bos_of_the_config_where_the_post_processor_lacks_it(tmp_path: Path) -> None:
    plain = byte_level(tmp_path)
    assert plain.bos_id == 1 and 1 not in plain.encode("ab")
    edit_json(tmp_path / "tokenizer_config.json", add_bos_token=True)
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.encode("ab") == [1, *plain.encode("ab")]
    assert tokenizer.encode("ab", add_special_tokens=False) == plain.encode("ab")
    assert tokenizer.encode(f"{BOS}ab") == [1, *plain.encode("ab")]
    edit_json(tmp_path / "tokenizer_config.json", bos_token=None)
    assert Tokenizer.from_folder(tmp_path).encode("ab") == plain.encode("ab")


def test_text_survives_the_way_there_and_back(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path)
    for text in ("the model reads", " leading", "tabs\tand\nlines", "naïve 日本 \U0001f600", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_ids(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path)
    assert tokenizer.special_ids == frozenset(range(len(SPECIALS)))
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 0)
    assert tokenizer.vocab_size == 320
    assert tokenizer.decode([0, 1], skip_special_tokens=False) == EOS + BOS and tokenizer.decode([0, 1]) == ""
    edit_json(tmp_path / "tokenizer_config.json", eos_token={"content": BOS, "special": True}, bos_token="none")
    changed = Tokenizer.from_folder(tmp_path)
    assert (changed.bos_id, changed.eos_id) == (None, 1)


def test_truncation_and_padding_of_the_file_are_not_applied(tmp_path: Path) -> None:
    saved = make_tokenizer(tmp_path)
    saved.enable_truncation(3)
    saved.enable_padding(length=50)
    saved.save(str(tmp_path / "tokenizer.json"))
    assert len(Tokenizer.from_folder(tmp_path).encode("x y z x y z")) == 11


def test_only_other_tokenizers_names_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=r"has no tokenizer, but Trivet reads tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(ModelFormatError, match=r"has only tokenizer\.model, but Trivet reads") as caught:
        Tokenizer.from_folder(tmp_path)
    assert "AutoTokenizer" in str(caught.value.hint)


@pytest.mark.parametrize("content", ["", "{", "{}", '{"model": 1}'])
def test_damaged_tokenizer_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelFormatError, match=r"tokenizer\.json cannot be read"):
        Tokenizer.from_folder(tmp_path)


def test_damaged_tokenizer_config_is_named(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ModelFormatError, match=r"tokenizer_config\.json is not valid JSON"):
        Tokenizer.from_folder(tmp_path)
    write_json(tmp_path / "tokenizer_config.json", {})
    assert Tokenizer.from_folder(tmp_path).bos_id is None
