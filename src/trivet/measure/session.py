"""A whole call of `trivet bench`: asks the targets, runs what is to be run, prints it, writes the record."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trivet.errors import ConfigError
from trivet.measure.bench import Bench, RunReport, choose_workers
from trivet.measure.capacity import Capacity, Trial, find_capacity
from trivet.measure.compare import Ratio, compare, compare_rates, order_of_rounds
from trivet.measure.job import BenchJob
from trivet.measure.plan import plan
from trivet.measure.probe import Probed, probe
from trivet.measure.record import capacity_record, header, ratio_record, run_record
from trivet.measure.report import (
    ProgressLine,
    print_capacity,
    print_comparison,
    print_round,
    print_run,
    print_sweep,
    print_trial,
)
from trivet.measure.results import Requests
from trivet.measure.slo import Slo
from trivet.measure.workers import Workers
from trivet.measure.workload import Workload

if TYPE_CHECKING:
    from rich.console import Console

DONE, FAILED, INTERRUPTED = 0, 1, 130
MIN_TRIAL_REQUESTS = 10
CONFIRM_LONGER = 2  # times the duration of a trial
SEEDS_A_RUN = 1000  # runs of one session take seeds from seed * this on


def run_session(job: BenchJob, *, command: Sequence[str], measure_limits: Callable[[], dict[str, Any]]) -> int:
    """Does the job; returns the exit status. `measure_limits` is only called for a record of a local target."""
    from rich.console import Console

    out = Console(file=sys.stderr if job.options.as_json else sys.stdout, soft_wrap=True, quiet=job.options.as_json)
    path, as_json = job.options.output, job.options.as_json
    if path is not None:
        _check_writable(path)
    for workload in job.workloads:
        plan(workload, job.seed)  # what is wrong with a trace shows before the first request
    targets = tuple(probe(target, asked) for target, asked in zip(job.targets, job.asked, strict=True))
    for workload in job.workloads:
        for probed in targets:
            planned = probed.plan(workload, job.seed)
            probed.check_fits(planned)
    session = Session(job, targets, out)
    record = header(command, job, targets)
    try:
        asyncio.run(session.run())
        record |= session.record()
        if (as_json or path) and all(probed.target.is_local for probed in targets) and not session.interrupted:
            _write(record, path)  # what was measured is kept, whatever comes of the rest
            record["limits"] = measure_limits()
    finally:  # also of a session that failed in the middle
        record |= session.record()
        _write(record, path)
        if as_json:
            print(json.dumps(record, indent=2))
    return session.status()


class Session:
    """What was run, and what came of it."""

    def __init__(self, job: BenchJob, targets: Sequence[Probed], out: Console) -> None:
        self.reports: list[RunReport] = []
        self.capacity: Capacity | None = None
        self.ratios: list[tuple[int, list[Ratio]]] = []  # (target, its ratios to the first)
        self.interrupted = False
        self.error: str | None = None  # what ended it before its time
        self._job, self._targets, self._out = job, targets, out

    async def run(self) -> None:
        """Runs everything; Ctrl-C ends it early, with what there is."""
        from rich.console import Console

        job = self._job
        workers = job.workers or max(choose_workers(w, plan(w, job.seed)) for w in job.workloads)
        if job.kind == "capacity" and job.workers is None:
            workers = len(os.sched_getaffinity(0))  # its rates are not known before
        line = ProgressLine(Console(file=sys.stderr))
        async with Workers(workers) as pool:
            bench = Bench(self._targets, pool, slo=job.slo, on_progress=line.show)
            loop = asyncio.get_running_loop()
            stopping: set[asyncio.Task[None]] = set()
            loop.add_signal_handler(signal.SIGINT, lambda: stopping.add(loop.create_task(bench.stop())))
            try:
                await {"run": self._run, "sweep": self._run, "capacity": self._search, "compare": self._compare}[
                    job.kind
                ](bench, line)
            except BaseException as error:
                self.error = str(error) or type(error).__name__
                raise
            finally:
                self.interrupted = bench.interrupted
                line.clear()
                loop.remove_signal_handler(signal.SIGINT)

    def status(self) -> int:
        """The exit status: 130 if interrupted, 1 if a run is invalid or the limits were missed."""
        if self.interrupted:
            return INTERRUPTED
        wanted = self._job.require
        missed = wanted is not None and any(
            r.figures.attainment is None or not r.figures.attainment.value >= wanted for r in self.reports
        )
        if self._job.kind == "capacity":  # trials beyond the capacity are meant to miss
            return DONE if self.capacity is not None and self.capacity.is_bounded else FAILED
        return FAILED if missed or not all(r.is_valid for r in self.reports) else DONE

    def record(self) -> dict[str, Any]:
        """The part of the JSON record that is about what was run."""
        record: dict[str, Any] = {
            "valid": bool(self.reports) and all(r.is_valid for r in self.reports) and self.error is None,
            "interrupted": self.interrupted,
            "error": self.error,
            "runs": [run_record(report) for report in self.reports],
        }
        if self.capacity is not None:
            record["capacity"] = capacity_record(self.capacity)
        if self.ratios:
            record["comparison"] = [
                {"a": 0, "b": target, "figures": [ratio_record(ratio) for ratio in ratios]}
                for target, ratios in self.ratios
            ]
        return record

    async def _measure(
        self, bench: Bench, line: ProgressLine, workload: Workload, seed: int, target: int
    ) -> RunReport | None:
        """One more run; None if Ctrl-C came before it."""
        words = self._job.words_seed * SEEDS_A_RUN + len(self.reports)  # of its own: nothing is in a prefix cache yet
        report = await bench.measure(workload, seed, target=target, prompts=words)
        line.clear()
        if report is not None:
            self.reports.append(report)
        return report

    async def _run(self, bench: Bench, line: ProgressLine) -> None:
        for workload in self._job.workloads:
            report = await self._measure(bench, line, workload, self._job.seed, 0)
            if report is not None:
                print_run(self._out, report, self._targets[0], self._job.slo)
            if bench.interrupted:
                break
        if self._job.kind == "sweep":
            print_sweep(self._out, self.reports, self._job.sweep_of)

    async def _search(self, bench: Bench, line: ProgressLine) -> None:
        [workload] = self._job.workloads
        slo, wanted = self._job.slo, self._job.attainment
        assert slo is not None

        async def measure(rate: float, confirming: bool) -> Trial | None:
            longer = CONFIRM_LONGER if confirming and workload.duration_s is not None else 1
            at_rate = replace(workload, rate=rate, duration_s=workload.duration_s and workload.duration_s * longer)
            seed = self._job.seed * SEEDS_A_RUN + len(self.reports)
            report = await self._measure(bench, line, at_rate, seed, 0)
            if report is None or bench.interrupted:
                return None
            trial = trial_of(report, rate, slo, confirming=confirming)
            print_trial(self._out, trial, wanted)
            return trial

        first = workload.rate or 1.0
        # a trial with fewer requests than that says nothing
        lowest = MIN_TRIAL_REQUESTS / workload.duration_s if workload.duration_s else 1e-3
        self.capacity = await find_capacity(
            measure, first_rate=max(first, lowest), wanted=wanted, lowest_rate=lowest, counts_sending=slo.counts_sending
        )
        print_capacity(self._out, self.capacity, slo)

    async def _compare(self, bench: Bench, line: ProgressLine) -> None:
        [workload] = self._job.workloads
        rounds: list[dict[int, RunReport]] = []
        try:
            for number, order in enumerate(order_of_rounds(len(self._targets), self._job.rounds)):
                rounds.append({})
                for target in order:
                    report = await self._measure(bench, line, workload, self._job.seed + number, target)
                    if report is None:
                        return
                    rounds[-1][target] = report
                    if bench.interrupted:
                        return
                    print_round(self._out, number + 1, report, self._targets[target])
        finally:  # what is whole is compared, whatever ended it
            await self._print_rounds(rounds)

    async def _print_rounds(self, rounds: Sequence[dict[int, RunReport]]) -> None:
        """The last run of each target, and the ratios over the rounds in which the client kept up with both."""
        last = {target: report for reports in rounds for target, report in reports.items()}
        for target, report in sorted(last.items()):
            print_run(self._out, report, self._targets[target], self._job.slo)
        for target in range(1, len(self._targets)):
            pairs = [(r[0], r[target]) for r in rounds if {0, target} <= r.keys()]
            pairs = [pair for pair in pairs if all(map(is_comparable, pair))]
            if not pairs:
                continue
            a, b = zip(*pairs, strict=True)
            rng = np.random.default_rng(self._job.seed)
            ratios = await asyncio.to_thread(compare, [counted(r) for r in a], [counted(r) for r in b], rng)
            ratios += compare_rates([r.figures for r in a], [r.figures for r in b])
            self.ratios.append((target, ratios))
            names = [self._targets[i].target.url for i in (0, target)]
            print_comparison(self._out, names[0], names[1], ratios)


def trial_of(report: RunReport, rate: float, slo: Slo, *, confirming: bool) -> Trial:
    """The run as a step of a search."""
    requests = counted(report)
    met = slo.met(requests)
    late = met[len(met) // 2 :]
    return Trial(
        rate=rate,
        attainment=float(met.mean()) if len(met) else 0.0,
        attainment_late=float(late.mean()) if len(late) else 0.0,
        is_valid=not report.client.problems,
        is_confirmation=confirming,
    )


def is_comparable(report: RunReport) -> bool:
    """Whether the run is whole and its client kept up; a target that answered nothing is one that can be compared."""
    return not (report.interrupted or report.client.problems)


def counted(report: RunReport) -> Requests:
    """The requests after the warm-up."""
    return report.requests.where(report.requests["intended_s"] >= report.workload.warmup_s)


def _check_writable(path: Path) -> None:
    if not path.parent.is_dir():
        raise ConfigError(f"`--output` is {str(path)!r}, but there is no folder {path.parent}")
    try:
        path.open("a").close()
    except OSError as error:
        raise ConfigError(f"`--output` is {str(path)!r}, which cannot be written: {error.strerror}") from None


def _write(record: dict[str, Any], path: Path | None) -> None:
    if path is not None:
        path.write_text(json.dumps(record, indent=2) + "\n")
