"""Running an `Engine` over the `FakeRunner`: requests made easily, events gathered by sequence."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from fake_runner import FakeRunner

from trivet.config import CacheConfig, SchedulerConfig
from trivet.engine.engine import Engine
from trivet.engine.messages import (
    Accepted,
    EngineEvent,
    EngineRequest,
    Failed,
    FinishReason,
    PromptInfo,
    Timings,
    TokenLogprob,
    Tokens,
)
from trivet.engine.sampling_params import SamplingParams


def request(
    request_id: str = "r",
    prompt: list[int] | int = 10,
    *,
    stop_ids: tuple[int, ...] = (),
    priority: int = 0,
    salt: str = "",
    return_logits: bool = False,
    prompt_only: bool = False,
    deadline_s: float | None = None,
    **sampling: object,
) -> EngineRequest:
    """A request; a number as prompt stands for that many tokens, the same for all requests."""
    settings = {"max_tokens": 8, "temperature": 0.0, "seed": 1, **sampling}
    tokens = [(7 * i + i * i) % 50 for i in range(prompt)] if isinstance(prompt, int) else prompt
    return EngineRequest(
        request_id=request_id,
        prompt_token_ids=tokens,
        sampling=SamplingParams(**settings),
        stop_ids=list(stop_ids),
        priority=priority,
        cache_salt=salt,
        return_logits=return_logits,
        prompt_only=prompt_only,
        deadline_s=deadline_s,
    )


@dataclass
class Output:
    """What came of one sequence."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_id: int | None = None
    timings: Timings | None = None


class Driver:
    """An engine, and what its events said so far; checks the order of events as they come."""

    def __init__(
        self,
        runner: FakeRunner | None = None,
        *,
        prefix_caching: bool = True,
        **scheduler: object,
    ) -> None:
        self.runner = runner or FakeRunner()
        self.engine = Engine(
            self.runner,
            SchedulerConfig(**{"max_tokens_per_step": 512, "itl_target_s": 0.0, **scheduler}),
            CacheConfig(block_size=self.runner.block_size, prefix_caching=prefix_caching),
            clock=self.runner.clock,
        )
        self.outputs: dict[tuple[str, int], Output] = defaultdict(Output)
        self.failures: dict[str, Failed] = {}
        self.prompts: dict[str, PromptInfo] = {}
        self.seeds: dict[str, int] = {}

    def add(self, *requests: EngineRequest) -> None:
        """Adds requests that must be accepted."""
        for message in requests:
            answer = self.engine.submit(message)
            assert isinstance(answer, Accepted), answer
            self.seeds[message.request_id] = answer.seed
            self.failures.pop(message.request_id, None)  # of an earlier request of that name
            for index in range(message.sampling.n):
                self.outputs.pop((message.request_id, index), None)

    def refuse(self, message: EngineRequest) -> Failed:
        """Submits a request that must be refused."""
        answer = self.engine.submit(message)
        assert isinstance(answer, Failed), answer
        return answer

    def step(self) -> list[EngineEvent]:
        """One step; its events are gathered and the engine's invariants checked."""
        events = self.engine.step()
        self.engine.check_invariants()
        for event in events:
            if isinstance(event, Tokens):
                self._take(event)
            elif isinstance(event, Failed):
                assert event.request_id not in self.failures
                self.failures[event.request_id] = event
            elif isinstance(event, PromptInfo):
                assert event.request_id not in self.prompts
                assert not any(request_id == event.request_id for request_id, _ in self.outputs)
                self.prompts[event.request_id] = event
        return events

    def run(self, max_steps: int = 5000) -> None:
        """Steps until nothing is open."""
        for _ in range(max_steps):
            if not self.engine.has_work:
                return
            self.step()
        raise AssertionError(f"requests are still open after {max_steps} steps")

    def tokens(self, request_id: str = "r", index: int = 0) -> list[int]:
        """Output tokens of a sequence so far."""
        return self.outputs[request_id, index].token_ids

    def _take(self, event: Tokens) -> None:
        output = self.outputs[event.request_id, event.index]
        assert output.finish_reason is None, "tokens after the end"
        assert event.request_id not in self.failures, "tokens after a failure"
        output.token_ids += event.token_ids
        output.logprobs += event.logprobs or []
        is_first = output.timings is None
        output.finish_reason, output.stop_id = event.finish_reason, event.stop_id
        assert (event.timings is not None) == (is_first or event.finish_reason is not None)
        output.timings = event.timings or output.timings


def alone(message: EngineRequest, **runner: object) -> dict[int, Output]:
    """The outputs of a request on an idle engine of its own: one chunk, no cache, room for all."""
    block_size = runner.get("block_size", 32)
    driver = Driver(
        FakeRunner(**{**runner, "num_blocks": 8192 // block_size}), prefix_caching=False, max_tokens_per_step=4096
    )
    driver.add(message)
    driver.run()
    assert not driver.failures, driver.failures
    return {index: output for (_, index), output in driver.outputs.items()}
