"""One measured run after another, on one or more targets."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trivet.measure.messages import Job, Progress, Run
from trivet.measure.metrics import Figures, figures_of
from trivet.measure.outcomes import Outcome
from trivet.measure.plan import Plan
from trivet.measure.probe import Probed
from trivet.measure.results import Requests
from trivet.measure.slo import Slo
from trivet.measure.validity import ClientState, client_state, notes_of
from trivet.measure.workers import Workers, deal
from trivet.measure.workload import Workload

REQUEST_COST_S = 400e-6  # of client CPU, measured generously
EVENT_COST_S = 60e-6
WORKER_SHARE = 0.5  # of a core, that a worker is planned to use


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """A run: what was asked for, what came of it, and what must be known to believe it."""

    target: int
    workload: Workload
    seed: int
    planned: Plan
    figures: Figures
    client: ClientState
    notes: tuple[str, ...]
    examples: dict[str, str]  # kind of failure -> what the first such request was told
    interrupted: bool
    requests: Requests

    @property
    def is_valid(self) -> bool:
        """Whether the client may be believed, and something was answered."""
        return not self.client.problems and self.figures.num_ok > 0


OnProgress = Callable[[Plan, Progress], None]


class Bench:
    """Runs workloads on targets. `stop` ends the run that is on early, and all that would follow."""

    def __init__(
        self,
        targets: Sequence[Probed],
        workers: Workers,
        *,
        slo: Slo | None = None,
        on_progress: OnProgress = lambda planned, progress: None,
    ) -> None:
        self.targets = targets
        self.interrupted = False
        self._workers = workers
        self._slo = slo
        self._on_progress = on_progress
        self._is_set_up = False

    async def measure(
        self, workload: Workload, seed: int, *, target: int = 0, prompts: int | None = None
    ) -> RunReport | None:
        """One run; None if it was stopped before it began.

        `prompts` is the seed of the prompts' words, if it is not that of the times and lengths.
        """
        if not self._is_set_up:
            for number, probed in enumerate(self.targets):
                await self._workers.set_up(probed.setup(number))
            self._is_set_up = True
        probed = self.targets[target]
        planned = probed.plan(workload, seed)
        probed.check_fits(planned)
        runs = self._shares(workload, planned, target, seed if prompts is None else prompts)
        measured = await self._workers.run(runs, lambda progress: self._on_progress(planned, progress))
        if measured is None:
            return None
        requests, results = measured.requests, measured.results
        bounded = workload.rate is not None and workload.trace is None and workload.num_requests is None
        sending_s = workload.duration_s if bounded and not self.interrupted else None
        figures = figures_of(
            requests, workload.warmup_s, self._slo, sending_s=sending_s, is_closed=workload.concurrency is not None,
            seed=seed,
        )  # fmt: skip
        client = client_state(results, requests, figures, workload.warmup_s)
        return RunReport(
            target=target,
            workload=workload,
            seed=seed,
            planned=planned,
            figures=figures,
            client=client,
            notes=(
                *probed.notes,
                *notes_of(results, requests, figures, planned, is_late=bool(client.problems)),
            ),
            examples={Outcome(kind).name: text for r in reversed(results) for kind, text in r.examples.items()},
            interrupted=self.interrupted,
            requests=requests,
        )

    async def stop(self) -> None:
        """The first time: sends nothing more, but waits for what runs. The second time: cuts that off, too."""
        cut, self.interrupted = self.interrupted, True
        await self._workers.stop(cut=cut)

    def _shares(self, workload: Workload, planned: Plan, target: int, seed: int) -> list[Run]:
        """What each worker does of the whole."""
        num = self._workers.num
        hands = deal(planned.jobs, num)
        limit = workload.num_requests
        stop_s = None if workload.duration_s is None else workload.end_s
        if workload.concurrency is None:
            return [
                Run(
                    target,
                    seed,
                    workload.warmup_s,
                    hand,
                    stop_s=stop_s,
                    limit=None if limit is None else _num_counted(hand, workload.warmup_s),
                )
                for hand in hands
            ]
        places = workload.concurrency
        ends = [places * (i + 1) // num for i in range(num)]
        return [
            Run(
                target,
                seed,
                workload.warmup_s,
                hand or planned.jobs,
                end - begin,
                stop_s,
                None if limit is None else limit * end // places - limit * begin // places,
            )
            for hand, begin, end in zip(hands, [0, *ends], ends, strict=False)
        ]


def _num_counted(jobs: Sequence[Job], warmup_s: float) -> int:
    """Requests of the jobs that begin after the warm-up."""
    return sum(len(job.turns) for job in jobs if job.turns[0].at_s >= warmup_s)


def choose_workers(workload: Workload, planned: Plan) -> int:
    """How many client processes the load needs, at most one a core."""
    cores = len(os.sched_getaffinity(0))
    if workload.concurrency is not None:
        return min(cores, 1 + workload.concurrency // 256, workload.concurrency)
    peak = 0.0 if workload.trace is not None else workload.profile().peak * workload.turns
    share = max(planned.rate, peak) * (REQUEST_COST_S + planned.mean_output * EVENT_COST_S)
    return max(1, min(cores, math.ceil(share / WORKER_SHARE)))
