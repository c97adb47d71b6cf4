"""What a server tells people and programs."""

from __future__ import annotations

import io
import json
import shlex
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from scripted import INFO, ScriptedClient, scripted_backend

from trivet.config import ServerConfig
from trivet.server.milestones import Milestones
from trivet.server.report import DEMO_NOTE, JsonReport, PrintedReport, curl_line, notes

URL = "http://127.0.0.1:8000"


def printed(config: ServerConfig, *, template: bool = True) -> str:
    out = io.StringIO()
    milestones = Milestones()
    milestones.reach("http is up")
    report = PrintedReport(config, "scripted", milestones, out)
    report.loading("/models/scripted", URL)
    report.ready(scripted_backend(ScriptedClient(), template=template), URL)
    report.first_token()
    report.draining(2, 30.0)
    report.draining(0, 30.0)
    report.cut(1)
    return out.getvalue()


def test_the_block_has_every_fact() -> None:
    text = printed(ServerConfig())
    for fact in (
        f"loading  /models/scripted, listening on {URL}\n",
        "/models/scripted (llama), int8, 10.0 MiB of weights, KV bf16", "baseline tier, 2 threads",
        "4,096 tokens a sequence, 64 sequences at once, 256 requests waiting", "fp_0123456789abcdef",
        "note     layer 3 runs in int8", f"{URL}/v1 serves `scripted`",
        "finishing 2 requests, for at most 30 s; signal again to stop at once", "\n1 request cut off\n",
    ):  # fmt: skip
        assert fact in text
    assert "first token" not in text and " ms " not in text
    assert text.count("finishing") == 1


def test_timings_on_request() -> None:
    text = printed(ServerConfig(timings=True))
    assert "ms  http is up" in text and "10 ms  load_model" in text
    assert "first token" in text


def test_a_server_that_anybody_may_use_is_warned_of() -> None:
    assert "WARNING: 0.0.0.0 is reachable from the network" in printed(ServerConfig(host="0.0.0.0"))
    assert "WARNING" not in printed(ServerConfig(host="0.0.0.0", api_keys=("k",)))


@pytest.mark.parametrize("template", [False, True])
def test_the_curl_line_is_a_command(template: bool) -> None:
    backend = scripted_backend(ScriptedClient(), template=template)
    words = shlex.split(curl_line(backend, URL, "it's", ServerConfig(api_keys=("k",))))
    assert words[:2] == ["curl", f"{URL}/v1/{'chat/completions' if template else 'completions'}"]
    assert "Authorization: Bearer KEY" in words
    body = json.loads(words[-1])
    assert body["model"] == "it's"
    assert ("messages" in body) is template


def test_notes_for_demo_and_for_models_that_cannot_chat(demo_small_path: Path) -> None:
    for path, name in (("demo", "demo"), (str(demo_small_path), "demo-small")):
        client = ScriptedClient(msgspec.structs.replace(INFO, model_path=path))
        found = notes(scripted_backend(client, template=False), ServerConfig())
        assert found[0] == DEMO_NOTE.format(name)
        assert any("no chat template" in note for note in found)
    elsewhere = ScriptedClient(msgspec.structs.replace(INFO, model_path="/models/demo"))
    assert notes(scripted_backend(elsewhere), ServerConfig()) == INFO.notes, "another model of that name"
    other = replace(scripted_backend(ScriptedClient()))
    assert notes(other, ServerConfig()) == INFO.notes


def test_json_lines() -> None:
    out = io.StringIO()
    report = JsonReport(ServerConfig(), "scripted", Milestones(), out)
    report.loading("some/where", URL)
    report.ready(scripted_backend(ScriptedClient()), URL)
    report.first_token()
    report.draining(1, 30.0)
    report.cut(1)
    loading, ready, first, draining, cut = map(json.loads, out.getvalue().splitlines())
    assert (loading["event"], loading["url"], loading["path"]) == ("loading", URL, "some/where")
    assert (ready["event"], ready["url"], ready["model"]) == ("ready", URL, "scripted")
    assert ready["engine"]["fingerprint"] == "fp_0123456789abcdef"
    assert first["event"] == "first_token" and first["at_s"] > 0
    assert draining == {"event": "draining", "open_requests": 1, "drain_s": 30.0}
    assert cut == {"event": "cut", "open_requests": 1}


def test_nobody_need_read_it() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    for kind in (PrintedReport, JsonReport):
        report = kind(ServerConfig(), "scripted", Milestones(), Gone())
        report.ready(scripted_backend(ScriptedClient()), URL)
        report.cut(1)
