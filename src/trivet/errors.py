"""Every error that Trivet raises on purpose.

TrivetError
├── ConfigError          a setting, flag or environment variable has a value it cannot have
│   └── TraceError       a trace of requests has a line that cannot be; the message names file and line
├── ModelFormatError     a checkpoint or packed file is damaged, or is something Trivet cannot express
├── InvalidRequest       a request asks for something that is not possible; `param` names the field
│   └── ContextTooLong   prompt (and what it asks for) does not fit the context
├── Overloaded           cannot be served in time; `retry_after_s` says when to come back
│   └── NotReady         nothing is served just now: starting, restarting or stopping
├── EngineDied           the engine process ended; open requests end with this
│   └── EngineGone       and it is not started again
├── CacheError           the cache folder cannot hold what is needed
├── TargetError          a server that is to be measured cannot be reached, or does not serve what was asked for
└── UnsupportedCpu       this CPU (or this build) cannot run what was asked for
"""

from __future__ import annotations


class TrivetError(Exception):
    """The base of all; `str()` is the message alone, `hint` says what to do next."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(TrivetError):
    """A setting has a value it cannot have."""


class TraceError(ConfigError):
    """A trace of requests has a line that cannot be."""


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


class TargetError(TrivetError):
    """A server that is to be measured cannot be reached, or does not serve what was asked for."""


class UnsupportedCpu(TrivetError):
    """This CPU, or this build, cannot run what was asked for."""
