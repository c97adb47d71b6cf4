"""A server on 127.0.0.1 that speaks as much of the hub's API as `snapshot_download` asks for, serving one folder."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "a" * 40


@dataclass
class Hub:
    """The address, and what was asked for: (method, path without query)."""

    url: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)

    def fetched(self) -> set[str]:
        """Names of the files whose content was asked for."""
        return {path.rpartition("/")[2] for method, path in self.requests if method == "GET" and "/resolve/" in path}


@contextmanager
def serve(folder: Path, repo_id: str = "org/tiny", gated_id: str = "org/gated") -> Iterator[Hub]:
    """The folder as the model `repo_id`; `gated_id` asks for its licence to be accepted."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = self.path.partition("?")[0]
            hub.requests.append((self.command, path))
            if path == f"/api/models/{repo_id}/revision/main":
                self.reply(200, json.dumps({"id": repo_id, "sha": COMMIT, "siblings": []}).encode())
            elif path == f"/api/models/{repo_id}/tree/{COMMIT}":
                files = [{"type": "file", "path": file.name, "size": file.stat().st_size, "oid": file.name}
                         for file in sorted(folder.iterdir())]  # fmt: skip
                self.reply(200, json.dumps(files).encode())
            elif path.startswith(f"/{repo_id}/resolve/") and (folder / path.rpartition("/")[2]).exists():
                body = (folder / path.rpartition("/")[2]).read_bytes()
                headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": COMMIT}
                self.reply(200, body, headers)
            elif gated_id in path:
                self.reply(403, b"{}", {"X-Error-Code": "GatedRepo"})
            else:
                self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})

        def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
