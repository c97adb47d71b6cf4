"""`trivet cache list | clear | limit`: the packed weights on disk."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from trivet.cli.usage import flags_checked
from trivet.formats import cache
from trivet.server.sizes import parse_size

GIB = 2**30

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
command = app
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


def _as_dict(entry: cache.CacheEntry) -> dict[str, Any]:
    return {
        "file": str(entry.path),
        "source": entry.source or None,
        "precision": entry.precision or None,
        "bytes": entry.nbytes,
        "last_used": datetime.fromtimestamp(entry.last_used_s).astimezone().isoformat(),
    }


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, indent=2))


def _table(entries: Sequence[cache.CacheEntry]) -> list[str]:
    rows = [("MODEL", "PRECISION", "GiB", "LAST USED")]
    for entry in entries:
        model = Path(entry.source).name if entry.source else f"{entry.path.name} (cannot be read)"
        used = datetime.fromtimestamp(entry.last_used_s).strftime("%Y-%m-%d %H:%M")
        rows.append((model, entry.precision or "-", f"{entry.nbytes / GIB:.3f}", used))
    wide = [max(len(row[i]) for row in rows) for i in range(4)]
    return [f"{a:<{wide[0]}}  {b:<{wide[1]}}  {c:>{wide[2]}}  {d}" for a, b, c, d in rows]


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """Lists the packed weights, most recently used first.

    Example: trivet cache list
    """
    folder = cache.cache_folder().path
    entries = cache.entries(folder)
    limit = cache.read_settings(folder).limit_bytes
    total = sum(entry.nbytes for entry in entries)
    if as_json:
        _print_json(
            {
                "folder": str(folder),
                "bytes": total,
                "limit_bytes": limit,
                "entries": [_as_dict(entry) for entry in entries],
            }
        )
        return
    bound = "no limit" if limit is None else f"limit {limit / GIB:.3f} GiB"
    for line in _table(entries) if entries else []:
        print(line)
    print(f"{folder}: {total / GIB:.3f} GiB in {len(entries)} files, {bound}", file=sys.stderr)


@app.command()
def clear(as_json: AsJson = False) -> None:
    """Removes all packed weights; models are packed again when they are loaded next.

    Example: trivet cache clear
    """
    folder = cache.cache_folder().path
    removed = cache.clear(folder)
    _report_removed(folder, removed, as_json)


@app.command()
def limit(
    size: Annotated[str | None, typer.Argument(help="such as 20GiB; none: no limit; nothing: say what it is")] = None,
    as_json: AsJson = False,
) -> None:
    """Bounds the size of the cache: after packing, what was not used for longest is removed.

    Example: trivet cache limit 20GiB
    """
    folder = cache.cache_folder().path
    removed: list[cache.CacheEntry] = []
    if size is not None:
        with flags_checked():
            limit_bytes = None if size.strip().lower() == "none" else parse_size(size, "limit")
        cache.write_settings(folder, cache.CacheSettings(limit_bytes=limit_bytes))
        removed = cache.evict(folder)
    now = cache.read_settings(folder).limit_bytes
    if not as_json:
        print("no limit" if now is None else f"{now / GIB:.3f} GiB")
    _report_removed(folder, removed, as_json, limit_bytes=now)


def _report_removed(folder: Path, removed: Sequence[cache.CacheEntry], as_json: bool, **more: Any) -> None:
    freed = sum(entry.nbytes for entry in removed)
    if as_json:
        _print_json(
            {"folder": str(folder), "freed_bytes": freed, "removed": [str(entry.path) for entry in removed], **more}
        )
    elif removed or not more:
        print(f"removed {len(removed)} files, {freed / GIB:.3f} GiB, from {folder}", file=sys.stderr)
