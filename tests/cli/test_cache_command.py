"""`trivet cache list | clear | limit`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from checkpoints import make_checkpoint
from trivet.cli.main import main
from trivet.models.packing import load_packed


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder with an int8 and a (later used) bf16 form of one model."""
    monkeypatch.setenv("TRIVET_CACHE_DIR", str(tmp_path / "cache"))
    folder = make_checkpoint(tmp_path / "tiny", "llama", num_hidden_layers=1)
    for age, precision in enumerate(("int8", "bf16")):
        packed, _ = load_packed(folder, precision=precision)
        os.utime(packed.path, (1e9 + age, 1e9 + age))
    return tmp_path / "cache"


def trivet_cache(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    """What the command printed to stdout and to stderr; it must exit with 0."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(["cache", *arguments])
    assert caught.value.code in (0, None)
    printed = capsys.readouterr()
    return printed.out, printed.err


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    return json.loads(trivet_cache(capsys, *arguments, "--json")[0])


def test_list(cached: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = trivet_cache(capsys, "list")
    lines = out.splitlines()
    assert lines[0].split() == ["MODEL", "PRECISION", "GiB", "LAST", "USED"]
    assert [line.split()[:3] for line in lines[1:]] == [["tiny", "bf16", "0.000"], ["tiny", "int8", "0.000"]]
    assert "in 2 files, no limit" in err
    listed = as_json(capsys, "list")
    assert listed["folder"] == str(cached) and listed["limit_bytes"] is None
    assert [entry["precision"] for entry in listed["entries"]] == ["bf16", "int8"]
    assert listed["bytes"] == sum(path.stat().st_size for path in cached.glob("*.trivet"))
    assert listed["entries"][0]["source"].endswith("/tiny")


def test_list_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TRIVET_CACHE_DIR", str(tmp_path))
    out, err = trivet_cache(capsys, "list")
    assert out == "" and "0.000 GiB in 0 files" in err


def test_a_file_that_cannot_be_read_is_listed(cached: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cached / "odd.trivet").write_bytes(b"?")
    assert "odd.trivet (cannot be read)" in trivet_cache(capsys, "list")[0]
    assert {"precision": None, "source": None}.items() <= as_json(capsys, "list")["entries"][0].items()


def test_clear(cached: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = sum(path.stat().st_size for path in cached.iterdir())
    cleared = as_json(capsys, "clear")
    assert cleared["freed_bytes"] == size and len(cleared["removed"]) == 2
    assert list(cached.iterdir()) == []
    assert trivet_cache(capsys, "clear") == ("", f"removed 0 files, 0.000 GiB, from {cached}\n")


def test_limit_removes_what_was_not_used_for_longest(cached: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert trivet_cache(capsys, "limit") == ("no limit\n", "")
    (larger,) = cached.glob("*-bf16.trivet")
    limit = larger.stat().st_size / 2**20 + 0.01
    changed = as_json(capsys, "limit", f"{limit:.6f}MiB")
    assert [Path(path).name.endswith("-int8.trivet") for path in changed["removed"]] == [True]
    assert len(list(cached.glob("*.trivet"))) == 1
    assert trivet_cache(capsys, "limit", "1.5GiB")[0] == "1.500 GiB\n"
    assert as_json(capsys, "list")["limit_bytes"] == 3 * 2**29
    assert trivet_cache(capsys, "limit", "none")[0] == "no limit\n"


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ("plenty", "`limit` is 'plenty', but it must be a size\nhint: write it as 20GiB"),
        ("20", "`limit` is '20', but it must have a unit\nhint: write it as 20GiB"),
    ],
)
def test_impossible_limit(cached: Path, capsys: pytest.CaptureFixture[str], size: str, said: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["cache", "limit", size])
    assert caught.value.code == 2
    assert f"error: {said}" in capsys.readouterr().err
    assert len(list(cached.glob("*.trivet"))) == 2, "nothing was removed"


@pytest.mark.parametrize(("size", "shown"), [("1TB", "931.323 GiB\n"), ("500000KB", "0.466 GiB\n")])
def test_units_are_those_of_every_size(cached: Path, capsys: pytest.CaptureFixture[str], size: str, shown: str) -> None:
    assert trivet_cache(capsys, "limit", size)[0] == shown


def test_ctrl_c_is_130(cached: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trivet.formats.cache.clear", interrupted)
    with pytest.raises(SystemExit) as caught:
        main(["cache", "clear"])
    assert caught.value.code == 130
    assert "interrupted" in capsys.readouterr().err
