"""`Backend`: the engine, tokenizer and chat template of the served model, as the handlers use them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from trivet.engine.async_engine import AsyncEngine
from trivet.engine.messages import EngineInfo, EngineStats
from trivet.errors import InvalidRequest

INLINE_BYTES = 8192  # larger bodies are parsed, rendered and tokenized in a thread: the event loop never computes

T = TypeVar("T")


class Tokenizer(Protocol):
    """What the handlers need of `models.tokenizer.Tokenizer`."""

    bos_id: int | None
    special_ids: frozenset[int]

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...

    def token_bytes(self, token_id: int) -> bytes: ...


class ChatTemplate(Protocol):
    """What the handlers need of `models.chat.ChatTemplate`."""

    @property
    def render(self) -> Callable[..., str]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """A model that answers."""

    engine: AsyncEngine
    tokenizer: Tokenizer
    template: ChatTemplate | None = None
    template_fault: str | None = None  # why there is none, where the model has one that cannot be used
    num_restarts: Callable[[], int] = lambda: 0
    gave_up: Callable[[], bool] = lambda: False  # the engine is dead and is not started again

    @property
    def info(self) -> EngineInfo:
        return self.engine.info

    @property
    def alive(self) -> bool:
        return self.engine.alive

    def stats(self) -> EngineStats | None:
        return self.engine.stats()

    async def off_loop(self, num_bytes: int, work: Callable[[], T]) -> T:
        """What `work` returns; it runs in a thread if the request body of `num_bytes` makes it long."""
        return work() if num_bytes <= INLINE_BYTES else await asyncio.to_thread(work)

    def num_special_before(self, token_ids: list[int]) -> int:
        """How many tokens at the beginning of an encoded text are not in the text: BOS."""
        bos = self.tokenizer.bos_id
        return int(bos is not None and token_ids[:1] == [bos])

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], kwargs: Mapping[str, Any]) -> list[int]:
        """Token ids of the rendered conversation; the template writes BOS itself. InvalidRequest without a template."""
        if self.template is None:
            raise InvalidRequest(
                f"{self.template_fault or 'this model has no chat template'}, so it cannot take `messages`",
                hint="send a `prompt` to /v1/completions, or serve a chat model",
                param="messages",
                code="no_chat_template",
            )
        return self.tokenizer.encode(self.template.render(messages, **kwargs), add_special_tokens=False)
