"""The `trivet` command itself: help, versions, errors, exit statuses, the environment."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

import trivet
from trivet.cli import main as main_module
from trivet.cli.environment import check_environment
from trivet.cli.main import COMMANDS, EXAMPLE, main
from trivet.errors import CacheError, ConfigError
from trivet.server.sizes import parse_size, show_size


def status(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command line."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def test_help_opens_with_an_example_and_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = status(capsys, "--help")
    assert code == 0
    assert out.startswith(EXAMPLE)
    for name, text in COMMANDS.items():
        assert f"  {name}" in out and text in out, "each is listed, its sentence uncut"
    assert status(capsys)[0] == 2


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help(capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, out, _ = status(capsys, name, "--help")
    assert code == 0
    assert f"Usage: trivet {name}" in out


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert status(capsys, "--version") == (0, f"trivet {trivet.__version__}\n", "")


@pytest.mark.parametrize("arguments", [["bogus"], ["serve", "--no-flag"], ["serve", "--port", "many"], ["inspect"]])
def test_wrong_usage_is_2(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    code, out, err = status(capsys, *arguments)
    assert (code, out) == (2, "")
    assert "Usage:" in err and "Error:" in err


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Makes `trivet doctor` raise."""

    def command() -> None:
        raise error

    module: Any = type(sys)("fake")
    module.command = command
    monkeypatch.setitem(sys.modules, "trivet.cli.doctor", module)


def test_an_error_of_ours_is_two_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, CacheError("the disk is full", hint="make room"))
    assert status(capsys, "doctor") == (1, "", "error: the disk is full\nhint: make room\n")
    raising(monkeypatch, CacheError("the disk is full"))
    assert status(capsys, "doctor") == (1, "", "error: the disk is full\n")


def test_ctrl_c_is_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, KeyboardInterrupt())
    assert status(capsys, "doctor") == (130, "", "interrupted\n")


def test_ctrl_c_before_a_command_is_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main_module, "check_environment", interrupted)
    assert status(capsys, "doctor")[0] == 130


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("TRIVET_ISA", "sse", "must be one of baseline, avx2, avx512, avx512_bf16, amx"),
        ("TRIVET_LOG", "loud", "must be one of debug, info, warning, error"),
        ("TRIVET_PROFILE", "yes", "must be one of 0, 1"),
        ("TRIVET_THREADS", "0", "must be a number of 1 or more"),
        ("TRIVET_THREADS", "two", "must be a number of 1 or more"),
        ("TRIVET_THREADS", "²", "must be a number of 1 or more"),
    ],
)
def test_an_environment_value_that_does_not_parse(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    code, _, err = status(capsys, "--version")
    assert code == 1
    assert err == f"error: `{name}` is {value!r}, but it {said}\n"


def test_an_environment_that_parses(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    good = {"TRIVET_ISA": "baseline", "TRIVET_LOG": "info", "TRIVET_PROFILE": "1", "TRIVET_THREADS": "2"}
    for name, value in good.items():
        monkeypatch.setenv(name, value)
    check_environment()
    assert capsys.readouterr().err == ""


def test_an_unknown_name_is_warned_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TRIVET_THREAD", "2")
    monkeypatch.setenv("TRIVET_PORT_80_TCP", "tcp://10.0.0.1:80")  # what a cluster makes for a service `trivet`
    code, out, err = status(capsys, "--version")
    assert (code, out) == (0, f"trivet {trivet.__version__}\n")
    assert "TRIVET_THREAD is not one that Trivet reads; did you mean TRIVET_THREADS?" in err
    assert "TRIVET_PORT_80_TCP is not one that Trivet reads\n" in err


def test_only_the_chosen_command_is_imported() -> None:
    code = (
        "import sys; from trivet.cli.main import make_app; make_app('serve');"
        "print(*sorted(m for m in sys.modules if m.startswith('trivet.cli.') or m in "
        "('starlette', 'uvicorn', 'numpy', 'trivet._core', 'rich', 'tokenizers', 'asyncio')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [f"trivet.cli.{name}" for name in ("environment", "main", "serve", "usage")]


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GiB", 2**31), ("500MB", 5 * 10**8), ("1.5 gib", 3 * 2**29), ("64K", 2**16), ("1TB", 10**12), ("7B", 7)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GiB", "2 apples", "-1GiB", "0", "0B", "1e9", "20", "1 2", "9" * 400 + "B", "inf"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match="`memory` is "):
        parse_size(text, "memory")


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (200 * 2**20, "200 MiB"), (3 * 2**30, "3.0 GiB")],
)
def test_sizes_are_shown(size: int, text: str) -> None:
    assert show_size(size) == text
