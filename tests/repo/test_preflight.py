"""Each thing that a machine lacks is one clear sentence (scripts/preflight), tried with stand-ins for its tools."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from builds import REPO

PYTHON = {"3.11": "3 11 True True /opt/python3.11", "3.9": "3 9 True True /opt/python3.9"}
GCC = "#define __GNUC__ {}\n#define __GNUC_MINOR__ 2\n"
CLANG = "#define __GNUC__ 4\n#define __clang_major__ {}\n#define __clang__ 1\n"


class Machine:
    """A folder as the whole PATH, with tools that print canned answers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tool("uname", "case $1 in -s) echo Linux;; *) echo x86_64;; esac")
        self.tool("make", "")
        self.tool("python3", f"echo {PYTHON['3.11']}")
        self.compiler("c++", GCC.format(12))

    def tool(self, name: str, script: str) -> None:
        (self.folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.folder / name).chmod(0o755)

    def compiler(self, name: str, macros: str, *, library: bool = True) -> None:
        """A compiler that prints its macros for -dM, and compiles C++20 if it has the library."""
        self.tool(name, f"case $1 in -dM) printf '%s' '{macros}';; *) exit {0 if library else 1};; esac")

    def preflight(self, **variables: str) -> tuple[int, str, list[str]]:
        """(exit code, what was chosen, one line for each thing that is missing)."""
        shell = shutil.which("sh")
        assert shell
        done = subprocess.run(
            [shell, str(REPO / "scripts" / "preflight")], env={"PATH": str(self.folder), **variables},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout.strip(), done.stderr.splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def refusal(machine: Machine, **variables: str) -> str:
    code, chosen, lines = machine.preflight(**variables)
    assert (code, chosen, len(lines)) == (1, "", 1), lines
    assert lines[0].startswith("error: ") and lines[0].endswith(".")
    return lines[0]


def test_a_good_machine_names_its_python(machine: Machine) -> None:
    assert machine.preflight() == (0, "/opt/python3.11", [])


def test_an_old_python3_is_passed_over(machine: Machine) -> None:
    machine.tool("python3", f"echo {PYTHON['3.9']}")
    machine.tool("python3.12", "echo 3 12 True True /opt/a folder/python3.12")
    assert machine.preflight() == (0, "/opt/a folder/python3.12", [])


def test_no_new_python(machine: Machine) -> None:
    machine.tool("python3", f"echo {PYTHON['3.9']}")
    line = refusal(machine)
    assert (
        "no Python 3.11 or newer was found (python3 is 3.9)" in line and "apt install python3-dev python3-venv" in line
    )


def test_a_named_python_is_taken_or_refused(machine: Machine) -> None:
    machine.tool("mine", "echo 3 13 True True /opt/mine")
    assert machine.preflight(PYTHON="mine")[:2] == (0, "/opt/mine")
    assert "as PYTHON=absent" in refusal(machine, PYTHON="absent")


def test_no_python_headers(machine: Machine) -> None:
    machine.tool("python3", "echo 3 12 False True /usr/bin/python3")
    line = refusal(machine)
    assert "/usr/bin/python3 (3.12) has no Python.h" in line and "apt install python3.12-dev" in line


def test_no_ensurepip(machine: Machine) -> None:
    machine.tool("python3", "echo 3 11 True False /usr/bin/python3")
    line = refusal(machine)
    assert "ensurepip is missing" in line and "apt install python3.11-venv" in line


def test_no_compiler(machine: Machine) -> None:
    (machine.folder / "c++").unlink()
    assert "no C++ compiler was found" in refusal(machine)
    machine.compiler("clang++", CLANG.format(15))
    assert machine.preflight()[0] == 0


@pytest.mark.parametrize(("macros", "said"), [(GCC.format(11), "GCC 11"), (CLANG.format(14), "Clang 14")])
def test_an_old_compiler(machine: Machine, macros: str, said: str) -> None:
    machine.compiler("c++", macros)
    line = refusal(machine)
    assert f"c++ is {said}, which is too old" in line and "CXX=g++-12" in line


def test_a_named_compiler_is_taken(machine: Machine) -> None:
    machine.compiler("c++", GCC.format(9))
    machine.compiler("g++-13", GCC.format(13))
    assert machine.preflight(CXX="g++-13")[0] == 0


def test_a_compiler_of_another_kind(machine: Machine) -> None:
    machine.compiler("c++", "#define __OTHER__ 1\n")
    assert "neither GCC nor Clang" in refusal(machine)


def test_a_compiler_without_its_library(machine: Machine) -> None:
    machine.compiler("c++", CLANG.format(16), library=False)
    assert "has no C++20 standard library" in refusal(machine)


def test_no_make(machine: Machine) -> None:
    (machine.folder / "make").unlink()
    assert "make was not found" in refusal(machine)


@pytest.mark.parametrize(("system", "processor"), [("Darwin", "arm64"), ("Linux", "aarch64"), ("MINGW64_NT", "x86_64")])
def test_another_system(machine: Machine, system: str, processor: str) -> None:
    machine.tool("uname", f"case $1 in -s) echo {system};; *) echo {processor};; esac")
    assert f"Trivet runs on Linux x86-64; this is {system} {processor}." in refusal(machine)


def test_each_missing_thing_is_a_line_of_its_own(machine: Machine) -> None:
    machine.tool("python3", "echo 3 11 False False /usr/bin/python3")
    (machine.folder / "c++").unlink()
    code, _, lines = machine.preflight()
    assert code == 1
    assert [next(word for word in ("Python.h", "ensurepip", "compiler") if word in line) for line in lines] == [
        "Python.h", "ensurepip", "compiler",
    ]  # fmt: skip


def test_this_machine_passes() -> None:
    variables = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHON", "CXX") if name in os.environ}
    done = subprocess.run(
        ["sh", "scripts/preflight"], cwd=REPO, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_file()
