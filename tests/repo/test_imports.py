"""Imports point down only, as docs/design/architecture.md draws them, and reach for declared packages only."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from builds import REPO

SOURCE = REPO / "src" / "trivet"
# cli -> server -> engine -> models -> formats -> _core; errors and config are for all, the package itself is on top.
# `measure` knows a server only by its HTTP API, so of all these it may reach for the tokenizer in `models`, no further.
ROOMS = ["errors", "config", "_core", "formats", "models", "measure", "engine", "server", "cli", "trivet"]
# What anyone may take from the package itself.
PUBLIC_FACTS = {"__version__", "__file__"}


def room_of(module: str) -> str:
    """The room of `trivet.x.y`: `x`, or `trivet` for the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "trivet"


def of_package(name: str) -> Iterator[str]:
    """What `trivet.NAME` means: a room, nothing worth an arrow, or the package itself."""
    if name in ROOMS:
        yield f"trivet.{name}"
    elif name not in PUBLIC_FACTS:
        yield "trivet"


def imports(path: Path, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, full module name) of each import in a file, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names if name.name != "trivet" or name.asname)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "trivet":
            yield from ((node.lineno, target) for target in of_package(node.attr))  # after a plain `import trivet`
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".") if is_package else module.split(".")[:-1]
            start = base[: len(base) - node.level + 1] if node.level else []
            origin = ".".join([*start, *([node.module] if node.module else [])])
            if origin == "trivet":  # `from trivet import config` names a room, `from trivet import LLM` the package
                yield from ((node.lineno, target) for name in node.names for target in of_package(name.name))
            else:
                yield node.lineno, origin


def modules(source: Path) -> Iterator[tuple[Path, str, bool]]:
    """(file, module name, whether it is a package) of everything below `source`, a folder named trivet."""
    for path in sorted(source.rglob("*.py")):
        parts = [*path.relative_to(source.parent).with_suffix("").parts]
        yield path, ".".join(parts[:-1] if parts[-1] == "__init__" else parts), parts[-1] == "__init__"


def reversed_arrows(source: Path) -> list[str]:
    """One line for each import that points up."""
    found = []
    for path, module, is_package in modules(source):
        home = room_of(module)
        for line, target in imports(path, module, is_package):
            if target.split(".")[0] != "trivet":
                continue
            room = room_of(target)
            place = f"{path.relative_to(source.parent)}:{line}"
            if room not in ROOMS or home not in ROOMS:
                found.append(f"{place}: the room {room if home in ROOMS else home} is in no arrow: put it into ROOMS")
            elif ROOMS.index(room) > ROOMS.index(home):
                found.append(f"{place}: {home} imports {target}, but the arrow is {room} -> {home}")
    return found


def test_imports_point_down() -> None:
    assert reversed_arrows(SOURCE) == []


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        (
            "engine/x.py",
            "from trivet.server import app",
            "engine imports trivet.server, but the arrow is server -> engine",
        ),
        (
            "engine/x.py",
            "from ..cli.main import main",
            "engine imports trivet.cli.main, but the arrow is cli -> engine",
        ),
        (
            "errors.py",
            "def f():\n    import trivet.config",
            "errors imports trivet.config, but the arrow is config -> errors",
        ),
        ("models/x.py", "from trivet import engine", "models imports trivet.engine, but the arrow is engine -> models"),
        ("formats/x.py", "from trivet import LLM", "formats imports trivet, but the arrow is trivet -> formats"),
        ("formats/x.py", "import trivet\ntrivet.LLM()", "formats imports trivet, but the arrow is trivet -> formats"),
        ("kitchen/x.py", "import trivet.errors", "the room kitchen is in no arrow: put it into ROOMS"),
    ],
)
def test_a_reversed_arrow_is_named(tmp_path: Path, file: str, text: str, said: str) -> None:
    path = tmp_path / "trivet" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    (found,) = reversed_arrows(tmp_path / "trivet")
    assert found.endswith(said)


def test_an_arrow_that_points_down_is_none(tmp_path: Path) -> None:
    (tmp_path / "trivet" / "server").mkdir(parents=True)
    (tmp_path / "trivet" / "server" / "x.py").write_text(
        "from trivet import __version__, config\nfrom . import bodies\n"
        "import trivet.engine.client\nprint(trivet.__file__)\n"
    )
    assert reversed_arrows(tmp_path / "trivet") == []


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    declared = {name.split(">")[0].split("=")[0].strip() for name in project["dependencies"]}
    known = {name.replace("-", "_") for name in declared} | set(sys.stdlib_module_names) | {"trivet"}
    for path, module, is_package in modules(SOURCE):
        for line, target in imports(path, module, is_package):
            assert target.split(".")[0] in known, f"{path.name}:{line} imports {target}: not in dependencies"


@pytest.mark.parametrize("module", ["trivet", "trivet.cli.main"])
def test_an_import_brings_nothing_slow(module: str) -> None:
    """What costs start time is imported where it is used."""
    slow = "{'torch', 'transformers', 'huggingface_hub', 'starlette', 'uvicorn', 'tokenizers', 'jinja2', 'httpx'}"
    code = f"import {module}, sys; print(*sorted({slow} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
