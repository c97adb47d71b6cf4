"""What the results come to: a line for each row and form of ours, and a picture of them below the machine's limits.

python -m benchmarks.peers.summary benchmarks/peers/results/*.jsonl > summary.md
python -m benchmarks.peers.summary benchmarks/peers/results/*.jsonl --roofline > roofline.svg
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.peers.contestants import CONTESTANTS
from benchmarks.peers.results import Record, read
from benchmarks.peers.rows import ROWS
from benchmarks.peers.table import UNITS, key_of, latest, lines_of, number
from benchmarks.record import best_limit

HEAD = ("", "work", "ours", "", "best other, same run", "", "ours / other", "of the limit", "rounds")


def summary(records: Sequence[Record]) -> str:
    """Markdown: a table for each machine, model and tier."""
    rows, surveys = latest(records)
    order, parts = list(ROWS), []
    for cpu, model, tier in dict.fromkeys(key[:3] for key in rows):
        of_these = [r for key, r in rows.items() if key[:3] == (cpu, model, tier)]
        title = f"{cpu}, {of_these[0]['threads']} threads, {model}" + ("" if tier == "native" else f", tier {tier}")
        lines = [f"### {title}", "", "| " + " | ".join(HEAD) + " |", "|" + " --- |" * len(HEAD)]
        for record in sorted(of_these, key=lambda r: order.index(r["row"])):
            lines += cells(record, surveys.get(key_of(record), {}))
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def cells(record: Record, surveys: dict[str, Record]) -> Iterable[str]:
    """The lines of one row, one for each form of ours."""
    row, unit = ROWS[record["row"]], UNITS[record["figure"]]
    lines = lines_of(record, surveys)
    others = [line for line in lines if line.name in record["finalists"] and line.value is not None]
    others.sort(key=lambda line: line.value or 0, reverse=not row.lower_is_better)
    for line in lines:
        if line.name not in record["ours"] or line.value is None:
            continue
        other = f"{others[0].name} | {number(others[0].value or 0)} {unit}" if others else " | "
        ratio = "{:.2f}x ({:.2f}-{:.2f})".format(*line.ratio) if line.ratio else ""
        ours = f"{line.name} | {number(line.value)} {unit}"
        yield f"| {row.name} | {row.title} | {ours} | {other} | {ratio} | {line.share} | {line.rounds} |"


# --- the picture ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One piece of work: operations a byte that must be read, and operations a second."""

    label: str
    intensity: float
    tops: float
    is_ours: bool


def points_of(record: Record) -> list[Point]:
    """Ours and the best other of a row of decoding or prefill, as body weights and bytes count (table.py)."""
    work, facts = record["work"], record["model_facts"]
    if work["work"] not in ("decode", "prefill") or record["figure"] != "tok_per_s":
        return []
    points = []
    for name in [*record["ours"], *record["finalists"][:1]]:
        good = [turn for turn in record["turns"][name] if "value" in turn]
        if not good:
            continue
        settings, about = CONTESTANTS[name].settings, good[0]["about"]
        kv = facts["kv_values"] * (1 if settings.get("kv_precision") == "int8" else 2)
        streams = work["streams"]
        rows = streams if work["work"] == "decode" else work["prompt"]
        context = work["prompt"] + work["output"] / 2 if work["work"] == "decode" else 0
        read_bytes = about["weight_bytes"] + streams * context * kv
        rate = median(turn["value"] for turn in good)
        points.append(Point(
            label=f"{name}, {record['row']}", intensity=2 * facts["body_weights"] * rows / read_bytes,
            tops=2 * facts["body_weights"] * rate * 1e-12, is_ours=name in record["ours"],
        ))  # fmt: skip
    return points


WIDTH, HEIGHT, MARGIN = 860, 480, 60


def roofline(records: Sequence[Record], title: str) -> str:
    """An SVG: operations a second over operations a byte, both logarithmic, below the limits of the same runs."""
    points = [point for record in records for point in points_of(record)]
    gb_per_s = max(best_limit(r["limits_before"], r["limits_after"], "gb_per_s") for r in records)
    peak = max(best_limit(r["limits_before"], r["limits_after"], "int8_tops") for r in records)
    left, right = min(p.intensity for p in points) / 2, max(p.intensity for p in points) * 2
    low, high = min(p.tops for p in points) / 2, peak * 2

    def x(intensity: float) -> float:
        return MARGIN + (WIDTH - 2 * MARGIN) * math.log(intensity / left) / math.log(right / left)

    def y(tops: float) -> float:
        return HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * math.log(tops / low) / math.log(high / low)

    ridge = peak / (gb_per_s * 1e-3)
    roof = [(left, left * gb_per_s * 1e-3), (ridge, peak), (right, peak)]
    shapes = [
        '<polyline fill="none" stroke="black" stroke-width="2" points="'
        + " ".join(f"{x(i):.1f},{y(max(t, low)):.1f}" for i, t in roof) + '"/>',
        f'<text x="{x(ridge):.1f}" y="{y(peak) - 8:.1f}">{peak:.2f} TOPS int8, {gb_per_s:.1f} GB/s</text>',
        f'<text x="{WIDTH / 2:.1f}" y="{HEIGHT - 16}" text-anchor="middle">operations a byte that must be read</text>',
        f'<text x="16" y="{HEIGHT / 2}" transform="rotate(-90 16 {HEIGHT / 2})" text-anchor="middle">TOPS</text>',
        f'<text x="{MARGIN}" y="24">{title}</text>',
    ]  # fmt: skip
    for p in points:
        color = "#0b6e4f" if p.is_ours else "#b3541e"
        at = f'cx="{x(p.intensity):.1f}" cy="{y(p.tops):.1f}"'
        shapes.append(f'<circle {at} r="5" fill="{color}"><title>{p.label}: {p.tops:.3f} TOPS</title></circle>')
        shapes.append(f'<text x="{x(p.intensity) + 8:.1f}" y="{y(p.tops) + 4:.1f}" fill="{color}">{p.label}</text>')
    body = "\n".join(shapes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
        f'font-size="11"><rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="what benchmarks.peers appended")
    parser.add_argument("--roofline", action="store_true", help="the picture, of the rows of the native tier")
    args = parser.parse_args()
    records = [record for path in args.results for record in read(path)]
    if args.roofline:
        rows = [r for r in latest(records)[0].values() if r["tier"] == "native"]
        print(roofline(rows, f"{rows[0]['cpu']}, {rows[0]['threads']} threads"), end="")
    else:
        print(summary(records), end="")


if __name__ == "__main__":
    main()
