"""Who may ask: names of loopback, origins, keys."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import openai
import pytest
from live_server import Server
from starlette.datastructures import Headers

from trivet.config import ServerConfig
from trivet.server.errors import ForbiddenHost, Unauthorized
from trivet.server.report import exposure_warning
from trivet.server.security import check_host, check_key, host_of, is_loopback


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.10", "[::1]", "::1", "LOCALHOST", "a.localhost"])
def test_loopback_names(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "example.com", "10.0.0.1", "localhost.evil.com", "127.0.0.1.evil.com", "0.0.0.0"])
def test_other_names(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("value", "host"),
    [("localhost:8000", "localhost"), ("[::1]:8000", "::1"), ("::1", "::1"), ("http://a.b:3", "a.b"), ("a", "a")],
)
def test_the_host_of_a_header(value: str, host: str) -> None:
    assert host_of(value) == host


def test_a_rebound_name_is_refused(http: httpx.Client) -> None:
    reply = http.get("/v1/models", headers={"Host": "evil.example:8000"})
    assert reply.status_code == 403
    error = reply.json()["error"]
    assert error["code"] == "forbidden_host"
    assert "'evil.example:8000'" in error["message"] and "`--host`" in error["message"]
    assert http.get("/health", headers={"Host": "evil.example"}).status_code == 403


def test_a_page_of_another_origin_is_refused(http: httpx.Client) -> None:
    reply = http.post("/v1/completions", json={"prompt": "a"}, headers={"Origin": "https://evil.example"})
    assert reply.status_code == 403
    assert "'https://evil.example'" in reply.json()["error"]["message"]
    good = http.post("/v1/completions", json={"prompt": "a"}, headers={"Origin": "http://localhost:3000"})
    assert good.status_code == 200
    assert not [name for name in good.headers if name.startswith("access-control")], "no CORS"


def test_no_host_is_no_browser() -> None:
    check_host(Headers({}), "127.0.0.1")
    with pytest.raises(ForbiddenHost):
        check_host(Headers({"host": ""}), "127.0.0.1")


def test_a_server_for_the_network_takes_any_name() -> None:
    check_host(Headers({"host": "model.example", "origin": "https://app.example"}), "0.0.0.0")
    with pytest.raises(ForbiddenHost):
        check_host(Headers({"host": "model.example"}), "127.0.0.1")


def test_keys(start: Callable[..., Server]) -> None:
    server = start(ServerConfig(port=0, api_keys=("one", "zwei-ü")))
    with server.http() as http:
        assert http.get("/health").status_code == http.get("/metrics").status_code == 200
        none = http.get("/v1/models")
        wrong = http.get("/v1/models", headers={"Authorization": "Bearer on"})
        basic = http.get("/v1/models", headers={"Authorization": "Basic one"})
        right = http.get("/v1/models", headers={"Authorization": "bearer one"})
    assert [reply.status_code for reply in (none, wrong, basic, right)] == [401, 401, 401, 200]
    assert none.headers["www-authenticate"] == "Bearer"
    assert none.json()["error"]["code"] == "invalid_api_key"
    assert "no API key" in none.text and "not one that this server accepts" in wrong.text
    with server.openai("one") as client:
        assert client.completions.create(model="scripted", prompt="a", max_tokens=1).choices[0].text == "a"
    with server.openai("two") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_a_key_is_compared_as_bytes() -> None:
    keys = ["zwei-ü".encode()]
    check_key(Headers(raw=[(b"authorization", b"Bearer " + keys[0])]), keys)
    with pytest.raises(Unauthorized):
        check_key(Headers(raw=[(b"authorization", b"Bearer \xff")]), keys)


def test_a_network_address_without_keys_is_warned_of() -> None:
    assert exposure_warning(ServerConfig(host="127.0.0.1")) is None
    assert exposure_warning(ServerConfig(host="0.0.0.0", api_keys=("k",))) is None
    warning = exposure_warning(ServerConfig(host="0.0.0.0"))
    assert warning is not None and "0.0.0.0" in warning and "`--api-key`" in warning
