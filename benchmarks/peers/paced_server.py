"""A server that keeps a schedule and computes nothing.

    python -m benchmarks.peers.paced_server TOKENIZER_FOLDER [SLOWER]

Two clients can only be compared on a server that neither slows down. Request n has its first token after TTFT_S[n % 5]
and each further one ITL_S later, both times SLOWER, one event a token; prompts are counted with the tokenizer. It
prints its port as `trivet serve --json` does.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route
from tokenizers import Tokenizer

TTFT_S = (0.2, 0.25, 0.3, 0.35, 0.4)
ITL_S = 0.025
MODEL = "paced"


def event(choices: list[dict[str, Any]], usage: dict[str, int]) -> bytes:
    """One event of a stream."""
    body = {"id": "cmpl-0", "object": "text_completion", "created": 0, "model": MODEL, "choices": choices}
    return f"data: {json.dumps({**body, 'usage': usage})}\n\n".encode()


def application(tokenizer: Tokenizer, slower: float) -> Starlette:
    """The endpoints that load generators need."""
    numbers = itertools.count()

    async def models(_: Request) -> JSONResponse:
        return JSONResponse({"object": "list", "data": [{"id": MODEL, "object": "model", "max_model_len": 4096}]})

    async def health(_: Request) -> JSONResponse:
        return JSONResponse({"status": "ready"})

    async def stream(begin_s: float, ttft_s: float, num_prompt: int, num_tokens: int) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        for i in range(num_tokens):
            await asyncio.sleep(begin_s + slower * (ttft_s + i * ITL_S) - loop.time())
            usage = {"prompt_tokens": num_prompt, "completion_tokens": i + 1, "total_tokens": num_prompt + i + 1}
            reason = "length" if i + 1 == num_tokens else None
            yield event([{"index": 0, "text": " a", "finish_reason": reason, "logprobs": None}], usage)
        yield event([], usage) + b"data: [DONE]\n\n"

    async def completions(request: Request) -> StreamingResponse:
        begin_s = asyncio.get_running_loop().time()
        asked = await request.json()
        prompt = asked["prompt"]
        num_prompt = len(prompt if isinstance(prompt, list) else tokenizer.encode(prompt).ids)
        ttft_s = TTFT_S[next(numbers) % len(TTFT_S)]
        body = stream(begin_s, ttft_s, num_prompt, int(asked.get("max_tokens") or 16))
        return StreamingResponse(body, media_type="text/event-stream")

    routes = [Route("/health", health), Route("/v1/models", models)]
    return Starlette(routes=[*routes, Route("/v1/completions", completions, methods=["POST"])])


def main() -> None:
    tokenizer = Tokenizer.from_file(str(Path(sys.argv[1]) / "tokenizer.json"))
    slower = float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    print(json.dumps({"event": "ready", "url": url, "model": MODEL}), flush=True)
    config = uvicorn.Config(application(tokenizer, slower), log_level="error", loop="uvloop")
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
