"""`import trivet`: what it offers, and that it costs nothing until used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import trivet


def test_each_public_name_is_there():
    assert set(trivet.__all__) <= set(dir(trivet))
    for name in trivet.__all__:
        assert getattr(trivet, name) is not None
    assert trivet.__all__ == sorted(trivet.__all__, key=lambda name: (not name.isupper(), name))


def test_the_errors_offered_are_the_errors_there_are():
    from trivet import errors

    there = {name for name, value in vars(errors).items() if isinstance(value, type)}
    offered = {name for name in trivet.__all__ if isinstance(getattr(trivet, name), type)}
    assert there <= offered
    assert all(issubclass(getattr(trivet, name), trivet.TrivetError) for name in there)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'trivet' has no attribute 'LLN'"):
        _ = trivet.LLN


def test_importing_it_imports_nothing_heavy():
    script = (
        "import sys; before = set(sys.modules); import trivet; new = set(sys.modules) - before; "
        "print(sorted(m for m in new if m.split('.')[0] not in {'trivet', *sys.stdlib_module_names}), "
        "sorted(new & {'typing', 'dataclasses', 'inspect', 'asyncio', 'logging', 'json'}), len(trivet.__version__))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    # An editable install imports a little of importlib on the way, so small modules of the library do not count.
    assert done.stdout == f"[] [] {len(trivet.__version__)}\n"
