"""`trivet run`, in this process and, where signals and terminals matter, in one of its own."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from trivet.cli.main import main

PROMPT = "def read_json(path):"
SMALL = ["--max-context", "512", "--temperature", "0"]
COMMAND = [sys.executable, "-c", "from trivet.cli.main import main; main()", "run"]


def run(*arguments: str) -> int:
    """The exit status of `trivet run ...`."""
    try:
        main(["run", *arguments])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.fixture(scope="module")
def answer():
    from trivet import LLM, SamplingParams

    with LLM("demo", max_context=512, max_num_seqs=1) as llm:
        return llm.generate(PROMPT, SamplingParams(max_tokens=12, temperature=0.0))[0]


def test_the_text_goes_to_stdout_and_what_was_chosen_to_stderr(answer, capsys):
    assert run("demo", PROMPT, "--max-tokens", "12", *SMALL) == 0
    out, err = capsys.readouterr()
    assert out == answer.outputs[0].text
    assert "note: precision auto: int8" in err and all(line.startswith("note: ") for line in err.splitlines())


def test_json_is_one_object_with_ids_and_timings(answer, capsys):
    assert run("demo", PROMPT, "--max-tokens", "12", "--json", "--seed", "3", *SMALL) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["text"], said["token_ids"]) == (answer.outputs[0].text, answer.outputs[0].token_ids)
    assert (said["prompt"], said["prompt_token_ids"]) == (PROMPT, answer.prompt_token_ids)
    assert (said["seed"], said["finish_reason"], said["precision"]) == (3, "length", "int8")
    assert said["fingerprint"] == answer.fingerprint
    assert said["timings"]["prefill_s"] > 0 and "precision auto: int8" in said["notes"]


@pytest.mark.parametrize("argument", [["-"], []])
def test_the_prompt_may_be_piped_in(answer, argument, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(PROMPT))
    assert run("demo", *argument, "--max-tokens", "12", *SMALL) == 0
    assert capsys.readouterr().out == answer.outputs[0].text


def test_without_max_tokens_it_takes_the_rest_of_the_context(capsys):
    assert run("demo", PROMPT, "--json", "--max-context", "64", "--temperature", "0") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["finish_reason"] == "stop" or len(said["token_ids"]) + len(said["prompt_token_ids"]) == 64


def test_timings_go_to_stderr(capsys):
    assert run("demo", PROMPT, "--max-tokens", "4", "--timings", *SMALL) == 0
    err = capsys.readouterr().err
    for part in ("imports and command line", "weights_s", "tokenizer_s", "process start to first token", "tokens/s"):
        assert part in err


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["/no/such/folder", "x"], 1, "/no/such/folder"),
        (["demo", "x", "--precision", "int3"], 2, "`model.precision` is 'int3'"),
        (["demo", "x", "--temperature", "-1"], 2, "`temperature` is -1.0"),
        (["demo", "x", "--group-size", "33"], 2, "`model.group_size` is 33"),
        (["demo", "x", "--kv-precision", "fp8"], 2, "`cache.dtype` is 'fp8'"),
        (["demo", "", *SMALL], 1, "no tokens"),
        (["demo", "x " * 3000, *SMALL], 1, "512"),
        (["demo", "x", "--max-tokens", "5000", *SMALL], 1, "`max_tokens` asks for 5,000"),
    ],
)
def test_what_cannot_be_is_one_clear_error(arguments, status, message, capsys):
    assert run(*arguments) == status
    out, err = capsys.readouterr()
    assert out == "" and "error: " in err and message in err and "Traceback" not in err


def test_a_model_with_a_chat_template_is_asked_through_it(tmp_path, capsys):
    from checkpoints import make_checkpoint  # brings torch and transformers

    folder = str(make_checkpoint(tmp_path / "chatty"))
    short = ["--max-tokens", "3", "--json", "--temperature", "0"]
    assert run(folder, "hello", *short) == 0
    assert json.loads(capsys.readouterr().out)["prompt"].endswith("<|im_start|>assistant\n")
    assert run(folder, "hello", "--raw", *short) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == "hello"


def test_ctrl_c_stops_and_exits_with_130():
    endless = [*COMMAND, "demo", "x = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,", "--temperature", "0"]
    with subprocess.Popen(endless, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(4)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stderr.read().decode().endswith("\ninterrupted\n")


class Terminal:
    """`trivet run` on a pseudo-terminal."""

    def __init__(self, *arguments: str) -> None:
        self._fd, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "dumb"}
        self.process = subprocess.Popen(
            [*COMMAND, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
        )
        os.close(theirs)
        self.seen = ""

    def until(self, text: str) -> str:
        """Waits for `text`; returns what came before it, since the last call."""
        deadline = time.monotonic() + 30
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            self.seen += os.read(self._fd, 4096).decode()
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def end(self) -> int:
        status = self.process.wait(20)
        os.close(self._fd)
        return status


def test_on_a_terminal_without_a_template_each_line_is_completed(answer):
    terminal = Terminal("demo", "--max-tokens", "12", *SMALL)
    assert "`demo` has no chat template" in terminal.until("> ")
    terminal.type(PROMPT + "\n")
    said = terminal.until("\r\n> ").replace("\r\n", "\n")
    assert said.removeprefix(PROMPT + "\n") == answer.outputs[0].text
    terminal.type("\x04")
    assert terminal.end() == 0


def test_on_a_terminal_a_chat_remembers_until_it_is_cleared(tmp_path):
    from checkpoints import make_checkpoint

    terminal = Terminal(str(make_checkpoint(tmp_path / "chatty")), "--max-tokens", "4", "--temperature", "0")
    assert "/clear forgets" in terminal.until("> ")
    answers = []
    for line in ("hello", "hello", "/clear", "hello"):
        terminal.type(line + "\n")
        terminal.until(line + "\r\n")
        answers.append(terminal.until("> "))
    assert answers[0] == answers[3] != answers[1]
    terminal.type("\x04")
    assert terminal.end() == 0


def test_the_way_to_the_first_token_imports_no_server_and_no_hub():
    script = (
        "import sys\nfrom trivet.cli.main import main\ntry:\n    main(['run', 'demo', 'x', '--max-tokens', '1'])\n"
        "except SystemExit: pass\n"
        "heavy = {'starlette', 'uvicorn', 'huggingface_hub', 'rich', 'asyncio', 'jinja2', 'torch', 'safetensors'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"
