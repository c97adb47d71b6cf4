"""Every error that Trivet raises on purpose.

TrivetError
├── ConfigError          a setting, flag or environment variable has a value it cannot have
├── ModelFormatError     a checkpoint or packed file is damaged, or is something Trivet cannot express
├── InvalidRequest       a request asks for something that is not possible; `param` names the field
│   └── ContextTooLong   prompt (and what it asks for) does not fit the context
├── Overloaded           cannot be served in time; `retry_after_s` says when to come back
│   └── NotReady         nothing is served just now: starting, restarting or stopping
├── EngineDied           the engine process ended; open requests end with this
│   └── EngineGone       and it is not started again
├── CacheError           the cache folder cannot hold what is needed
├── MissingExtra         a part of Trivet that is installed separately is not there
└── UnsupportedCpu       this CPU (or this build) cannot run what was asked for
"""

from __future__ import annotations

import reprlib
from itertools import islice
from typing import Any

SHOWN_CHARS = 100  # of a value that is refused


class _Short(reprlib.Repr):
    """`repr` in bounded time, cut at the end and not in the middle."""

    def repr_str(self, x: str, level: int) -> str:
        return repr(x[:SHOWN_CHARS]) + "..." * (len(x) > SHOWN_CHARS)

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= 320 else f"an integer of {x.bit_length():,} bits"

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        if level <= 0:
            return "{...}"
        items = [f"{self.repr1(k, level - 1)}: {self.repr1(v, level - 1)}" for k, v in islice(x.items(), 20)]
        return "{" + ", ".join(items) + ", ..." * (len(x) > 20) + "}"


_SHORT = _Short()
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = _SHORT.maxfrozenset = 20
_SHORT.maxother = SHOWN_CHARS


def shown(value: object) -> str:
    """`value` as Python writes it, in at most a hundred characters and in a time that does not grow with it."""
    text = _SHORT.repr(value)
    return text if len(text) <= SHOWN_CHARS + 5 else f"{text[:SHOWN_CHARS]}..."


def shown_name(name: str) -> str:
    """`name` without quotes, cut like `shown`."""
    return name if len(name) <= SHOWN_CHARS else f"{name[:SHOWN_CHARS]}..."


class TrivetError(Exception):
    """The base of all; `str()` is the message alone, `hint` says what to do next."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(TrivetError):
    """A setting has a value it cannot have."""


class ModelFormatError(TrivetError):
    """A checkpoint or packed file is damaged, or holds what Trivet cannot express."""


class InvalidRequest(TrivetError):
    """A request asks for something impossible; `param` is the offending field, `code` the OpenAI error code."""

    def __init__(
        self, message: str, *, hint: str | None = None, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.param = param
        self.code = code


class ContextTooLong(InvalidRequest):
    """The prompt and what it asks for do not fit the context."""


class Overloaded(TrivetError):
    """The request cannot be served in time; come back after `retry_after_s` seconds."""

    def __init__(self, message: str, *, hint: str | None = None, retry_after_s: float = 1.0) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class NotReady(Overloaded):
    """The engine is starting, restarting or stopping; come back after `retry_after_s` seconds."""


class EngineDied(TrivetError):
    """The engine process ended while a request was open."""


class EngineGone(EngineDied):
    """The engine ended and is not started again: a person has to look."""


class CacheError(TrivetError):
    """The cache folder cannot hold what is needed."""


class MissingExtra(TrivetError):
    """A part of Trivet that is installed separately is not there."""


class UnsupportedCpu(TrivetError):
    """This CPU, or this build, cannot run what was asked for."""
