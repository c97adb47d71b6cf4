"""Start: seconds from a new process to the first token, warm (weights packed, files in the page cache).

    python -m benchmarks.engine.start MODEL_FOLDER --json

`run` counts until `trivet run` prints its one token; `serve` until the answer to a one-token completion that is sent
the moment the server says that it is ready. Both include interpreter start and imports.
"""

from __future__ import annotations

import argparse
import subprocess
import time

import httpx

from benchmarks.record import Record, environment, median_and_spread, show
from benchmarks.server_process import serve, trivet_command

PROMPT = "The quick brown fox"


def time_run(model: str, options: list[str]) -> float:
    """Seconds until `trivet run` has printed its first token."""
    command = [*trivet_command(), "run", model, PROMPT, "--max-tokens", "1", "--temperature", "0", "--json", *options]
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        first = process.stdout.read(1)
        seconds = time.perf_counter() - begin
        process.stdout.read()
    if not first or process.returncode:
        raise RuntimeError(f"`{' '.join(command)}` ended with {process.returncode}")
    return seconds


def time_serve(model: str, options: list[str]) -> float:
    """Seconds until a server has answered its first one-token completion."""
    with httpx.Client(timeout=60) as client, serve(model, *options) as server:
        name = server.ready["model"]
        body = {"model": name, "prompt": PROMPT, "max_tokens": 1, "temperature": 0}
        client.post(f"{server.url}/v1/completions", json=body).raise_for_status()
        return time.perf_counter() - server.started_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint folder, such as benchmarks/make_checkpoint.py writes")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--commands", default="run,serve")
    parser.add_argument("--runs", type=int, default=5, help="after one that warms up, and packs if need be")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    options = ["--precision", args.precision]
    records: list[Record] = []
    for name in args.commands.split(","):
        timed = {"run": time_run, "serve": time_serve}[name]
        seconds = [timed(args.model, options) for _ in range(args.runs + 1)][1:]
        value, spread = median_and_spread(seconds)
        records.append({
            "bench": f"engine.start.{name}", "model": args.model, "precision": args.precision,
            "value": round(value, 3), "spread": round(spread, 3), "unit": "s", "runs": [round(s, 3) for s in seconds],
            **environment(),
        })  # fmt: skip
    show(records, ("bench", "value", "spread", "unit", "precision"), as_json=args.json)


if __name__ == "__main__":
    main()
