"""What every test may use: the bundled model, each kernel tier in turn, a cache folder of its own, no network."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest_plugins = ["leaks"]

for _name in [n for n in os.environ if n.startswith("TRIVET_") and n not in ("TRIVET_ISA", "TRIVET_THREADS")]:
    del os.environ[_name]
os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"


@pytest.fixture(scope="session", autouse=True)
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TRIVET_CACHE_DIR of this run: nobody's packed weights are read or written."""
    folder = tmp_path_factory.mktemp("trivet-cache")
    os.environ["TRIVET_CACHE_DIR"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def demo_path() -> Path:
    """The folder of the bundled model `demo`."""
    return _bundled("demo")


@pytest.fixture(scope="session")
def demo_small_path() -> Path:
    """The folder of the bundled model `demo-small`, about a quarter of `demo`, on the same tokenizer."""
    return _bundled("demo-small")


def _bundled(name: str) -> Path:
    import trivet

    folder = Path(trivet.__file__).parent / "bundled" / name
    assert (folder / "config.json").is_file(), f"the bundled model {folder} is missing from this tree"
    return folder


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "isa" in metafunc.fixturenames:  # here, not in the fixture, so that only kernel tests import the native core
        from trivet import _core

        metafunc.parametrize("isa", _core.available_isas(), indirect=True)


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each kernel tier that this CPU has, in turn, as the one in use; after, the one that was in use is again."""
    from trivet import _core

    before, tier = _core.isa(), request.param
    _core.set_isa(tier)
    yield tier
    _core.set_isa(before)
