"""`trivet doctor`: what the operating system says, read from made-up trees; and the real command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trivet import _core
from trivet.cli import doctor
from trivet.cli.doctor import examine, lines_of
from trivet.cli.machine import cpu_quota, this_machine
from trivet.cli.main import main
from trivet.engine.cgroup import memory_limit


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_v2_cgroup_is_as_narrow_as_its_narrowest_parent(tmp_path: Path) -> None:
    root = tree(tmp_path, {
        "proc/self/cgroup": "0::/a/b\n",
        "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
        "sys/fs/cgroup/a/cpu.max": "150000 100000\n",
        "sys/fs/cgroup/a/b/memory.max": "max\n",
        "sys/fs/cgroup/a/memory.max": "1073741824\n",
        "sys/fs/cgroup/memory.max": "4294967296\n",
    })  # fmt: skip
    assert (cpu_quota(root), memory_limit(root)) == (1.5, 2**30)


def test_a_v1_cgroup(tmp_path: Path) -> None:
    root = tree(tmp_path, {
        "proc/self/cgroup": "5:cpu,cpuacct:/x\n3:memory:/x\n2:freezer:/x\n",
        "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "50000\n",
        "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "536870912\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    })  # fmt: skip
    assert (cpu_quota(root), memory_limit(root)) == (0.5, 2**29)


def test_no_cgroup_no_limit(tmp_path: Path) -> None:
    machine = this_machine(tree(tmp_path, {
        "proc/meminfo": "MemTotal:       1024 kB\nMemAvailable:    512 kB\nHugePages_Total:   0\n",
        "proc/cpuinfo": "processor : 0\nmodel name\t: Abacus 3\n",
    }))  # fmt: skip
    assert (machine.cpu_quota, machine.memory_limit_bytes) == (None, None)
    assert (machine.cpu, machine.memory_bytes, machine.available_bytes) == ("Abacus 3", 2**20, 2**19)
    assert this_machine(tmp_path / "nothing").cpu == "unknown"


def test_cores_and_nodes_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes of two cores of two threads each, of which the affinity mask leaves three cores."""
    files = {
        f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": f"{cpu % 4},{cpu % 4 + 4}\n"
        for cpu in range(8)
    }
    files |= {f"sys/devices/system/node/node{cpu % 4 // 2}/cpu{cpu}": "" for cpu in range(8)}
    root = tree(
        tmp_path, {**files, "sys/devices/system/node/node2/cpulist": "\n", "proc/meminfo": "", "proc/cpuinfo": ""}
    )
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 4, 7})
    machine = this_machine(root)
    assert (machine.num_allowed, machine.num_cores, machine.num_nodes) == (4, 3, 2)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 4})
    assert this_machine(root).num_nodes == 1


@pytest.fixture
def facts(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The real facts, with a small measurement."""
    monkeypatch.setattr(doctor, "MEASURED_BYTES", 2**24)
    return examine()


def test_everything_is_examined(facts: dict[str, Any], cache_dir: Path) -> None:
    assert facts["compute"]["tiers"] == _core.available_isas()
    assert facts["compute"]["tier"] == _core.isa()
    assert facts["choice"]["threads"] == facts["measured"]["threads"] >= 1
    assert facts["measured"]["bytes_per_s"] > 1e8
    assert facts["measured"]["int8_ops_per_s"] > 1e8 < facts["measured"]["bf16_ops_per_s"]
    assert facts["cache"]["folder"] == str(cache_dir)
    assert 0 < facts["choice"]["kv_bytes_at_most"] <= facts["machine"]["memory_bytes"]


def test_lines_for_people(facts: dict[str, Any]) -> None:
    facts["measured"]["load_before"] = 0.0
    facts["machine"]["num_nodes"] = 1
    text = "\n".join(lines_of(facts))
    for word in ("GB/s read by", "TOPS int8", "TFLOPS bf16", "affinity mask", "packed models", "trivet 0.1.0"):
        assert word in text
    assert "busy" not in text and "nodes" not in text
    facts["measured"]["load_before"] = 99.0
    assert "the load was 99.0 before: these values may be far too low" in "\n".join(lines_of(facts))


def test_what_is_missing_is_said(facts: dict[str, Any]) -> None:
    facts["compute"] |= {"cpu_has_amx": True, "amx_permitted": False}
    facts["machine"] |= {"cpu_quota": 1.5, "memory_limit_bytes": 2**30, "num_nodes": 2}
    del facts["measured"]
    text = "\n".join(lines_of(facts))
    assert "the system does not permit it" in text
    assert "2 of memory: a server on each" in text
    assert "quota 1.5 CPUs" in text and "cgroup limit 1.0 GiB" in text
    assert "nothing (--quick)" in text
    facts["compute"] |= {"cpu_has_amx": False}
    assert "this CPU has none" in "\n".join(lines_of(facts))


def test_the_environment_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    before = _core.isa()
    monkeypatch.setenv("TRIVET_ISA", "baseline")
    monkeypatch.setenv("TRIVET_THREADS", "1")
    try:
        facts = examine(measure=False)
    finally:
        _core.set_isa(before)
    assert (facts["compute"]["tier"], facts["compute"]["tier_because"]) == ("baseline", "TRIVET_ISA asks for it")
    assert (facts["choice"]["threads"], facts["choice"]["threads_because"]) == (1, "TRIVET_THREADS")


def test_a_tier_that_is_not_there_is_the_diagnosis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIVET_ISA", "amx")
    monkeypatch.setattr(_core, "available_isas", lambda: ["baseline"])
    facts = examine(measure=False)
    assert "TRIVET_ISA asks for amx" in facts["compute"]["tier_because"]


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIVET_CACHE_DIR", "/proc/nowhere")
    facts = examine(measure=False)
    assert "cannot be written" in facts["cache"]["problem"]
    assert "cannot be written" in "\n".join(lines_of(facts))


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "--quick", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert set(facts) == {"machine", "compute", "choice", "cache", "versions"}
