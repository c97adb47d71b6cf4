"""`LLM`: a model in this process, for Python code.

from trivet import LLM, SamplingParams

with LLM("demo") as llm:
    [out] = llm.generate("def read_json(path):", SamplingParams(max_tokens=32, temperature=0))
    print(out.outputs[0].text)
"""

from __future__ import annotations

import logging
import uuid
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import closing
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, cast

from trivet.config import CacheConfig, EngineConfig, KvDtype, ModelConfig, Precision, SchedulerConfig
from trivet.engine.answers import Delta, RequestOutput
from trivet.engine.assemble import AssembledEngine, assemble
from trivet.engine.blocking import BlockingEngine
from trivet.engine.defaults import Rest, SamplingDefaults, make_request
from trivet.engine.in_process import InProcessClient
from trivet.engine.messages import EngineInfo, EngineStats
from trivet.engine.output_builder import OutputBuilder
from trivet.engine.progress import Progress
from trivet.engine.router import EventRouter
from trivet.engine.sampling_params import SamplingParams
from trivet.errors import InvalidRequest

if TYPE_CHECKING:
    import asyncio

    import numpy as np
    from numpy.typing import NDArray

    from trivet.engine.async_engine import AsyncEngine
    from trivet.models.tokenizer import Tokenizer

log = logging.getLogger("trivet")

Prompt = str | list[int]
Conversation = Sequence[Mapping[str, Any]]  # {"role": ..., "content": ...}, ...


class LLM:
    """A loaded model. Thread-safe; several may live at once and share the compute threads."""

    def __init__(
        self,
        model: str = "demo",
        precision: Precision = "auto",
        threads: int | None = None,
        *,
        kv_precision: KvDtype = "bf16",
        max_context: int | None = None,
        memory: int | None = None,
        group_size: int = 32,
        generation_config: Literal["auto", "none"] = "auto",
        max_num_seqs: int = 64,
        max_tokens_per_step: int = 512,
        prefix_caching: bool = True,
    ) -> None:
        """Loads `model`: a folder in Hugging Face layout, `demo`, or a hub id; see `EngineConfig` for the settings.

        `memory` is the bytes of KV cache. Raises ConfigError, ModelFormatError, CacheError, UnsupportedCpu.
        """
        self.config = EngineConfig(
            model=ModelConfig(
                path=str(model),
                precision=precision,
                group_size=group_size,
                max_context=max_context,
                generation_config=generation_config,
            ),
            cache=CacheConfig(memory_bytes=memory, dtype=kv_precision, prefix_caching=prefix_caching),
            # What a caller hands in is his own; nobody else waits, so nothing is refused for load.
            scheduler=SchedulerConfig(
                max_num_seqs=max_num_seqs,
                max_tokens_per_step=max_tokens_per_step,
                itl_target_s=0.0,
                max_waiting=1 << 20,
                max_wait_s=float("inf"),
            ),
            threads=threads,
        )
        self._assembled: AssembledEngine = assemble(self.config)
        self._client = InProcessClient(self._assembled)
        self._finalizer = weakref.finalize(self, self._client.close)  # also at exit: a step must not outlive Python
        self._router = EventRouter(self._client)
        self._blocking = BlockingEngine(self._router, max_open_seqs=2 * max_num_seqs)
        self._async: tuple[asyncio.AbstractEventLoop, AsyncEngine] | None = None
        info = self.info
        if precision == "auto":
            log.info("`precision` is auto: %s is computed in %s", info.model_path, info.precision)

    @property
    def info(self) -> EngineInfo:
        """What was chosen: precision, kernel tier, threads, memory, fingerprint, notes."""
        return self._client.info

    @property
    def start_timings_s(self) -> dict[str, float]:
        """Seconds that each part of the start took; `tokenizer_s` is there once the tokenizer was read."""
        return {**self.info.timings_s, **self._assembled.loaded.timings}

    @property
    def tokenizer(self) -> Tokenizer:
        """`.encode(text)` and `.decode(token_ids)`."""
        return self._assembled.loaded.tokenizer

    @property
    def defaults(self) -> SamplingDefaults:
        """What the model supplies where `SamplingParams` are silent."""
        return self._assembled.defaults

    @property
    def has_chat_template(self) -> bool:
        return self._assembled.loaded.chat_template is not None

    def stats(self) -> EngineStats | None:
        """The latest snapshot of the engine, None before the first step."""
        return self._client.stats()

    # --- generating ------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """One `RequestOutput` for each prompt, in order. A prompt is a string or a list of token ids.

        Strings get the BOS that the tokenizer adds, ids are taken as they are. `max_tokens` is 16 unless said.
        Raises InvalidRequest or ContextTooLong before anything runs. Ctrl-C cancels everything.
        """
        listed: Any = [prompts] if _is_one(prompts) else prompts
        return self._complete(listed, sampling_params, rest="completion")

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        **template_kwargs: Any,
    ) -> list[RequestOutput]:
        """One `RequestOutput` for each conversation: a list of `{"role": ..., "content": ...}`, or a list of those.

        `max_tokens` is the rest of the context unless said. Raises InvalidRequest without a chat template.
        """
        one = not messages or isinstance(messages[0], Mapping)
        conversations: Any = [messages] if one else messages
        return self._complete(conversations, sampling_params, rest="context", template_kwargs=template_kwargs)

    async def stream(
        self,
        prompt: Prompt | Conversation,
        sampling_params: SamplingParams | None = None,
        *,
        rest: Rest = "completion",
    ) -> AsyncIterator[Delta]:
        """Deltas of one prompt, or conversation, as they come; leaving the loop cancels the request.

        `max_tokens=None` means 16, or with `rest="context"` the rest of the context.
        """
        ids, text = self._tokenize(prompt)
        engine = self._async_engine()
        async for delta in engine.generate(ids, sampling_params or SamplingParams(), rest=rest, prompt=text):
            yield delta

    def iterate(
        self,
        prompt: Prompt | Conversation,
        sampling_params: SamplingParams | None = None,
        *,
        rest: Rest = "completion",
    ) -> Iterator[Delta | RequestOutput]:
        """`stream` without an event loop: deltas as they come, and at last the `RequestOutput`."""
        builder = self._builder(prompt, sampling_params or SamplingParams(), rest=rest)
        with closing(self._blocking.run([builder])) as deltas:
            for _, delta in deltas:
                yield delta
        yield builder.result()

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """float32 [T, V]: row t holds the logits of the token after token_ids[:t + 1]. T may be the whole context."""
        import numpy as np

        ids = [int(i) for i in token_ids]
        params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
        builder = self._builder(ids, params, rest="completion", return_logits=True)
        with closing(self._blocking.run([builder])) as deltas:
            for _ in deltas:
                pass
        assert builder.prompt is not None and builder.prompt.logits is not None, "the engine sends what was asked for"
        return np.frombuffer(builder.prompt.logits, np.float32).reshape(len(ids), -1)

    def render_chat(self, messages: Conversation, **template_kwargs: Any) -> str:
        """The prompt that the chat template makes of a conversation. Raises InvalidRequest without a template."""
        template = self._assembled.loaded.chat_template
        if template is None:
            raise InvalidRequest(
                f"`{self._assembled.loaded.name}` has no chat template, so it cannot take messages",
                hint="give `generate` a prompt, or load a chat model",
                param="messages",
                code="no_chat_template",
            )
        return template.render(messages, **template_kwargs)

    # --- the end ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stops the engine and gives the memory back; running calls fail with EngineDied. Idempotent."""
        self._finalizer()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- inside ----------------------------------------------------------------------------------------------

    def _complete(
        self,
        prompts: Sequence[Prompt | Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        *,
        rest: Rest,
        template_kwargs: Mapping[str, Any] = {},
    ) -> list[RequestOutput]:
        params = _one_each(sampling_params, len(prompts))
        builders = [
            self._builder(prompt, p, rest=rest, template_kwargs=template_kwargs)
            for prompt, p in zip(prompts, params, strict=True)
        ]
        num_done = num_tokens = 0
        with Progress("requests") as progress, closing(self._blocking.run(builders)) as deltas:
            for number, delta in deltas:
                num_tokens += len(delta.token_ids)
                num_done += delta.finish_reason is not None and builders[number].finished
                progress.update(num_done, len(builders), num_tokens=num_tokens)
        return [builder.result() for builder in builders]

    def _builder(
        self,
        prompt: Prompt | Conversation,
        params: SamplingParams,
        *,
        rest: Rest,
        return_logits: bool = False,
        template_kwargs: Mapping[str, Any] = {},
    ) -> OutputBuilder:
        ids, text = self._tokenize(prompt, template_kwargs)
        request = make_request(uuid.uuid4().hex, ids, params, self.defaults, rest=rest, return_logits=return_logits)
        return OutputBuilder(request, self.tokenizer, prompt=text, fingerprint=self.info.fingerprint)

    def _tokenize(
        self, prompt: Prompt | Conversation, template_kwargs: Mapping[str, Any] = {}
    ) -> tuple[list[int], str | None]:
        """Token ids, and the text they were made of. BOS: as the tokenizer says; a template writes its own."""
        if isinstance(prompt, str):
            return list(self.tokenizer.encode(prompt)), prompt
        if any(isinstance(item, Mapping) for item in prompt):
            text = self.render_chat(cast("Conversation", prompt), **template_kwargs)
            return list(self.tokenizer.encode(text, add_special_tokens=False)), text
        return [int(i) for i in cast("list[int]", prompt)], None

    def _async_engine(self) -> AsyncEngine:
        import asyncio

        from trivet.engine.async_engine import AsyncEngine

        loop = asyncio.get_running_loop()
        if self._async is None or self._async[0] is not loop:
            self._async = loop, AsyncEngine(self._client, self.tokenizer, self.defaults, router=self._router)
        return self._async[1]


def _is_one(prompts: Prompt | Sequence[Prompt]) -> bool:
    """True for a string or a list of token ids, False for a list of prompts."""
    return isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], SupportsIndex))


def _one_each(params: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int) -> Sequence[SamplingParams]:
    if params is None:
        return [SamplingParams()] * num_prompts
    if isinstance(params, SamplingParams):
        return [params] * num_prompts
    if len(params) != num_prompts:
        raise InvalidRequest(
            f"there are {num_prompts} prompts, but {len(params)} sampling params",
            hint="give one for all, or one for each",
            param="sampling_params",
        )
    return params
