"""`trivet bench`: puts load on an OpenAI-compatible server, ours or not, and says how it answered."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trivet.errors import ConfigError, TargetError, TrivetError

if TYPE_CHECKING:
    from trivet.measure.options import Options

EXIT_FAILED, EXIT_USED_WRONGLY, EXIT_TARGET = 1, 2, 3


def command(
    target: Annotated[str, typer.Argument(help="address of the server, with or without /v1")]
        = "http://127.0.0.1:8000",
    *,
    rate: Annotated[float | None, typer.Option(
        help="requests a second, sent whether or not earlier ones are answered. Default: 1, or a trace's own")] = None,
    arrivals: Annotated[str, typer.Option(help="poisson, gamma (bursts, see --cv) or constant")] = "poisson",
    cv: Annotated[float, typer.Option(help="gamma: coefficient of variation of the gaps; poisson has 1")] = 2.0,
    ramp_to: Annotated[float | None, typer.Option(
        help="the rate goes in a straight line from --rate to this, over the --duration")] = None,
    spike: Annotated[float | None, typer.Option(help="multiplies the rate for a while, such as 10")] = None,
    spike_at: Annotated[str, typer.Option(help="when the spike begins, after the warm-up")] = "30s",
    spike_for: Annotated[str, typer.Option(help="how long the spike lasts")] = "60s",
    concurrency: Annotated[int | None, typer.Option(
        help="closed loop instead: that many in flight, the next is sent when one is answered")] = None,
    duration: Annotated[str | None, typer.Option(
        help="time in which requests are sent, after the warm-up. Default: 30s, with --spike 30s after its end, "
        "or all of a trace")] = None,
    requests: Annotated[int | None, typer.Option(help="stop after so many, not counting the warm-up")] = None,
    warmup: Annotated[str | None, typer.Option(
        help="requests of this time at the begin do not count. Default: 2s, for a trace 0")] = None,
    input_tokens: Annotated[str, typer.Option(help="of each prompt: 256, or 64..512")] = "256",
    output_tokens: Annotated[str, typer.Option(help="of each answer: 64, or 16..256")] = "64",
    shared_prefix: Annotated[int, typer.Option(help="tokens at the begin that all prompts share")] = 0,
    turns: Annotated[int, typer.Option(
        help="chats of so many requests; each begins with all that was said. --rate still counts requests")] = 1,
    think_time: Annotated[str, typer.Option(help="between an answer and the chat's next request")] = "0s",
    trace: Annotated[Path | None, typer.Option(
        help="replay a file: Azure 2023 csv, Mooncake jsonl, ServeGen clients csv, or your own csv or jsonl")] = None,
    trace_format: Annotated[str, typer.Option(help="auto, azure, mooncake, servegen or rows (your own)")] = "auto",
    trace_start: Annotated[str, typer.Option(help="begin of the part that is replayed")] = "0s",
    trace_for: Annotated[str | None, typer.Option(
        help="length of that part, in the trace's own time. Default: to its end (ServeGen: 10m)")] = None,
    time_scale: Annotated[float, typer.Option(help="multiplies the trace's times: 2 halves its rate")] = 1.0,
    length_scale: Annotated[float, typer.Option(help="multiplies the trace's lengths")] = 1.0,
    max_input: Annotated[int | None, typer.Option(help="cuts the trace's prompts to so many tokens")] = None,
    max_output: Annotated[int | None, typer.Option(help="cuts the trace's answers to so many tokens")] = None,
    slo: Annotated[str | None, typer.Option(
        help="limits a request should meet, such as ttft=500ms,itl=60ms; also tpot, e2e, itl_max")] = None,
    require: Annotated[float | None, typer.Option(
        help="exit with 1 if a smaller share than this met the --slo, such as 0.9")] = None,
    find_capacity: Annotated[bool, typer.Option(
        "--find-capacity", help="search the highest rate at --attainment of the --slo")] = False,
    attainment: Annotated[float, typer.Option(help="share that --find-capacity asks for")] = 0.9,
    sweep: Annotated[str | None, typer.Option(help="one run each: rate=1,2,4 or concurrency=1,8,32")] = None,
    compare: Annotated[list[str] | None, typer.Option(
        help="a second target: both get the same load in turn; repeatable")] = None,
    rounds: Annotated[int, typer.Option(help="of --compare; each is a run of --duration on every target")] = 5,
    endpoint: Annotated[str, typer.Option(help="completions or chat")] = "completions",
    model: Annotated[list[str] | None, typer.Option(
        help="name of the model; with --compare one for all or one for each. Default: the only one served")] = None,
    api_key: Annotated[str | None, typer.Option(help="sent as bearer token")] = None,
    tokenizer: Annotated[list[Path] | None, typer.Option(
        help="folder with the server's tokenizer.json; one for all or one for each. Default: where the server says "
        "that its checkpoint is")] = None,
    body: Annotated[str | None, typer.Option(help="further fields of every request, as a JSON object")] = None,
    timeout: Annotated[str, typer.Option(help="a request that is not whole by then has failed")] = "5m",
    insecure: Annotated[bool, typer.Option("--insecure", help="do not check the TLS certificate")] = False,
    workers: Annotated[int | None, typer.Option(help="client processes. Default: what the load needs")] = None,
    seed: Annotated[int | None, typer.Option(
        help="of times, lengths and words: the same seed is the same load. Default: 0, but other words each time")]
        = None,
    output: Annotated[Path | None, typer.Option(help="write the JSON record to this file, too")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the JSON record on stdout, instead of tables")] = False,
) -> None:  # fmt: skip
    """Measure a server under load: TTFT, ITL, TPOT, E2E, throughput, errors, goodput, capacity.

    Try:  trivet bench http://127.0.0.1:8000 --rate 4 --duration 30s --slo ttft=500ms,itl=60ms

    Exit status: 0 measured; 1 the run is invalid (the client was the limit, or nothing was answered), or --require
    was missed; 2 used wrongly, or a trace that cannot be; 3 the server cannot be reached or does not serve the model;
    130 interrupted, after the report of what ran.
    """
    given = dict(locals())
    from trivet.cli.usage import print_error
    from trivet.measure.options import Options

    try:
        status = run(Options(**given))
    except (ConfigError, TargetError) as error:
        print_error(error)
        status = EXIT_USED_WRONGLY if isinstance(error, ConfigError) else EXIT_TARGET
    except TrivetError as error:
        print_error(error)
        status = EXIT_FAILED
    raise typer.Exit(status)


def run(options: Options) -> int:
    """Does what the options say; returns the exit status."""
    from trivet.measure.job import job_from
    from trivet.measure.session import run_session

    job = job_from(options)
    return run_session(job, command=["trivet", *sys.argv[1:]], measure_limits=_limits)


def _limits() -> dict[str, Any]:
    """What this machine can do, as `trivet doctor` measures it."""
    from trivet.cli.doctor import examine

    facts = examine()
    return {name: facts[name] for name in ("machine", "compute", "measured")}
