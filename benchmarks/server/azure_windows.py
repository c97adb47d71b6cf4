"""`trivet serve` under five minutes of the two Azure 2023 traces, replayed by `trivet bench`.

    python -m benchmarks.server.azure_windows --traces FOLDER --model demo --length-scale 0.25 --json
    python -m benchmarks.server.azure_windows --traces FOLDER --model /tmp/qwen3-0.6b --length-scale 0.25 --time-scale 8

FOLDER holds azure_llm_2023_code.csv and azure_llm_2023_conv.csv (Microsoft's AzurePublicDataset, CC-BY-4.0). The
window begins at --start and lasts --seconds / --time-scale in the trace's own time, --seconds here. `value` is the p50
TTFT; the whole record of each run goes to results/.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.record import Record, environment, show
from benchmarks.server_process import serve, trivet_command

TRACES = {"code": "azure_llm_2023_code.csv", "conv": "azure_llm_2023_conv.csv"}
RESULTS = Path("results")


def replay(url: str, trace: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The record of one replay; RuntimeError if there is none."""
    command = [
        *trivet_command(), "bench", url, "--trace", str(trace), "--trace-start", f"{args.start}s",
        "--trace-for", f"{args.seconds / args.time_scale}s", "--time-scale", str(args.time_scale),
        "--length-scale", str(args.length_scale), "--max-input", str(args.max_input),
        "--max-output", str(args.max_output), "--slo", args.slo, "--json",
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if not done.stdout:
        raise RuntimeError(f"`{' '.join(command)}` ended with {done.returncode}")
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def summary(name: str, whole: dict[str, Any], args: argparse.Namespace) -> Record:
    """The figures of a replay that go into the table."""
    [run] = whole["runs"]

    def ms(kind: str, rank: str) -> float | None:
        value = run[kind][rank]["value"]
        return None if value is None else round(1e3 * value, 2)

    interval = run["ttft_s"]["p50"]
    width = None if interval["value"] is None else round(1e3 * (interval["high"] - interval["low"]) / 2, 2)
    return {
        "bench": f"server.azure_{name}", "model": Path(args.model).name, "value": ms("ttft_s", "p50"), "spread": width,
        "unit": "ms", "requests": run["requests"], "answered": run["answered"], "ttft_p99_ms": ms("ttft_s", "p99"),
        "itl_p50_ms": ms("itl_s", "p50"), "itl_p99_ms": ms("itl_s", "p99"), "e2e_p99_ms": ms("e2e_s", "p99"),
        "output_tok_s": run["throughput"]["output_tokens_per_s"], "attainment": run["attainment"]["value"],
        "valid": run["valid"], "failures": run["failures"], "time_scale": args.time_scale,
        "length_scale": args.length_scale, "seconds": args.seconds, "slo": args.slo, **environment(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, required=True, help="folder of the two csv files")
    parser.add_argument("--model", default="demo", help="a bundled model, or a checkpoint folder")
    parser.add_argument("--only", choices=sorted(TRACES), help="one of the two")
    parser.add_argument("--start", type=float, default=600.0, help="begin of the window, seconds of the trace")
    parser.add_argument("--seconds", type=float, default=300.0, help="length of the replay")
    parser.add_argument("--time-scale", type=float, default=1.0)
    parser.add_argument("--length-scale", type=float, default=0.25)
    parser.add_argument("--max-input", type=int, default=1792)
    parser.add_argument("--max-output", type=int, default=256)
    parser.add_argument("--slo", default="ttft=1s,itl=100ms")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    records: list[Record] = []
    for name in [args.only] if args.only else TRACES:
        with serve(args.model) as server:  # a fresh one each: no prefix of the other's is cached
            whole = replay(server.url, args.traces / TRACES[name], args)
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"azure_{name}_{Path(args.model).name}.json").write_text(json.dumps(whole, indent=2) + "\n")
        records.append(summary(name, whole, args))
    columns = ("bench", "model", "value", "spread", "unit", "ttft_p99_ms", "itl_p50_ms", "itl_p99_ms", "output_tok_s",
               "attainment", "answered", "requests", "valid")  # fmt: skip
    show(records, columns, as_json=args.json)


if __name__ == "__main__":
    main()
