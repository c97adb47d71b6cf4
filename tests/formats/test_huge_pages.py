"""Packed weights are mapped so that they come in huge pages, where kernel and filesystem have them for files."""

from __future__ import annotations

import mmap
import os
import random
import re
from pathlib import Path

import numpy as np
import pytest

from trivet.formats.checkpoint import SourceIdentity
from trivet.formats.packed import PackedFile, TensorPlan, open_packed_file, plan_header, write_packed

MIB = 2**20
NUM_MIB = 32
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

pytestmark = pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[never]" in HUGE_PAGES.read_text(), reason="this system has no huge pages"
)


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A packed file of 32 MiB that is not in the page cache, as after a restart."""
    values = np.ones((NUM_MIB, MIB // 4), np.float32)
    plans = [TensorPlan(name="ones", kind="f32", n=NUM_MIB, k=MIB // 4, values=lambda: values)]
    source = SourceIdentity(path="", files=())
    header = plan_header(plans, spec={}, precision="bf16", group_size=0, source=source, notes=())
    path = tmp_path / "ones.trivet"
    write_packed(path, header, plans, num_threads=1)
    forget(path)
    return path


def forget(path: Path) -> None:
    """Drops the file from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def mapping(path: Path) -> dict[str, str]:
    """What /proc says of the memory where the file is mapped."""
    for entry in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text()):
        first, *lines = entry.splitlines()
        if first.endswith(str(path)):
            return dict(line.split(":", 1) for line in lines)
    raise AssertionError(f"{path} is not mapped")


def huge_mib(path: Path) -> int:
    return int(mapping(path)["FilePmdMapped"].split()[0]) // 1024


def touch(data: np.ndarray) -> None:
    """Every page of 4 KiB, in no order: as threads do that each read another part, so no read-ahead sees a run."""
    pages = list(range(0, len(data), 4096))
    random.Random(1).shuffle(pages)
    assert sum(int(data[page]) for page in pages) > 0


def test_the_wish_is_made(packed: Path) -> None:
    file = open_packed_file(packed)
    assert "hg" in mapping(packed)["VmFlags"].split()
    assert len(file.buffer) == file.header.nbytes


def test_weights_read_after_a_restart_come_in_huge_pages(packed: Path, tmp_path: Path) -> None:
    control = tmp_path / "control"
    control.write_bytes(packed.read_bytes())
    forget(control)
    with control.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        mapped.madvise(mmap.MADV_HUGEPAGE)
        assert sum(mapped[::4096]) > 0
        if huge_mib(control) < NUM_MIB // 2:
            pytest.skip("this kernel or filesystem has no huge pages for files")
    forget(packed)
    file: PackedFile = open_packed_file(packed)
    touch(file.buffer)
    assert huge_mib(packed) >= NUM_MIB * 3 // 4
