"""Servers of every manner, each reported for what it is."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench_driving import all_notes, bench, only_run

from trivet.errors import ConfigError, TargetError
from trivet.measure.job import job_from
from trivet.measure.options import Options
from trivet.measure.probe import Probed, probe

Scripted = Callable[..., str]


def test_a_plain_server(tmp_path: Path, scripted: Scripted) -> None:
    run = only_run(tmp_path, scripted(itl_s=0.005), slo="e2e=20s")
    assert run["answered"] == run["requests"] == run["planned"]["requests"] > 20
    assert run["failures"] == {}
    assert run["itl_s"]["num"] == run["requests"] * 7
    assert run["throughput"]["output_tokens_per_s"] * run["throughput"]["seconds"] == pytest.approx(
        run["requests"] * 8, rel=1e-3
    )
    assert run["attainment"]["value"] == 1.0
    assert run["goodput_requests_per_s"] == pytest.approx(run["requests"], rel=1e-3), "in one second"
    assert not [note for note in run["notes"] if "length" in note or ("server" in note and "batches" not in note)]


def test_events_in_one_write_are_batched(tmp_path: Path, scripted: Scripted) -> None:
    run = only_run(tmp_path, scripted(itl_s=0.005, events_per_write=4))
    [note] = [note for note in run["notes"] if "batches its events" in note]
    assert ": 4.0 came with each read" in note
    assert run["itl_s"]["p50"]["value"] == 0 and run["itl_s"]["num"] == run["requests"] * 7


def test_events_of_several_tokens(tmp_path: Path, scripted: Scripted) -> None:
    run = only_run(tmp_path, scripted(itl_s=0.01, tokens_per_event=2))
    assert "an event holds 2.0 tokens" in all_notes(run)
    assert run["throughput"]["output_tokens_per_s"] * run["throughput"]["seconds"] == pytest.approx(
        run["requests"] * 8, rel=1e-3
    )


@pytest.mark.parametrize("usage", ["always", "final", "none"])
def test_empty_deltas_are_no_tokens(tmp_path: Path, scripted: Scripted, usage: str) -> None:
    run = only_run(tmp_path, scripted(itl_s=0.005, empty_events=True, usage=usage))
    assert run["answered"] == run["requests"]
    assert run["itl_s"]["num"] == run["requests"] * 7, "eight tokens an answer, not sixteen"


def test_pieces_may_end_anywhere(tmp_path: Path, scripted: Scripted) -> None:
    """Also inside characters of several bytes, and inside `data:`."""
    run = only_run(tmp_path, scripted(itl_s=0.005, cut_utf8=True))
    assert run["answered"] == run["requests"]
    assert run["itl_s"]["num"] == run["requests"] * 7


def test_chat(tmp_path: Path, scripted: Scripted, demo_path: Path) -> None:
    run = only_run(tmp_path, scripted(itl_s=0.002), endpoint="chat", tokenizer=[demo_path])
    assert run["answered"] == run["requests"]
    assert "prompts are not of the wished length" not in all_notes(run), "the template's tokens are counted in"


def test_prompts_shorter_than_a_template_are_noted_or_refused(
    tmp_path: Path, scripted: Scripted, demo_path: Path
) -> None:
    (tmp_path / "t.csv").write_text("time_s,input_tokens,output_tokens\n0,1,4\n0.1,90,4\n")
    url, chat = scripted(), {"endpoint": "chat", "tokenizer": [demo_path]}
    run = only_run(tmp_path, url, rate=0, trace=tmp_path / "t.csv", duration=None, **chat)
    assert "of the trace's prompts 1 are no longer than what the server adds to each" in all_notes(run)
    with pytest.raises(ConfigError, match="`--input-tokens` is 1, but the server adds"):
        only_run(tmp_path, url, input_tokens="1", **chat)


def test_prompts_of_another_length_are_noted(tmp_path: Path, scripted: Scripted) -> None:
    """The probe's overhead is what it is on the probe; here the server counts 3 more on the run alone."""
    run = only_run(tmp_path, scripted(prompt_tokens_off=3))
    assert "prompts are not of the wished length: by the server's count they are +3 to +3 tokens off" in all_notes(run)


def test_answers_that_end_early_are_noted(tmp_path: Path, scripted: Scripted) -> None:
    run = only_run(tmp_path, scripted(max_answer=5))
    assert "answers ended before the wished length; the mean is 5.0 tokens" in all_notes(run)


# --- what goes wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "kind", "said"),
    [
        ({"die_after": 3}, "died_mid_stream", "without a finish_reason"),
        ({"end_after": 3}, "died_mid_stream", "without a finish_reason"),
        ({"error_after": 3}, "error_event", "out of memory"),
        ({"garbage_after": 3}, "malformed", "not a completion chunk"),
        ({"status_every": 1, "status": 503}, "http_5xx", "not now"),
        ({"status_every": 1, "status": 400}, "http_4xx", "not now"),
        ({"status_every": 1, "status": 404}, "wrong_model", "not now"),
        ({"not_http": True}, "malformed", "is not HTTP"),
        ({"json_answer": True}, "malformed", "is JSON, but a stream was asked for"),
        ({"no_tokens": True}, "no_tokens", "has no tokens"),
    ],
)
def test_failures_by_kind(tmp_path: Path, scripted: Scripted, script: dict[str, Any], kind: str, said: str) -> None:
    status, record = bench(tmp_path, scripted(itl_s=0.001, **script), slo="ttft=10s")
    [run] = record["runs"]
    assert run["failures"] == {kind: run["requests"]} and run["answered"] == 0
    assert said in run["examples"][kind]
    assert run["attainment"]["value"] == 0.0
    assert status == 1 and not record["valid"] and "no request was answered" in run["invalid_because"]


def test_refusals_say_when_to_come_back(tmp_path: Path, scripted: Scripted) -> None:
    run = only_run(tmp_path, scripted(status_every=3, retry_after="7"), slo="ttft=60s")
    refused = run["failures"]["http_429"]
    assert refused == pytest.approx(run["requests"] / 3, abs=1)
    assert f"{refused} requests got 429; Retry-After was 7 to 7 s" in all_notes(run)
    assert run["attainment"]["value"] == pytest.approx(1 - refused / run["requests"], rel=1e-3)


def test_a_request_that_takes_too_long(tmp_path: Path, scripted: Scripted) -> None:
    run = only_run(tmp_path, scripted(hang=True), timeout="0.4s", requests=5, duration=None)
    assert run["failures"] == {"timeout": 5}
    assert run["examples"]["timeout"] == "not whole after 0.4 s"


def test_connections_that_are_not_kept(tmp_path: Path, scripted: Scripted) -> None:
    run = only_run(tmp_path, scripted(close=True))
    assert run["answered"] == run["requests"]
    assert f"the server closed {run['requests']} connections that could have been kept" in all_notes(run)


def test_a_body_that_ends_with_its_connection(tmp_path: Path, scripted: Scripted) -> None:
    run = only_run(tmp_path, scripted(until_close=True))
    assert run["answered"] == run["requests"]


def test_kept_connections_that_are_closed_without_a_word(tmp_path: Path, scripted: Scripted) -> None:
    run = only_run(tmp_path, scripted(drop_kept=True), arrivals="constant", rate=20.0)
    assert run["answered"] == run["requests"]
    assert "connections that could have been kept" in all_notes(run)


def test_headers_that_come_slowly(tmp_path: Path, scripted: Scripted) -> None:
    run = only_run(tmp_path, scripted(header_delay_s=0.2))
    assert run["answered"] == run["requests"]
    assert run["ttft_s"]["p50"]["value"] >= 0.2


def test_a_server_that_goes_away(tmp_path: Path, scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the probe nobody listens any more."""
    from trivet.measure import session

    url = scripted()

    def probe_and_leave(target: Any, asked: Any) -> Probed:
        from dataclasses import replace

        found = probe(target, asked)
        nobody = replace(found.target, address=replace(found.target.address, port=9))
        return replace(found, target=nobody)

    monkeypatch.setattr(session, "probe", probe_and_leave)
    run = only_run(tmp_path, url, requests=5, duration=None)
    assert run["failures"] == {"connect": 5}
    closed = only_run(tmp_path, url, concurrency=2, rate=0, duration="0.5s")
    assert closed["failures"]["connect"] <= 14, "a place in a closed loop waits after a failure"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl, which makes the certificate, is not there")
def test_tls(tmp_path: Path, scripted: Scripted) -> None:
    pem = tmp_path / "both.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=127.0.0.1", "-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    pem.write_text((tmp_path / "key.pem").read_text() + (tmp_path / "cert.pem").read_text())
    url = scripted(certificate=str(pem)).replace("http:", "https:")
    with pytest.raises(TargetError, match="certificate verify failed") as caught:
        asked(url)
    assert "--insecure" in str(caught.value.hint)
    run = only_run(tmp_path, url, insecure=True)
    assert run["answered"] == run["requests"]


# --- what a server refuses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        (["ignore_eos"], "the server refuses `ignore_eos`: answers may end before the wished length"),
        (["stream_options"], "the server refuses `stream_options`: an event with text counts as one token"),
    ],
)
def test_fields_that_are_refused_are_left_out_and_noted(
    tmp_path: Path, scripted: Scripted, refused: list[str], said: str
) -> None:
    run = only_run(tmp_path, scripted(refuse=refused))
    assert run["answered"] == run["requests"]
    assert said in run["notes"]


def test_plain_usage_is_taken_where_continuous_usage_is_refused(tmp_path: Path, scripted: Scripted) -> None:
    _, record = bench(tmp_path, scripted(refuse=["continuous_usage_stats"]))
    assert '"stream_options":{"include_usage":true}' in record["targets"][0]["body"]
    assert not any("refuses" in note for note in record["runs"][0]["notes"])


def test_ids_that_are_refused_become_text(tmp_path: Path, scripted: Scripted, demo_path: Path) -> None:
    _, record = bench(tmp_path, scripted(refuse_ids=True), tokenizer=[demo_path])
    assert record["targets"][0]["prompts_as"] == "text"
    [run] = record["runs"]
    assert "the server refuses prompts of token ids: they are sent as text" in run["notes"]
    assert run["answered"] == run["requests"]
    assert "not of the wished length" not in all_notes(run)


def asked(url: str, **options: Any) -> Probed:
    job = job_from(Options(target=url, **options))
    return probe(job.targets[0], job.asked[0])


def test_a_server_that_refuses_everything(scripted: Scripted, demo_path: Path) -> None:
    with pytest.raises(TargetError, match="refuses the plainest request: 400: unknown field `temperature`"):
        asked(scripted(refuse=["temperature"]), tokenizer=[demo_path])


def test_without_a_tokenizer_the_server_tells_its_ids(scripted: Scripted) -> None:
    found = asked(scripted())
    assert found.dialect.form == "ids" and len(found.dialect.pieces) == 299


def test_a_server_that_does_not_tell_its_ids(scripted: Scripted) -> None:
    with pytest.raises(ConfigError, match="need the server's tokenizer") as caught:
        asked(scripted(refuse=["return_token_ids"]))
    assert "--tokenizer" in str(caught.value.hint)


def test_chat_needs_a_tokenizer(scripted: Scripted) -> None:
    with pytest.raises(TargetError, match="texts of exact token counts need the server's tokenizer"):
        asked(scripted(), endpoint="chat")


def test_a_folder_without_a_tokenizer(scripted: Scripted, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no tokenizer"):
        asked(scripted(), tokenizer=[tmp_path])


# --- which server, which model ------------------------------------------------------------------------------------


def test_a_server_that_cannot_be_reached() -> None:
    with pytest.raises(TargetError, match=r"http://127.0.0.1:9/v1 cannot be reached: Connection refused") as caught:
        asked("127.0.0.1:9")
    assert "trivet serve" in str(caught.value.hint)


def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(TargetError, match="cannot be reached"):
        asked("http://no-such-host.invalid:80")


def test_a_model_that_is_not_served(scripted: Scripted) -> None:
    with pytest.raises(TargetError, match="does not serve the model `other`") as caught:
        asked(scripted(models=["first", "second"]), model=["other"])
    assert caught.value.hint == "it serves: first, second"


def test_several_models_must_be_chosen_from(scripted: Scripted) -> None:
    url = scripted(models=["first", "second"])
    with pytest.raises(TargetError, match="serves these models: first, second") as caught:
        asked(url)
    assert caught.value.hint == "choose one with `--model`"
    assert asked(url, model=["second"]).model.name == "second"


def test_a_server_without_a_list_of_models(scripted: Scripted) -> None:
    url = scripted(models_status=404)
    assert asked(url, model=["anything"]).model.name == "anything"
    with pytest.raises(TargetError, match="serves these models: none"):
        asked(url)


def test_a_list_that_is_none(scripted: Scripted) -> None:
    with pytest.raises(TargetError, match="/models answers 500"):
        asked(scripted(models_status=500))


def test_a_list_of_something_else(monkeypatch: pytest.MonkeyPatch, scripted: Scripted) -> None:
    monkeypatch.setattr("trivet.measure.target.ask", lambda *args: (200, b'{"data": ["abc"]}'))
    with pytest.raises(TargetError, match="does not answer with a list of models"):
        asked(scripted())


def test_a_key(scripted: Scripted, tmp_path: Path) -> None:
    url = scripted(key="sesame")
    with pytest.raises(TargetError, match="asks for a key: no such key") as caught:
        asked(url)
    assert "--api-key" in str(caught.value.hint)
    run = only_run(tmp_path, url, api_key="sesame")
    assert run["answered"] == run["requests"]


def test_a_request_that_the_model_cannot_hold(scripted: Scripted, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has 28 tokens with its answer, but `scripted` can hold 27"):
        bench(tmp_path, scripted(max_model_len=27))


@pytest.mark.parametrize(
    ("url", "base", "port"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000/v1", 8000), ("http://h/v1/", "http://h/v1", 80),
        ("https://h", "https://h/v1", 443), ("http://u:p@h:1/x/v1", "http://h:1/x/v1", 1),
        ("http://[::1]:5", "http://[::1]:5/v1", 5),
    ],
)  # fmt: skip
def test_targets(url: str, base: str, port: int) -> None:
    from trivet.measure.target import parse_target

    target = parse_target(url)
    assert (target.url, target.address.port) == (base, port)
    assert b"Content-Length: " in target.head("completions")


@pytest.mark.parametrize("url", ["ftp://h", "http://", "http://h:port", ""])
def test_what_is_no_target(url: str) -> None:
    from trivet.measure.target import parse_target

    with pytest.raises(ConfigError, match="the target is "):
        parse_target(url)
