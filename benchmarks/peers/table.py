"""The table: Markdown from what `python -m benchmarks.peers` appended.

    python -m benchmarks.peers.table results/peers.jsonl [--json]

One section a row: ours and the finalists as median and half the distance between the lowest and the highest of the
rounds, the ratio of ours to the best finalist (median over the rounds of the ratio within a round, with its range),
the other rivals as the one turn they had. MBU: weight bytes + KV bytes read a second over the bandwidth; MFU: 2
operations a weight of the body and token over the peak of the tile loop, int8 where weights are 4 or 8 bits.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.peers.contestants import CONTESTANTS
from benchmarks.peers.results import Record, read
from benchmarks.peers.rows import ROWS
from benchmarks.record import best_limit, median_and_spread

UNITS = {"tok_per_s": "tok/s", "seconds": "s", "peak_mib": "MiB"}
EXTRA = {
    "ttft_p50_s": "TTFT p50, s",
    "gap_p99_s": "p99 gap, s",
    "gap_max_s": "longest gap, s",
    "without_text": "answers without text",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One contestant in one row."""

    name: str
    value: float | None
    spread: float | None = None
    rounds: int = 1
    ratio: tuple[float, float, float] | None = None  # ours to the best finalist: median, lowest, highest
    share: str = ""  # MBU or MFU
    extra: dict[str, float] | None = None
    error: str = ""


def values(turns: Sequence[Record]) -> list[float]:
    return [turn["value"] for turn in turns if "value" in turn]


def ratios(
    ours: Sequence[Record], best: Sequence[Record], *, lower_is_better: bool
) -> tuple[float, float, float] | None:
    """How many times better ours is: median, lowest and highest of the rounds that both have."""
    pairs = [(a["value"], b["value"]) for a, b in zip(ours, best, strict=False) if "value" in a and "value" in b]
    found = sorted(b / a if lower_is_better else a / b for a, b in pairs)
    return (median(found), found[0], found[-1]) if found else None


def share_of_limit(name: str, value: float, record: Record, about: Record, limits: tuple[Record, Record]) -> str:
    """MBU of decoding, MFU of prefill; nothing for other work."""
    work, facts, contestant = record["work"], record["model_facts"], CONTESTANTS[name]
    if work["work"] == "decode" and record["figure"] == "tok_per_s":
        kv_bytes = facts["kv_values"] * (1 if contestant.settings.get("kv_precision") == "int8" else 2)
        context = work["prompt"] + work["output"] / 2
        step = about["weight_bytes"] + work["streams"] * context * kv_bytes
        return f"MBU {value / work['streams'] * step * 1e-9 / best_limit(*limits, 'gb_per_s'):.0%}"
    if work["work"] == "prefill" and record["figure"] == "tok_per_s":
        kind = "bf16_tops" if contestant.bits == 16 else "int8_tops"
        return f"MFU {2 * facts['body_weights'] * value * 1e-12 / best_limit(*limits, kind):.0%}"
    return ""


def lines_of(record: Record, surveys: dict[str, Record]) -> list[Line]:
    """Ours, the finalists, and the others, the best first in each."""
    row, turns = ROWS[record["row"]], record["turns"]
    limits = (record["limits_before"], record["limits_after"])
    factor = -1 if row.lower_is_better else 1
    finalists = [n for n in record["finalists"] if values(turns[n])]
    finalists.sort(key=lambda n: -factor * median(values(turns[n])))
    lines = []
    for name in [*record["ours"], *record["finalists"]]:
        good = [turn for turn in turns[name] if "value" in turn]
        if not good:
            lines.append(Line(name=name, value=None, error=turns[name][-1].get("error", "") if turns[name] else ""))
            continue
        value, spread = median_and_spread(values(good))
        ours = name in record["ours"] and finalists
        best = turns[finalists[0]] if ours else []
        extra = {key: median(turn[key] for turn in good) for key in EXTRA if key in good[0]}
        lines.append(Line(
            name=name, value=value, spread=spread, rounds=len(good), extra=extra,
            ratio=ratios(turns[name], best, lower_is_better=row.lower_is_better) if ours else None,
            share=share_of_limit(name, value, record, good[0]["about"], limits),
        ))  # fmt: skip
    others = []
    for name, survey in surveys.items():
        if name not in turns:
            about = survey.get("turn", {}).get("about", {})
            once = survey.get("value")
            share = share_of_limit(name, once, record, about, limits) if once is not None else ""
            extra = {key: survey["turn"][key] for key in EXTRA if once is not None and key in survey["turn"]}
            others.append(Line(name=name, value=once, share=share, extra=extra, error=survey.get("error", "")))
    others.sort(key=lambda line: (line.value is None, -factor * (line.value or 0)))
    return lines + others


def section(record: Record, lines: Sequence[Line]) -> str:
    """Markdown of one row."""
    row, unit = ROWS[record["row"]], UNITS[record["figure"]]
    extra = [key for key in EXTRA if any(key in (line.extra or {}) for line in lines)]
    head = ["", "weights", unit, "ours / best", "of the limit", *(EXTRA[key] for key in extra), "turns"]
    text = [f"### {row.name}: {row.title}", "", "| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for line in lines:
        contestant = CONTESTANTS[line.name]
        bits = f"{contestant.bits} bit, head {contestant.head_bits}"
        shown = "failed" if line.value is None else number(line.value)
        if line.spread is not None and line.rounds > 1:
            shown += f" ± {number(line.spread)}"
        ratio = "" if line.ratio is None else "{:.2f}x ({:.2f}-{:.2f})".format(*line.ratio)
        cells = [line.name, bits, shown, ratio, line.share]
        cells += [f"{line.extra[key]:.3g}" if line.extra and key in line.extra else "" for key in extra]
        text.append("| " + " | ".join([*cells, str(line.rounds if line.value is not None else 0)]) + " |")
    rounds = f"{record['rounds']} of {record['rounds_wished']} rounds"
    text += ["", f"{rounds} in {record['wall_s']:.0f} s, {record['at']}, commit {record['commit']}; limits before "
             f"{limit_words(record['limits_before'])}, after {limit_words(record['limits_after'])}."]  # fmt: skip
    for line in lines:
        if line.error:
            text.append(f"{line.name} failed: {line.error.splitlines()[0]}")
    return "\n".join(text)


def limit_words(limits: Record) -> str:
    return f"{limits['gb_per_s']:.1f} GB/s, {limits['int8_tops']:.2f} TOPS int8, {limits['bf16_tops']:.2f} bf16"


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def versions_and_flags(records: Sequence[Record]) -> str:
    """What every contestant was, and how it was set in the last row that it took part in."""
    found: dict[str, tuple[str, str]] = {}
    for record in records:
        turns = record["turns"] if record["kind"] == "row" else {record["contestant"]: [record.get("turn", {})]}
        for name, of_name in turns.items():
            for turn in of_name:
                if "about" in turn:
                    about = turn["about"]
                    versions = ", ".join(f"{k} {v}" for k, v in about.get("versions", {}).items())
                    said = about.get("system", "").replace(" | ", ", ").strip(" |")
                    found[name] = (", ".join(filter(None, [versions, said])), about.get("settings", ""))
    text = [
        "## Versions and settings",
        "",
        "| | versions, and what it says of itself | settings |",
        "| --- | --- | --- |",
    ]
    text += [f"| {name} | {versions} | `{settings}` |" for name, (versions, settings) in sorted(found.items())]
    return "\n".join(text)


Key = tuple[str, str, str, str]  # of a row: CPU, model, tier, name


def key_of(record: Record) -> Key:
    """What a record is of."""
    return record["cpu"], record["model"], record["tier"], record["row"]


def latest(records: Sequence[Record]) -> tuple[dict[Key, Record], dict[Key, dict[str, Record]]]:
    """The last record of each row, and the surveys that belong to it."""
    rows = {key_of(r): r for r in records if r["kind"] == "row"}
    surveys: dict[Key, dict[str, Record]] = {}
    for r in records:
        if r["kind"] == "survey":
            surveys.setdefault(key_of(r), {})[r["contestant"]] = r
    return rows, surveys


def markdown(records: Sequence[Record]) -> str:
    """The whole table."""
    rows, surveys = latest(records)
    order = list(ROWS)
    parts = []
    for machine, model, tier in dict.fromkeys(key[:3] for key in rows):
        of_these = [r for key, r in rows.items() if key[:3] == (machine, model, tier)]
        first = of_these[0]
        title = f"## {model}" + ("" if tier == "native" else f", {tier}")
        parts.append(f"{title}\n\n{first['cpu']}, {first['threads']} threads, host {first['host']}.")
        for record in sorted(of_these, key=lambda r: order.index(r["row"])):
            parts.append(section(record, lines_of(record, surveys.get(key_of(record), {}))))
    parts.append(versions_and_flags(records))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="what benchmarks.peers appended")
    parser.add_argument("--json", action="store_true", help="one object a row instead")
    args = parser.parse_args()
    records = read(args.results)
    if not args.json:
        print(markdown(records))
        return
    rows, surveys = latest(records)
    for key, record in rows.items():
        lines = [
            {name: getattr(line, name) for name in Line.__slots__} for line in lines_of(record, surveys.get(key, {}))
        ]
        kept = {name: value for name, value in record.items() if name != "turns"}
        print(json.dumps({**kept, "lines": lines}))


if __name__ == "__main__":
    main()
