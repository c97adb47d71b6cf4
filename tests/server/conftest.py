"""Servers for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import openai
import pytest
from live_server import Server
from scripted import ScriptedClient

from trivet.config import ServerConfig
from trivet.server.lifecycle import Loaded


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    """Starts servers that end with the test."""
    started: list[Server] = []

    def starter(config: ServerConfig | None = None, *, wait: bool = True, template: bool = True,
                load: Callable[[], Loaded] | None = None) -> Server:  # fmt: skip
        server = Server(ScriptedClient(), config, load, template=template).start()
        started.append(server)
        return server.wait_ready() if wait else server

    yield starter
    for server in started:
        server.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One server for the tests of a file."""
    server = Server(ScriptedClient()).start()
    try:
        yield server.wait_ready()
    finally:
        server.close()


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with server.http() as client:
        yield client


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with server.openai() as client:
        yield client
