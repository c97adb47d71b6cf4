"""Recorded requests, from a file: when each came, and how long its prompt and its answer were.

Rows are what every format becomes. A line that cannot be is a TraceError that names file and line; so is a row that is
earlier than the row before it. Formats are told apart by their first line.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from trivet.errors import ConfigError, TraceError

TraceFormat = Literal["azure", "mooncake", "servegen", "rows"]
MOONCAKE_BLOCK = 512  # tokens of the prompt that one hash stands for
MOONCAKE_TICK_S = 3.0  # its times are rounded down to about this
AZURE_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
SERVEGEN_HEADER = "client,timestamp,rate,cv,pattern,param1,param2"
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
MAX_FIELD_CHARS = 1 << 26  # a prompt may be long; csv's own limit is 128 Ki
ROW_COLUMNS = ("time_s", "input_tokens", "output_tokens", "session", "prefix", "prefix_tokens", "prompt")


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRow:
    """One recorded request. Lengths are in tokens, times in seconds from the first row of the file."""

    time_s: float
    input_len: int
    output_len: int
    blocks: tuple[int, ...] = ()  # ids of the prompt's blocks, each `block_len` tokens, the last maybe fewer
    block_len: int = MOONCAKE_BLOCK
    prefix: str | None = None  # prompts with the same one share their first `prefix_len` tokens
    prefix_len: int = 0
    session: str | None = None  # rows with the same one are turns of one chat
    prompt: str | None = None  # the text itself, where the file has it


def detect_format(path: Path) -> TraceFormat:
    """What kind of trace a file is, by its first line."""
    first = next(iter(numbered_lines(path)), (0, ""))[1]
    if first.startswith(AZURE_HEADER):
        return "azure"
    if first.startswith(SERVEGEN_HEADER):
        return "servegen"
    if first.lstrip().startswith("{"):
        return "mooncake" if '"hash_ids"' in first else "rows"
    if {"input_tokens", "prompt"} & set(first.strip().split(",")):
        return "rows"
    raise TraceError(
        f"{path}:1 is {first[:60]!r}, which begins no trace that is known",
        hint=f"a csv file begins with its columns, such as {','.join(ROW_COLUMNS[:3])}; or give `--trace-format`",
    )


def read_rows(path: Path, kind: TraceFormat, *, seed: int = 0) -> list[TraceRow]:
    """The rows of an azure, mooncake or user's file, in order of time and counted from the first."""
    read: dict[str, Callable[[Path], Iterator[tuple[int, TraceRow]]]]
    read = {"azure": _read_azure, "mooncake": _read_mooncake, "rows": _read_own}
    if kind not in read:
        raise ConfigError(f"a {kind} trace has no rows of requests")
    rows = list(_in_order(path, read[kind](path)))
    if not rows:
        raise TraceError(f"{path} holds no requests")
    first_s = rows[0].time_s
    rows = [replace(row, time_s=row.time_s - first_s) for row in rows]
    return _spread_ticks(rows, np.random.default_rng([seed, 3])) if kind == "mooncake" else rows


def cut_window(rows: list[TraceRow], start_s: float, duration_s: float | None) -> list[TraceRow]:
    """The rows of a window, counted from its begin; TraceError if there are none."""
    end_s = float("inf") if duration_s is None else start_s + duration_s
    inside = [replace(row, time_s=row.time_s - start_s) for row in rows if start_s <= row.time_s < end_s]
    if not inside:
        raise TraceError(
            f"the trace has no requests between {start_s:g} s and {end_s:g} s; its last is at {rows[-1].time_s:g} s"
        )
    return inside


def scale_lengths(row: TraceRow, scale: float, max_input: int | None, max_output: int | None) -> TraceRow:
    """The row with lengths multiplied by `scale` and then cut; blocks shrink too, so shared parts stay shared."""
    input_len = max(1, round(row.input_len * scale))
    output_len = max(1, round(row.output_len * scale))
    block_len = max(1, math.ceil(row.block_len * scale))  # rounded down, the blocks would not fill the prompt
    input_len = min(input_len, max_input or input_len)
    return replace(
        row,
        input_len=input_len,
        output_len=min(output_len, max_output or output_len),
        blocks=row.blocks[: -(-input_len // block_len)],
        block_len=block_len,
        prefix_len=min(round(row.prefix_len * scale), input_len),
    )


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, text) of each line that is not empty."""
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            yield number, line.rstrip("\r\n")


def _lines(path: Path) -> Iterator[str]:
    """Each line with its end; TraceError for a file that cannot be read."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            yield from file
    except OSError as error:
        raise TraceError(f"the trace {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TraceError(f"the trace {path} cannot be read: it is not UTF-8 text") from None


def _in_order(path: Path, rows: Iterable[tuple[int, TraceRow]]) -> Iterator[TraceRow]:
    last_s, last_number = float("-inf"), 0
    for number, row in rows:
        if row.time_s < last_s:
            raise TraceError(
                f"{path}:{number} is {last_s - row.time_s:g} s earlier than line {last_number}, "
                "but rows must be in order of time",
                hint="sort the file by its time column",
            )
        last_s, last_number = row.time_s, number
        yield row


def _length(path: Path, number: int, name: str, value: Any) -> int:
    """A number of tokens, 1 or more."""
    try:
        length = int(value)
        if length < 1 or length != float(value):
            raise ValueError
    except (TypeError, ValueError):
        raise TraceError(f"{path}:{number}: `{name}` is {value!r}, but it must be a whole number above 0") from None
    return length


def seconds_of(path: Path, number: int, name: str, value: Any) -> float:
    try:
        seconds = float(value)
        if not np.isfinite(seconds):
            raise ValueError
    except (TypeError, ValueError):
        raise TraceError(f"{path}:{number}: `{name}` is {value!r}, but it must be a number of seconds") from None
    return seconds


def _read_azure(path: Path) -> Iterator[tuple[int, TraceRow]]:
    """TIMESTAMP (seven decimals), ContextTokens, GeneratedTokens."""
    for number, line in numbered_lines(path):
        if line.startswith("TIMESTAMP"):
            continue
        fields = line.split(",")
        if len(fields) != 3:
            raise TraceError(f"{path}:{number} has {len(fields)} fields, but an azure trace has 3: {AZURE_HEADER}")
        try:
            moment = datetime.fromisoformat(fields[0])
        except ValueError:
            raise TraceError(
                f"{path}:{number}: `TIMESTAMP` is {fields[0]!r}, but it must be such as 2023-11-16 18:17:03.9799600"
            ) from None
        yield (
            number,
            TraceRow(
                time_s=(moment.replace(tzinfo=moment.tzinfo or UTC) - EPOCH).total_seconds(),
                input_len=_length(path, number, "ContextTokens", fields[1]),
                output_len=max(1, _count(path, number, "GeneratedTokens", fields[2])),
            ),
        )


def _count(path: Path, number: int, name: str, value: str) -> int:
    """A number of tokens, 0 or more: azure has answers of none."""
    return 0 if value.strip() == "0" else _length(path, number, name, value)


def _read_mooncake(path: Path) -> Iterator[tuple[int, TraceRow]]:
    """{"timestamp": ms, "input_length", "output_length", "hash_ids"}."""
    for number, fields in _objects(path):
        ids = fields.get("hash_ids")
        input_len = _length(path, number, "input_length", fields.get("input_length"))
        if not isinstance(ids, list) or not all(isinstance(i, int) and i >= 0 for i in ids):
            raise TraceError(f"{path}:{number}: `hash_ids` must be a list of numbers")
        if len(ids) != -(-input_len // MOONCAKE_BLOCK):
            raise TraceError(
                f"{path}:{number} has {len(ids)} hash_ids for {input_len:,} tokens, but there must be one for each "
                f"{MOONCAKE_BLOCK} tokens: {-(-input_len // MOONCAKE_BLOCK)}"
            )
        yield (
            number,
            TraceRow(
                time_s=seconds_of(path, number, "timestamp", fields.get("timestamp")) / 1e3,
                input_len=input_len,
                output_len=_length(path, number, "output_length", fields.get("output_length")),
                blocks=tuple(ids),
            ),
        )


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of a jsonl file."""
    for number, line in numbered_lines(path):
        try:
            value = msgspec.json.decode(line)
        except msgspec.DecodeError as error:
            raise TraceError(f"{path}:{number} is not valid JSON: {error}") from None
        if not isinstance(value, dict):
            raise TraceError(f"{path}:{number} is {line[:40]!r}, but it must be a JSON object")
        yield number, value


def _read_own(path: Path) -> Iterator[tuple[int, TraceRow]]:
    """A user's csv (with a line of column names) or jsonl."""
    first = next(iter(numbered_lines(path)), (0, ""))[1]
    rows = _objects(path) if first.lstrip().startswith("{") else _csv_rows(path)
    for number, fields in rows:
        unknown = sorted(set(fields) - set(ROW_COLUMNS))
        if unknown:
            raise TraceError(f"{path}:{number}: `{unknown[0]}` is no column; they are {', '.join(ROW_COLUMNS)}")
        yield number, _own_row(path, number, fields)


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    rows = _csv_lists(path)
    _, names = next(rows, (0, []))
    for number, values in rows:
        if len(values) != len(names):
            raise TraceError(f"{path}:{number} has {len(values)} fields, but the first line names {len(names)}")
        yield number, {name: value for name, value in zip(names, values, strict=True) if value != ""}


def _csv_lists(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, fields) of each row that is not empty; a quoted field may hold newlines."""
    before = csv.field_size_limit(MAX_FIELD_CHARS)
    reader, number = csv.reader(_lines(path)), 1
    try:
        for values in reader:
            if len(values) > 1 or any(value.strip() for value in values):
                yield number, values
            number = reader.line_num + 1
    except csv.Error as error:
        raise TraceError(f"{path}:{number} is not valid CSV: {error}") from None
    finally:
        csv.field_size_limit(before)


def _own_row(path: Path, number: int, fields: dict[str, Any]) -> TraceRow:
    prompt = fields.get("prompt")
    if prompt is not None and not isinstance(prompt, str):
        raise TraceError(f"{path}:{number}: `prompt` is {prompt!r}, but it must be text")
    input_len = 1 if prompt is not None else _length(path, number, "input_tokens", fields.get("input_tokens"))
    prefix = fields.get("prefix")
    prefix_len = _length(path, number, "prefix_tokens", fields.get("prefix_tokens")) if prefix is not None else 0
    if prefix_len > input_len:
        raise TraceError(
            f"{path}:{number}: `prefix_tokens` is {prefix_len:,}, but it can be at most `input_tokens`, {input_len:,}"
        )
    session = fields.get("session")
    return TraceRow(
        time_s=seconds_of(path, number, "time_s", fields.get("time_s")),
        input_len=input_len,
        output_len=_length(path, number, "output_tokens", fields.get("output_tokens")),
        prefix=None if prefix is None else str(prefix),
        prefix_len=prefix_len,
        session=None if session is None else str(session),
        prompt=prompt,
    )


def _spread_ticks(rows: list[TraceRow], rng: np.random.Generator) -> list[TraceRow]:
    """The rows with times that are spread at random, in order, over the tick they were rounded down to."""
    times = np.array([row.time_s for row in rows])
    ticks, first, counts = np.unique(times, return_index=True, return_counts=True)
    if counts.max() == 1:
        return rows
    ends = np.append(ticks[1:], ticks[-1] + MOONCAKE_TICK_S)
    widths = np.minimum(ends - ticks, MOONCAKE_TICK_S)
    for begin, count, width in zip(first, counts, widths, strict=True):
        times[begin : begin + count] += np.sort(rng.uniform(0.0, width, count))
    return [replace(row, time_s=float(at_s)) for row, at_s in zip(rows, times, strict=True)]
