"""Chat messages as a template takes them: roles checked, text parts joined, everything else refused by name."""

from __future__ import annotations

from typing import Any

from trivet.engine.shown import shown, shown_name
from trivet.errors import InvalidRequest
from trivet.server.json_errors import near

ROLES = ("system", "developer", "user", "assistant")
KEYS = frozenset({"role", "content", "name", "reasoning_content"})
RESERVED = frozenset({"self", "messages", "tools"})  # of a template's variables: what the server itself fills in
EMPTY = frozenset({"refusal", "audio", "tool_calls", "function_call", "annotations"})  # as in an answer sent back


def chat_messages(raw: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with string contents; raises InvalidRequest naming the message and the field.

    `developer` is OpenAI's newer name of `system`, and templates know only the older one.
    """
    if not raw:
        raise InvalidRequest("`messages` is an empty list, but it must hold at least one message", param="messages")
    return [_message(message, f"messages[{i}]") for i, message in enumerate(raw)]


def template_variables(raw: dict[str, Any]) -> dict[str, Any]:
    """`chat_template_kwargs`; raises InvalidRequest for a name that the server fills in itself."""
    for name in sorted(RESERVED & raw.keys()):
        raise InvalidRequest(
            f"`chat_template_kwargs.{name}` cannot be set: that variable comes from the request itself",
            hint="leave it out",
            param="chat_template_kwargs",
        )
    flag = raw.get("add_generation_prompt", True)
    if not isinstance(flag, bool):
        raise InvalidRequest(
            f"`chat_template_kwargs.add_generation_prompt` is {shown(flag)}, but it must be true or false",
            param="chat_template_kwargs",
        )
    return raw


def _message(message: dict[str, Any], where: str) -> dict[str, Any]:
    for key, value in message.items():
        if value is None or (key in EMPTY and not value):
            continue  # clients send answers back with every field that they know of
        if key in EMPTY:
            raise _refused(f"`{where}.{key}` cannot be honoured: text is the only kind of content")
        if key not in KEYS:
            raise _refused(f"unknown field `{where}.{shown_name(key)}`", hint=near(key, KEYS))
    role = message.get("role")
    if role not in ROLES:
        expected = ", ".join(f"`{r}`" for r in ROLES)
        extra = "; tool calls are not supported yet" if role in ("tool", "function") else ""
        raise _refused(f"`{where}.role` is {shown(role)}, but it must be one of {expected}{extra}")
    made = {"role": "system" if role == "developer" else role, "content": _content(message, where)}
    for key in ("name", "reasoning_content"):
        value = message.get(key)
        if value is not None:
            if not isinstance(value, str):
                raise _refused(f"`{where}.{key}` is {shown(value)}, but it must be a string")
            made[key] = value
    return made


def _content(message: dict[str, Any], where: str) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _refused(f"`{where}.content` is {shown(content)}, but it must be a string or a list of text parts")
    return "\n".join(_part(part, f"{where}.content[{i}]") for i, part in enumerate(content))


def _part(part: Any, where: str) -> str:
    if not isinstance(part, dict):
        raise _refused(f'`{where}` is {shown(part)}, but it must be {{"type": "text", "text": "..."}}')
    kind = part.get("type")
    if kind != "text":
        raise _refused(f"`{where}` is of type {shown(kind)}, but this model takes only `text` parts")
    unknown = sorted(part.keys() - {"type", "text"})
    if unknown:
        raise _refused(f"unknown field `{where}.{shown_name(unknown[0])}`")
    text = part.get("text")
    if not isinstance(text, str):
        raise _refused(f"`{where}.text` is {shown(text)}, but it must be a string")
    return text


def _refused(message: str, hint: str | None = None) -> InvalidRequest:
    return InvalidRequest(message, hint=hint, param="messages")
