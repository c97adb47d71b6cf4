"""Each thing that cannot be done is refused with a status, a name and what to do; nothing is ignored in silence."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from live_server import Server
from scripted import INFO

from trivet.config import ServerConfig
from trivet.server import openai, serving

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
USER = [{"role": "user", "content": "hi"}]


def refused(reply: httpx.Response, status: int, *, code: str | None = None, param: str | None = None) -> str:
    """The message, after the shape was checked."""
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    if code is not None:
        assert error["code"] == code
    return str(error["message"])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "it is empty"),
        (b"  \n", "it is empty"),
        (b'{"prompt": "a"', "it ends too early, at byte 14 (line 1, column 15)"),
        (b'{"prompt":\n "a",}', "trailing comma in object at byte 16 (line 2, column 6)"),
        (b'{"prompt": ?}', "at byte 11 (line 1, column 12)"),
        (b'{"temperature": NaN}', "invalid character at byte 16"),
        (b'{"prompt": "\xff"}', "not UTF-8 at byte 12"),
        (b'["prompt"]', 'the body is ["prompt"], but it must be a JSON object'),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_bad_json_names_its_place(http: httpx.Client, body: bytes, said: str) -> None:
    assert said in refused(http.post(COMPLETIONS, content=body), 400, code="invalid_json")


@pytest.mark.parametrize(
    ("path", "fields", "param", "said"),
    [
        (COMPLETIONS, {"max_tokens": "5"}, "max_tokens", '`max_tokens` is "5", but it must be an integer'),
        (COMPLETIONS, {"max_tokens": 5.5}, "max_tokens", "`max_tokens` is 5.5, but it must be an integer"),
        (COMPLETIONS, {"n": True}, "n", "`n` is true, but it must be an integer"),
        (COMPLETIONS, {"temperature": "hot"}, "temperature", '`temperature` is "hot", but it must be a number'),
        (COMPLETIONS, {"stream": 1}, "stream", "`stream` is 1, but it must be true or false"),
        (COMPLETIONS, {"stop": ["a", 3]}, "stop", "`stop[1]` is 3, but it must be a string"),
        (COMPLETIONS, {"logit_bias": {"5": "x"}}, "logit_bias", "but it must be a number"),
        (COMPLETIONS, {"stream_options": {"include_usages": True}}, "stream_options", "unknown field `include_usages`"),
        (COMPLETIONS, {"prompt": [1, [2]]}, "prompt", "`prompt` mixes kinds"),
        (COMPLETIONS, {"prompt": [["a"]]}, "prompt", '`prompt[0][0]` is "a", but it must be an integer'),
        (COMPLETIONS, {"prompt": []}, "prompt", "`prompt` is an empty list"),
        (COMPLETIONS, {"prompt": [[]]}, "prompt", "`prompt[0]` is an empty list of token ids"),
        (COMPLETIONS, {"prompt": [5, -1]}, "prompt", "`prompt` holds token id -1, but"),
        (
            COMPLETIONS,
            {"prompt": [[5], [10**30]]},
            "prompt",
            "`prompt[1]` holds token id 1000000000000000000000000000000",
        ),
        (COMPLETIONS, {"prompt": [260]}, "prompt", "the model knows the ids 0 to 259"),
        (COMPLETIONS, {"prompt": {}}, "prompt", "`prompt` is {}, but it must be a string or a list"),
        (CHAT, {"messages": "hi"}, "messages", '`messages` is "hi", but it must be a list'),
        (CHAT, {"messages": ["hi"]}, "messages", '`messages[0]` is "hi", but it must be an object'),
        (CHAT, {"logprobs": 3}, "logprobs", "`logprobs` is 3, but it must be true or false"),
    ],
)
def test_a_wrong_type_names_field_value_and_expected(
    http: httpx.Client, path: str, fields: dict[str, Any], param: str, said: str
) -> None:
    base: dict[str, Any] = {"prompt": "a"} if path == COMPLETIONS else {"messages": USER}
    assert said in refused(http.post(path, json={**base, **fields}), 400, param=param)


@pytest.mark.parametrize(
    ("path", "fields", "param", "said"),
    [
        (COMPLETIONS, {"n": 0}, "n", "between 1 and 128"),
        (COMPLETIONS, {"max_tokens": 0}, "max_tokens", "1 or more"),
        (COMPLETIONS, {"temperature": -1}, "temperature", "between 0 and 100"),
        (COMPLETIONS, {"top_p": 0}, "top_p", "above 0"),
        (COMPLETIONS, {"logprobs": 21}, "logprobs", "between 0 and 20"),
        (COMPLETIONS, {"stop": ["a", ""]}, "stop", "non-empty"),
        (COMPLETIONS, {"best_of": 3}, "best_of", "must be equal to `n` (1)"),
        (COMPLETIONS, {"logit_bias": {"abc": 1}}, "logit_bias", "keys are token ids"),
        (COMPLETIONS, {"logit_bias": {"260": 1}}, "logit_bias", "the ids 0 to 259"),
        (COMPLETIONS, {"logit_bias": {"5": 101}}, "logit_bias", "between -100 and 100"),
        (COMPLETIONS, {"stop_token_ids": [999]}, "stop_token_ids", "token id 999"),
        (COMPLETIONS, {"allowed_token_ids": [-1]}, "allowed_token_ids", "token id -1"),
        (COMPLETIONS, {"priority": 10**30}, "priority", "between -1,000,000 and 1,000,000"),
        (COMPLETIONS, {"deadline_s": 0}, "deadline_s", "above 0 seconds"),
        (COMPLETIONS, {"deadline_s": 1e9}, "deadline_s", "at most 86,400"),
        (COMPLETIONS, {"logit_bias": {"1" * 5000: 1}}, "logit_bias", "keys are token ids"),
        (COMPLETIONS, {"logit_bias": {str(i): 1 for i in range(261)}}, "logit_bias", "holds 261 token ids, but"),
        (COMPLETIONS, {"stop_token_ids": [1] * 261}, "stop_token_ids", "holds 261 token ids, but"),
        (COMPLETIONS, {"stop": ["a"] * 129}, "stop", "a list of at most 128"),
        (COMPLETIONS, {"stop": "a" * 4097}, "stop", "at most 4,096 characters"),
        (COMPLETIONS, {"prompt": [5] * 5000}, "prompt", "holds 5,000 token ids, but the context has 4,096"),
        (COMPLETIONS, {"prompt": [[5], [5] * 5000]}, "prompt", "`prompt[1]` holds 5,000 token ids"),
        (CHAT, {"messages": [{}] * 5000}, "messages", "holds 5,000 messages"),
        (CHAT, {"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "`chat_template_kwargs.messages`"),
        (CHAT, {"chat_template_kwargs": {"self": 1}}, "chat_template_kwargs", "`chat_template_kwargs.self` cannot"),
        (CHAT, {"chat_template_kwargs": {"tools": 1}}, "chat_template_kwargs", "`chat_template_kwargs.tools` cannot"),
        (
            CHAT,
            {"chat_template_kwargs": {"add_generation_prompt": 1}},
            "chat_template_kwargs",
            "`chat_template_kwargs.add_generation_prompt` is 1, but it must be true or false",
        ),
        (COMPLETIONS, {"seed": 2**64}, "seed", "64-bit"),
        (COMPLETIONS, {"stream_options": {"include_usage": True}}, "stream_options", "only allowed with `stream`"),
        (COMPLETIONS, {"prompt": ["a"] * 400}, "prompt", "holds 400 prompts, but at most 320"),
        (CHAT, {"top_logprobs": 2}, "top_logprobs", "needs `logprobs`"),
        (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "between 0 and 20"),
        (CHAT, {"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "two names of one thing"),
        (CHAT, {"messages": []}, "messages", "empty list"),
    ],
)
def test_a_value_out_of_range(http: httpx.Client, path: str, fields: dict[str, Any], param: str, said: str) -> None:
    base: dict[str, Any] = {"prompt": "a"} if path == COMPLETIONS else {"messages": USER}
    assert said in refused(http.post(path, json={**base, **fields}), 400, param=param)


@pytest.mark.parametrize(
    ("path", "fields", "said"),
    [
        (COMPLETIONS, {"suffix": "x"}, "nothing is filled in"),
        (COMPLETIONS, {"store": True}, "answers are not stored"),
        (COMPLETIONS, {"service_tier": "flex"}, "there is one tier"),
        (COMPLETIONS, {"repetition_penalty": 1.1}, "`presence_penalty`"),
        (COMPLETIONS, {"use_beam_search": True}, "no beam search"),
        (COMPLETIONS, {"guided_json": {}}, "constrained output"),
        (CHAT, {"tools": [{"type": "function"}]}, "tool calls are not supported yet"),
        (CHAT, {"tool_choice": "auto"}, "tool calls are not supported yet"),
        (CHAT, {"functions": [{}]}, "tool calls are not supported yet"),
        (CHAT, {"response_format": {"type": "json_object"}}, "constrained output is not supported yet"),
        (CHAT, {"modalities": ["text", "audio"]}, "text is the only kind"),
        (CHAT, {"audio": {"voice": "x"}}, "text is the only kind"),
        (CHAT, {"prediction": {}}, "predicted outputs"),
        (CHAT, {"web_search_options": {}}, "no web search"),
        (CHAT, {"reasoning_effort": "low"}, "no such control"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    http: httpx.Client, path: str, fields: dict[str, Any], said: str
) -> None:
    [name] = fields
    base: dict[str, Any] = {"prompt": "a"} if path == COMPLETIONS else {"messages": USER}
    message = refused(http.post(path, json={**base, **fields}), 400, param=name)
    assert f"`{name}`" in message and said in message


@pytest.mark.parametrize(
    ("path", "name", "said"),
    [
        (COMPLETIONS, "max_token", "did you mean `max_tokens`?"),
        (COMPLETIONS, "temprature", "did you mean `temperature`?"),
        (COMPLETIONS, "messages", "it belongs to /v1/chat/completions"),
        (COMPLETIONS, "zzzzzz", "unknown field `zzzzzz`"),
        (CHAT, "echo", "it belongs to /v1/completions"),
    ],
)
@pytest.mark.parametrize("value", [1, None])
def test_an_unknown_field_is_named_with_the_nearest(
    http: httpx.Client, path: str, name: str, said: str, value: int | None
) -> None:
    base: dict[str, Any] = {"prompt": "a"} if path == COMPLETIONS else {"messages": USER}
    message = refused(http.post(path, json={**base, name: value}), 400, param=name, code="unknown_parameter")
    assert said in message


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "king", "content": "x"}, "`messages[0].role` is 'king'"),
        ({"content": "x"}, "`messages[0].role` is None"),
        ({"role": "tool", "content": "x"}, "tool calls are not supported yet"),
        ({"role": "user"}, "`messages[0].content` is None"),
        ({"role": "user", "content": 5}, "`messages[0].content` is 5"),
        ({"role": "user", "content": ["x"]}, "`messages[0].content[0]` is 'x'"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "`messages[0].content[0]` is of type 'image_url'"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "is of type 'input_audio'"),
        ({"role": "user", "content": [{"type": "text"}]}, "`messages[0].content[0].text` is None"),
        ({"role": "user", "content": [{"type": "text", "text": "a", "b": 1}]}, "`messages[0].content[0].b`"),
        ({"role": "user", "content": "x", "contents": "y"}, "did you mean `content`?"),
        ({"role": "user", "content": "x", "name": 7}, "`messages[0].name` is 7"),
        ({"role": "assistant", "content": "x", "tool_calls": [{}]}, "`messages[0].tool_calls` cannot be honoured"),
    ],
)
def test_a_bad_message_is_named(http: httpx.Client, message: dict[str, Any], said: str) -> None:
    assert said in refused(http.post(CHAT, json={"messages": [message]}), 400, param="messages")


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (COMPLETIONS, {"x" * 10**6: 1}),
        (COMPLETIONS, {"model": "x" * 10**6}),
        (COMPLETIONS, {"seed": "x" * 10**6}),
        (COMPLETIONS, {"seed": [["x" * 10**5] * 9] * 2}),
        (CHAT, {"messages": [{"role": "x" * 10**6}]}),
        (CHAT, {"messages": [{"role": "user", "content": {"y": "x" * 10**6}}]}),
        (CHAT, {"messages": [{"role": "user", "x" * 10**6: 1}]}),
        (COMPLETIONS, {"stream_options": {"x" * 10**6: 1}}),
    ],
    ids=range(8),
)
def test_what_is_refused_is_not_sent_back_whole(http: httpx.Client, path: str, fields: dict[str, Any]) -> None:
    base: dict[str, Any] = {"prompt": "a"} if path == COMPLETIONS else {"messages": USER}
    reply = http.post(path, json={**base, **fields})
    assert reply.status_code in (400, 404)
    assert len(reply.content) < 1000
    assert "xxx" in reply.text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (COMPLETIONS, {"prompt": ["y" * 4000] * 9}),
        (CHAT, {"messages": [{"role": "user", "content": "y" * 9000}]}),
        (COMPLETIONS, {"prompt": [7] * 4097, "echo": True}),
    ],
    ids=["many prompts", "a long chat", "ids"],
)
def test_what_takes_long_is_not_done_by_the_event_loop(
    start: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    """Whatever a body asks for: what counts is the size of all of it."""
    threads: dict[str, set[int]] = {"loop": set(), "work": set()}
    real_parse, real_read = openai.parse, openai.read_body

    def parse(*args: Any) -> Any:
        threads["work"].add(threading.get_ident())
        return real_parse(*args)

    async def read_body(*args: Any, **kwargs: Any) -> bytes:
        threads["loop"].add(threading.get_ident())
        return await real_read(*args, **kwargs)

    monkeypatch.setattr(openai, "parse", parse)
    monkeypatch.setattr(openai, "read_body", read_body)
    server = start()
    with server.http() as http:
        http.post(path, json={**body, "max_tokens": 1})
        assert not threads["work"] & threads["loop"]
        http.post(COMPLETIONS, json={"prompt": "short"})
        assert threads["work"] & threads["loop"], "a thread costs more than this"


def test_a_missing_field(http: httpx.Client) -> None:
    assert "`prompt` is missing" in refused(http.post(COMPLETIONS, json={}), 400, param="prompt")
    assert "`messages` is missing" in refused(http.post(CHAT, json={}), 400, param="messages")


def test_an_unknown_model_is_answered_with_those_served(http: httpx.Client) -> None:
    reply = http.post(COMPLETIONS, json={"model": "gpt-4", "prompt": "a"})
    message = refused(reply, 404, code="model_not_found", param="model")
    assert "`gpt-4`" in message and "`scripted`" in message
    assert refused(http.get("/v1/models/gpt-4"), 404, code="model_not_found", param="model") == message


def test_a_model_is_known_by_the_name_that_was_given(http: httpx.Client) -> None:
    """A client may name the hub id, as with other servers; answers carry the served name."""
    for name in ("scripted", "some/scripted"):
        reply = http.post(COMPLETIONS, json={"model": name, "prompt": "a", "max_tokens": 1})
        assert reply.json()["model"] == "scripted"
        assert http.get(f"/v1/models/{name}").json()["id"] == "scripted"


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_a_prompt_that_is_too_long_gets_both_numbers(http: httpx.Client, path: str) -> None:
    text = "x" * 5000
    body = {"prompt": text} if path == COMPLETIONS else {"messages": [{"role": "user", "content": text}]}
    reply = http.post(path, json=body)
    assert reply.json()["error"]["code"] == "context_length_exceeded"
    tokens = "5,001" if path == COMPLETIONS else "5,006"
    assert tokens in reply.text and "4,096" in reply.text


def test_other_paths_and_methods(http: httpx.Client) -> None:
    assert "/v1/completions" in refused(http.get("/v1/nothing"), 404, code="unknown_url")
    reply = http.get(COMPLETIONS)
    assert "/v1/completions does not take GET; use POST" in refused(reply, 405, code="method_not_allowed")
    assert "POST" in reply.headers["allow"]


def test_a_body_that_is_too_large(http: httpx.Client, server: Server) -> None:
    big = b'{"prompt": "' + b"x" * (16 * 2**20) + b'"}'
    message = refused(http.post(COMPLETIONS, content=big), 413, code="body_too_large")
    assert "16,777,230 bytes, but at most 16,777,216" in message
    chunks = (big[i : i + 2**20] for i in range(0, len(big), 2**20))
    assert "more than" in refused(http.post(COMPLETIONS, content=chunks), 413, code="body_too_large")


def test_a_compressed_body(http: httpx.Client) -> None:
    reply = http.post(COMPLETIONS, content=b"..", headers={"Content-Encoding": "gzip"})
    assert "'gzip'" in refused(reply, 415, code="unsupported_encoding")


def test_an_overloaded_engine(http: httpx.Client) -> None:
    reply = http.post(COMPLETIONS, json={"prompt": "!busy"})
    assert refused(reply, 429, code="overloaded") == "256 wait"
    assert reply.headers["retry-after"] == "7"
    streamed = http.post(COMPLETIONS, json={"prompt": ["fine", "!busy"], "stream": True})
    assert streamed.status_code == 429, "a stream that cannot begin has a status, not an event"


def test_one_refused_prompt_ends_the_others(http: httpx.Client, server: Server) -> None:
    assert http.post(COMPLETIONS, json={"prompt": ["!hang", "!busy"]}).status_code == 429
    assert server.client.cancelled[-1].endswith("-0")


def test_an_engine_that_dies(http: httpx.Client) -> None:
    reply = http.post(COMPLETIONS, json={"prompt": "!die"})
    assert refused(reply, 503, code="engine_died") == "it was ended by SIGSEGV"
    assert int(reply.headers["retry-after"]) >= 1


def test_an_engine_that_dies_in_mid_stream(http: httpx.Client) -> None:
    reply = http.post(COMPLETIONS, json={"prompt": "!die", "stream": True})
    assert reply.status_code == 200
    events = reply.text.removesuffix("\n\n").split("\n\n")
    assert len(events) == 4
    assert '"error":{"message":"it was ended by SIGSEGV","type":"engine_error"' in events[-1]


def logged(caplog: pytest.LogCaptureFixture, word: str) -> list[str]:
    """The lines of the log with `word`, once there is one: a request is logged after its answer was sent."""
    end = time.monotonic() + 10
    while not (found := [message for message in caplog.messages if word in message]) and time.monotonic() < end:
        time.sleep(0.01)
    return found


@pytest.mark.parametrize(
    ("path", "status"), [(COMPLETIONS, 400), ("/v1/nothing", 404), ("/v1/models/none", 404), ("/health", 405)]
)
def test_an_error_has_an_id_that_the_log_has_too(
    http: httpx.Client, caplog: pytest.LogCaptureFixture, path: str, status: int
) -> None:
    caplog.set_level("INFO", "trivet.server")
    reply = http.post(path, content=b"?") if path in (COMPLETIONS, "/health") else http.get(path)
    assert reply.status_code == status
    request_id = reply.headers["x-request-id"]
    [message] = logged(caplog, request_id)
    assert message.endswith(f", {request_id}") and f" {status} " in message


def test_a_mistake_of_ours_has_an_id_too(
    http: httpx.Client, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a planted bug")

    caplog.set_level("INFO", "trivet.server")
    monkeypatch.setattr(openai, "parse", broken)
    reply = http.post(COMPLETIONS, json={"prompt": "a"})
    message = refused(reply, 500, code="internal_error")
    assert "planted" not in message and "log has the details" in message
    assert " 500 " in logged(caplog, reply.headers["x-request-id"])[0]


def test_a_path_cannot_forge_a_line_of_the_log(http: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "trivet.server")
    http.get("/v1/x%0d%0aGET%20/admin%20200")
    [message] = logged(caplog, "/v1/x")
    assert "\n" not in message and "'/v1/x\\r\\nGET /admin 200'" in message


def test_bodies_together_are_bounded(start: Callable[..., Server]) -> None:
    server = start(ServerConfig(port=0, max_body_bytes=1000, max_bodies_bytes=1500))
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
    with server.http() as http:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head + b"{" * 900)
            while http.get("/health").json()["open_requests"] == 0:
                pass
            reply = http.post(COMPLETIONS, json={"prompt": "x" * 700})
            assert "request bodies of 900 bytes are being read, and at most 1,500" in refused(reply, 429)
            assert reply.headers["retry-after"] == "1"
            assert http.post(COMPLETIONS, json={"prompt": "x" * 100, "max_tokens": 1}).status_code == 200
        while http.get("/health").json()["open_requests"] > 0:
            pass
        assert http.post(COMPLETIONS, json={"prompt": "x" * 700, "max_tokens": 1}).status_code == 200, (
            "it is given back"
        )


def test_too_many_open_requests(start: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound on what is open bounds the bodies that are held in memory."""
    monkeypatch.setattr(serving, "UPLOADING", 1 - INFO.max_num_seqs - INFO.max_waiting)
    server = start()
    with (
        server.http() as http,
        server.http() as other,
        http.stream("POST", "/v1/completions", json={"prompt": "!slow", "max_tokens": 4000, "stream": True}),
    ):
        reply = other.post(COMPLETIONS, json={"prompt": "a"})
        assert "1 requests are open" in refused(reply, 429, code="overloaded")
        assert reply.headers["retry-after"] == "1"
        assert 'reason="open_requests"} 1.0' in other.get("/metrics").text
