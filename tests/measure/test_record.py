"""Small things of the record and of the frames between processes."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from trivet.measure.messages import Frames, Progress, Stop, frame
from trivet.measure.plan import Plan
from trivet.measure.record import redacted
from trivet.measure.report import ProgressLine, describe
from trivet.measure.workload import TraceChoice, Workload


def test_secrets_are_not_recorded() -> None:
    command = ["trivet", "bench", "http://me:secret@h/v1", "--api-key", "secret", "--api-key=secret", "--rate", "4"]
    shown = redacted(command)
    assert "secret" not in " ".join(shown)
    assert shown == ["trivet", "bench", "http://***@h/v1", "--api-key", "***", "--api-key=***", "--rate", "4"]


@pytest.mark.parametrize("size", [1, 3, 9, 1000])
def test_frames_may_come_in_pieces(size: int) -> None:
    stream = frame(Stop(cut=True)) + frame(Progress(1, 2, 3, 4))
    frames, bodies = Frames(), []
    for i in range(0, len(stream), size):
        bodies += list(frames.feed(stream[i : i + size]))
    assert [frame_body in stream for frame_body in bodies] == [True, True]


def test_a_progress_line_is_for_terminals() -> None:
    planned = Plan(jobs=[], num_requests=200, span_s=10.0, mean_output=1.0, longest=1)
    for is_terminal in (True, False):
        out = io.StringIO()
        line = ProgressLine(Console(file=out, force_terminal=is_terminal))
        line.show(planned, Progress(sent=50, done=40, failed=2, tokens=1234))
        line.clear()
        assert ("50 of 200 sent, 10 in flight, 40 done, 2 failed, 1,234 tokens" in out.getvalue()) is is_terminal


@pytest.mark.parametrize(
    ("workload", "words"),
    [
        (Workload(rate=4.0), "open loop, poisson, 4 requests/s, 256 -> 64 tokens"),
        (Workload(rate=4.0, ramp_to=9.0), "open loop, poisson, 4 to 9 requests/s, 256 -> 64 tokens"),
        (Workload(rate=4.0, spike=10.0), "4, 10 times that for 60 s requests/s"),
        (Workload(rate=4.0, turns=3), "chats of 3 turns"),
        (Workload(concurrency=8), "closed loop, 8 at once, 256 -> 64 tokens"),
    ],
)
def test_a_load_in_words(workload: Workload, words: str) -> None:
    assert words in describe(workload)


def test_a_trace_in_words(tmp_path: object) -> None:
    from pathlib import Path

    trace = TraceChoice(path=Path("folder/azure.csv"))
    assert describe(Workload(trace=trace)) == "open loop, azure.csv"
    assert describe(Workload(trace=trace, rate=3.0)) == "open loop, azure.csv at 3 requests/s"
    assert describe(Workload(trace=trace, concurrency=2)) == "closed loop, 2 at once, azure.csv"
