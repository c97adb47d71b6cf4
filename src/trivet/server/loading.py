"""`Loader`: starts the engine and reads the tokenizer beside it, so that the server is ready when the slower is."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from threading import Thread
from typing import TYPE_CHECKING

from trivet.config import EngineConfig
from trivet.engine.client import EngineClient
from trivet.errors import ModelFormatError, NotReady, TrivetError
from trivet.server.lifecycle import Loaded
from trivet.server.milestones import Milestones

if TYPE_CHECKING:
    from trivet.models.chat import ChatTemplate
    from trivet.models.load import LoadedModel
    from trivet.models.tokenizer import Tokenizer

Text = tuple["Tokenizer", "ChatTemplate | None", "str | None"]


class Loader:
    """Called on the loading thread; gives back what serves requests, or raises why it cannot."""

    def __init__(self, config: EngineConfig, *, model_name: str, in_process: bool, milestones: Milestones) -> None:
        self._config = config
        self._model_name = model_name
        self._in_process = in_process
        self._milestones = milestones

    def __call__(self) -> Loaded:
        return self._load_here() if self._in_process else self._load_child()

    def _load_here(self) -> Loaded:
        from trivet.engine.assemble import assemble
        from trivet.engine.in_process import InProcessClient

        assembled = assemble(self._config)
        client = InProcessClient(assembled)
        self._milestones.reach("engine is ready")
        try:
            model = assembled.loaded
            return self._loaded(client, model, (model.tokenizer, *_usable(model.chat_template)))
        except BaseException:
            client.close()
            raise

    def _load_child(self) -> Loaded:
        from trivet.engine.child import ChildProcessClient

        child = ChildProcessClient(self._config)
        self._milestones.reach("engine process is started")
        try:
            text = self._read_text(on_fault=child.close)
            try:
                child.wait_ready()
            except NotReady:  # closed, because the other half has failed
                text.result()
                raise
            self._milestones.reach("engine is ready")
            from trivet.models.load import load_model

            model = load_model(self._config.model)  # the child has packed it: this maps a file and reads settings
            model.tokenizer = text.result()[0]  # its EOS is asked for
            return self._loaded(child, model, text.result())
        except BaseException:
            child.close()
            raise

    def _read_text(self, on_fault: Callable[[], None]) -> Future[Text]:
        """The tokenizer and the chat template, read on a thread of its own, which calls `on_fault` if it cannot."""
        future: Future[Text] = Future()

        def read() -> None:
            try:
                from trivet.models.chat import ChatTemplate
                from trivet.models.source import find_model
                from trivet.models.tokenizer import Tokenizer

                folder, _ = find_model(self._config.model.path)
                text = (Tokenizer.from_folder(folder), *_usable(ChatTemplate.from_folder(folder)))
            except BaseException as error:
                future.set_exception(error)
                on_fault()
                return
            self._milestones.reach("tokenizer is read")
            future.set_result(text)

        Thread(target=read, name="trivet-tokenizer", daemon=True).start()
        return future

    def _loaded(self, client: EngineClient, model: LoadedModel, text: Text) -> Loaded:
        from trivet.engine.async_engine import AsyncEngine
        from trivet.engine.child import ChildProcessClient, ChildState
        from trivet.engine.defaults import SamplingDefaults
        from trivet.server.backend import Backend

        defaults = SamplingDefaults.of(
            model.generation_config,
            max_context=client.info.max_context,
            eos_ids=model.eos_ids,
            model_name=self._model_name,
        )
        tokenizer, template, fault = text
        backend = Backend(
            engine=AsyncEngine(client, tokenizer, defaults),
            tokenizer=tokenizer,
            template=template,
            template_fault=fault,
            gave_up=lambda: not client.alive,  # in this process it is not started again
        )
        if isinstance(client, ChildProcessClient):
            child = client
            backend = replace(
                backend,
                num_restarts=lambda: child.num_restarts,
                gave_up=lambda: child.state is ChildState.GAVE_UP,
            )
        return Loaded(backend=backend, client=client)


def _usable(template: ChatTemplate | None) -> tuple[ChatTemplate | None, str | None]:
    """The template, compiled now rather than with the first request; or None, and why it cannot be."""
    if template is None:
        return None, None
    try:
        template.render([{"role": "user", "content": ""}])
    except ModelFormatError as error:
        return None, error.message
    except TrivetError:
        pass  # what it thinks of a message is for later
    return template, None
