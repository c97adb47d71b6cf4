"""The server's host time between native calls, with S streams, alone and while another client posts 1 MB bodies.

    python -m benchmarks.engine.host_time MODEL_FOLDER --streams 1,32 --json

The engine runs as `trivet serve` runs it, in a child process. `value` is the engine's own p99 of the last 1000 gaps,
from /metrics, read last before a stream ends: with the default number of tokens all 1000 are of these streams.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx

from benchmarks.record import Record, environment, median_and_spread, show
from benchmarks.server_process import Server, serve

METRIC = "trivet:step_host_seconds_p99"
STEPS = 1100  # a little more than the engine's window of gaps


def read_metric(client: httpx.Client, url: str, name: str) -> float | None:
    """The value of the first sample called `name`; None while there is none."""
    for line in client.get(f"{url}/metrics").text.splitlines():
        if line.startswith((name + "{", name + " ")):
            return float(line.rpartition(" ")[2])
    return None


@contextmanager
def posting(server: Server, megabytes: float) -> Iterator[list[int]]:
    """Another client posts prompts of this size, one after another; yields the growing list of statuses."""
    stop, statuses = threading.Event(), list[int]()
    body = {"model": server.ready["model"], "prompt": "x " * int(megabytes * 5e5), "max_tokens": 1}

    def post() -> None:
        with httpx.Client(timeout=60) as client:
            while not stop.is_set():
                statuses.append(client.post(f"{server.url}/v1/completions", json=body).status_code)

    thread = threading.Thread(target=post)
    thread.start()
    try:
        yield statuses
    finally:
        stop.set()
        thread.join()


def stream(server: Server, tokens: int) -> None:
    """One greedy stream of `tokens` tokens, read to its end."""
    body = {"model": server.ready["model"], "prompt": "The", "max_tokens": tokens, "temperature": 0, "stream": True,
            "ignore_eos": True}  # fmt: skip
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=None) as response:
        response.raise_for_status()
        for _ in response.iter_bytes():
            pass


def host_p99_ms(server: Server, num_streams: int, tokens: int) -> float:
    """The engine's p99, in milliseconds, while num_streams streams decode `tokens` tokens each."""
    with ThreadPoolExecutor(num_streams) as pool, httpx.Client() as client:
        running = [pool.submit(stream, server, tokens) for _ in range(num_streams)]
        seen: float | None = None
        while not any(future.done() for future in running):
            time.sleep(0.05)
            seen = read_metric(client, server.url, METRIC) or seen
        for future in running:
            future.result()
    if seen is None:
        raise RuntimeError(f"{METRIC} was not on the metrics page; ask for more than {tokens} tokens")
    return 1e3 * seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint folder, such as benchmarks/make_checkpoint.py writes")
    parser.add_argument("--streams", type=lambda text: [int(s) for s in text.split(",")], default=[1, 32])
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--tokens", type=int, default=STEPS, help="of each stream; the window is the last 1000 steps")
    parser.add_argument("--megabytes", type=float, default=1.0, help="size of the other client's bodies")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    records: list[Record] = []
    options = ["--precision", args.precision, "--max-num-seqs", str(max(args.streams))]
    with serve(args.model, *options) as server:
        engine = server.ready["engine"]
        for streams in args.streams:
            for other in ("none", f"{args.megabytes:g} MB bodies"):
                if other == "none":
                    values, posted = [host_p99_ms(server, streams, args.tokens) for _ in range(args.runs)], 0
                else:
                    with posting(server, args.megabytes) as statuses:
                        values = [host_p99_ms(server, streams, args.tokens) for _ in range(args.runs)]
                    posted = len(statuses)
                value, spread = median_and_spread(values)
                records.append({
                    "bench": "engine.host_time", "model": args.model, "precision": engine["precision"],
                    "batch": streams, "other_client": other, "bodies_posted": posted, "value": round(value, 4),
                    "spread": round(spread, 4), "unit": "ms p99", "isa": engine["isa"],
                    "threads": engine["num_threads"], **environment(),
                })  # fmt: skip
    show(records, ("batch", "other_client", "bodies_posted", "value", "spread", "unit"), as_json=args.json)


if __name__ == "__main__":
    main()
