"""Trivet: a checkpoint goes in, a fast and honest OpenAI endpoint comes out.

from trivet import LLM, SamplingParams

Names are imported when they are first used, so that `import trivet` costs next to nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # for type checkers it is True; `typing` itself would take 10 ms to import

if TYPE_CHECKING:
    from typing import Any

    from trivet.engine.answers import CompletionOutput, Delta, RequestOutput
    from trivet.engine.llm import LLM
    from trivet.engine.sampling_params import SamplingParams
    from trivet.errors import (
        CacheError,
        ConfigError,
        ContextTooLong,
        EngineDied,
        EngineGone,
        InvalidRequest,
        ModelFormatError,
        NotReady,
        Overloaded,
        TargetError,
        TraceError,
        TrivetError,
        UnsupportedCpu,
    )

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "CacheError",
    "CompletionOutput",
    "ConfigError",
    "ContextTooLong",
    "Delta",
    "EngineDied",
    "EngineGone",
    "InvalidRequest",
    "ModelFormatError",
    "NotReady",
    "Overloaded",
    "RequestOutput",
    "SamplingParams",
    "TargetError",
    "TraceError",
    "TrivetError",
    "UnsupportedCpu",
    "__version__",
]

_HOME = {
    "LLM": "trivet.engine.llm",
    "CompletionOutput": "trivet.engine.answers",
    "Delta": "trivet.engine.answers",
    "RequestOutput": "trivet.engine.answers",
    "SamplingParams": "trivet.engine.sampling_params",
}


if not TYPE_CHECKING:  # a type checker would take the word of `__getattr__` for `trivet._core` too

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module 'trivet' has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module(_HOME.get(name, "trivet.errors")), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
