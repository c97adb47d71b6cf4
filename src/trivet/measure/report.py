"""A run for people: tables, and a line that says how far it is. Everything goes to a rich console."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from trivet.measure.bench import RunReport
from trivet.measure.capacity import Capacity, Trial
from trivet.measure.compare import Ratio
from trivet.measure.messages import Progress
from trivet.measure.metrics import QUANTILES, Latency
from trivet.measure.plan import Plan
from trivet.measure.probe import Probed
from trivet.measure.slo import Slo
from trivet.measure.statistics import Estimate
from trivet.measure.units import show_seconds
from trivet.measure.workload import Workload

if TYPE_CHECKING:
    from rich.console import Console


SHOWN: dict[str, Callable[[float], str]] = {  # by a ratio's kind
    "time": show_seconds,
    "share": lambda value: f"{value:.1%}",
    "rate": lambda value: f"{value:,.4g}",
}


def describe(workload: Workload) -> str:
    """The load in words: `open loop, poisson, 4 requests/s, 256 -> 64 tokens`."""
    lengths = f"{workload.input} -> {workload.output} tokens"
    if workload.trace is not None:
        scale = "" if workload.rate is None else f" at {workload.rate:g} requests/s"
        lengths = workload.trace.path.name + scale
    if workload.concurrency is not None:
        return f"closed loop, {workload.concurrency} at once, {lengths}"
    if workload.trace is not None:
        return f"open loop, {lengths}"
    changing = ""
    if workload.ramp_to is not None:
        changing = f" to {workload.ramp_to:g}"
    if workload.spike is not None:
        changing = f", {workload.spike:g} times that for {workload.spike_for_s:g} s"
    turns = f", chats of {workload.turns} turns" if workload.turns > 1 else ""
    return f"open loop, {workload.process}, {workload.rate:g}{changing} requests/s, {lengths}{turns}"


class ProgressLine:
    """One line on a terminal that is written over; nothing elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began_s = time.monotonic()
        self._shown = False

    def show(self, planned: Plan, progress: Progress) -> None:
        """How far the run is."""
        if not self._console.is_terminal:
            return
        known = f" of {planned.num_requests:,}" if planned.span_s else ""
        running = progress.sent - progress.done
        failed = f", {progress.failed:,} failed" if progress.failed else ""
        text = (
            f"{time.monotonic() - self._began_s:4.0f} s: {progress.sent:,}{known} sent, {running:,} in flight, "
            f"{progress.done:,} done{failed}, {progress.tokens:,} tokens"
        )
        self._console.file.write(f"\r\x1b[2K{text}")
        self._console.file.flush()
        self._shown = True

    def clear(self) -> None:
        if self._shown:
            self._console.file.write("\r\x1b[2K")
            self._shown = False


def print_run(console: Console, report: RunReport, probed: Probed, slo: Slo | None) -> None:
    """One run: latencies with their intervals, throughput, failures, the client, and the verdict."""
    from rich.markup import escape
    from rich.table import Table

    figures = report.figures
    name, url = escape(probed.model.name), escape(probed.target.url)
    console.print(f"[bold]{name}[/] at {url}: {escape(describe(report.workload))}", highlight=False)
    table = Table("", *(f"p{100 * q:.0f}" for q in QUANTILES), "mean", box=None, header_style="bold", pad_edge=False)
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for name, latency in (("TTFT", figures.ttft), ("ITL", figures.itl), ("TPOT", figures.tpot), ("E2E", figures.e2e)):
        table.add_row(name, *(_cell(e) for e in latency.quantiles), show_seconds(latency.mean))
    console.print(table, highlight=False)
    for line in [*_amounts(report), *_service(report, slo), *_client(report), *_remarks(report)]:
        console.print(line, highlight=False, markup=False)
    _print_verdict(console, report)


def print_sweep(console: Console, reports: Sequence[RunReport], name: str) -> None:
    """One row for each run."""
    from rich.table import Table

    heads = (name, "answered", "TTFT p50", "p99", "ITL p50", "p99", "tok/s out", "attained", "")
    table = Table(*heads, box=None, header_style="bold", pad_edge=False)
    for column in table.columns:
        column.justify, column.no_wrap = "right", True
    for report in reports:
        figures = report.figures
        value = report.workload.rate if name == "rate" else report.workload.concurrency
        table.add_row(
            f"{value:g}",
            f"{figures.num_ok:,}/{figures.num_requests:,}",
            *(_p50_p99(figures.ttft)),
            *(_p50_p99(figures.itl)),
            f"{figures.whole.rate(figures.whole.output_tokens):,.1f}",
            "-" if figures.attainment is None else f"{figures.attainment.value:.1%}",
            "" if report.is_valid else "INVALID",
        )
    console.print(table, highlight=False)


def print_trial(console: Console, trial: Trial, wanted: float) -> None:
    """One step of a search."""
    verdict = "enough" if trial.passes(wanted) else "not enough"
    kind = "confirm" if trial.is_confirmation else "try"
    late = f"second half {trial.attainment_late:.1%}"
    console.print(
        f"{kind:>8} {trial.rate:8.3g} requests/s: {trial.attainment:.1%} attained, {late}: {verdict}", highlight=False
    )


def print_capacity(console: Console, capacity: Capacity, slo: Slo) -> None:
    """What the search found."""
    at = f"at {capacity.wanted:.0%} attainment of {slo}"
    if capacity.rate is None and not capacity.is_bounded:
        console.print("[bold]capacity: not known[/]", highlight=False)
    elif capacity.rate is None:
        console.print(f"[bold]capacity: none[/] {at}: the lowest rate was too high", highlight=False)
    else:
        sign = "" if capacity.is_bounded else "at least "
        console.print(f"[bold]capacity: {sign}{capacity.rate:.3g} requests/s[/] {at}", highlight=False)
    if capacity.because:
        console.print(capacity.because, highlight=False)


def print_round(console: Console, number: int, report: RunReport, probed: Probed) -> None:
    """A round of a comparison, and why it is left out if it is."""
    because = "; ".join(report.client.problems)
    verdict = f": INVALID, left out: {because}" if because else ""
    console.print(f"round {number}, {probed.target.url}{verdict}", highlight=False, markup=False)


def print_comparison(console: Console, name_a: str, name_b: str, ratios: Sequence[Ratio]) -> None:
    """The ratios of B to A."""
    from rich.markup import escape
    from rich.table import Table

    console.print(f"[bold]B[/] {escape(name_b)}  over  [bold]A[/] {escape(name_a)}", highlight=False)
    table = Table("", "A", "B", "B/A", "95 % interval", "", box=None, header_style="bold", pad_edge=False)
    for column in table.columns[1:5]:
        column.justify, column.no_wrap = "right", True
    for r in ratios:
        show = SHOWN[r.kind]
        label = r.name.upper().replace(" P", " p") if r.kind == "time" else r.name
        known = not math.isnan(r.ratio)
        ratio, interval = (f"{r.ratio:.3f}", f"{r.low:.3f} to {r.high:.3f}") if known else ("-", "-")
        table.add_row(label, show(r.a), show(r.b), ratio, interval, r.verdict)
    console.print(table, highlight=False)


def _cell(estimate: Estimate) -> str:
    """The value, and below it the interval."""
    if math.isnan(estimate.value):
        return "-"
    return f"{show_seconds(estimate.value)}\n[dim]{_range(estimate)}[/]"


def _range(estimate: Estimate) -> str:
    """`41.2..44.0 ms`: both ends in the unit of the upper one."""
    _, _, unit = show_seconds(estimate.high).rpartition(" ")
    factor = {"s": 1.0, "ms": 1e3, "us": 1e6}[unit]
    return f"{estimate.low * factor:.3g}..{estimate.high * factor:.3g} {unit}"


def _p50_p99(latency: Latency) -> tuple[str, str]:
    return show_seconds(latency.at(0.5).value), show_seconds(latency.at(0.99).value)


def _amounts(report: RunReport) -> list[str]:
    figures, whole = report.figures, report.figures.whole
    lines = [
        f"longest: TTFT {show_seconds(figures.ttft.longest)}, ITL {show_seconds(figures.itl.longest)}, "
        f"E2E {show_seconds(figures.e2e.longest)}",
        f"throughput: {whole.rate(whole.output_tokens):,.1f} output tokens/s, "
        f"{whole.rate(whole.input_tokens):,.1f} input tokens/s, {whole.rate(whole.requests):.3g} requests/s "
        f"over {whole.end_s - whole.begin_s:.1f} s",
        f"requests: {figures.num_requests:,} after {report.workload.warmup_s:g} s of warm-up, "
        f"{figures.num_ok:,} answered{_offered(report)}",
    ]
    for kind, num in figures.failures.items():
        example = f" ({report.examples[kind]})" if kind in report.examples else ""
        lines.append(f"  {kind}: {num:,}{example}")
    return lines


def _offered(report: RunReport) -> str:
    """The rate that requests were meant to come at, beside the one that was asked for."""
    offered, load = report.figures.offered, report.workload
    if offered is None or math.isnan(offered):
        return ""
    wished = "" if load.rate is None or load.ramp_to or load.spike else f" of {load.rate:g}"
    return f"; {offered:.3g}{wished} requests/s offered"


def _service(report: RunReport, slo: Slo | None) -> list[str]:
    attainment, goodput = report.figures.attainment, report.figures.goodput
    if slo is None or attainment is None or goodput is None or math.isnan(attainment.value):
        return []
    return [
        f"attainment: {attainment.value:.1%} ({attainment.low:.1%} to {attainment.high:.1%}) met {slo}, "
        f"goodput {goodput:.3g} requests/s"
    ]


def _client(report: RunReport) -> list[str]:
    client = report.client
    processes = "process" if client.num_workers == 1 else "processes"
    return [
        f"client: {client.num_workers} {processes}, {client.cpu_share:.0%} of a core, sent "
        f"{show_seconds(client.sending_lag_s[-1])} late and looked {show_seconds(client.loop_lag_s[-1])} late at p99"
    ]


def _remarks(report: RunReport) -> list[str]:
    return [f"note: {note}" for note in report.notes]


def _print_verdict(console: Console, report: RunReport) -> None:
    if report.interrupted:
        console.print("[bold yellow]interrupted[/]: the figures are of what ran", highlight=False)
    if not report.figures.num_ok:
        console.print("[bold red]INVALID[/]: no request was answered", highlight=False)
    for problem in report.client.problems:
        console.print(f"[bold red]INVALID[/]: {problem}", highlight=False)
