"""What is made from code is what the code says now: the stub, the reference pages, the help texts, the public names."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import trivet
from builds import REPO
from trivet.config import ENVIRONMENT


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", REPO / "scripts" / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATE = _generator()


@pytest.mark.parametrize("path", GENERATE.MAKERS, ids=str)
def test_a_generated_file_is_current(path: Path) -> None:
    stored = (REPO / path).read_text() if (REPO / path).is_file() else ""
    assert GENERATE.same(path, stored, GENERATE.MAKERS[path]()), (
        f"{path} is not what the code says; run `make generate`"
    )


def test_stale_files_are_named_then_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    makers = {Path("same"): lambda: "a", Path("changed"): lambda: "b", Path("sub/missing"): lambda: "c"}
    (tmp_path / "same").write_text("a")
    (tmp_path / "changed").write_text("a")
    assert GENERATE.main(["--check"], makers, tmp_path) == 1
    advice = "is not what the code says; run `make generate`"
    assert capsys.readouterr().out.splitlines() == [f"changed {advice}", f"sub/missing {advice}"]
    assert not (tmp_path / "sub").exists()
    assert GENERATE.main([], makers, tmp_path) == 0
    assert capsys.readouterr().out.splitlines() == ["changed written", "sub/missing written"]
    assert [(tmp_path / path).read_text() for path in makers] == ["a", "b", "c"]
    assert GENERATE.main(["--check"], makers, tmp_path) == 0


def test_a_help_text_may_be_broken_into_lines_otherwise() -> None:
    page = Path("docs/reference/command-line.md")
    assert GENERATE.same(page, "a b\n  c", "a\n  b c") and not GENERATE.same(page, "a b", "a c")
    assert not GENERATE.same(Path("docs/reference/errors.md"), "a b", "a\nb")


def test_public_names_are_documented() -> None:
    assert len(trivet.__all__) == len(set(trivet.__all__)), "a name is there twice (their order is ruff's to check)"
    for name in trivet.__all__:
        assert name == "__version__" or getattr(trivet, name).__doc__, f"trivet.{name} has no docstring"


def test_every_help_opens_with_an_example() -> None:
    for command, text in GENERATE.help_texts():
        if "\nCommands:\n" in text and command != "trivet":
            continue  # `trivet cache` alone does nothing: its commands have the examples
        opening = re.sub(r"Usage: .*", "", re.split(r"\n(?:Arguments|Options):", text)[0])
        assert re.search(rf"(^|\s){command}\s", opening), f"`{command} --help` opens with no example:\n{text}"


def test_every_environment_variable_is_in_the_config() -> None:
    """Those that the sources name in quotes; the page of them is generated from the same table."""
    named: dict[str, str] = {}
    for path in [*(REPO / "src").rglob("*.py"), *(REPO / "native").rglob("*.[ch]*")]:
        named |= {name: path.name for name in re.findall(r"""["'](TRIVET_[A-Z0-9_]+)["']""", path.read_text())}
    assert set(ENVIRONMENT) <= set(named), f"never read: {set(ENVIRONMENT) - set(named)}"
    assert set(named) <= set(ENVIRONMENT), (
        f"not in config.ENVIRONMENT: { {n: named[n] for n in set(named) - set(ENVIRONMENT)} }"
    )
