"""Writes what is made from code: the native core's stub, docs/reference, public names, what the README's Python prints.

`python scripts/generate.py` writes those that changed and names them; with `--check` it writes nothing and exits 1
if there are any.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import subprocess
import sys
import tempfile
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
if str(REPO) not in sys.path:
    sys.path.insert(0, str(REPO))  # for benchmarks, which no package holds
REFERENCE = Path("docs/reference")
SURFACES = Path("tests/repo/surfaces")


def page(title: str, text: str) -> str:
    """A Markdown page that says where it comes from."""
    return f"# {title}\n\n<!-- Made from code by `make generate`; change the code instead. -->\n\n{text}"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *(list(row) for row in rows)]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def stub() -> str:
    """src/trivet/_core.pyi: what nanobind's generator prints for the built module."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "_core.pyi"
        command = [sys.executable, "-m", "nanobind.stubgen", "-q", "-m", "trivet._core", "-o", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"nanobind's stub generator failed:\n{done.stdout}{done.stderr}")
        # The submodule of single kernels is for tests and has no stub of its own.
        submodule = "from trivet._core import kernels as kernels"
        return out.read_text().replace(submodule, "import types\n\nkernels: types.ModuleType")


def environment() -> str:
    """docs/reference/environment.md, from config.ENVIRONMENT."""
    from trivet.config import ENVIRONMENT

    rows = [(f"`{name}`", text) for name, text in ENVIRONMENT.items()]
    return page(
        "Environment variables",
        "These are all. An empty one counts as unset; a value that does not parse is an error.\n\n"
        + table(("variable", "what it does"), rows),
    )


def errors() -> str:
    """docs/reference/errors.md, from the class tree of errors.py and the table of statuses in server/errors.py."""
    import trivet.errors
    import trivet.server.errors as served

    def when(cls: type[BaseException]) -> str:
        words = {
            BaseException: "A mistake in Trivet; its log has the details.",
            trivet.errors.TrivetError: "Any other.",
        }
        return words.get(cls) or cls.__doc__ or ""

    tree = (trivet.errors.__doc__ or "").split("\n\n", 1)[1].rstrip()
    rows = [
        (f"`{cls.__name__}`", f"`{cls.__base__.__name__}`" if cls.__base__ else "", cls.__doc__ or "")
        for cls in vars(trivet.errors).values()
        if isinstance(cls, type) and issubclass(cls, trivet.errors.TrivetError)
    ]
    return page(
        "Errors",
        "Every error that Trivet raises on purpose is a `trivet.errors.TrivetError`: `str()` is the message, `.hint` "
        f"says what to do next.\n\n```text\n{tree}\n```\n\n"
        + table(("class", "is a", "when"), rows)
        + "\n## Over HTTP\n\nThe server has a few of its own; an error without a row is answered as the class it is a "
        "case of.\n\n"
        + table(
            ("class", "status", "type", "code", "when"),
            (
                (f"`{cls.__name__}`", str(row.http), f"`{row.type}`", f"`{row.code}`" if row.code else "", when(cls))
                for cls, row in served.STATUS.items()
            ),
        ),
    )


def _type_name(hint: object) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _type_name(args[0])
    if origin is typing.Literal:
        return " or ".join(str(a) for a in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(a) for a in args)
    if origin is tuple:
        return f"{_type_name(args[0])}s"
    return "none" if hint is type(None) else getattr(hint, "__name__", str(hint))


def config() -> str:
    """docs/reference/config.md, from the tree of dataclasses in config.py."""
    import trivet.config as module

    parts = ["One tree of frozen dataclasses; flags and keyword arguments are other spellings of them.\n"]
    for cls in vars(module).values():
        if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
            continue
        hints = typing.get_type_hints(cls, include_extras=True)
        rows = [
            (f"`{f.name}`", _type_name(hints[f.name]), f"`{f.default!r}`", module.setting_help(cls, f.name))
            for f in dataclasses.fields(cls)
            if f.default is not dataclasses.MISSING
        ]
        parts.append(f"\n## {cls.__name__}\n\n{cls.__doc__}\n\n")
        parts.append(table(("field", "type", "default", "what it is"), rows))
    return page("Settings", "".join(parts))


def metrics() -> str:
    """docs/reference/metrics.md, from the server's registry and the engine's snapshot."""
    from trivet.server import metrics as module

    served = {m.name: (m.type, m.documentation) for m in module.Metrics("demo").registry.collect()}
    served |= {name: ("gauge", text) for name, (text, _) in module.GAUGES.items()}
    served |= {name: ("counter", text) for name, (text, _) in module.COUNTERS.items()}
    rows = [(f"`{name}{'_total' * (kind == 'counter')}`", kind, text) for name, (kind, text) in sorted(served.items())]
    return page(
        "Metrics",
        "`GET /metrics` in Prometheus' text format. The `vllm:` names are those that dashboards and autoscalers know; "
        "`trivet:` is what only Trivet has.\n\n" + table(("metric", "type", "what it is"), rows),
    )


@functools.cache
def help_text(*command: str) -> str:
    """What `trivet COMMAND --help` prints, without trailing blanks."""
    env = {**os.environ, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    call = [sys.executable, "-m", "trivet.cli.main", *command, "--help"]
    done = subprocess.run(call, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        raise RuntimeError(f"`trivet {' '.join(command)} --help` failed:\n{done.stderr}")
    return "".join(line.rstrip() + "\n" for line in done.stdout.strip("\n").splitlines())


def help_texts(*command: str) -> Iterator[tuple[str, str]]:
    """(command, its help) of `trivet COMMAND` and of every command below it."""
    text = help_text(*command)
    yield " ".join(("trivet", *command)), text
    for name in re.findall(r"^  ([a-z][a-z-]*)(?:  |$)", text.partition("\nCommands:\n")[2], re.MULTILINE):
        yield from help_texts(*command, name)


def command_line() -> str:
    """docs/reference/command-line.md, from each command's `--help`."""
    parts = [f"## `{command}`\n\n```text\n{text}```\n" for command, text in help_texts()]
    return page("Command line", "\n".join(parts))


def public_names() -> str:
    """tests/repo/surfaces/public-names.txt: the names in `trivet.__all__`, with the first line of what each is."""
    import trivet

    values = {name: getattr(trivet, name) for name in trivet.__all__}
    return "".join(
        f"{name}: {(value.__doc__ or '').splitlines()[0] if isinstance(value, type) else type(value).__name__}\n"
        for name, value in values.items()
    )


def readme() -> str:
    """README.md, with what its Python prints."""
    text = (REPO / "README.md").read_text()
    found = re.search(r"```python\n(.*?)```.*?```text\n(.*?)```", text, re.DOTALL)
    assert found, "README.md has no Python block followed by a text block"
    done = subprocess.run([sys.executable, "-c", found[1]], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the README's Python failed:\n{done.stderr}")
    printed = "".join(line.rstrip() + "\n" for line in done.stdout.rstrip().splitlines())
    return text[: found.start(2)] + printed + text[found.end(2) :]


def measured() -> list[dict[str, typing.Any]]:
    """All that the rows against other engines gave, as benchmarks/peers/results keeps it."""
    from benchmarks.peers.results import read

    return [record for path in sorted((REPO / "benchmarks/peers/results").glob("*.jsonl")) for record in read(path)]


def speed() -> str:
    """docs/reference/speed.md, from benchmarks/peers/results."""
    from benchmarks.peers.summary import summary

    return page(
        "Speed",
        "What `python -m benchmarks.peers` measured: ours in turn with the best form of each of the best others "
        "([how](../guides/peers.md), [why](../guides/how-fast.md)). Medians; a ratio is the median over the rounds of "
        "the ratio within a round, with its range. MBU is a share of the memory bandwidth, MFU of the arithmetic peak, "
        "both of the same run. `python -m benchmarks.peers.table benchmarks/peers/results/FILE` prints every turn, "
        "every version and every setting.\n\n" + summary(measured()),
    )


def roofline_picture() -> str:
    """docs/reference/roofline.svg, from the same rows."""
    from benchmarks.peers.summary import roofline
    from benchmarks.peers.table import latest

    rows = [record for record in latest(measured())[0].values() if record["tier"] == "native"]
    return roofline(rows, f"{rows[0]['cpu']}, {rows[0]['threads']} threads")


MAKERS: dict[Path, Callable[[], str]] = {
    Path("README.md"): readme,
    Path("src/trivet/_core.pyi"): stub,
    REFERENCE / "environment.md": environment,
    REFERENCE / "errors.md": errors,
    REFERENCE / "config.md": config,
    REFERENCE / "metrics.md": metrics,
    REFERENCE / "command-line.md": command_line,
    REFERENCE / "speed.md": speed,
    REFERENCE / "roofline.svg": roofline_picture,
    SURFACES / "public-names.txt": public_names,
}


def stale(makers: dict[Path, Callable[[], str]], repo: Path) -> Iterator[tuple[Path, str]]:
    """(path, new text) of each file that is not what the code says."""
    for path, make in makers.items():
        text = make()
        if not (repo / path).is_file() or not same(path, (repo / path).read_text(), text):
            yield path, text


def same(path: Path, stored: str, made: str) -> bool:
    """Whether they are equal; where another package breaks the lines of help texts, only the words count."""
    return stored.split() == made.split() if path.stem == "command-line" else stored == made


def main(arguments: list[str], makers: dict[Path, Callable[[], str]] = MAKERS, repo: Path = REPO) -> int:
    """0, or 1 if `--check` found a stale file."""
    check, found = arguments == ["--check"], 0
    for path, text in stale(makers, repo):
        found += 1
        print(f"{path} {'is not what the code says; run `make generate`' if check else 'written'}")
        if not check:
            (repo / path).parent.mkdir(parents=True, exist_ok=True)
            temporary = (repo / path).with_suffix(".new")
            temporary.write_text(text)
            temporary.replace(repo / path)
    return 1 if check and found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
