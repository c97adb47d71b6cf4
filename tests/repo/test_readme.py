"""The README tells the truth: its commands exist, its Python runs, its tree is the tree."""

from __future__ import annotations

import re

from builds import REPO

README = (REPO / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_it_opens_with_the_two_commands() -> None:
    commands = [line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")]
    assert commands[:2] == ["make serve", "make test"]
    targets = set(re.findall(r"^([a-z-]+):", (REPO / "Makefile").read_text(), re.MULTILINE))
    assert {command.split()[1] for command in commands if command.startswith("make ")} <= targets


def test_its_python_is_five_lines_with_what_it_prints() -> None:
    """That it prints just this, test_generated.py checks."""
    (program,), (printed,) = blocks("python"), blocks("text")
    assert len([line for line in program.splitlines() if line]) <= 5
    assert len(printed) > 20


def test_its_tree_is_the_tree() -> None:
    folders = re.findall(r"^\| `([\w/]+)` \|", README, re.MULTILINE)
    assert len(folders) > 10
    assert [folder for folder in folders if not (REPO / folder).is_dir()] == []
    rooms = {f"src/trivet/{p.name}" for p in (REPO / "src" / "trivet").iterdir() if p.is_dir() and p.name[0] != "_"}
    assert rooms <= set(folders), f"folders without a line: {rooms - set(folders)}"
