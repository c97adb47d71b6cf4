"""The guards of tests/leaks.py find what they are there for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from builds import REPO


def run(folder: Path, body: str, *arguments: str) -> tuple[int, str]:
    """(exit code, output) of pytest over one file of tests with the guards."""
    (folder / "test_it.py").write_text(f"import os, subprocess, sys\nimport pytest\n\n{body}")
    env = {name: value for name, value in os.environ.items() if not name.startswith("TRIVET_")}
    env |= {"PYTHONPATH": str(REPO / "tests"), "TRIVET_LOG": "info", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "leaks", "-p", "no:cacheprovider", *arguments, str(folder)]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("act", "became"),
    [
        ("os.environ['TRIVET_ISA'] = 'baseline'", "'TRIVET_ISA': 'baseline'"),
        ("os.environ['TRIVET_LOG'] = 'debug'", "'TRIVET_LOG': 'debug'"),
        ("del os.environ['TRIVET_LOG']", "became {}"),
    ],
)
def test_a_setting_left_is_a_failure_and_is_undone(tmp_path: Path, act: str, became: str) -> None:
    body = f"def test_leak():\n    {act}\n\ndef test_next():\n    assert os.environ.get('TRIVET_LOG') == 'info'\n"
    code, output = run(tmp_path, body)
    assert code == 1 and "2 passed, 1 error" in output and became in output


def test_a_setting_through_monkeypatch_is_fine(tmp_path: Path) -> None:
    assert run(tmp_path, "def test_ok(monkeypatch):\n    monkeypatch.setenv('TRIVET_LOG', 'debug')\n")[0] == 0


def test_a_process_left_is_a_failure_and_is_killed(tmp_path: Path) -> None:
    child = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    body = f"def test_leak():\n    global child\n    child = {child}\n    print('pid', child.pid)\n"
    code, output = run(tmp_path, body, "-s")
    assert code == 1 and "left processes behind, now killed" in output
    pid = output.split("pid ")[1].split()[0]
    assert not Path(f"/proc/{pid}").exists()


def test_each_test_is_in_one_shard(tmp_path: Path) -> None:
    body = "@pytest.mark.parametrize('i', range(40))\ndef test_it(i):\n    print('ran', i, 'end')\n"
    ran: list[str] = []
    for shard in ("1/3", "2/3", "3/3"):
        code, output = run(tmp_path, body, "-s", "--shard", shard)
        mine = [line.split("ran ")[1].split()[0] for line in output.splitlines() if "ran " in line]
        assert code == 0 and 0 < len(mine) < 40
        ran += mine
    assert sorted(ran, key=int) == [str(i) for i in range(40)]


@pytest.mark.parametrize("shard", ["0/2", "3/2", "b"])
def test_a_wrong_shard_is_refused(tmp_path: Path, shard: str) -> None:
    code, output = run(tmp_path, "def test_ok(): pass\n", "--shard", shard)
    assert code == 4 and f"--shard is '{shard}', but it must be I/N" in output
