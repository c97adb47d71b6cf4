"""The thread pool: refusals, several users at once, CPU quotas, and no allocation in a step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from builds import build_variant, core_prelude
from checkpoints import make_checkpoint
from steps import batch_of_one, logits_of, make_runner
from trivet import _core

PATHS = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        env={**os.environ, "PYTHONPATH": PATHS},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_threads_that_cannot_be_had_are_refused_and_the_pool_works_on() -> None:
    out = run(
        """
import resource
from trivet import _core
_core.measure_peak("int8", 2)
soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
resource.setrlimit(resource.RLIMIT_AS, (1, hard if hard > 0 else resource.RLIM_INFINITY))
try:
    _core.measure_peak("int8", 6)
except (RuntimeError, MemoryError) as error:
    print("refused:", error)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print("peak", _core.measure_peak("int8", 2) > 0, _core.measure_peak("int8", 6) > 0)
""".replace("resource.getrlimit(resource.RLIMIT_NPROC)", "resource.getrlimit(resource.RLIMIT_AS)").replace(
            "(1, hard if hard > 0 else resource.RLIM_INFINITY)",
            '(int(open("/proc/self/statm").read().split()[0]) * 4096 + 2**20, hard)',
        )
    )
    assert "refused: a pool of 6 compute threads is wanted, but the system gave" in out
    assert "peak True True" in out


def test_measuring_beside_a_step_disturbs_neither(tmp_path: Path) -> None:
    runner = make_runner(make_checkpoint(tmp_path / "m"), precision="int8")
    ids = list(range(100, 300))
    want = logits_of(runner, ids, [200]).tobytes()
    stop = threading.Event()

    def measure() -> None:
        while not stop.is_set():
            _core.measure_peak("int8", 2)

    other = threading.Thread(target=measure)
    other.start()
    try:
        for _ in range(200):
            assert logits_of(runner, ids, [200]).tobytes() == want
    finally:
        stop.set()
        other.join()


@pytest.mark.parametrize(
    "membership,files,quota",
    [
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b\n", {"a/b/cpu.max": "50000 100000", "a/cpu.max": "150000 100000"}, 0.5),
        ("0::/\n", {"cpu.max": "max 100000"}, 0.0),
        ("0::/gone\n", {"cpu.max": "200000 100000"}, 2.0),
        (
            "3:cpu,cpuacct:/x\n2:memory:/y\n",
            {"cpu/x/cpu.cfs_quota_us": "300000", "cpu/x/cpu.cfs_period_us": "100000"},
            3.0,
        ),
        ("3:cpu,cpuacct:/x\n", {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"}, 0.0),
        ("nonsense\n\n", {}, 0.0),
    ],
)
def test_the_quota_of_the_own_cgroup_and_of_those_above(
    tmp_path: Path, membership: str, files: dict[str, str], quota: float
) -> None:
    for name, text in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(text + "\n")
    (tmp_path / "membership").write_text(membership)
    assert _core.cgroup_quota(str(tmp_path / "membership"), str(tmp_path / "root")) == quota


@pytest.mark.parametrize(
    ("siblings", "cpus", "cores"),
    [
        (["0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7"], range(8), 4),
        (["0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7"], [0, 4, 5], 2),  # as the affinity mask cuts them
        (["0-1", "0-1", "2-3", "2-3"], range(4), 2),
        (["0", "1", "2"], range(3), 3),
        ([], range(3), 3),  # not known
        (["0-15"] * 16, range(16), 16),  # no CPU has so many threads a core: made up by a virtual machine
        (["0-1", "0-1"], [], 0),
    ],
)
def test_threads_of_one_core_count_once(tmp_path: Path, siblings: list[str], cpus: Iterable[int], cores: int) -> None:
    for cpu, text in enumerate(siblings):
        (tmp_path / f"cpu{cpu}/topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}/topology/thread_siblings_list").write_text(text + "\n")
    assert _core.num_cores(list(cpus), str(tmp_path)) == cores


def test_there_is_a_thread_a_core_unless_the_quota_is_less() -> None:
    cores = _core.num_cores(sorted(os.sched_getaffinity(0)))
    quota = _core.cgroup_quota()
    assert 1 <= cores <= len(os.sched_getaffinity(0))
    assert _core.allowed_threads() == (cores if quota == 0 else max(1, min(cores, int(quota + 0.5))))


def test_a_missing_membership_file_is_no_quota(tmp_path: Path) -> None:
    assert _core.cgroup_quota(str(tmp_path / "absent"), str(tmp_path)) == 0.0


def test_a_step_allocates_nothing(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m")
    out = run(f"""
{core_prelude(build_variant("faults", "-DTRIVET_FAULTS=ON"))}
from steps import batch_of, batch_of_one, make_runner
alike = [([1], 200 + i, [0, 1, 2, 3, 4, 5, 6 + i]) for i in range(8)]  # sequences that share keys
for precision in ("bf16", "int8", "int4"):
    runner = make_runner({str(folder)!r}, precision=precision)
    for size in (1, 5, 40, 200):
        runner.collect(runner.submit(batch_of_one([1] * size, 0, 320, list(range(8)))))
    runner.collect(runner.submit(batch_of(alike, 320)))
    print(precision, trivet._core.step_allocations())
""")
    assert out.split("\n")[:3] == ["bf16 0", "int8 0", "int4 0"]


def test_profiling_counts_every_operation(tmp_path: Path) -> None:
    runner = make_runner(make_checkpoint(tmp_path / "m"))
    executor = runner._executor
    runner.collect(runner.submit(batch_of_one([1, 2, 3], 0, 320, [0])))
    assert all(entry == (0.0, 0, 0.0, 0.0) for entry in executor.profile().values())
    executor.set_profiling(True)
    runner.collect(runner.submit(batch_of_one([1, 2, 3], 0, 320, [0])))
    profile = executor.profile()
    assert profile["attention"][1] == 2 and profile["head product"][1] == 1 and profile["embed"][1] == 1
    assert all(seconds > 0 for seconds, calls, _, _ in profile.values() if calls)


@pytest.mark.parametrize("precision,item", [("bf16", 2), ("int8", 1)])
def test_profiling_counts_bytes_and_operations(tmp_path: Path, precision: str, item: int) -> None:
    folder = make_checkpoint(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    runner = make_runner(folder, precision=precision)
    executor = runner._executor
    executor.set_profiling(True)
    runner.collect(runner.submit(batch_of_one([1, 2, 3], 0, 320, [0])))
    width, layers = config["hidden_size"], config["num_hidden_layers"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    outputs = width // heads * (heads + 2 * kv_heads)
    _, _, read, operations = executor.profile()["qkv product"]
    assert operations == layers * 2 * 3 * width * outputs
    padded = (width + 63) // 64 * 64 if item == 1 else width
    assert read == layers * outputs * (padded * item + (8 if item == 1 else 0))
    _, _, read, operations = executor.profile()["attention"]
    assert operations == layers * 4 * (1 + 2 + 3) * width
    assert read == layers * 3 * kv_heads * 2 * 2 * 32  # keys and values in bf16, head width padded to 32
