"""Prints what `build`, or an extra such as `test`, requires: pyproject.toml is the one place where that is written."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def requirements(part: str) -> list[str]:
    """The requirements of the build (with the tools it calls), or of one extra."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    if part == "build":  # what pip would fetch itself if the build were isolated
        cmake = "cmake" + project["tool"]["scikit-build"]["cmake"]["version"]
        return [*project["build-system"]["requires"], cmake, "ninja"]
    return list(project["project"]["optional-dependencies"][part])


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1])))
