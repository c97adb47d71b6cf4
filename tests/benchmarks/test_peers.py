"""The yardstick without peers: the protocol, who takes turns when, what a second call leaves out, and the table."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from checkpoints import make_checkpoint, shard

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "peers" / "workers"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import common
import server_worker
import write_w8a8
from benchmarks.peers import contestants, run, setup, summary, table
from benchmarks.peers.contestants import CONTESTANTS, Contestant, Place
from benchmarks.peers.model_facts import model_facts
from benchmarks.peers.pool import Pool
from benchmarks.peers.results import Results, read
from benchmarks.peers.rows import ROWS, Row, rivals, select
from benchmarks.peers.worker import Worker, WorkerFailed

LIMITS = {"gb_per_s": 10.0, "int8_tops": 4.0, "bf16_tops": 2.0}
WHERE = {"commit": "abc", "host": "here", "cpu": "some", "model": "m", "tier": "native", "threads": 2,
         "model_facts": {"body_weights": 10**9, "kv_values": 100}}  # fmt: skip
DECODE = {"work": "decode", "streams": 2, "prompt": 5, "output": 4}
ROW = Row(name="R3.8", title="", work=DECODE, ours=("trivet/int8",), rivals=rivals([8]))


# --- what a worker makes of a command -----------------------------------------------------------------------------


def test_prompts_share_only_what_they_should() -> None:
    one, two = common.make_prompts(2, 40, seed=3, shared=30)
    assert one[:30] == two[:30] and one[30:] != two[30:] and len(one) == len(two) == 40
    assert common.make_prompts(2, 40, seed=3, shared=30) == [one, two]
    beginnings = {tuple(p[:8]) for seed in range(4) for n in (128, 512) for p in common.make_prompts(4, n, seed)}
    assert len(beginnings) == 32


def test_only_the_time_in_which_all_decode_counts() -> None:
    times = [[1.0, 2.0, 3.0, 4.0], [2.5, 3.5, 4.5, 5.5]]
    assert common.generation_phase(times) == (1.5, 3)  # 2.5 to 4.0: 3.0, 3.5 and 4.0
    with pytest.raises(ValueError, match="ask for more tokens"):
        common.generation_phase([[1.0], [2.0]])


class Scripted:
    """Gives back what it was made with."""

    def __init__(self, counts: list[int]) -> None:
        self.counts = counts

    def generate(self, prompts: list[list[int]], output: int, shared: int) -> common.Times:
        now = time.perf_counter()
        return [[now + token for token in range(count)] for count in self.counts]


def test_figures_of_the_works() -> None:
    command = {"streams": 2, "prompt": 40, "output": 3, "seed": 1}
    done = {work: common.do(Scripted([3, 3]), {**command, "work": work}) for work in ("decode", "prefill", "shared")}
    assert [done[work]["tokens"] for work in done] == [4, 40, 6]
    assert done["decode"]["seconds"] == pytest.approx(2.0)
    assert done["prefill"]["seconds"] == pytest.approx(0.0, abs=0.1)
    assert done["shared"]["seconds"] == pytest.approx(2.0, abs=0.1)


def test_an_answer_of_another_length_is_an_error() -> None:
    with pytest.raises(ValueError, match="3 tokens were asked for"):
        common.do(Scripted([3, 2]), {"work": "decode", "streams": 2, "prompt": 4, "output": 3, "seed": 1})


def test_a_load_s_figures_are_read_off_its_record() -> None:
    figures = {"p50": {"value": 0.25}, "p99": {"value": 0.5}, "max": 0.75}
    whole = {"throughput": {"seconds": 10.0, "output_tokens_per_s": 20.0}, "ttft_s": figures, "itl_s": figures,
             "answered": 19, "failures": {}, "invalid_because": []}  # fmt: skip
    found = server_worker.figures_of_bench({"runs": [whole]})
    assert (found["tokens"], found["ttft_p50_s"]) == (200, 0.25)
    assert (found["gap_p99_s"], found["gap_max_s"]) == (0.5, 0.75)
    with pytest.raises(RuntimeError, match="connect"):
        server_worker.figures_of_bench({"runs": [{**whole, "failures": {"connect": 1, "no_tokens": 1}}]})
    found = server_worker.figures_of_bench({"runs": [{**whole, "failures": {"no_tokens": 1}}]})
    assert (found["without_text"], found["tokens"]) == (1, round(200 * 20 / 19))
    with pytest.raises(RuntimeError, match="no_tokens"):
        server_worker.figures_of_bench({"runs": [{**whole, "failures": {"no_tokens": 2}}]})
    with pytest.raises(RuntimeError, match="0 requests were answered"):
        server_worker.figures_of_bench({"runs": [{**whole, "answered": 0}]})


def test_w8a8_of_a_checkpoint_in_several_files_is_one_file(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m", "llama")
    tensors = load_file(folder / "model.safetensors")
    shard(folder, 2)
    write_w8a8.main(folder, tmp_path / "w8a8")
    assert not list((tmp_path / "w8a8").glob("*.index.json"))
    written = load_file(tmp_path / "w8a8/model.safetensors")
    assert set(written) >= set(tensors)
    name = next(name for name in tensors if name.endswith("q_proj.weight"))
    step = written[name + "_scale"].float()
    off = (written[name] * step - tensors[name].float()).abs()
    assert (off <= 0.75 * step).all()  # half a step of the code, and 127 / 512 for the scale in bf16


# --- a worker as the harness sees it ------------------------------------------------------------------------------


def start(tmp_path: Path, name: str = "fake", **settings: Any) -> Worker:
    whole = {"first_s": 0.001, "step_s": 0.001, **settings}
    command = [sys.executable, str(Path(__file__).with_name("fake_peer.py")), json.dumps(whole)]
    return Worker(command, dict(os.environ), tmp_path / f"{name}.log", timeout_s=30)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    worker = start(tmp_path, dies_at=3, short_at=4)
    yield worker
    worker.end()


def test_a_worker_obeys_line_by_line(worker: Worker) -> None:
    assert worker.about["ready"] and worker.about["versions"] == {"fake": "1"}
    for seed in (1, 2):
        answer = worker.ask({**DECODE, "seed": seed}, timeout_s=30)
        assert answer["tokens"] == 6 and answer["seconds"] >= 0.003
    assert worker.rss_bytes() > 1 << 20
    assert worker.rss_bytes("VmHWM") >= worker.rss_bytes()


def test_an_error_is_told_and_the_worker_goes_on(worker: Worker) -> None:
    with pytest.raises(WorkerFailed, match="no work that a worker knows"):
        worker.ask({**DECODE, "work": "dance", "seed": 1}, timeout_s=30)
    with pytest.raises(WorkerFailed, match=r"of 4 tokens were asked for, not 4 of \{3\}"):
        worker.ask({**DECODE, "streams": 4, "seed": 1}, timeout_s=30)
    assert worker.ask({**DECODE, "seed": 1}, timeout_s=30)["tokens"] == 6


def test_a_worker_that_dies_is_told_with_the_end_of_its_log(worker: Worker) -> None:
    with pytest.raises(WorkerFailed, match=r"ended with 7(?s:.*)noise of the peer"):
        worker.ask({**DECODE, "streams": 3, "seed": 1}, timeout_s=30)


def test_a_stopped_worker_says_nothing_until_it_is_resumed(worker: Worker) -> None:
    worker.stop()
    with pytest.raises(WorkerFailed, match="said nothing for 0 s"):
        worker.ask({**DECODE, "seed": 1}, timeout_s=0.3)
    worker.resume()
    assert worker.ask({**DECODE, "seed": 2}, timeout_s=30)["tokens"] == 6  # of the first command; the second is next


def test_one_runs_and_the_longest_unused_goes_when_memory_is_short(tmp_path: Path) -> None:
    def state(worker: Worker) -> str:
        return Path(f"/proc/{worker._process.pid}/stat").read_text().rpartition(")")[2].split()[0]

    with Pool(available_bytes=lambda: 200) as pool:
        with pool.use(("a",), lambda: start(tmp_path, "a"), need_bytes=50) as a:
            pass
        with pool.use(("b",), lambda: start(tmp_path, "b"), need_bytes=50) as b:
            deadline = time.monotonic() + 10
            while state(a) != "T" and time.monotonic() < deadline:
                time.sleep(0.01)
            assert state(a) == "T" and state(b) != "T"
        with pool.use(("a",), lambda: pytest.fail("it is still there"), need_bytes=50) as again:
            assert again is a
        pool._available_bytes = lambda: 100 if b._process.poll() is None else 150
        with pool.use(("c",), lambda: start(tmp_path, "c"), need_bytes=150):
            assert b._process.poll() is not None and a._process.poll() is None


def test_memory_is_short_where_it_would_be_once_all_have_filled_their_caches(tmp_path: Path) -> None:
    with Pool(available_bytes=lambda: 200) as pool:
        with pool.use(("a",), lambda: start(tmp_path, "a"), need_bytes=100) as a:
            pass
        with pool.use(("b",), lambda: start(tmp_path, "b"), need_bytes=60) as b:
            assert a._process.poll() is None
        with pool.use(("c",), lambda: start(tmp_path, "c"), need_bytes=100):
            assert a._process.poll() is not None and b._process.poll() is None


def test_memory_is_asked_for_by_what_is_taken(place: Place) -> None:
    work = {**DECODE, "streams": 8, "prompt": 8192}
    ours, vllm = (contestants.memory_need(CONTESTANTS[n], place, work) for n in ("trivet/int8", "vllm/w8a8"))
    assert (ours, vllm) == ((1 + 1) << 30, (6 + 1) << 30), "the room is filled"
    llama = contestants.memory_need(CONTESTANTS["llama.cpp/Q8_0"], place, work)
    assert llama == (4 << 30) + 8 * (8192 + 4 + 64) * 2 * 2 * 2 * 4


# --- a row --------------------------------------------------------------------------------------------------------


class Turns:
    """Values by contestant; notes who was asked for what."""

    def __init__(self, **values: float) -> None:
        self.values, self.asked = values, list[tuple[str, int]]()

    def __call__(self, row: Row, contestant: Contestant, number: int) -> dict[str, Any]:
        self.asked.append((contestant.name, number))
        value = self.values.get(contestant.form.partition("+")[0], 0.0)
        if value <= 0:
            raise WorkerFailed("broken")
        return {"value": value + number / 100, "about": {"versions": {"v": "1"}, "weight_bytes": 10**6}}


def measured(tmp_path: Path, turns: Turns, row: Row = ROW, limit_s: float = 100, **where: Any) -> tuple[Results, bool]:
    results = Results(tmp_path / "peers.jsonl", {**WHERE, **where})
    done = run.run_row(row, results, row.rivals, turns, limit_s=limit_s, machine=lambda: dict(LIMITS))
    return results, done


def test_rivals_are_surveyed_once_and_the_best_take_turns(tmp_path: Path) -> None:
    turns = Turns(int8=5.0, Q8_0=4.0, w8a8=3.0)
    results, done = measured(tmp_path, turns)
    assert done and results.is_done("R3.8") and not results.is_done("R3.16")
    surveyed = [name for name, number in turns.asked if number >= run.SURVEY_ROUND]
    assert surveyed == [name for name in ROW.rivals for _ in range(2)]
    assert results.surveys("R3.8")["llama.cpp/Q8_0"]["value"] == pytest.approx(4.91), "the better of two turns"
    # openvino/int8 is surveyed at the value of our int8, in two forms: one form a peer goes on
    record = results.records[-1]
    assert record["finalists"] == ["openvino/int8", "llama.cpp/Q8_0"] and record["rounds"] == 5
    names = ["trivet/int8", "openvino/int8", "llama.cpp/Q8_0"]
    order = [turn for turn in turns.asked if turn[1] < run.SURVEY_ROUND]
    assert order == [(name, n) for n in range(5) for name in (names if n % 2 == 0 else names[::-1])]


def test_a_second_call_goes_on(tmp_path: Path) -> None:
    first = Turns(int8=5.0, Q8_0=4.0, w8a8=3.0)
    _, done = measured(tmp_path, first, limit_s=-1)
    assert not done and not first.asked, "no time, so nothing was begun"
    with (tmp_path / "peers.jsonl").open("a") as file:  # one survey, and a line that was cut off
        file.write(json.dumps({"kind": "survey", "row": "R3.8", "contestant": "vllm/w8a8", "value": 9.0, **WHERE}))
        file.write('\n{"kind": "row", "row"')
    second = Turns(int8=5.0, Q8_0=4.0, w8a8=3.0)
    results, done = measured(tmp_path, second, commit="later")
    assert done and ("vllm/w8a8", run.SURVEY_ROUND) not in second.asked
    assert results.records[-1]["finalists"][0] == "vllm/w8a8"
    assert Results(results.path, {**WHERE, "commit": "later"}).is_done("R3.8")
    assert not Results(results.path, WHERE).is_done("R3.8"), "another commit is measured anew"
    assert not Results(results.path, {**WHERE, "host": "there"}).surveys("R3.8")


def test_who_fails_is_recorded_and_the_others_go_on(tmp_path: Path) -> None:
    turns = Turns(int8=-1.0, Q8_0=4.0, w8a8=3.0)
    results, done = measured(tmp_path, turns)
    record = results.records[-1]
    assert done and record["finalists"] == ["llama.cpp/Q8_0", "vllm/w8a8"]
    assert [turn["error"] for turn in record["turns"]["trivet/int8"]] == ["broken"]
    assert len(record["turns"]["vllm/w8a8"]) == 5
    [line, *_] = table.lines_of(record, results.surveys("R3.8"))
    assert line.value is None and line.error == "broken"


def test_rounds_end_before_the_limit(tmp_path: Path) -> None:
    class Slow(Turns):
        def __call__(self, row: Row, contestant: Contestant, number: int) -> dict[str, Any]:
            time.sleep(0.01)
            return super().__call__(row, contestant, number)

    _, rounds = run.alternate(ROW, ["trivet/int8"], Slow(int8=5.0), time.monotonic() + 0.015)
    assert rounds == 1


def test_every_row_and_round_has_prompts_of_its_own() -> None:
    seeds = {run.seed_of(row, n) for row in ROWS.values() for n in (*range(5), run.SURVEY_ROUND, run.WARM_UP_ROUND)}
    fixed = sum(row.repeat_prompts for row in ROWS.values())
    assert len(seeds) == 7 * (len(ROWS) - fixed) + fixed
    assert run.warm_up(ROWS["R3.8"])["output"] == run.WARM_UP_TOKENS
    long = run.warm_up(ROWS["R7.8"])
    assert (long["work"], long["prompt"], long["output"], long["streams"]) == ("prefill", 8192, 1, 8)
    assert long["seed"] == run.seed_of(ROWS["R7.8"], 3), "the prompts of its turns"


class Noting:
    """A worker, and the pool that has it; notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.about: dict[str, Any] = {}
        self.warm: set[str] = set()
        self.filled = False

    @contextmanager
    def use(self, *args: object, **more: object) -> Iterator[Noting]:
        yield self

    def ask(self, command: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        self.asked.append(command)
        return {"tokens": 8, "seconds": 2.0}


@pytest.mark.parametrize(
    ("name", "rooms"), [("trivet/int8", 1), ("trivet/int8+kv8", 2), ("vllm/w8a8", 1), ("llama.cpp/Q8_0", 0)]
)
def test_the_room_for_kv_is_filled_once_before_the_first_turn(place: Place, name: str, rooms: int) -> None:
    """`rooms`: of 16-bit keys and values; 0: no more than the KV of a turn."""
    big = replace(place, kv_gib=1)
    row = replace(ROW, work={"work": "decode", "streams": 512, "prompt": 8192, "output": 8192})
    turn_bytes = 512 * 16384 * place.kv_bytes_per_token
    worker = Noting()
    turns = run.Turns(big, worker)  # type: ignore[arg-type]
    for number in range(2):
        assert turns(row, CONTESTANTS[name], number)["value"] == 4.0
    *fills, warm_up, first, second = worker.asked
    assert [work["seed"] for work in (first, second)] == [run.seed_of(row, number) for number in range(2)]
    assert warm_up["output"] == run.WARM_UP_TOKENS
    room = max(1, -(-contestants.kv_bytes(big, 16384, 512) // 2**30)) << 30
    assert len(fills) == max(1, -(-room * rooms // turn_bytes))
    assert all((f["work"], f["prompt"], f["output"], f["streams"]) == ("prefill", 16383, 1, 512) for f in fills)
    assert len({work["seed"] for work in worker.asked}) == len(worker.asked), "no prompt is in a cache"


def test_a_shared_beginning_takes_room_once(place: Place) -> None:
    work = {"work": "shared", "streams": 512, "prompt": 16383, "shared": 8192, "output": 1}
    turn_bytes = (8192 + 512 * 8192) * place.kv_bytes_per_token
    fills = contestants.kv_fills(CONTESTANTS["trivet/int8"], replace(place, kv_gib=1), work)
    assert fills == -(-(2**30) // turn_bytes) == 8


def test_what_a_fill_takes_is_what_a_turn_takes() -> None:
    for row in ROWS.values():
        if row.work["work"] in ("decode", "prefill", "shared"):
            work = run.fill(row, 0)
            assert work["prompt"] + work["output"] == row.work["prompt"] + row.work["output"]
            assert work.get("shared") == row.work.get("shared") and work["streams"] == row.work["streams"]


@pytest.mark.parametrize("row", [ROWS["R4.8"], ROWS["R7.1"]])
def test_servers_and_repeated_prompts_are_not_filled(place: Place, row: Row) -> None:
    worker = Noting()
    run.Turns(place, worker)(row, CONTESTANTS[row.ours[0]], 0)  # type: ignore[arg-type]
    assert len(worker.asked) == 2


# --- who takes part -----------------------------------------------------------------------------------------------


def test_rows_are_chosen_by_name() -> None:
    assert [row.name for row in select(["R1", "R5"])] == ["R1.int8", "R1.int4", "R1.int4-head4", "R5"]
    assert [row.name for row in select(["R2.512"])] == ["R2.512"]
    with pytest.raises(ValueError, match=r"no row is called `R99`; there are R1\.int8"):
        select(["R99"])


def test_rivals_are_of_the_row_s_class() -> None:
    assert "llama.cpp/Q4_0" in ROWS["R1.int4"].rivals and "openvino/int4-head4" not in ROWS["R1.int4"].rivals
    assert set(ROWS["R1.int4-head4"].rivals) >= {"openvino/int4-head4+f32"}
    for row in ROWS.values():
        assert all(name in CONTESTANTS for name in (*row.ours, *row.rivals))
        assert all(name.startswith("trivet/") for name in row.ours)
        assert not any(name.startswith("trivet/") for name in row.rivals)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "model").mkdir()
    config = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
              "intermediate_size": 16}  # fmt: skip
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "home" / "build" / "llama-cpp-python").mkdir(parents=True)
    return Place(home=tmp_path / "home", model=tmp_path / "model", threads=2)


def test_every_contestant_of_every_row_has_a_command(place: Place) -> None:
    assert model_facts(place.model) == {"body_weights": 2 * 8 * (8 + 8 + 2 * 4 + 48), "kv_values": 2 * 2 * 4}
    for row in ROWS.values():
        for name in (*row.ours, *row.rivals):
            command = contestants.worker_command(CONTESTANTS[name], place, row.work)
            assert Path(command[1]).exists() and json.loads(command[2])


def test_a_tier_reaches_both_sides(place: Place) -> None:
    lower = replace(place, tier="avx2")
    assert contestants.worker_environment(CONTESTANTS["trivet/int8"], lower)["TRIVET_ISA"] == lower.isa == "avx2"
    command = contestants.worker_command(CONTESTANTS["llama.cpp/Q8_0"], lower, DECODE)
    assert "llama.cpp-avx2" in json.loads(command[2])["library"]
    assert "TRIVET_ISA" not in contestants.worker_environment(CONTESTANTS["trivet/int8"], place)


def test_the_barrier_comes_before_the_tile_configuration(tmp_path: Path) -> None:
    path = tmp_path / "mmq.cpp"
    path.write_text("    _tile_loadconfig(&tc);\n")
    setup.patch_tile_configuration(path)
    barrier, call = path.read_text().splitlines()
    assert '"memory"' in barrier and call == "    _tile_loadconfig(&tc);"


def test_what_is_there_is_whole(tmp_path: Path) -> None:
    def fail(target: Path) -> None:
        target.write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        setup.once(tmp_path / "forms" / "a", fail)
    assert not (tmp_path / "forms" / "a").exists()
    for text in ("whole", "never"):
        setup.once(tmp_path / "forms" / "a", lambda target, text=text: target.write_text(text))
    assert (tmp_path / "forms" / "a").read_text() == "whole"


def test_rows_run_from_end_to_end_with_workers_that_only_sleep(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: Place, tmp_path: Path
) -> None:
    def command(contestant: Contestant, place: Place, work: dict[str, Any]) -> list[str]:
        settings = {
            "name": contestant.name,
            "first_s": 0.001,
            "step_s": 0.0001 if contestant.peer == "trivet" else 0.0005,
        }
        return [sys.executable, str(Path(__file__).with_name("fake_peer.py")), json.dumps(settings)]

    monkeypatch.setattr(run, "worker_command", command)
    asked: list[str] = []
    monkeypatch.setattr(run, "limits", lambda threads, isa: asked.append(isa) or dict(LIMITS))
    results = tmp_path / "out" / "peers.jsonl"
    flags = ["--home", str(place.home), "--model", str(place.model), "--results", str(results), "--rounds", "2"]
    names = ["--rows", "R1.int8,R8.engine,R8.first,R9.8", "--rivals", "llama.cpp/Q8_0,vllm/w8a8"]
    for _ in range(2):  # the second time there is nothing left to do
        monkeypatch.setattr(sys, "argv", ["peers", *flags, *names])
        run.main()
    rows = {r["row"]: r for r in read(results) if r["kind"] == "row"}
    assert rows.keys() == {"R1.int8", "R8.engine", "R8.first", "R9.8"}
    assert len([r for r in read(results) if r["kind"] == "row"]) == 4, "the second call measured nothing"
    assert rows["R1.int8"]["turns"]["trivet/int8"][0]["about"]["settings"].startswith('{"name": "trivet/int8"')
    assert all(turn["value"] > 0.01 for turn in rows["R8.engine"]["turns"]["vllm/w8a8"])
    assert not list(place.home.glob("tmp*")), "packed weights of a first start are gone"
    assert set(asked) == {""}
    lower = ["--rows", "R11.decode1-int8", "--rivals", "llama.cpp/Q8_0", "--tier", "avx2"]
    monkeypatch.setattr(sys, "argv", ["peers", *flags, *lower])
    run.main()
    assert asked[-2:] == ["avx2", "avx2"], "the limits are that tier's"
    results.write_text("".join(line for line in results.read_text().splitlines(True) if '"R11' not in line))
    monkeypatch.setattr(sys, "argv", ["table", str(results)])
    table.main()
    text = capsys.readouterr().out
    assert text.count("### ") == 4 and "fake 1" in text
    monkeypatch.setattr(sys, "argv", ["table", str(results), "--json"])
    table.main()
    assert [json.loads(line)["row"] for line in capsys.readouterr().out.splitlines()] == list(rows)


# --- the table ----------------------------------------------------------------------------------------------------


def test_the_table_has_the_median_the_ratio_and_the_share_of_the_limit(tmp_path: Path) -> None:
    results, _ = measured(tmp_path, Turns(int8=500.0, Q8_0=250.0, w8a8=125.0))
    ours, best, second, *others = table.lines_of(results.records[-1], results.surveys("R3.8"))
    assert (ours.name, best.name, second.name) == ("trivet/int8", "openvino/int8", "llama.cpp/Q8_0")
    assert ours.value == pytest.approx(500.02) and ours.spread == pytest.approx(0.02)
    assert ours.ratio == pytest.approx((1.0, 1.0, 1.0)) and best.ratio is None
    # 250 steps/s of 1,000,000 weight bytes and 2 streams of 7 tokens of 100 values of 2 bytes: 0.2507 of 10 GB/s
    assert ours.share == "MBU 3%"
    assert [line.name for line in others] == ["openvino/int8+f32", "vllm/w8a8"]
    text = table.markdown(read(results.path))
    assert "| trivet/int8 | 8 bit, head 8 | 500 ± 0.02 | 1.00x (1.00-1.00) | MBU 3% | 5 |" in text
    assert "limits before 10.0 GB/s, 4.00 TOPS int8, 2.00 bf16" in text and "| vllm/w8a8 | v 1 |" in text


def test_less_time_is_a_higher_ratio() -> None:
    turns = [[{"value": v} for v in vs] for vs in ([1.0, 2.0, 1.0], [2.0, 2.0, 3.0])]
    assert table.ratios(*turns, lower_is_better=True) == (2.0, 1.0, 3.0)
    assert table.ratios([{"error": "x"}], turns[1], lower_is_better=True) is None


def test_prefill_is_held_against_the_arithmetic_peak() -> None:
    record = {"work": {"work": "prefill"}, "figure": "tok_per_s", "model_facts": WHERE["model_facts"]}
    limits = (LIMITS, {**LIMITS, "int8_tops": 5.0})
    assert table.share_of_limit("vllm/w8a8", 1000.0, record, {}, limits) == "MFU 40%"
    assert table.share_of_limit("vllm/bf16", 500.0, record, {}, limits) == "MFU 50%"


# --- the summary --------------------------------------------------------------------------------------------------


def test_the_summary_has_a_line_for_each_row_of_each_machine(tmp_path: Path) -> None:
    results, _ = measured(tmp_path, Turns(int8=500.0, Q8_0=250.0, w8a8=125.0))
    records = read(results.path)
    text = summary.summary([*records, *({**record, "cpu": "another"} for record in records)])
    assert text.count("### some, 2 threads, m\n") == text.count("### another, 2 threads, m\n") == 1
    title = ROWS["R3.8"].title
    line = f"| R3.8 | {title} | trivet/int8 | 500 tok/s | openvino/int8 | 500 tok/s | 1.00x (1.00-1.00) | MBU 3% | 5 |"
    assert text.count(line) == 2


def test_a_point_is_what_its_row_says(tmp_path: Path) -> None:
    results, _ = measured(tmp_path, Turns(int8=500.0, Q8_0=250.0, w8a8=125.0))
    [record] = [r for r in read(results.path) if r["kind"] == "row"]
    ours, other = summary.points_of(record)
    # 2 operations for each of 10^9 weights and 2 streams, for 1,000,000 bytes of weights and 2 x 7 x 200 of KV
    assert ours.intensity == pytest.approx(4e9 / 1_002_800) and ours.tops == pytest.approx(2e9 * 500.02e-12)
    assert ours.is_ours and not other.is_ours and other.label == "openvino/int8, R3.8"
    assert summary.points_of({**record, "work": {**record["work"], "work": "shared"}}) == []
    picture = summary.roofline([record], "a title")
    assert picture.count("<circle") == 2 and "4.00 TOPS int8, 10.0 GB/s" in picture and "a title" in picture
