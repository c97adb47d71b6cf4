"""Our load generator beside guidellm's, on the same server and the same load: do their figures agree?

    python -m venv /tmp/peers && /tmp/peers/bin/pip install guidellm
    python -m benchmarks.peers.load_generators --guidellm /tmp/peers/bin/guidellm --model demo --json

One server; the two take turns, forwards and backwards, --rounds times. Both send --requests completions at a constant
rate, streamed, with prompts of --prompt tokens and answers of --output tokens (`ignore_eos`), and take tokens from the
server's usage. guidellm's "inter token latency" is one number a request: what we call TPOT. Its latencies begin when
it sends, ours when the request should be sent: `lag_p99_s` is by how much ours was late, at p99 of its worst run.
A run of ours that is invalid by its own account is made again. `value` is the ratio of ours to theirs, each the median
over the rounds; the last record is the worst deviation of all from 1, and whether it is within 3 %.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import trivet
from benchmarks.record import Record, environment, show
from benchmarks.server_process import Server, serve, trivet_command

# our name -> guidellm's, and what makes seconds of its unit
LATENCIES = {
    "ttft": ("time_to_first_token_ms", 1e-3),
    "tpot": ("inter_token_latency_ms", 1e-3),
    "e2e": ("request_latency", 1.0),
}
RANKS = ("p50", "p95")
LAG = "sending lag p99"
ATTEMPTS = 3  # at a run of ours that is valid
ALLOWED = 0.03  # deviation from guidellm's figures
Figures = dict[str, float]


def run_ours(server: Server, args: argparse.Namespace, seed: int) -> Figures:
    """Seconds by name, from `trivet bench`; RuntimeError if no attempt is valid."""
    for attempt in range(ATTEMPTS):
        command = [
            *trivet_command(), "bench", server.url, "--rate", str(args.rate), "--arrivals", "constant", "--requests",
            str(args.requests), "--warmup", "0", "--input-tokens", str(args.prompt), "--output-tokens",
            str(args.output), "--seed", str(seed * ATTEMPTS + attempt), "--json",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not done.stdout:
            break
        [run] = json.loads(done.stdout)["runs"]
        if done.returncode == 0 and run["valid"]:
            return figures_of_ours(run)
    raise RuntimeError(f"`{' '.join(command)}` ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def figures_of_ours(run: dict[str, Any]) -> Figures:
    """Seconds by our names, of the requests that were answered."""
    figures = {f"{name} {rank}": run[f"{name}_s"][rank]["value"] for name in LATENCIES for rank in RANKS}
    figures["output tok/s"] = run["throughput"]["output_tokens_per_s"]
    figures["answered"] = run["answered"]
    figures[LAG] = run["client"]["sending_lag_s"]["p99"]
    return figures


def run_guidellm(server: Server, args: argparse.Namespace, seed: int) -> Figures:
    """The same, from guidellm."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "benchmarks.json"
        command = [
            args.guidellm, "run",
            "--backend", f"kind=openai_http,target={server.url},model={server.ready['model']},"
            "request_format=/v1/completions",
            "--profile", f"kind=constant,rate={args.rate}", "--constraint", f"kind=max_requests,count={args.requests}",
            "--data", f"kind=synthetic_text,prompt_tokens={args.prompt},output_tokens={args.output}",
            "--tokenizer", f"kind=huggingface_auto,model={args.tokenizer}", "--seed", f"kind=static,value={seed}",
            "--output", f"kind=json,path={path}", "--disable-console",
        ]  # fmt: skip
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if not path.exists():
            raise RuntimeError(f"`{' '.join(command)}` ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        [benchmark] = json.loads(path.read_text())["benchmarks"]
    return figures_of_guidellm(benchmark)


def figures_of_guidellm(benchmark: dict[str, Any]) -> Figures:
    """Seconds by our names, of the requests that succeeded."""
    metrics = benchmark["metrics"]
    figures = {}
    for name, (theirs, unit) in LATENCIES.items():
        found = metrics[theirs]["successful"]["percentiles"]
        figures |= {f"{name} {rank}": found[rank] * unit for rank in RANKS}
    figures["output tok/s"] = metrics["output_tokens_per_second"]["successful"]["mean"]
    figures["answered"] = metrics["request_totals"]["successful"]
    return figures


def compare(ours: list[Figures], theirs: list[Figures], args: argparse.Namespace) -> list[Record]:
    """A record for each figure, and one for the worst of them."""
    shared = {
        "unit": "ours/guidellm", "rate": args.rate, "requests": args.requests, "prompt": args.prompt,
        "output": args.output, "model": Path(args.model).name, "lag_p99_s": max(run[LAG] for run in ours),
        **environment(),
    }  # fmt: skip
    records: list[Record] = []
    for name in theirs[0]:
        a, b = ([run[name] for run in runs] for runs in (ours, theirs))
        ratios = [x / y for x, y in zip(a, b, strict=True)]
        records.append({
            "bench": f"peers.load_generators.{name}", "value": round(median(a) / median(b), 4),
            "spread": round((max(ratios) - min(ratios)) / 2, 4), "ours": median(a), "guidellm": median(b),
            "runs_ours": a, "runs_guidellm": b, **shared,
        })  # fmt: skip
    worst = max(records, key=lambda record: abs(record["value"] - 1))
    deviation = round(abs(worst["value"] - 1), 4)
    verdict = {"of": worst["bench"], "allowed": ALLOWED, "within": deviation <= ALLOWED}
    return [
        *records,
        {"bench": "peers.load_generators.worst deviation", "value": deviation, "spread": worst["spread"], **verdict}
        | shared,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guidellm", required=True, help="its command, in an environment of its own")
    parser.add_argument("--model", default="demo", help="a bundled model, or a checkpoint folder")
    parser.add_argument("--rate", type=float, default=5.0)
    parser.add_argument("--requests", type=int, default=150, help="of each run")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--output", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    bundled = Path(trivet.__file__).parent / "bundled" / args.model
    args.tokenizer = bundled if bundled.is_dir() else Path(args.model)
    ours: list[Figures] = []
    theirs: list[Figures] = []
    with serve(args.model) as server:
        for number in range(args.rounds):
            turns = [(run_ours, ours), (run_guidellm, theirs)]
            for run, runs in turns if number % 2 == 0 else turns[::-1]:
                runs.append(run(server, args, number + 1))
    show(compare(ours, theirs, args), ("bench", "ours", "guidellm", "value", "spread"), as_json=args.json)


if __name__ == "__main__":
    main()
