"""Whole sessions: chats, closed loops, sweeps, searches, comparisons, stops."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench_driving import QUICK, all_notes, bench, only_run

from trivet.errors import ConfigError
from trivet.measure.client import Address
from trivet.measure.job import job_from
from trivet.measure.messages import Dialect, Job, Run, Setup, Turn
from trivet.measure.options import Options
from trivet.measure.session import run_session
from trivet.measure.workers import WorkerDied, Workers

Scripted = Callable[..., str]
FLAGS = ["--rate", "40", "--warmup", "0", "--input-tokens", "20", "--output-tokens", "8"]


def test_a_chat_begins_with_all_that_was_said(tmp_path: Path, scripted: Scripted) -> None:
    url = scripted(token_ids=True, itl_s=0.001)
    run = only_run(tmp_path, url, turns=3, think_time="20ms", input_tokens="10")
    assert run["answered"] == run["requests"] == run["planned"]["requests"]
    assert "wished length" not in all_notes(run), "10, then 10 + 8 + 10, then 28 + 8 + 10 tokens, by the server's count"
    assert run["throughput"]["input_tokens_per_s"] * run["throughput"]["seconds"] == pytest.approx(
        run["requests"] / 3 * (10 + 28 + 46), rel=1e-3
    )


def test_a_chat_without_ids_goes_on_with_others(tmp_path: Path, scripted: Scripted) -> None:
    run = only_run(tmp_path, scripted(refuse=["return_token_ids"]), turns=2, tokenizer=[_demo()])
    assert run["answered"] == run["requests"]
    assert any("chats go on with made-up answers" in note for note in run["notes"])
    assert "wished length" not in all_notes(run)


def test_chats_of_messages(tmp_path: Path, scripted: Scripted) -> None:
    run = only_run(tmp_path, scripted(), turns=2, endpoint="chat", tokenizer=[_demo()])
    assert run["answered"] == run["requests"]


def test_chats_that_think_offer_less_than_the_rate(tmp_path: Path, scripted: Scripted) -> None:
    run = only_run(tmp_path, scripted(), turns=4, think_time="400ms", slo="e2e=20s")
    assert run["offered_requests_per_s"] == pytest.approx(run["requests"], rel=1e-3), "in one second"
    assert run["goodput_requests_per_s"] == run["offered_requests_per_s"] < 0.8 * run["load"]["rate"]
    assert run["requests"] <= run["planned"]["requests"], "nothing is sent after the end"
    assert "later turns of chats are beyond the run's end" in all_notes(run)


def test_a_chat_that_fails_loses_its_other_turns(tmp_path: Path, scripted: Scripted) -> None:
    run = only_run(tmp_path, scripted(status_every=2), turns=4, requests=40, duration=None, slo="e2e=20s")
    assert run["requests"] == 40 == run["answered"] + run["failures"]["http_429"] + run["failures"]["abandoned"]
    assert run["attainment"]["value"] == pytest.approx(run["answered"] / 40)
    assert f"{run['failures']['abandoned']} later turns were not sent, as their chat had failed" in all_notes(run)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_number_of_requests_of_chats_is_exact(tmp_path: Path, scripted: Scripted, workers: int) -> None:
    run = only_run(tmp_path, scripted(), turns=4, requests=10, duration=None, warmup="0.2s", workers=workers)
    assert run["requests"] == run["answered"] == 10
    closed = only_run(tmp_path, scripted(), rate=0, concurrency=2, turns=4, requests=10, duration=None)
    assert closed["requests"] == 10


def test_a_closed_loop(tmp_path: Path, scripted: Scripted) -> None:
    run = only_run(tmp_path, scripted(ttft_s=[0.05]), rate=0, concurrency=3, requests=30, duration=None)
    assert run["answered"] == run["requests"] == 30
    assert run["goodput_requests_per_s"] is None and run["planned"]["requests_per_s"] is None
    timed = only_run(tmp_path, scripted(ttft_s=[0.05]), rate=0, concurrency=3, duration="0.5s", workers=2)
    assert timed["client"]["workers"] == 2 and 3 <= timed["requests"] <= 33


def test_a_closed_loop_takes_its_jobs_again(
    tmp_path: Path, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trivet.measure.plan.CLOSED_LOOP_JOBS", 4)
    run = only_run(tmp_path, scripted(), rate=0, concurrency=2, requests=30, duration=None)
    assert run["answered"] == 30


def test_more_workers_than_places(tmp_path: Path, scripted: Scripted) -> None:
    run = only_run(tmp_path, scripted(ttft_s=[0.02]), rate=0, concurrency=1, requests=6, duration=None, workers=3)
    assert run["answered"] == run["requests"] == 6


def test_several_workers_share_a_load(tmp_path: Path, scripted: Scripted) -> None:
    run = only_run(tmp_path, scripted(itl_s=0.001), workers=3)
    assert run["client"]["workers"] == 3
    assert run["answered"] == run["requests"] == run["planned"]["requests"]


def test_bodies_beyond_the_budget_are_made_later(tmp_path: Path, scripted: Scripted) -> None:
    """The budget is of the worker process; here it is not reached, so the load itself is driven."""
    from trivet.measure import load
    from trivet.measure.bodies import BodyMaker
    from trivet.measure.client import ConnectionCounts
    from trivet.measure.messages import Dialect
    from trivet.measure.outcomes import Exchange, Outcome

    sent: list[bytes] = []

    class Echo:
        counts = ConnectionCounts()

        def send(self, exchange: Exchange) -> None:
            sent.append(exchange.body)
            exchange.sent_s = exchange.first_s = exchange.last_s = time.monotonic()
            exchange.outcome = Outcome.ok
            asyncio.get_running_loop().call_soon(running[0].exchange_done, exchange)

        def cut_all(self) -> None: ...

    running: list[load.Load] = []

    async def drive(budget: int) -> list[bytes]:
        sent.clear()
        load.READY_BYTES = budget
        ended = asyncio.Event()
        jobs = [Job(i, [Turn(4, [(-1 - i, 50)], i * 0.002)]) for i in range(20)]
        maker = BodyMaker(Dialect("completions", "ids", [b"1", b"2"], b'"model":"m"'), 0)
        running[:] = [load.Load(asyncio.get_running_loop(), Run(0, 0, 0.0, jobs), Echo(), maker, ended.set)]
        running[0].start(time.monotonic())
        await asyncio.wait_for(ended.wait(), 20)
        return list(sent)

    before = load.READY_BYTES
    try:
        assert asyncio.run(drive(1 << 20)) == asyncio.run(drive(300))
        assert len(sent) == 20
    finally:
        load.READY_BYTES = before


def test_a_trace(tmp_path: Path, scripted: Scripted) -> None:
    lines = ["time_s,input_tokens,output_tokens", *(f"{i / 20},{10 + i},{2 + i % 5}" for i in range(20))]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    run = only_run(tmp_path, scripted(), rate=0, trace=tmp_path / "t.csv", duration=None, warmup=None)
    assert run["answered"] == run["requests"] == 20
    assert "wished length" not in all_notes(run)
    assert run["load"]["trace"]["path"].endswith("t.csv")
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["trace_sha256"] == hashlib.sha256((tmp_path / "t.csv").read_bytes()).hexdigest()


def test_texts_of_a_trace(tmp_path: Path, scripted: Scripted) -> None:
    rows = [{"time_s": i / 10, "prompt": f"say {i}", "output_tokens": 4} for i in range(5)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = only_run(tmp_path, scripted(), rate=0, trace=tmp_path / "t.jsonl", duration=None)
    assert run["answered"] == 5


def test_a_bad_trace_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("time_s,input_tokens,output_tokens\n0,1,1\n0,x,1\n")
    with pytest.raises(ConfigError, match=r"t\.csv:3: `input_tokens` is 'x'"):
        bench(tmp_path, "127.0.0.1:9", rate=0, trace=tmp_path / "t.csv")


def test_a_sweep(tmp_path: Path, scripted: Scripted, capsys: pytest.CaptureFixture[str]) -> None:
    _, record = bench(tmp_path, scripted(), rate=0, sweep="rate=20,40")
    assert [run["load"]["rate"] for run in record["runs"]] == [20, 40]
    assert "tok/s out" in capsys.readouterr().out
    _, record = bench(tmp_path, scripted(ttft_s=[0.05]), rate=0, sweep="concurrency=1,2", duration="0.4s")
    assert [run["load"]["concurrency"] for run in record["runs"]] == [1, 2]


def test_a_search_for_capacity(
    tmp_path: Path, scripted: Scripted, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit of 1 us is met by nobody, so the search goes down until a trial would hold too few requests."""
    monkeypatch.setattr("trivet.measure.validity.ALLOWED_S", 60.0)  # the machine may be busy
    status, record = bench(tmp_path, scripted(), find_capacity=True, slo="ttft=1us", duration="0.5s")
    assert [trial["rate"] for trial in record["capacity"]["trials"]] == [40, 20]
    assert record["capacity"]["requests_per_s"] is None and status == 0
    assert record["capacity"]["because"] == "rates below 20 requests/s were not tried"
    out = capsys.readouterr().out
    assert "0.0% attained" in out and "capacity: none" in out


def test_a_comparison(
    tmp_path: Path, scripted: Scripted, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trivet.measure.validity.ALLOWED_S", 60.0)  # the machine may be busy
    urls = [scripted(ttft_s=[0.1], itl_s=itl_s) for itl_s in (0.02, 0.06)]
    _, record = bench(tmp_path, urls[0], compare=[urls[1]], rounds=2, duration="0.5s")
    assert [run["target"] for run in record["runs"]] == [0, 1, 1, 0]
    [comparison] = record["comparison"]
    by_name = {figure["figure"]: figure for figure in comparison["figures"]}
    assert by_name["tpot p50"]["ratio"] > 1.5
    assert by_name["answered"]["verdict"] == "no difference"
    assert by_name["output tokens/s"]["ratio"] < 1
    assert "over  A" in capsys.readouterr().out


def test_rounds_in_which_the_client_was_late_are_left_out(
    tmp_path: Path, scripted: Scripted, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trivet.measure.validity.MAX_CPU_SHARE", -1.0)
    url = scripted()
    _, record = bench(tmp_path, url, compare=[url], rounds=1, duration="1s")
    assert "comparison" not in record
    assert capsys.readouterr().out.count(": INVALID, left out: ") == 2


def test_what_was_measured_outlives_a_worker_that_dies(
    tmp_path: Path, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trivet.measure import session

    class Dying(session.Bench):
        num = 0

        async def measure(self, *args: Any, **kwargs: Any) -> Any:
            self.num += 1
            if self.num == 4:
                raise WorkerDied("a worker process ended")
            return await super().measure(*args, **kwargs)

    monkeypatch.setattr(session, "Bench", Dying)
    monkeypatch.setattr("trivet.measure.validity.ALLOWED_S", 60.0)  # the machine may be busy
    url = scripted()
    with pytest.raises(WorkerDied):
        bench(tmp_path, url, compare=[url], rounds=3, duration="0.5s")
    record = json.loads((tmp_path / "record.json").read_text())
    assert len(record["runs"]) == 3 and not record["valid"]
    assert record["error"] == "a worker process ended"
    assert len(record["comparison"]) == 1, "of the first round"


def test_the_record_is_written_before_the_machine_is_measured(tmp_path: Path, scripted: Scripted) -> None:
    path = tmp_path / "record.json"

    def no_limits() -> dict[str, Any]:
        assert len(json.loads(path.read_text())["runs"]) == 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_session(
            job_from(Options(target=scripted(), output=path, rate=40.0, duration="0.5s", input_tokens="20")),
            command=[],
            measure_limits=no_limits,
        )
    assert len(json.loads(path.read_text())["runs"]) == 1


def test_names_may_hold_brackets(tmp_path: Path, scripted: Scripted, capsys: pytest.CaptureFixture[str]) -> None:
    bench(tmp_path, scripted(models=["[m/]"]), duration="0.5s")
    assert "[m/] at http" in capsys.readouterr().out


def test_the_record_says_how_to_have_it_again(tmp_path: Path, scripted: Scripted) -> None:
    url = scripted(key="sesame")
    _, record = bench(tmp_path, url, seed=7, api_key="sesame", body='{"top_p": 0.5}', slo="ttft=1s")
    assert record["command"] == ["trivet", "bench", url] and record["seed"] == 7
    assert record["limits"] == {"measured": {"threads": 1}}, "the target is local"
    assert record["slo"] == {"limits_s": {"ttft": 1.0}}
    assert {"trivet", "python", "uvloop", "numpy"} <= set(record["versions"])
    assert record["host"]["cores"] >= 1
    assert record["words_seed"] == 7 and record["trace_sha256"] is None
    assert record["targets"][0]["tokenizer"] is None, "the server told its ids"
    assert '"top_p":0.5' in record["targets"][0]["body"]
    assert "sesame" not in json.dumps(record)
    assert record["runs"][0]["load"]["rate"] == 40


def test_json_is_alone_on_stdout(tmp_path: Path, scripted: Scripted, capsys: pytest.CaptureFixture[str]) -> None:
    bench(tmp_path, scripted(), as_json=True)
    assert json.loads(capsys.readouterr().out)["bench"] == "load"


def test_tables_for_people(tmp_path: Path, scripted: Scripted, capsys: pytest.CaptureFixture[str]) -> None:
    bench(tmp_path, scripted(itl_s=0.002, status_every=5), slo="ttft=1us", require=0.9)
    out = capsys.readouterr().out
    for part in (
        "TTFT",
        "ITL",
        "TPOT",
        "E2E",
        "output tokens/s",
        "http_429",
        "attainment: 0.0%",
        "of 40 requests/s offered",
        "longest: TTFT",
        "client: 1 process",
    ):
        assert part in out, part


def test_limits_that_are_required(tmp_path: Path, scripted: Scripted) -> None:
    assert bench(tmp_path, scripted(), slo="ttft=1us", require=0.9)[0] == 1


def test_no_folder_for_the_record(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no folder"):
        bench(tmp_path / "absent", "127.0.0.1:9")


def test_a_folder_is_no_file_for_the_record(tmp_path: Path) -> None:
    (tmp_path / "record.json").mkdir()
    with pytest.raises(ConfigError, match="cannot be written: Is a directory"):
        bench(tmp_path, "127.0.0.1:9")


# --- stops --------------------------------------------------------------------------------------------------------


def command(url: str, *flags: str) -> subprocess.Popen[str]:
    """`trivet bench` as a process of its own."""
    call = [sys.executable, "-m", "trivet.cli.main", "bench", url, *FLAGS, *flags]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def wait_for_load(url: str) -> None:
    """Until the server has got a few requests of the run."""
    import httpx

    end = time.monotonic() + 30
    while httpx.get(f"{url}/stats").json()["completions"] < 5:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_ctrl_c_reports_what_ran(tmp_path: Path, scripted: Scripted) -> None:
    url, path = scripted(itl_s=0.02), tmp_path / "record.json"
    with command(url, "--duration", "60s", "--output", str(path)) as process:
        wait_for_load(url)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    record = json.loads(path.read_text())
    [run] = record["runs"]
    assert record["interrupted"] and run["answered"] >= 5 and run["cut"] == 0, "what ran was waited for"
    assert "were never sent" in all_notes(run) and "interrupted" in out
    assert "limits" not in record, "whoever stops it does not want to wait"


def test_ctrl_c_twice_stops_at_once(tmp_path: Path, scripted: Scripted) -> None:
    url, path = scripted(ttft_s=[60.0]), tmp_path / "record.json"
    with command(url, "--duration", "60s", "--output", str(path)) as process:
        wait_for_load(url)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 130
    [run] = json.loads(path.read_text())["runs"]
    assert run["cut"] == run["requests"] >= 5 and run["failures"] == {}


def test_a_stop_before_a_run_is_not_lost() -> None:
    async def stopped() -> Any:
        dialect = Dialect("completions", "ids", [b"1"], b'"model":"m"')
        address = Address(host="127.0.0.1", port=9, tls=False, server_name="127.0.0.1")
        async with Workers(1) as workers:
            await workers.set_up(Setup(0, address, b"", 1.0, dialect))
            await workers.stop()
            return await workers.run([Run(0, 0, 0.0, [Job(0, [Turn(4, [(-1, 5)], 60.0)])])])

    assert asyncio.run(stopped()) is None


def test_a_worker_that_dies_is_an_error() -> None:
    async def kill_one() -> None:
        async with Workers(2) as workers:
            os.kill(workers.pids[0], signal.SIGKILL)
            await workers.run([Run(0, 0, 0.0, [])] * 2)

    with pytest.raises(WorkerDied):
        asyncio.run(kill_one())


def test_a_worker_that_fails_says_why() -> None:
    async def ask_for_nothing() -> None:
        async with Workers(1) as workers:
            await workers.run([Run(7, 0, 0.0, [])])  # a target that nobody has set up

    with pytest.raises(WorkerDied, match="a worker process failed: KeyError: 7"):
        asyncio.run(ask_for_nothing())


def test_workers_end_with_their_parent(scripted: Scripted) -> None:
    import psutil

    url = scripted(itl_s=0.02)
    with command(url, "--duration", "60s") as process:
        wait_for_load(url)
        children = psutil.Process(process.pid).children()
        assert children
        process.kill()
        _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def _demo() -> Path:
    import trivet

    return Path(trivet.__file__).parent / "bundled" / "demo"


def test_quick_is_quick() -> None:
    assert QUICK["duration"] == "1s"
