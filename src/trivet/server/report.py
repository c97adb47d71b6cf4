"""What a server tells people: one block when it is ready, a line when it drains; or JSON lines."""

from __future__ import annotations

import json
import os
import shlex
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

import msgspec

from trivet.config import ServerConfig
from trivet.models.source import bundled_name
from trivet.server.milestones import Milestones
from trivet.server.security import is_loopback
from trivet.server.sizes import show_size

if TYPE_CHECKING:
    from trivet.server.backend import Backend

DEMO_NOTE = "{} only completes Python: it is small, and was shown nothing else"
DEMO_PROMPT = "def read_json(path):"


class PrintedReport:
    """Prints to stderr, for people."""

    def __init__(
        self, config: ServerConfig, model_name: str, milestones: Milestones, out: TextIO | None = None
    ) -> None:
        self._config = config
        self._model_name = model_name
        self._milestones = milestones
        self._out = out or sys.stderr

    def loading(self, model: str, url: str) -> None:
        self._say(f"  loading  {model}, listening on {url}")

    def ready(self, backend: Backend, url: str) -> None:
        info = backend.info
        weights = show_size(info.weight_bytes)
        limits = (info.max_context, info.max_num_seqs, info.max_waiting)
        rows = [
            ("model", f"{info.model_path} ({info.family}), {info.precision}, {weights} of weights, KV {info.kv_dtype}"),
            ("compute", f"{info.isa} tier, {info.num_threads} thread{'s' * (info.num_threads != 1)}"),
            ("limits", "{:,} tokens a sequence, {:,} sequences at once, {:,} requests waiting".format(*limits)),
            ("numerics", info.fingerprint),
            *(("note", note) for note in notes(backend, self._config)),
            *self._timings(backend),
            ("ready", f"{url}/v1 serves `{self._model_name}`, {self._milestones.now():.2f} s after the process began"),
        ]
        self._say("\n".join(f"  {name:<8} {text}" for name, text in rows))
        self._say(f"\n{curl_line(backend, url, self._model_name, self._config)}\n")

    def first_token(self) -> None:
        if self._config.timings:
            self._say(f"  first token {self._milestones.now():.2f} s after the process began")

    def draining(self, num_open: int, seconds: float) -> None:
        if num_open:
            self._say(f"finishing {_requests(num_open)}, for at most {seconds:g} s; signal again to stop at once")

    def cut(self, num_open: int) -> None:
        self._say(f"{_requests(num_open)} cut off")

    def _timings(self, backend: Backend) -> list[tuple[str, str]]:
        if not self._config.timings:
            return []
        reached = [("at", f"{seconds * 1e3:7.0f} ms  {name}") for name, seconds in self._milestones.reached.items()]
        took = [("took", f"{seconds * 1e3:7.0f} ms  {part}") for part, seconds in backend.info.timings_s.items()]
        return reached + took

    def _say(self, text: str) -> None:
        with suppress(OSError):  # whoever read this may be gone; the server goes on
            print(text, file=self._out, flush=True)


class JsonReport:
    """Writes one JSON object a line to stdout, for programs."""

    def __init__(
        self, config: ServerConfig, model_name: str, milestones: Milestones, out: TextIO | None = None
    ) -> None:
        self._config = config
        self._model_name = model_name
        self._milestones = milestones
        self._out = out or sys.stdout

    def loading(self, model: str, url: str) -> None:
        self._write("loading", url=url, model=self._model_name, path=model, pid=os.getpid())

    def ready(self, backend: Backend, url: str) -> None:
        self._write(
            "ready",
            url=url,
            model=self._model_name,
            pid=os.getpid(),
            ready_s=round(self._milestones.now(), 3),
            engine=msgspec.to_builtins(backend.info),
            notes=notes(backend, self._config),
            reached_s=self._milestones.reached,
        )

    def first_token(self) -> None:
        self._write("first_token", at_s=round(self._milestones.now(), 3))

    def draining(self, num_open: int, seconds: float) -> None:
        self._write("draining", open_requests=num_open, drain_s=seconds)

    def cut(self, num_open: int) -> None:
        self._write("cut", open_requests=num_open)

    def _write(self, event: str, **facts: object) -> None:
        with suppress(OSError):
            print(json.dumps({"event": event, **facts}), file=self._out, flush=True)


def notes(backend: Backend, config: ServerConfig) -> list[str]:
    """What was chosen or given up, and what a person should know before others call."""
    found = list(backend.info.notes)
    if (demo := bundled_name(backend.info.model_path)) is not None:
        found.insert(0, DEMO_NOTE.format(demo))
    if backend.template_fault is not None:
        found.append(f"{backend.template_fault}: /v1/chat/completions answers 400, /v1/completions works")
    elif backend.template is None:
        found.append("no chat template: /v1/chat/completions answers 400, /v1/completions works")
    if warning := exposure_warning(config):
        found.append(warning)
    return found


def exposure_warning(config: ServerConfig) -> str | None:
    """A warning if anybody on the network may use this server."""
    if is_loopback(config.host) or config.api_keys:
        return None
    return f"WARNING: {config.host} is reachable from the network and no key is asked for; set `--api-key`"


def curl_line(backend: Backend, url: str, model_name: str, config: ServerConfig) -> str:
    """A command that works when pasted (with a key in place, where one is asked for)."""
    if backend.template is None:
        path, body = "completions", {"model": model_name, "prompt": DEMO_PROMPT, "max_tokens": 48, "temperature": 0}
    else:
        path = "chat/completions"
        body = {"model": model_name, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 64}
    key = " -H 'Authorization: Bearer KEY'" if config.api_keys else ""
    return f"curl {url}/v1/{path} -H 'Content-Type: application/json'{key} -d {shlex.quote(json.dumps(body))}"


def _requests(number: int) -> str:
    return f"{number} request{'s' * (number != 1)}"
