"""Versions of Trivet and of what it stands on."""

from __future__ import annotations

from trivet import __version__

PARTS = ("numpy", "tokenizers", "starlette", "uvicorn", "msgspec")


def versions() -> dict[str, str]:
    """Trivet, Python and the libraries that matter, by name."""
    import platform
    from importlib import metadata

    return {"trivet": __version__, "python": platform.python_version(), **{p: metadata.version(p) for p in PARTS}}
