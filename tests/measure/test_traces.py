"""Trace files: each format, what is cut and scaled, and every line that cannot be, by its number."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from trivet.errors import ConfigError, TraceError
from trivet.measure.servegen import client_times, read_clients
from trivet.measure.traces import TraceRow, cut_window, detect_format, read_rows, scale_lengths

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,8
2023-11-16 18:17:05.9799600,110,0"""  # without a newline at its end, as the real file
MOONCAKE = [
    {"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]},
    {"timestamp": 0, "input_length": 1024, "output_length": 6, "hash_ids": [0, 1]},
    {"timestamp": 3000, "input_length": 10, "output_length": 7, "hash_ids": [9]},
    {"timestamp": 9000, "input_length": 10, "output_length": 7, "hash_ids": [10]},
]
SERVEGEN = """client,timestamp,rate,cv,pattern,param1,param2
0,1200,2.0,1.0,Gamma,1.0,0.04
0,1800,4.0,2.0,Gamma,0.25,0.04
7,1200,1.0,1.5,Weibull,0.7,0.04
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def jsonl(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_azure(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", AZURE)
    assert detect_format(path) == "azure"
    rows = read_rows(path, "azure")
    assert [row.time_s for row in rows] == pytest.approx([0, 0.052, 2.0])
    assert [(row.input_len, row.output_len) for row in rows] == [(4808, 10), (3180, 8), (110, 1)]


def test_mooncake_is_spread_inside_its_ticks(tmp_path: Path) -> None:
    path = write(tmp_path, "m.jsonl", jsonl(MOONCAKE * 1))
    assert detect_format(path) == "mooncake"
    rows = read_rows(path, "mooncake", seed=4)
    times = [row.time_s for row in rows]
    assert times == sorted(times)
    assert 0 <= times[0] < times[1] < 3 <= times[2] < 6, "a tick is 3 s at most, also where the next comes later"
    assert 9 <= times[3] < 12
    assert rows == read_rows(path, "mooncake", seed=4) != read_rows(path, "mooncake", seed=5)
    assert [row.blocks for row in rows] == [(0, 1, 2), (0, 1), (9,), (10,)]


def test_mooncake_times_that_differ_stay(tmp_path: Path) -> None:
    path = write(tmp_path, "m.jsonl", jsonl([{**row, "timestamp": 10 * i} for i, row in enumerate(MOONCAKE)]))
    assert [row.time_s for row in read_rows(path, "mooncake")] == pytest.approx([0, 0.01, 0.02, 0.03])


def test_scaled_prompts_share_what_they_shared() -> None:
    row = TraceRow(time_s=0, input_len=1100, output_len=40, blocks=(0, 1, 2))
    small = scale_lengths(row, 0.25, None, None)
    assert (small.input_len, small.block_len, small.output_len, small.blocks) == (275, 128, 10, (0, 1, 2))
    cut = scale_lengths(row, 0.25, 200, 4)
    assert (cut.input_len, cut.output_len, cut.blocks) == (200, 4, (0, 1))
    assert scale_lengths(row, 1e-6, None, None).input_len == 1


def test_ones_own_csv(tmp_path: Path) -> None:
    text = "time_s,input_tokens,output_tokens,session,prefix,prefix_tokens\n5,10,2,,,\n6,20,3,u1,sys,8\n6,5,4,u1,,\n"
    path = write(tmp_path, "t.csv", text)
    assert detect_format(path) == "rows"
    first, second, third = read_rows(path, "rows")
    assert (first.time_s, first.session, first.prefix) == (0, None, None)
    assert (second.time_s, second.session, second.prefix, second.prefix_len) == (1, "u1", "sys", 8)
    assert (third.input_len, third.output_len, third.session) == (5, 4, "u1")


def test_ones_own_jsonl(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"time_s": 0, "input_tokens": 4, "output_tokens": 2},
        {"time_s": 0.5, "prompt": "Hello, Wörld", "output_tokens": 3},
    ]
    path = write(tmp_path, "t.jsonl", jsonl(rows))
    assert detect_format(path) == "rows"
    assert [row.prompt for row in read_rows(path, "rows")] == [None, "Hello, Wörld"]


@pytest.mark.parametrize("zone", ["Z", "+00:00", ".5Z"])
def test_azure_times_may_name_their_zone(tmp_path: Path, zone: str) -> None:
    text = AZURE_HEAD + f"2023-11-16 18:17:03{zone},5,5\n2023-11-16 20:17:04{zone},5,5\n"
    assert [row.time_s for row in read_rows(write(tmp_path, "a.csv", text), "azure")] == [0, 7201]


def test_a_csv_prompt_may_be_long_and_of_several_lines(tmp_path: Path) -> None:
    long = "word " * 40_000
    text = f'time_s,prompt,output_tokens\n0,"Hello,\n\nworld",2\n1,{long},3\n2,x\n'
    path = write(tmp_path, "t.csv", text.replace("2,x", "2,x,3"))
    assert [row.prompt for row in read_rows(path, "rows")] == ["Hello,\n\nworld", long, "x"]
    with pytest.raises(TraceError, match=r"t\.csv:6 has 2 fields"):
        read_rows(write(tmp_path, "t.csv", text), "rows")


def test_a_window_is_counted_from_its_begin(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path, "a.csv", AZURE), "azure")
    assert [row.time_s for row in cut_window(rows, 0.05, 10)] == pytest.approx([0.002, 1.95], abs=1e-6)
    assert len(cut_window(rows, 0, None)) == 3
    with pytest.raises(TraceError, match="no requests between 5 s and 15 s; its last is at 2 s"):
        cut_window(rows, 5, 10)


HEAD = "time_s,input_tokens,output_tokens\n"
AZURE_HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("azure", AZURE_HEAD + "2023-11-16 18:17:03.9,5\n", "t:2 has 2 fields, but an azure trace has 3"),
        ("azure", AZURE_HEAD + "yesterday,5,5\n", "t:2: `TIMESTAMP` is 'yesterday', but it must be such as 2023"),
        ("azure", AZURE_HEAD + "2023-11-16 18:17:03.9,0,5\n", "t:2: `ContextTokens` is '0', but it must be a whole"),
        ("azure", AZURE_HEAD + "2023-11-16 18:17:03.9,5,x\n", "t:2: `GeneratedTokens` is 'x'"),
        ("azure", AZURE_HEAD, "t holds no requests"),
        ("mooncake", '{"timestamp": 0\n', "t:1 is not valid JSON"),
        ("mooncake", "[1]\n", "t:1 is '\\[1\\]', but it must be a JSON object"),
        ("mooncake", jsonl([{**MOONCAKE[0], "hash_ids": None}]), "t:1: `hash_ids` must be a list of numbers"),
        ("mooncake", jsonl([{**MOONCAKE[0], "hash_ids": [1]}]), "t:1 has 1 hash_ids for 1,100 tokens.*: 3"),
        ("mooncake", jsonl([{**MOONCAKE[0], "timestamp": "soon"}]), "t:1: `timestamp` is 'soon', but it must be a num"),
        ("rows", "", "t holds no requests"),
        ("rows", HEAD + "\n0,1,1\n1,2\n", "t:4 has 2 fields, but the first line names 3"),
        ("rows", HEAD + "0,1.5,1\n", "t:2: `input_tokens` is '1.5', but it must be a whole number above 0"),
        ("rows", HEAD + "nan,1,1\n", "t:2: `time_s` is 'nan', but it must be a number of seconds"),
        ("rows", HEAD + ",1,1\n", "t:2: `time_s` is None"),
        ("rows", "time_s,input_tokens,answer\n0,1,1\n", "t:2: `answer` is no column; they are time_s, input_tokens"),
        ("rows", jsonl([{"time_s": 0, "prompt": 7, "output_tokens": 1}]), "t:1: `prompt` is 7, but it must be text"),
        (
            "rows", jsonl([{"time_s": 0, "input_tokens": 4, "output_tokens": 1, "prefix": "a", "prefix_tokens": 5}]),
            "t:1: `prefix_tokens` is 5, but it can be at most `input_tokens`, 4",
        ),
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_is_named(tmp_path: Path, kind: str, text: str, said: str) -> None:
    with pytest.raises(TraceError, match=said):
        read_rows(write(tmp_path, "t", text), kind)  # type: ignore[arg-type]


def test_a_row_out_of_order_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"t:4 is 1\.5 s earlier than line 2, but rows must be in order") as caught:
        read_rows(write(tmp_path, "t", HEAD + "2,1,1\n\n0.5,1,1\n"), "rows")
    assert caught.value.hint == "sort the file by its time column"


def test_a_file_that_is_no_trace(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="t:1 is 'a,b', which begins no trace that is known"):
        detect_format(write(tmp_path, "t", "a,b\n"))
    with pytest.raises(TraceError, match="cannot be read: No such file"):
        detect_format(tmp_path / "absent")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TraceError, match="not UTF-8"):
        detect_format(tmp_path / "bytes")
    with pytest.raises(ConfigError, match="a servegen trace has no rows"):
        read_rows(tmp_path / "t", "servegen")


# --- ServeGen -----------------------------------------------------------------------------------------------------


def test_servegen_clients_keep_their_rates(tmp_path: Path) -> None:
    path = write(tmp_path, "s.csv", SERVEGEN)
    assert detect_format(path) == "servegen"
    times = client_times(read_clients(path), 0.0, 1200.0, seed=1)
    assert times == sorted(times) == client_times(read_clients(path), 0.0, 1200.0, seed=1)
    at = {name: np.array([time_s for time_s, client in times if client == name]) for name in ("0", "7")}
    assert (at["0"] < 600).sum() == pytest.approx(1200, rel=0.1), "2/s for ten minutes"
    assert (at["0"] >= 600).sum() == pytest.approx(2400, rel=0.2), "then 4/s"
    assert at["7"].max() < 600, "its only window is the first"
    assert len(at["7"]) == pytest.approx(600, rel=0.2)


def test_servegen_gaps_have_the_shape_of_the_file(tmp_path: Path) -> None:
    times = client_times(read_clients(write(tmp_path, "s.csv", SERVEGEN)), 600.0, 600.0, seed=2)
    gaps = np.diff([time_s for time_s, _ in times])
    assert gaps.std() / gaps.mean() == pytest.approx(2.0, rel=0.25), "shape 0.25 is a variation of 2"


def test_servegen_starts_anywhere(tmp_path: Path) -> None:
    times = client_times(read_clients(write(tmp_path, "s.csv", SERVEGEN)), 550.0, 100.0, seed=3)
    assert times[0][0] >= 0 and times[-1][0] < 100
    assert len(times) == pytest.approx(50 * 3 + 50 * 4, rel=0.3)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("0,0,1,1,Gamma,1", "t:2 has 6 fields, but a ServeGen file has 7"),
        ("0,0,1,1,Pareto,1,1", "t:2: `pattern` is 'Pareto', but it must be Gamma or Weibull"),
        ("0,0,0,1,Gamma,1,1", "t:2: `rate` is '0', but it must be above 0"),
        ("0,0,1,1,Gamma,-1,1", "t:2: `param1` is '-1', but it must be above 0"),
        ("0,x,1,1,Gamma,1,1", "t:2: `timestamp` is 'x'"),
        (
            "0,600,1,1,Gamma,1,1\n0,0,1,1,Gamma,1,1",
            "t:3: client 0 has a window at 0 s, but the one before begins at 600",
        ),
        ("", "holds no clients"),
    ],
)
def test_a_servegen_line_that_cannot_be(tmp_path: Path, row: str, said: str) -> None:
    with pytest.raises(TraceError, match=said):
        read_clients(write(tmp_path, "t", f"client,timestamp,rate,cv,pattern,param1,param2\n{row}\n"))
