"""`trivet bench` for real: the command, against `trivet serve`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trivet.cli.main import main

LOAD = ["--rate", "10", "--duration", "2s", "--warmup", "0", "--input-tokens", "30..60", "--output-tokens", "12"]


def status(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of `trivet bench ARGUMENTS`."""
    with pytest.raises(SystemExit) as caught:
        main(["bench", *arguments])
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


@pytest.fixture(scope="module")
def url(cache_dir: Path) -> Iterator[str]:
    """A running `trivet serve demo-small`."""
    call = [sys.executable, "-m", "trivet.cli.main", "serve", "demo-small", "--port", "0", "--json"]
    with subprocess.Popen(call, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        events = map(json.loads, process.stdout)
        yield next(event["url"] for event in events if event["event"] == "ready")
        process.terminate()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that believes itself, however busy the machine is; and no measurement of the machine."""
    monkeypatch.setattr("trivet.measure.validity.ALLOWED_S", 60.0)
    monkeypatch.setattr("trivet.cli.bench._limits", lambda: {"measured": {"bytes_per_s": 1e9}})


def test_our_own_server(capsys: pytest.CaptureFixture[str], url: str, patient: None) -> None:
    code, out, _ = status(capsys, url, *LOAD, "--slo", "ttft=30s", "--require", "0.9", "--json")
    record = json.loads(out)
    [run] = record["runs"]
    assert code == 0 and record["valid"]
    assert run["answered"] == run["requests"] == run["planned"]["requests"] and run["failures"] == {}
    assert record["limits"]["measured"] == {"bytes_per_s": 1e9}
    assert not any("length" in note for note in run["notes"]), "prompts and answers are as long as wished"
    assert run["itl_s"]["num"] == 11 * run["requests"]


def test_chats_find_their_beginning_in_the_prefix_cache(
    capsys: pytest.CaptureFixture[str], url: str, patient: None
) -> None:
    code, out, _ = status(capsys, url, *LOAD, "--turns", "3", "--json", "--seed", "5")
    [run] = json.loads(out)["runs"]
    assert code == 0 and run["answered"] == run["requests"]
    assert any("were found in the server's prefix cache" in note for note in run["notes"])


def test_the_table(capsys: pytest.CaptureFixture[str], url: str, patient: None) -> None:
    code, out, err = status(capsys, f"{url}/v1", *LOAD, "--slo", "ttft=1us", "--require", "0.9")
    assert code == 1, "the limit was missed"
    assert "demo-small at http" in out and "TTFT" in out and "attainment: 0.0%" in out
    assert err == "", "no progress line where there is no terminal"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["http://127.0.0.1:9"], 3, "error: http://127.0.0.1:9/v1 cannot be reached: Connection refused\nhint: is the"),
        (["ftp://x"], 2, "error: the target is 'ftp://x', but it must be a URL\nhint: "),
        (["--find-capacity"], 2, "error: `--find-capacity` needs limits to meet\nhint: such as --slo"),
        (["--trace", "/no/such/file"], 2, "error: the trace /no/such/file cannot be read: No such file or directory\n"),
        (["--rate", "fast"], 2, "Error: Invalid value for"),
    ],
)
def test_what_cannot_be(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str) -> None:
    found, out, err = status(capsys, *arguments)
    assert (found, out) == (code, "")
    assert said in err


def test_a_model_that_is_not_served(capsys: pytest.CaptureFixture[str], url: str) -> None:
    code, _, err = status(capsys, url, "--model", "gpt")
    assert code == 3
    assert err == f"error: {url}/v1 does not serve the model `gpt`\nhint: it serves: demo-small\n"


def test_a_request_beyond_the_context(capsys: pytest.CaptureFixture[str], url: str) -> None:
    code, _, err = status(capsys, url, "--input-tokens", "2000", "--output-tokens", "100")
    assert code == 2
    assert "has 2,100 tokens with its answer, but `demo-small` can hold 2,048" in err


def test_a_model_without_a_chat_template(capsys: pytest.CaptureFixture[str], url: str) -> None:
    code, _, err = status(capsys, url, "--endpoint", "chat")
    assert code == 3 and "refuses the plainest request: 400" in err
