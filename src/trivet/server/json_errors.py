"""What is wrong with a JSON body, in words: where it breaks off, which field has the wrong type, what was near."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from itertools import islice
from typing import Any

import msgspec

from trivet.engine.shown import shown_name
from trivet.errors import InvalidRequest

LONGEST_NAME = 64  # what is longer is no misspelt field

_WORDS = {
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
}
_EXPECTED = re.compile(r"Expected `(?P<expected>[^`]+)`, got `[^`]+`")
_AT = re.compile(r" - at `\$(?P<path>.*)`$")
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]+)`")
_BYTE = re.compile(r"^JSON is malformed: (?P<what>.*) \(byte (?P<byte>\d+)\)$")
_STEP = re.compile(r"\.(\w+)|\[(\d+)\]")


def decode_object(raw: bytes) -> dict[str, Any]:
    """The JSON object in `raw`; raises InvalidRequest naming the byte, line and column where it is not JSON."""
    try:
        value = msgspec.json.decode(raw)
    except RecursionError:
        raise InvalidRequest("the body's JSON is nested too deeply", code="invalid_json") from None
    except msgspec.MsgspecError as error:
        if (position := _invalid_utf8(raw)) is not None:
            raise InvalidRequest(f"the body is not UTF-8 at {_place(raw, position)}", code="invalid_json") from None
        fault = _json_fault(raw, str(error))
        raise InvalidRequest(f"the body is not valid JSON: {fault}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"the body is {_quoted(value)}, but it must be a JSON object", code="invalid_json")
    return value


def _json_fault(raw: bytes, message: str) -> str:
    if found := _BYTE.match(message):
        return f"{found['what']} at {_place(raw, int(found['byte']))}"
    if not raw.strip():
        return "it is empty"
    if "truncated" in message:
        return f"it ends too early, at {_place(raw, len(raw))}"
    return message


def _invalid_utf8(raw: bytes) -> int | None:
    """The first byte that is not UTF-8; None if every byte is."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return error.start
    return None


def _place(raw: bytes, byte: int) -> str:
    line = raw.count(b"\n", 0, byte) + 1
    column = byte - (raw.rfind(b"\n", 0, byte) + 1) + 1
    return f"byte {byte} (line {line}, column {column})"


def not_of_type(error: msgspec.ValidationError, fields: dict[str, Any]) -> InvalidRequest:
    """An InvalidRequest for a value of the wrong type: the field, its value and what was expected."""
    message = str(error)
    at = _AT.search(message)
    path = at["path"].lstrip(".") if at else ""
    param = path.split("[")[0].split(".")[0] or None
    said = _AT.sub("", message)
    if found := _MISSING.search(said):
        where = f"{path}.{found['name']}" if path else found["name"]
        return InvalidRequest(f"`{where}` is missing", param=param or found["name"], code="missing_required_parameter")
    if not (found := _EXPECTED.match(said)):
        said = shown_name(said)
        return InvalidRequest(f"`{path}`: {said}" if path else said, param=param)
    expected = " or ".join(_WORDS[word] for word in found["expected"].split(" | ") if word in _WORDS)
    value = _quoted(_follow(fields, path))
    return InvalidRequest(f"`{path}` is {value}, but it must be {expected}", param=param, code="invalid_type")


def _follow(value: Any, path: str) -> Any:
    """The value at a path such as `messages[0].role`; a `[...]` (a dictionary's value) gives the dictionary."""
    for key, index in _STEP.findall(f".{path}"):
        if key and isinstance(value, dict):
            value = value.get(key)
        elif index and isinstance(value, list):
            value = value[int(index)]
    return value


def _quoted(value: Any, longest: int = 60) -> str:
    text = msgspec.json.encode(_pruned(value, longest)).decode()
    return text if len(text) <= longest else f"{text[:longest]}..."


def _pruned(value: Any, longest: int, depth: int = 8) -> Any:
    """As much of `value` as its first `longest` characters can show."""
    match value:
        case str():
            return value[: longest + 1]
        case list() if depth:
            return [_pruned(item, longest, depth - 1) for item in value[:longest]]
        case dict() if depth:
            items = islice(value.items(), longest)
            return {key[: longest + 1]: _pruned(item, longest, depth - 1) for key, item in items}
        case list() | dict():
            return "..."
    return value


def near(name: str, known: Collection[str]) -> str | None:
    """A hint with the known name nearest to `name`, None if nothing is near: a long name is not compared."""
    if len(name) > LONGEST_NAME:
        return None
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else None
