"""`trivet serve` for real: the command in a process of its own, its engine in another, `demo` in front of it."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from trivet.cli.main import main
from trivet.cli.serve import name_of, read_keys
from trivet.config import EngineConfig
from trivet.errors import ConfigError

START_TIMEOUT_S = 60.0  # cold, on a busy machine


class Serving:
    """A running `trivet serve --json`."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "trivet.cli.main", "serve", "--port", "0", "--json", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        for event in ("loading", "ready"):
            line = self.process.stdout.readline()
            assert line and json.loads(line)["event"] == event, self.process.communicate()[1]
        self.ready: dict[str, Any] = json.loads(line)
        self.url: str = self.ready["url"]

    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=30)

    def engine(self) -> psutil.Process:
        [child] = psutil.Process(self.process.pid).children()
        return child

    def end(self, *signals: int) -> tuple[int, str, str]:
        """Exit status, and what was written after the first line."""
        for number in signals:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


@contextmanager
def serving(*arguments: str) -> Iterator[Serving]:
    server = Serving(*arguments)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.communicate()


@pytest.fixture(scope="module")
def server(cache_dir: Path) -> Iterator[Serving]:
    with serving("demo") as running:
        yield running


@pytest.fixture
def client(server: Serving) -> Iterator[openai.OpenAI]:
    with server.openai() as client:
        yield client


def test_what_it_says_when_it_is_ready(server: Serving) -> None:
    ready = server.ready
    assert (ready["event"], ready["model"], ready["pid"]) == ("ready", "demo", server.process.pid)
    assert ready["engine"]["precision"] == "int8"
    assert any("only completes Python" in note for note in ready["notes"])
    assert 0 < ready["ready_s"] < START_TIMEOUT_S
    assert list(ready["reached_s"].values()) == sorted(ready["reached_s"].values())


def test_a_completion_is_the_same_whole_and_streamed(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "demo", "prompt": "def read_json(path):", "max_tokens": 24, "seed": 3}
    whole = client.completions.create(**asked)
    chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[0].system_fingerprint == whole.system_fingerprint
    assert str(whole.system_fingerprint).startswith("fp_")


def test_several_at_once_are_the_same_as_alone(client: openai.OpenAI) -> None:
    prompts = ["import os\n", "class Point:\n", "def add(a, b):\n    return", "for i in range(10):\n"]
    asked: dict[str, Any] = {"model": "demo", "max_tokens": 12, "seed": 7, "n": 2}
    together = [choice.text for choice in client.completions.create(prompt=prompts, **asked).choices]
    alone = [choice.text for p in prompts for choice in client.completions.create(prompt=p, **asked).choices]
    assert together == alone


def test_logprobs_of_the_prompt_and_the_output(client: openai.OpenAI) -> None:
    reply = client.completions.create(
        model="demo", prompt="import os, sys", max_tokens=4, temperature=0, echo=True, logprobs=2
    )
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None and logprobs.tokens and logprobs.token_logprobs and logprobs.text_offset
    assert "".join(logprobs.tokens) == reply.choices[0].text
    assert logprobs.token_logprobs[0] is None
    assert all(p is not None and p <= 0 for p in logprobs.token_logprobs[1:])
    text = reply.choices[0].text
    assert [text[a:].startswith(t) for a, t in zip(logprobs.text_offset, logprobs.tokens, strict=True)] == [True] * len(
        logprobs.tokens
    )


def test_a_second_prompt_finds_the_first_in_the_cache(client: openai.OpenAI) -> None:
    prompt = "".join(f"value_{i} = {i}\n" for i in range(40))
    client.completions.create(model="demo", prompt=prompt, max_tokens=1)
    reply = client.completions.create(model="demo", prompt=prompt + "print(", max_tokens=1)
    assert reply.usage is not None and reply.usage.prompt_tokens_details is not None
    assert (reply.usage.prompt_tokens_details.cached_tokens or 0) >= 64


def test_chat_says_that_demo_has_no_template(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "hi"}])


def test_too_long(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="demo", prompt="x = 1\n" * 2000, max_tokens=8)
    assert caught.value.code == "context_length_exceeded"
    assert "2,048" in caught.value.message


def test_an_engine_that_is_shot_ends_streams_and_comes_back(server: Serving, client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "demo", "prompt": "import os\n", "temperature": 0}
    before = client.completions.create(**asked, max_tokens=8).choices[0].text
    stream = client.completions.create(**asked, max_tokens=1500, stream=True, extra_body={"ignore_eos": True})
    chunks = iter(stream)
    next(chunks)
    server.engine().send_signal(signal.SIGSEGV)
    with pytest.raises(openai.APIError, match="SIGSEGV"):
        list(chunks)
    assert client.completions.create(**asked, max_tokens=8).choices[0].text == before, "it waited for the restart"
    with httpx.Client(base_url=server.url) as http:
        assert http.get("/ready").status_code == 200
        assert http.get("/health").json()["engine_restarts"] == 1
        page = http.get("/metrics").text
    assert 'trivet:engine_restarts_total{engine="0",model_name="demo"} 1.0' in page
    assert 'trivet:request_failures_total{engine="0",error="EngineDied",model_name="demo"} 1.0' in page


def test_a_busy_port_is_named_at_once(server: Serving) -> None:
    port = server.url.rpartition(":")[2]
    status, said = refused("--port", port)
    assert status == 1
    by = rf"\S+ \(process {server.process.pid}\)"
    assert re.match(rf"error: port {port} on 127.0.0.1 is already in use by {by}\nhint: ", said)


def test_a_full_queue_is_429_and_sigterm_lets_a_stream_finish(cache_dir: Path) -> None:
    arguments = ["--served-model-name", "small", "--threads", "1", "--max-num-seqs", "1", "--max-waiting", "0"]
    with serving("demo-small", "--in-process", *arguments) as server:
        assert server.ready["model"] == "small" and server.ready["engine"]["num_threads"] == 1
        assert psutil.Process(server.process.pid).children() == []
        with server.openai() as client:
            stream = client.completions.create(
                model="small", prompt="import os\n", max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
            )
            chunks = iter(stream)
            next(chunks)
            with pytest.raises(openai.RateLimitError) as caught:
                client.completions.create(model="small", prompt="import os\n")
            assert int(caught.value.response.headers["retry-after"]) >= 1
            server.process.send_signal(signal.SIGTERM)
            rest = list(chunks)
        assert rest[-1].choices[0].finish_reason == "length"
        code, out, err = server.end()
    assert (code, err) == (0, "")
    assert [json.loads(line)["event"] for line in out.splitlines()] == ["first_token", "draining"]


def test_ctrl_c_is_130_and_what_people_see(cache_dir: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "trivet.cli.main", "serve", "demo-small", "--port", "0", "--timings", "--api-key", "s"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    block = ""
    while "curl " not in block:
        line = process.stderr.readline()
        assert line, block
        block += line
    for word in ("demo-small (llama), int8", "tier", "numerics fp_", "ms  ready", "ms  tokenizer is read"):
        assert word in block
    reply = run_curl(block.replace("Bearer KEY", "Bearer s"))
    assert reply["choices"][0]["text"]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert "first token" in err


def run_curl(block: str) -> Any:
    """Does what the printed curl line would do."""
    [line] = [line for line in block.splitlines() if line.startswith("curl ")]
    _, url, *options = shlex.split(line)
    pairs = list(zip(options[::2], options[1::2], strict=True))
    headers = dict(value.split(": ", 1) for option, value in pairs if option == "-H")
    [data] = [value for option, value in pairs if option == "-d"]
    return httpx.post(url, headers=headers, content=data, timeout=30).json()


def refused(*arguments: str) -> tuple[int, str]:
    """Exit status and stderr of a `trivet serve` that does not get to serve."""
    done = subprocess.run(
        [sys.executable, "-m", "trivet.cli.main", "serve", *arguments],
        check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == ""
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no/such/model/here"], "error: `model.path` is 'no/such/model/here'"),
        (["demo", "--max-context", "9999"], "error: `model.max_context` is 9,999"),
    ],
)
def test_what_cannot_start_says_why(arguments: list[str], said: str, cache_dir: Path) -> None:
    status, err = refused("--port", "0", *arguments)
    assert status == 1
    assert said in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--precision", "int3"], "error: `model.precision` is 'int3'"),
        (["--group-size", "33"], "error: `model.group_size` is 33, but it must be 32, 64 or 128"),
        (["--memory", "lots"], "error: `memory` is 'lots', but it must be a size\nhint: "),
        (["--memory", "20"], "error: `memory` is '20', but it must have a unit\nhint: "),
        (["--drain-s", "nan"], "error: `server.drain_s` is nan, but it must be 0 or more seconds"),
        (["--drain-s", "-1"], "error: `server.drain_s` is -1, but it must be 0 or more seconds"),
        (["--stall-s", "0"], "error: `server.stall_s` is 0, but it must be above 0 seconds"),
        (["--stall-s", "inf"], "error: `server.stall_s` is inf, but it must be above 0 seconds"),
        (["--port", "70000"], "error: `server.port` is 70000"),
        (["--api-key", " "], "error: `--api-key` is empty"),
    ],
)
def test_a_flag_with_a_value_it_cannot_have_is_used_wrongly(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["serve", *arguments])
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_the_name_is_the_last_part_of_the_path(tmp_path: Path) -> None:
    assert (name_of("demo"), name_of("Qwen/Qwen3-0.6B")) == ("demo", "Qwen3-0.6B")
    assert name_of(f"{tmp_path}/") == tmp_path.name
    (tmp_path / "current").symlink_to(tmp_path)
    assert name_of(str(tmp_path / "current")) == "current", "the name that was given, not what a link leads to"


def test_keys_come_from_flags_and_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nfirst\n\n  second  \n")
    assert read_keys([" flag "], file) == ("flag", "first", "second")
    assert read_keys([], None) == ()
    file.write_text("# none\n")
    with pytest.raises(ConfigError, match="there is no key in it"):
        read_keys([], file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys([], tmp_path / "nothing")
    with pytest.raises(ConfigError, match="is empty"):
        read_keys([""], None)


def test_flags_of_the_scheduler_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[EngineConfig] = []
    monkeypatch.setattr("trivet.cli.serve.serve", lambda _server, engine, *_, **__: seen.append(engine) or 0)
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--itl-target-s", "0.05", "--max-pause-s", "1.5", "--max-tokens-per-step", "256"])
    assert ended.value.code == 0
    scheduler = seen[0].scheduler
    assert (scheduler.itl_target_s, scheduler.max_pause_s, scheduler.max_tokens_per_step) == (0.05, 1.5, 256)
