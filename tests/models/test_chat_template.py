"""Chat templates: found in either place, rendered in a sandbox, BOS never twice."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from checkpoints import BOS, CHAT_TEMPLATE, IM_END, IM_START, edit_json, make_tokenizer, write_json
from trivet.errors import InvalidRequest, ModelFormatError
from trivet.models.chat import ChatTemplate
from trivet.models.tokenizer import Tokenizer

HELLO = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]


def template(source: str, **variables: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, "test", variables)


def from_folder(folder: Path) -> ChatTemplate:
    found = ChatTemplate.from_folder(folder)
    assert found is not None
    return found


@pytest.mark.parametrize("template_file", [False, True])
def test_found_in_either_place(tmp_path: Path, template_file: bool) -> None:
    make_tokenizer(tmp_path, chat_template=CHAT_TEMPLATE, template_file=template_file)
    chat = from_folder(tmp_path)
    text = f"{IM_START}system\nBe brief.{IM_END}\n{IM_START}user\nHello{IM_END}\n"
    assert chat.render(HELLO) == text + f"{IM_START}assistant\n"
    assert chat.render(HELLO, add_generation_prompt=False) == text


def test_none_without_one(tmp_path: Path) -> None:
    make_tokenizer(tmp_path, chat_template=None)
    assert ChatTemplate.from_folder(tmp_path) is None
    (tmp_path / "tokenizer_config.json").unlink()
    assert ChatTemplate.from_folder(tmp_path) is None


def test_the_file_wins(tmp_path: Path) -> None:
    make_tokenizer(tmp_path, chat_template="config")
    (tmp_path / "chat_template.jinja").write_text("file")
    assert from_folder(tmp_path).render(HELLO) == "file"


def test_named_templates(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools: {{ tools | tojson }}"}]
    make_tokenizer(tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", chat_template=named)
    chat = from_folder(tmp_path)
    assert chat.render(HELLO) == "plain"
    assert chat.render(HELLO, tools=[{"name": "f"}]) == 'tools: [{"name": "f"}]'


@pytest.mark.parametrize("bad", [3, [3], [{"name": "default"}], [], {"default": "x"}])
def test_impossible_template_is_named(tmp_path: Path, bad: Any) -> None:
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": bad})
    with pytest.raises(ModelFormatError, match=r"`chat_template` in .*tokenizer_config\.json must be a text"):
        ChatTemplate.from_folder(tmp_path)


def test_template_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelFormatError, match=r"chat_template\.jinja cannot be read"):
        ChatTemplate.from_folder(tmp_path)


def test_bos_of_the_template_is_the_only_one(tmp_path: Path) -> None:
    make_tokenizer(tmp_path, add_bos=True, chat_template="{{ bos_token }}{{ messages[0].content }}")
    text = from_folder(tmp_path).render(HELLO)
    assert text == f"{BOS}Be brief."
    ids = Tokenizer.from_folder(tmp_path).encode(text, add_special_tokens=False)
    assert ids[0] == 1 and ids.count(1) == 1


def test_tokens_given_as_objects(tmp_path: Path) -> None:
    write_json(
        tmp_path / "tokenizer_config.json",
        {"bos_token": {"content": "<b>"}, "eos_token": None, "chat_template": "{{ bos_token }}{{ eos_token }}"},
    )
    assert from_folder(tmp_path).render(HELLO) == "<b>"


def test_blocks_are_trimmed_and_extensions_are_there() -> None:
    source = """{%- for m in messages %}
    {% if loop.index > 1 %}
        {% break %}
    {% endif %}
{{ m.role }}
{% endfor %}
{% generation %}said{% endgeneration %}"""
    assert template(source).render(HELLO) == "system\nsaid"


def test_helpers() -> None:
    assert template('{{ {"a": "é<&>"} | tojson }}').render(HELLO) == '{"a": "é<&>"}'
    assert template("{{ [1] | tojson(indent=1) }}").render(HELLO) == "[\n 1\n]"
    year = template("{{ strftime_now('%Y') }}").render(HELLO)
    assert year.isdigit() and len(year) == 4
    assert template("{{ enable_thinking }}{{ bos_token }}", bos_token="<s>").render(HELLO, enable_thinking=False) == (
        "False<s>"
    )
    assert template("{{ missing }}|").render(HELLO) == "|"


def test_template_may_refuse_the_messages() -> None:
    chat = template("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidRequest, match="refuses these messages: roles must alternate") as caught:
        chat.render(HELLO)
    assert caught.value.param == "messages"


@pytest.mark.parametrize("source", ["{{ messages[0].content.x.y }}", "{{ 1 / 0 }}", "{{ messages + 3 }}",
                                    "{{ messages.append(1) }}", "{{ ''.__class__.__mro__ }}",
                                    "{% for i in range(10000000) %}{% endfor %}"])  # fmt: skip
def test_what_a_template_trips_over_is_an_invalid_request(source: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot render these messages"):
        template(source).render(HELLO)


def test_template_that_is_not_valid() -> None:
    with pytest.raises(ModelFormatError, match="the chat template in test is not valid: line 2: "):
        template("\n{% if %}").render(HELLO)


def test_jinja2_is_imported_when_it_is_used() -> None:
    import subprocess

    program = (
        "import sys; from trivet.models.load import load_model; "
        "print(sorted({'jinja2', 'tokenizers', 'huggingface_hub', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
