"""A server with a known schedule, in a process of its own: `python scripted_server.py '{"ttft_s": 0.05}'`.

Raw sockets and exact timers, so that it keeps time. It prints its port. Every answer is a stream whose k-th event is
due `ttft_s + k * itl_s` after the request came; what else it does is in `Script`.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httptools
import uvloop

from trivet.measure.pacer import Pacer


@dataclass
class Script:
    """How to answer. Times are seconds; `every` counts completion requests from 0."""

    ttft_s: list[float] = field(default_factory=lambda: [0.0])  # taken in turn
    itl_s: float = 0.0
    events_per_write: int = 1
    tokens_per_event: int = 1
    empty_events: bool = False  # an event without text before each token
    cut_utf8: bool = False  # writes end inside of characters and field names
    usage: str = "always"  # always, final, none
    token_ids: bool = False
    refuse: list[str] = field(default_factory=list)  # fields that are answered with 400
    refuse_ids: bool = False
    status_every: int = 0  # each n-th request is answered with `status`
    status: int = 429
    retry_after: str | None = "7"
    die_after: int = 0  # events, then the connection is gone
    end_after: int = 0  # events, then the stream ends as if whole
    error_after: int = 0  # events, then an error event
    garbage_after: int = 0  # events, then one that is no JSON
    close: bool = False  # `Connection: close` after each answer
    drop_kept: bool = False  # closes kept connections shortly after each answer, without a word
    until_close: bool = False  # no length and no chunks: the end of the connection is the end of the body
    header_delay_s: float = 0.0  # in the middle of the headers
    hang: bool = False  # never answers
    not_http: bool = False
    json_answer: bool = False
    no_tokens: bool = False
    max_answer: int = 0  # answers end after so many tokens, whatever was asked
    stall_at_s: float = -1.0  # from the first completion that is longer than the probes' on
    stall_for_s: float = 2.0
    models: list[str] = field(default_factory=lambda: ["scripted"])
    models_status: int = 200
    max_model_len: int = 4096
    key: str | None = None
    prompt_tokens_off: int = 0
    certificate: str | None = None  # a file with certificate and key: TLS


class Server:
    """State that connections share."""

    def __init__(self, script: Script, loop: asyncio.AbstractEventLoop) -> None:
        self.script = script
        self.loop = loop
        self.pacer = Pacer(loop, lambda call: call())
        self.num_completions = 0
        self.began_s: float | None = None
        self.num_connections = 0

    def due(self, at_s: float) -> float:
        """The time at which something that is due at `at_s` may be sent: not while the server stalls."""
        script = self.script
        if script.stall_at_s >= 0 and self.began_s is not None:
            begin = self.began_s + script.stall_at_s
            if begin <= at_s < begin + script.stall_for_s:
                return begin + script.stall_for_s
        return at_s


class Connection(asyncio.Protocol):
    def __init__(self, server: Server) -> None:
        self.server = server
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.server.num_connections += 1
        self.parser = httptools.HttpRequestParser(self)
        self.reset()

    def reset(self) -> None:
        self.url, self.body, self.headers = b"", b"", {}

    def data_received(self, data: bytes) -> None:
        self.arrived_s = time.monotonic()
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        url, body, headers = self.url, self.body, self.headers
        self.reset()
        script = self.server.script
        if script.key is not None and headers.get(b"authorization") != b"Bearer " + script.key.encode():
            self.answer(401, {"error": {"message": "no such key"}})
        elif url == b"/v1/models":
            models = [{"id": name, "max_model_len": script.max_model_len} for name in script.models]
            self.answer(script.models_status, {"object": "list", "data": models})
        elif url == b"/stats":
            self.answer(200, {"connections": self.server.num_connections, "completions": self.server.num_completions})
        else:
            self.completion(json.loads(body), is_chat=b"chat" in url)

    def answer(self, status: int, body: Any, extra: str = "") -> None:
        raw = json.dumps(body).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n{extra}\r\n"
        self.transport.write(head.encode() + raw)

    def completion(self, asked: dict[str, Any], *, is_chat: bool) -> None:
        script, server = self.server.script, self.server
        prompt = asked.get("prompt", "")
        for name in script.refuse:
            if name in asked or name in (asked.get("stream_options") or {}):
                self.answer(400, {"error": {"message": f"unknown field `{name}`"}})
                return
        if script.refuse_ids and isinstance(prompt, list):
            self.answer(422, {"detail": "prompt must be a string"})
            return
        if asked.get("return_token_ids") and not asked.get("stream"):
            self.answer(200, {"choices": [{"text": "", "prompt_token_ids": list(range(300))}]})
            return
        is_probe = asked["max_tokens"] <= 2
        number = server.num_completions
        if not is_probe:
            server.num_completions += 1
            server.began_s = server.began_s or self.arrived_s
            if script.hang:
                return
            if script.not_http:
                self.transport.write(b"what?\r\n\r\n")
                return
            if script.json_answer:
                self.answer(200, {"choices": [{"text": "all at once"}]})
                return
            if script.status_every and number % script.status_every == 0:
                extra = "" if script.retry_after is None else f"Retry-After: {script.retry_after}\r\n"
                self.answer(script.status, {"error": {"message": "not now"}}, extra)
                return
        self.stream(asked, is_chat, number, plain=is_probe)

    def stream(self, asked: dict[str, Any], is_chat: bool, number: int, *, plain: bool) -> None:
        server = self.server
        script = Script(models=server.script.models, usage=server.script.usage) if plain else server.script
        events = Events(script, asked, is_chat)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        framed = self.chunk
        if script.until_close:
            framed = bytes
        else:
            head += b"Transfer-Encoding: chunked\r\n"
        if script.close or script.until_close:
            head += b"Connection: close\r\n"
        begin_s = self.arrived_s
        first_s = script.ttft_s[number % len(script.ttft_s)] if not plain else 0.0
        if script.header_delay_s:
            self.at(begin_s, lambda: self.transport.write(head[:30]))
            self.at(begin_s + script.header_delay_s, lambda: self.transport.write(head[30:] + b"\r\n"))
            first_s = max(first_s, script.header_delay_s)
        else:
            self.transport.write(head + b"\r\n")
        writes = events.writes()
        for k, piece in enumerate(writes):
            self.at(begin_s + first_s + k * script.itl_s * script.events_per_write, self.writer(piece, framed))
        last_s = begin_s + first_s + max(0, len(writes) - 1) * script.itl_s * script.events_per_write
        self.at(last_s, lambda: self.finish(script))

    def at(self, at_s: float, call: Callable[[], None]) -> None:
        self.server.pacer.add(self.server.due(at_s), call)

    def writer(self, piece: bytes, framed: Callable[[bytes], bytes]) -> Callable[[], None]:
        if not self.server.script.cut_utf8:
            return lambda: self.transport.write(framed(piece))

        def bytewise() -> None:
            for i in range(0, len(piece), 7):
                self.transport.write(framed(piece[i : i + 7]))

        return bytewise

    @staticmethod
    def chunk(piece: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(piece), piece)

    def finish(self, script: Script) -> None:
        if script.die_after:
            self.transport.abort()
        elif script.until_close:
            self.transport.close()
        else:
            self.transport.write(b"0\r\n\r\n")
            if script.close:
                self.transport.close()
            elif script.drop_kept:
                self.server.loop.call_later(0.005, self.transport.close)


class Events:
    """The bytes of one answer, as the writes that send them."""

    def __init__(self, script: Script, asked: dict[str, Any], is_chat: bool) -> None:
        self.script, self.asked, self.is_chat = script, asked, is_chat
        wished = asked["max_tokens"]
        self.num_tokens = min(wished, script.max_answer) if script.max_answer else wished
        self.prompt_tokens = self.count_prompt() + script.prompt_tokens_off

    def count_prompt(self) -> int:
        if self.is_chat:
            messages = self.asked["messages"]
            return 2 + sum(3 + m["content"].count(" ") for m in messages)
        prompt = self.asked["prompt"]
        return len(prompt) if isinstance(prompt, list) else prompt.count(" ")

    def usage(self, num: int) -> dict[str, Any]:
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": num, "total_tokens": self.prompt_tokens + num}

    def event(self, text: str, num: int, new: int, finish: str | None = None) -> bytes:
        if self.is_chat:
            choice: dict[str, Any] = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}
        else:
            choice = {"index": 0, "text": text, "finish_reason": finish}
        if self.script.token_ids and self.asked.get("return_token_ids"):
            choice["token_ids"] = list(range(1000 + num - new, 1000 + num))
        body: dict[str, Any] = {"id": "x", "model": "scripted", "choices": [choice]}
        options = self.asked.get("stream_options") or {}
        if self.script.usage == "always" and options.get("continuous_usage_stats"):
            body["usage"] = self.usage(num)
        return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"

    def writes(self) -> list[bytes]:
        script = self.script
        events: list[bytes] = []
        step = script.tokens_per_event
        for done in range(step, self.num_tokens + step, step):
            num = min(done, self.num_tokens)
            last = "length" if num == self.num_tokens else None
            empty = self.event("", num - step, 0) if script.empty_events else b""
            text = "" if script.no_tokens else " wörd€" * (num - done + step)
            events.append(empty + self.event(text, num if not script.no_tokens else 0, num - done + step, last))
        for limit, replacement in (
            (script.die_after, []),
            (script.end_after, []),
            (script.error_after, [b'data: {"error": {"message": "out of memory", "code": 500}}\n\n']),
            (script.garbage_after, [b"data: {not json\n\n"]),
        ):
            if limit:
                return events[:limit] + replacement
        end = b""
        if script.usage != "none" and (self.asked.get("stream_options") or {}).get("include_usage"):
            body = {"id": "x", "choices": [], "usage": self.usage(0 if script.no_tokens else self.num_tokens)}
            end += b"data: " + json.dumps(body).encode() + b"\n\n"
        events[-1] += b": a comment\n\n" + end + b"data: [DONE]\n\n"
        n = script.events_per_write
        return [b"".join(events[i : i + n]) for i in range(0, len(events), n)]


async def main(script: Script) -> None:
    loop = asyncio.get_running_loop()
    server = Server(script, loop)
    context = None
    if script.certificate is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(script.certificate)
    listening = await loop.create_server(lambda: Connection(server), "127.0.0.1", 0, ssl=context)
    print(listening.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)  # until the parent closes it


if __name__ == "__main__":
    uvloop.run(main(Script(**json.loads(sys.argv[1]))))
