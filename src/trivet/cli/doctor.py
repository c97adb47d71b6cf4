"""`trivet doctor`: what this machine has, what it can do, and what would be chosen on it, with the reason."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import Annotated, Any

import typer

from trivet.cli.machine import Machine, this_machine
from trivet.config import env
from trivet.errors import TrivetError

BUSY_LOAD = 0.5  # running processes a thread, from which a measurement is not trusted
MEASURED_BYTES = 2**30  # read to measure the memory; large enough that no cache holds it


def command(
    quick: Annotated[bool, typer.Option("--quick", help="measure nothing (that takes a few seconds)")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Measure this machine, and say what would be chosen on it and why.

    Try:  trivet doctor
    """
    facts = examine(measure=not quick)
    print(json.dumps(facts, indent=2) if as_json else "\n".join(lines_of(facts)))


def examine(*, measure: bool = True) -> dict[str, Any]:
    """Everything found, in seconds, bytes and operations a second."""
    from trivet.cli.versions import versions

    machine = this_machine()
    compute = _compute()
    facts = {
        "machine": asdict(machine),
        "compute": compute,
        "choice": _choice(machine, compute),
        "cache": _cache(),
        "versions": versions(),
    }
    if measure:
        facts["measured"] = _measure(machine, compute["threads"])
    return facts


def _compute() -> dict[str, Any]:
    from trivet import _core
    from trivet.engine.cpu_runner import choose_isa, choose_threads

    found: dict[str, Any] = {
        "tiers": _core.available_isas(),
        "threads": choose_threads(None),
        "cpu_has_amx": _core.cpu_has_amx(),
        "amx_permitted": _core.amx_permitted(),
    }
    try:
        found["tier"] = choose_isa()
        found["tier_because"] = "TRIVET_ISA asks for it" if env("TRIVET_ISA") else "it is the fastest that this CPU has"
    except TrivetError as error:
        found["tier"] = _core.isa()
        found["tier_because"] = error.message
    return found


def _choice(machine: Machine, compute: dict[str, Any]) -> dict[str, Any]:
    """What `trivet serve` would take, each with its reason."""
    from trivet.engine.memory import memory_limit_bytes

    limit = memory_limit_bytes()
    bound = {
        "affinity mask": machine.num_allowed,
        "number of cores": machine.num_cores,
        "cpu quota": machine.cpu_quota or float("inf"),
    }
    narrowest = min(bound, key=lambda name: bound[name])
    because = "TRIVET_THREADS" if env("TRIVET_THREADS") else f"the {narrowest} allows {bound[narrowest]:g}"
    return {
        "precision": "int8",
        "precision_because": "auto is int8: half the bytes of bf16 to read for each token",
        "threads": compute["threads"],
        "threads_because": because,
        "kv_bytes_at_most": limit // 4,
        "kv_because": "a quarter of the memory that this process may use; less if the model cannot use that much",
        "memory_limit_bytes": limit,
    }


def _cache() -> dict[str, Any]:
    import shutil

    from trivet.formats.cache import cache_folder, entries

    try:
        folder = cache_folder()
    except TrivetError as error:
        return {"folder": env("TRIVET_CACHE_DIR"), "problem": error.message}
    packed = entries(folder.path)
    return {
        "folder": str(folder.path),
        "problem": folder.note,
        "num_models": len(packed),
        "bytes": sum(entry.nbytes for entry in packed),
        "free_bytes": shutil.disk_usage(folder.path).free,
    }


def _measure(machine: Machine, threads: int) -> dict[str, Any]:
    from trivet import _core

    load = os.getloadavg()[0]
    num_bytes = min(MEASURED_BYTES, max(2**24, machine.available_bytes // 4))
    bandwidth = _core.measure_bandwidth(num_bytes, threads)
    return {
        "threads": threads,
        "load_before": load,
        "bytes_read": num_bytes,
        "bytes_per_s": bandwidth["gb_per_s"] * 1e9,
        "int8_ops_per_s": _core.measure_peak("int8", threads),
        "bf16_ops_per_s": _core.measure_peak("bf16", threads),
    }


def lines_of(facts: dict[str, Any]) -> list[str]:
    """The facts for people."""
    from trivet.server.sizes import show_size

    machine, compute, choice, cache = facts["machine"], facts["compute"], facts["choice"], facts["cache"]
    quota = "none" if machine["cpu_quota"] is None else f"{machine['cpu_quota']:g} CPUs"
    limit = machine["memory_limit_bytes"]
    rows = [
        ("cpu", machine["cpu"]),
        (
            "cores",
            f"{machine['num_cpus']} CPUs here, {machine['num_allowed']} by the affinity mask on {machine['num_cores']} "
            f"cores, quota {quota}",
        ),
        *_nodes(machine["num_nodes"]),
        (
            "memory",
            f"{show_size(machine['memory_bytes'])}, {show_size(machine['available_bytes'])} available, "
            f"cgroup limit {'none' if limit is None else show_size(limit)}",
        ),
        ("tiers", f"{', '.join(compute['tiers'])}; in use: {compute['tier']} ({compute['tier_because']})"),
        ("amx", _amx(compute)),
        *_measured(facts.get("measured")),
        ("cache", _cache_line(cache)),
        ("serve", f"would use {choice['precision']}: {choice['precision_because']}"),
        ("", f"would use {choice['threads']} threads: {choice['threads_because']}"),
        ("", f"would give KV at most {show_size(choice['kv_bytes_at_most'])}: {choice['kv_because']}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in facts["versions"].items())),
    ]
    return [f"{name:<9} {text}" for name, text in rows]


def _nodes(num: int) -> list[tuple[str, str]]:
    if num == 1:
        return []
    return [
        ("nodes", f"{num} of memory: a server on each may serve more than one across them (docs/guides/how-fast.md)")
    ]


def _amx(compute: dict[str, Any]) -> str:
    if not compute["cpu_has_amx"]:
        return "this CPU has none"
    return "permitted" if compute["amx_permitted"] else "this CPU has it, but the system does not permit it"


def _measured(measured: dict[str, Any] | None) -> list[tuple[str, str]]:
    if measured is None:
        return [("measured", "nothing (--quick)")]
    gb_per_s = measured["bytes_per_s"] / 1e9
    int8, bf16 = measured["int8_ops_per_s"] / 1e12, measured["bf16_ops_per_s"] / 1e12
    rows = [
        ("bandwidth", f"{gb_per_s:.1f} GB/s read by {measured['threads']} threads"),
        ("peak", f"{int8:.2f} TOPS int8, {bf16:.2f} TFLOPS bf16"),
        ("limit", f"1 GB of weights decodes at most {gb_per_s:.1f} tokens/s in one stream"),
    ]
    if measured["load_before"] > BUSY_LOAD * measured["threads"]:
        rows.append(("busy", f"the load was {measured['load_before']:.1f} before: these values may be far too low"))
    return rows


def _cache_line(cache: dict[str, Any]) -> str:
    from trivet.server.sizes import show_size

    if cache["problem"] is not None:
        return f"{cache['folder']}: {cache['problem']}"
    held = f"{cache['num_models']} packed models, {show_size(cache['bytes'])}"
    return f"{cache['folder']}: {held}, {show_size(cache['free_bytes'])} free"
