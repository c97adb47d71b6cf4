"""Where the imported native core was built, and builds of it with other options (planted faults, sanitizers)."""

from __future__ import annotations

import fcntl
import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]


def _run(*command: str | Path, env: dict[str, str] | None = None) -> str:
    """What the command printed; AssertionError with all of it if it failed."""
    done = subprocess.run([str(c) for c in command], cwd=REPO, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}"
    return done.stdout


@functools.cache
def build_variant(name: str, *cmake_args: str) -> Path:
    """The native core built with `cmake_args` in build/NAME; the first call builds, later sessions only what changed.

    Load it with `core_prelude`, in a process of its own: a process has one native core.
    """
    folder = REPO / "build" / name
    folder.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    cmake = shutil.which("cmake", path=env["PATH"])
    assert cmake, "cmake is neither beside this Python nor on PATH; `make setup` installs it"
    with open(folder / ".lock", "w") as lock:  # two test runs in one clone take turns
        fcntl.flock(lock, fcntl.LOCK_EX)
        settings = ["-DCMAKE_BUILD_TYPE=Release", f"-DPython_EXECUTABLE={sys.executable}", *cmake_args]
        _run(cmake, "-G", "Ninja", "-S", REPO, "-B", folder, *settings, env=env)
        _run("nice", cmake, "--build", folder, env=env)
    (module,) = folder.glob("_core*.so")
    return module


def core_prelude(module: Path) -> str:
    """Python source that makes the file `module` be `trivet._core` in the process that runs it first."""
    return f"""
import importlib.util, sys, trivet
spec = importlib.util.spec_from_file_location("trivet._core", {str(module)!r})
sys.modules["trivet._core"] = trivet._core = importlib.util.module_from_spec(spec)
spec.loader.exec_module(trivet._core)
"""


def build_id(module: Path) -> str | None:
    """The linker's checksum of the module, which stripping does not change; None if it has none."""
    found = re.search(r"Build ID: ([0-9a-f]+)", _run("readelf", "--notes", module))
    return found[1] if found else None


@functools.cache
def core_objects() -> dict[str, Path]:
    """The object files of the native core, keyed by source (`native/kernels/amx/linear.cc`).

    They come from the build folder of the module that is imported; where that is not below build/ (a wheel, or a
    build elsewhere), the same sources are built once in build/objects.
    """
    from trivet import _core

    assert _core.__file__
    imported = build_id(Path(_core.__file__))
    built = [m for m in REPO.glob("build/*/_core*.so") if imported is not None and build_id(m) == imported]
    folder = (built[0] if built else build_variant("objects")).parent
    root = next(folder.glob("CMakeFiles/_core.dir"))
    return {str(o.relative_to(root).with_suffix("")): o for o in sorted((root / "native").rglob("*.o"))}
