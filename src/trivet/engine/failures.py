"""`Failed` messages and the exceptions they stand for, in both directions."""

from __future__ import annotations

from trivet import errors
from trivet.engine.messages import Failed
from trivet.errors import EngineDied, InvalidRequest, Overloaded, TrivetError


def to_failed(request_id: str, error: BaseException) -> Failed:
    """The message that carries `error` over `EngineClient`; an error that is not ours becomes `EngineDied`."""
    if not isinstance(error, TrivetError):
        return Failed(
            request_id=request_id,
            kind=EngineDied.__name__,
            message=f"the engine failed with {type(error).__name__}: {error}",
            hint="this is a mistake in Trivet: please report it with the log",
        )
    return Failed(
        request_id=request_id,
        kind=type(error).__name__,
        message=error.message,
        hint=error.hint,
        retry_after_s=error.retry_after_s if isinstance(error, Overloaded) else None,
        param=error.param if isinstance(error, InvalidRequest) else None,
        code=error.code if isinstance(error, InvalidRequest) else None,
    )


def to_error(failed: Failed) -> TrivetError:
    """The exception a `Failed` stands for; an unknown kind becomes a plain `TrivetError`."""
    kind = _error_class(failed.kind)
    if issubclass(kind, InvalidRequest):
        return kind(failed.message, hint=failed.hint, param=failed.param, code=failed.code)
    if issubclass(kind, Overloaded):
        return kind(failed.message, hint=failed.hint, retry_after_s=failed.retry_after_s or 1.0)
    return kind(failed.message, hint=failed.hint)


def _error_class(name: str) -> type[TrivetError]:
    found = getattr(errors, name, None)
    return found if isinstance(found, type) and issubclass(found, TrivetError) else TrivetError
