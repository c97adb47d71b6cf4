"""Trivet's environment variables, checked once at the start: a value that does not parse is an error."""

from __future__ import annotations

import difflib
import logging
import os
import sys

from trivet.config import ENVIRONMENT, ISAS, env, env_threads
from trivet.errors import ConfigError

LEVELS = ("debug", "info", "warning", "error")


def check_environment() -> None:
    """Raises ConfigError for a value that cannot be; an unknown TRIVET_* name is only warned of.

    It is no error because clusters make such names: a Kubernetes service called `trivet` gives TRIVET_PORT.
    """
    _check_word("TRIVET_ISA", ISAS)
    _check_word("TRIVET_LOG", LEVELS)
    _check_word("TRIVET_PROFILE", ("0", "1"))
    env_threads()
    for name in sorted(os.environ):
        if name.startswith("TRIVET_") and name not in ENVIRONMENT:
            close = difflib.get_close_matches(name, ENVIRONMENT, n=1)
            meant = f"; did you mean {close[0]}?" if close else ""
            print(f"warning: the environment variable {name} is not one that Trivet reads{meant}", file=sys.stderr)


def set_up_logging() -> None:
    """Log lines go to stderr from `TRIVET_LOG` upwards; without it, warnings and errors."""
    level = (env("TRIVET_LOG") or "warning").upper()
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s", stream=sys.stderr)


def _check_word(name: str, words: tuple[str, ...]) -> None:
    value = env(name)
    if value is not None and value not in words:
        raise ConfigError(f"`{name}` is {value!r}, but it must be one of {', '.join(words)}")
