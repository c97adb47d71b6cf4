"""How the command line tells errors, and which of them are the caller's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from trivet.errors import ConfigError, InvalidRequest, TrivetError

EXIT_USED_WRONGLY = 2


def print_error(error: TrivetError) -> None:
    """`error: ...` and, if there is one, `hint: ...` on stderr."""
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint is not None:
        print(f"hint: {error.hint}", file=sys.stderr)


@contextmanager
def flags_checked() -> Iterator[None]:
    """In it flags become settings: a value that they cannot have ends with status 2, as an unknown flag does."""
    try:
        yield
    except (ConfigError, InvalidRequest) as error:
        print_error(error)
        raise typer.Exit(EXIT_USED_WRONGLY) from None
