"""What every worker shares: the protocol, the prompts, and what is read off the times of the tokens.

A worker runs in its peer's environment, so this is standard library only. It loads once, says so in a line, and then
obeys: a JSON object a line on stdin, a JSON object a line on stdout. What the peer itself prints goes to stderr.

    {"work": "decode", "streams": 8, "prompt": 128, "output": 128, "seed": 3}  ->  {"seconds": 6.1, "tokens": 1016, ...}

| work | seconds | tokens |
| --- | --- | --- |
| decode | from when every stream has a token to when the first one ends | of all streams, in that time |
| prefill | from the request to the first token, of one stream | of its prompt |
| shared | from the requests to the last token | of all answers; prompts begin with the same `shared` tokens |
| quit | | |
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

Message = dict[str, Any]
Times = list[list[float]]  # [stream][token]: time.perf_counter when it was there


class Engine(Protocol):
    """A loaded model."""

    def generate(self, prompts: list[list[int]], output: int, shared: int) -> Times:
        """Greedy answers of exactly `output` tokens, EOS or not, all requested at once.

        The prompts begin with the same `shared` tokens: an engine that does not find that out by itself may use it.
        """
        ...


# --- prompts ------------------------------------------------------------------------------------------------------


def random_ids(length: int, *labels: object) -> list[int]:
    """Ordinary tokens of either vocabulary. Other labels give another beginning, so no prefix cache can help."""
    rng = random.Random("/".join(map(str, (length, *labels))))
    return [rng.randrange(1000, 20000) for _ in range(length)]


def make_prompts(streams: int, length: int, seed: int, shared: int = 0) -> list[list[int]]:
    """One prompt a stream, of `length` tokens, of which the first `shared` are the same."""
    beginning = random_ids(shared, seed, "shared")
    return [beginning + random_ids(length - shared, seed, stream) for stream in range(streams)]


# --- figures ------------------------------------------------------------------------------------------------------


def generation_phase(times: Times) -> tuple[float, int]:
    """(seconds, tokens) from when every stream has its first token to when the first stream has its last."""
    begin, end = max(stream[0] for stream in times), min(stream[-1] for stream in times)
    if end <= begin:
        raise ValueError("there was no time in which all streams decoded; ask for more tokens")
    return end - begin, sum(begin < moment <= end for stream in times for moment in stream)


def do(engine: Engine, command: Message) -> Message:
    """The figures of one piece of work."""
    work, output, shared = command["work"], command["output"], command.get("shared", 0)
    prompts = make_prompts(command["streams"], command["prompt"], command["seed"], shared)
    begin = time.perf_counter()
    times = engine.generate(prompts, output, shared)
    counts = {len(stream) for stream in times}
    if len(times) != len(prompts) or counts != {output}:
        raise ValueError(f"{len(prompts)} answers of {output} tokens were asked for, not {len(times)} of {counts}")
    first, last = max(stream[0] for stream in times) - begin, max(stream[-1] for stream in times) - begin
    whole = {"ttft_s": round(first, 5), "whole_s": round(last, 5)}
    if work == "decode":
        seconds, tokens = generation_phase(times)
    elif work == "prefill":
        seconds, tokens = first, command["prompt"]
    elif work == "shared":
        seconds, tokens = last, output * len(prompts)
    else:
        raise ValueError(f"`{work}` is no work that a worker knows")
    return {"seconds": seconds, "tokens": tokens, **whole}


# --- the protocol -------------------------------------------------------------------------------------------------


def serve(load: Callable[[Message], tuple[Engine, Message]]) -> None:
    """Loads with the settings in the first argument, says what was loaded, works until `quit` or the end of stdin."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the peer prints

    def say(message: Message) -> None:
        print(json.dumps(message), file=out, flush=True)

    begin = time.perf_counter()
    engine, about = load(json.loads(sys.argv[1]))
    say({"ready": True, "load_s": round(time.perf_counter() - begin, 3), **about})
    for command in commands():
        try:
            say(do(engine, command))
        except Exception as error:
            say({"error": f"{type(error).__name__}: {error}"})


def commands() -> Iterator[Message]:
    for line in sys.stdin:
        command = json.loads(line)
        if command["work"] == "quit":
            return
        yield command
