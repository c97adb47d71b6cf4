"""Chat templates: messages in, one prompt text out. The text is encoded without special tokens: it holds its own BOS.

A template is a program from the model's author: it runs in jinja2's sandbox, without access to anything but messages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from trivet.errors import InvalidRequest, ModelFormatError
from trivet.formats.checkpoint import read_json


class ChatTemplate:
    """The chat template of a model; a model without one has None in its place."""

    def __init__(self, sources: Mapping[str, str], where: str, variables: Mapping[str, str] | None = None) -> None:
        """`sources`: template by name, `default` first of all; `variables`: bos_token, eos_token and so on."""
        self.sources = dict(sources)
        self.where = where
        self.variables = dict(variables or {})

    @classmethod
    def from_folder(cls, folder: Path) -> ChatTemplate | None:
        """Of chat_template.jinja, else of `chat_template` in tokenizer_config.json: a text, or a list of named ones.

        None if there is neither; ModelFormatError if it cannot be read.
        """
        path = folder / "tokenizer_config.json"
        settings = read_json(path) if path.exists() else {}
        variables = {}
        for key, value in settings.items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                variables[key] = text
        file = folder / "chat_template.jinja"
        if file.exists():
            try:
                return cls({"default": file.read_text(encoding="utf-8")}, str(file), variables)
            except (OSError, UnicodeDecodeError) as error:
                raise ModelFormatError(f"{file} cannot be read: {error}") from None
        template = settings.get("chat_template")
        if template is None:
            return None
        if isinstance(template, str):
            return cls({"default": template}, str(path), variables)
        try:
            named = {str(entry["name"]): str(entry["template"]) for entry in template}
        except (TypeError, KeyError):
            named = {}
        if not named:
            raise ModelFormatError(
                f"`chat_template` in {path} must be a text, or a list of objects with `name` and `template`"
            )
        return cls(named, str(path), variables)

    @cached_property
    def _environment(self) -> Any:
        from jinja2 import nodes
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        class Generation(Extension):
            """`{% generation %}` marks what an assistant said, for training; here its body alone counts."""

            tags = {"generation"}  # noqa: RUF012

            def parse(self, parser: Any) -> Any:
                line = next(parser.stream).lineno
                body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
                return nodes.Scope(body).set_lineno(line)

        def raise_exception(message: str) -> None:
            raise InvalidRequest(f"the chat template refuses these messages: {message}", param="messages")

        def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
            return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
        )
        environment.filters["tojson"] = tojson
        environment.globals["raise_exception"] = raise_exception
        environment.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
        return environment

    @cached_property
    def _compiled(self) -> dict[str, Any]:
        import jinja2

        try:
            return {name: self._environment.from_string(source) for name, source in self.sources.items()}
        except jinja2.TemplateSyntaxError as error:
            raise ModelFormatError(
                f"the chat template in {self.where} is not valid: line {error.lineno}: {error.message}"
            ) from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt; encode it with `add_special_tokens=False`.

        InvalidRequest if the template refuses the messages; ModelFormatError if it is not valid jinja itself.
        """
        names = ("tool_use", "default") if tools else ("default",)
        name = next((n for n in names if n in self.sources), next(iter(self.sources)))
        template = self._compiled[name]
        try:
            return str(
                template.render(
                    **(self.variables | variables),
                    messages=list(messages),
                    tools=tools,
                    add_generation_prompt=add_generation_prompt,
                )
            )
        except InvalidRequest:
            raise
        except Exception as error:  # a template is foreign code: whatever it trips over is about these messages
            raise InvalidRequest(f"the chat template cannot render these messages: {error}", param="messages") from None
