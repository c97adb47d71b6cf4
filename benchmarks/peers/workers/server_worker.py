"""A server of any peer as a worker: starts it, and puts load on it with `trivet bench`. Runs in our environment.

Settings: `command` (with {port}), `environment`, `name` of the model, `tokenizer` (a folder), `versions`.

| work | what is done |
| --- | --- |
| clients | `streams` callers in a closed loop, `requests` answers, prompts and answers of random lengths |
| mixed | `streams` streams decode; after `after_s` seconds a prompt of `long` tokens comes in |
| start | (not a command) `first_token_s` of the ready line: process to the first token of a one-token completion |
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import suppress
from typing import Any

from common import Message, commands, random_ids

START_S = 300.0


class Server:
    def __init__(self, settings: Message) -> None:
        self.settings = settings
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        command = [word.replace("{port}", str(self.port)) for word in settings["command"]]
        environment = {**os.environ, **settings.get("environment", {})}
        self.begin = time.perf_counter()
        self.process = subprocess.Popen(command, env=environment, stdout=sys.stderr)

    def first_token_s(self) -> float:
        """Seconds from the start of the process to a first token; asks until there is one."""
        while time.perf_counter() < self.begin + START_S:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}")
            with suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                self._complete(random_ids(128, "start"), 1)
                return time.perf_counter() - self.begin
            time.sleep(0.01)
        raise RuntimeError(f"the server gave no token in {START_S:.0f} s")

    def clients(self, command: Message) -> Message:
        """A closed loop of `streams` callers."""
        lengths = {"--input-tokens": command["prompt"], "--output-tokens": command["output"]}
        flags = [word for flag, (low, high) in lengths.items() for word in (flag, f"{low}..{high}")]
        return self._bench(
            ["--concurrency", command["streams"], "--requests", command["requests"], *flags], command["seed"]
        )

    def mixed(self, command: Message) -> Message:
        """Some streams, and a long prompt that comes when they decode."""
        late = [command["after_s"], command["long"], 1]
        rows = [[0.0, command["prompt"], command["output"]]] * command["streams"] + [late]
        with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
            print("time_s,input_tokens,output_tokens", *(",".join(map(str, row)) for row in rows), sep="\n", file=file)
            file.flush()
            return self._bench(["--trace", file.name, "--trace-format", "rows"], command["seed"])

    def close(self) -> None:
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self.process.kill()

    def _bench(self, load: list[Any], seed: int) -> Message:
        """The figures of `trivet bench` with this load."""
        command = [
            sys.executable, "-m", "trivet.cli.main", "bench", self.url, *map(str, load), "--seed", str(seed),
            "--model", self.settings["name"], "--tokenizer", self.settings["tokenizer"], "--warmup", "0", "--json",
        ]  # fmt: skip
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if not done.stdout:
            raise RuntimeError(f"`trivet bench` ended with {done.returncode} and said nothing")
        return figures_of_bench(json.loads(done.stdout))

    def _complete(self, prompt: list[int], output: int) -> None:
        body = {"model": self.settings["name"], "prompt": prompt, "max_tokens": output, "temperature": 0}
        request = urllib.request.Request(
            f"{self.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()


def figures_of_bench(record: Message) -> Message:
    """What is compared, from the record of a load of one run. RuntimeError if a request failed or none was answered.

    Not a failure: a whole answer that brought no text, of one request in twenty at most. With random weights all its
    bytes may be parts of no character. It counts as many tokens as the others did on average.
    """
    [run] = record["runs"]
    answered, without_text = run["answered"], run["failures"].get("no_tokens", 0)
    if sum(run["failures"].values()) > without_text or 19 * without_text > answered or not answered:
        raise RuntimeError(f"{answered} requests were answered, others failed: {run['failures']}")
    throughput = run["throughput"]
    tokens = throughput["output_tokens_per_s"] * throughput["seconds"] * (1 + without_text / answered)
    return {
        "seconds": throughput["seconds"],
        "tokens": round(tokens),
        "ttft_p50_s": run["ttft_s"]["p50"]["value"],
        "gap_p99_s": run["itl_s"]["p99"]["value"],
        "gap_max_s": run["itl_s"]["max"],
        "without_text": without_text,
        "invalid_because": run["invalid_because"],
    }


def main() -> None:
    settings = json.loads(sys.argv[1])

    def say(message: Message) -> None:
        print(json.dumps(message), flush=True)

    server = Server(settings)
    try:
        first_token_s = round(server.first_token_s(), 3)
        about = {"versions": settings["versions"]}
        say({"ready": True, "first_token_s": first_token_s, "load_s": first_token_s, **about})
        works = {"clients": server.clients, "mixed": server.mixed}
        for command in commands():
            try:
                say(works[command["work"]](command))
            except Exception as error:
                say({"error": f"{type(error).__name__}: {error}"})
    finally:
        server.close()


if __name__ == "__main__":
    main()
