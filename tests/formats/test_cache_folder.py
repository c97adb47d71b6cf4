"""Where the cache folder is, its settings, locks and leftovers."""

from __future__ import annotations

import os
import stat
import tempfile
import threading
from pathlib import Path

import pytest

from trivet.errors import CacheError
from trivet.formats import cache


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of its own and no other setting."""
    for name in ("TRIVET_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    return tmp_path / "home"


def test_chosen_folder_comes_first(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("TRIVET_CACHE_DIR", str(tmp_path / "mine"))
    assert cache.cache_folder() == cache.CacheFolder(path=tmp_path / "mine")
    assert not (tmp_path / "xdg").exists() and not home.exists()


def test_then_xdg_then_home(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.cache_folder().path == home / ".cache" / "trivet"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_folder().path == tmp_path / "xdg" / "trivet"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the XDG specification
    assert cache.cache_folder().path == home / ".cache" / "trivet"


def test_chosen_folder_that_cannot_be_written_is_an_error(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRIVET_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(CacheError, match=r"TRIVET_CACHE_DIR is .*file, which cannot be written") as caught:
        cache.cache_folder()
    assert caught.value.hint
    assert not home.exists()


def test_temporary_folder_with_a_warning(home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    home.mkdir()
    (home / ".cache").write_text("not a folder")
    found = cache.cache_folder()
    assert found.path == tmp_path / "temporary" / f"trivet-{os.getuid()}"
    assert stat.S_IMODE(found.path.stat().st_mode) == 0o700
    assert found.note is not None and "TRIVET_CACHE_DIR" in found.note and found.note in caplog.text
    assert cache.cache_folder().path == found.path  # starts share it


def test_somebody_elses_temporary_folder_is_not_used(home: Path, tmp_path: Path) -> None:
    home.mkdir()
    (home / ".cache").write_text("not a folder")
    planted = tmp_path / "temporary" / f"trivet-{os.getuid()}"
    planted.mkdir()
    planted.chmod(0o777)
    assert cache.cache_folder().path != planted
    planted.rmdir()
    planted.symlink_to(tmp_path)
    assert cache.cache_folder().path not in (planted, tmp_path)


def test_names_tell_models_and_forms_apart(tmp_path: Path) -> None:
    names = {
        cache.file_name(tmp_path / model, precision, group)
        for model in ("a/m", "b/m")
        for precision, group in (("int8", 32), ("int4", 32), ("int4", 64))
    }
    assert len(names) == 6
    assert all(name.startswith("m-") and name.endswith(".trivet") for name in names)
    assert cache.file_name(tmp_path / "m", "int8", 32) == cache.file_name(tmp_path / "m", "int8", 64)
    assert "/" not in cache.file_name(Path("/"), "int8", 32)


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "m.trivet"
    order: list[str] = []
    entered = threading.Event()

    def second() -> None:
        entered.set()
        with cache.locked(path):
            order.append("second")

    with cache.locked(path):
        thread = threading.Thread(target=second)
        thread.start()
        entered.wait()
        cache.remove_leftovers(tmp_path)  # must not take the lock from its holder
        assert (tmp_path / "m.lock").exists()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert list(tmp_path.iterdir()) == []


def test_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(CacheError, match="does not support locks: No locks available"), cache.locked(tmp_path / "m"):
        pass


def test_settings_are_kept_and_damage_is_named(tmp_path: Path) -> None:
    assert cache.read_settings(tmp_path) == cache.CacheSettings()
    cache.write_settings(tmp_path, cache.CacheSettings(limit_bytes=12))
    assert cache.read_settings(tmp_path).limit_bytes == 12
    for damaged in (b"{", b'{"limit_bytes": "\xff"}'):
        (tmp_path / "settings.json").write_bytes(damaged)
        with pytest.raises(CacheError, match=r"settings\.json cannot be read"):
            cache.read_settings(tmp_path)


def test_files_that_cannot_be_read_are_listed(tmp_path: Path) -> None:
    (tmp_path / "odd.trivet").write_bytes(b"??")
    (entry,) = cache.entries(tmp_path)
    assert (entry.source, entry.precision, entry.nbytes) == ("", "", 2)
    assert [removed.path for removed in cache.clear(tmp_path)] == [tmp_path / "odd.trivet"]
