"""`Engine`: requests in, one step at a time, events out.

One thread owns it, and given its clock it is deterministic. `admission` alone may be used from other threads: whoever
receives a request asks `admission.check`, and only what was accepted is added here.
"""

from __future__ import annotations

import heapq
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from trivet.config import CacheConfig, SchedulerConfig
from trivet.engine.admission import Admission
from trivet.engine.batch import BatchBuilder, Prepared
from trivet.engine.clock import Clock
from trivet.engine.counters import Counters
from trivet.engine.failures import to_failed
from trivet.engine.messages import Accepted, EngineEvent, EngineRequest, EngineStats, Failed, FinishReason, Tokens
from trivet.engine.outputs import prompt_info, sampled_logprob, take_logits, take_scores
from trivet.engine.scheduler import Plan, Scheduler
from trivet.engine.sequence import OpenRequest, Sequence, SequenceState
from trivet.engine.step import Runner, StepResult
from trivet.errors import ConfigError, Overloaded, TrivetError

log = logging.getLogger("trivet")

_LINGER = 0.75  # the part of a step's least probable time after which the next is planned
_HOST_S = 0.002  # what planning may take
_BLOCKS_AHEAD = 2  # of each running sequence, whose memory is to be ready
_PREPARE_S = 0.008  # that a step under way must have left, to get a little memory ready: it takes a core up to 5 ms
_PREPARE_EVERY_S = 0.02  # of what a longer one has left, for the same once more
_PACE_STEPS = 16  # the last steps, of which the quickest, against its prediction, says how quick the next may be


@dataclass(slots=True)
class _UnderWay:
    """A step that was submitted."""

    handle: int
    plan: Plan
    prepared: Prepared
    decides: bool  # what it samples changes how the next step samples
    start_s: float  # when it began, or was submitted


class Engine:
    """Continuous batching over one `Runner`."""

    def __init__(
        self,
        runner: Runner,
        scheduler: SchedulerConfig,
        cache: CacheConfig,
        *,
        kv_bytes: int = 0,
        clock: Clock = time.monotonic,
    ) -> None:
        """`kv_bytes` is only reported. Raises ConfigError if cache and runner disagree on the block size."""
        self.capabilities = capabilities = runner.capabilities
        if cache.block_size != capabilities.block_size:
            raise ConfigError(
                f"`cache.block_size` is {cache.block_size}, but the runner was made with {capabilities.block_size}"
            )
        self.kv_bytes = kv_bytes
        self.scheduler = Scheduler(scheduler, capabilities, prefix_caching=cache.prefix_caching)
        self.admission = Admission(scheduler, capabilities, clock)
        self.counters = Counters()
        self._runner = runner
        self._clock = clock
        self._builder = BatchBuilder(self.scheduler.slots, capabilities.vocab_size)
        self._open: dict[str, OpenRequest] = {}
        self._num_arrived = 0
        self._deadlines: list[tuple[float, int, str]] = []  # a heap of (time, arrival number, request id)
        self._events: list[EngineEvent] = []
        self._under_way: deque[_UnderWay] = deque()
        self._may_prepare = True
        self._paces: deque[float] = deque(maxlen=_PACE_STEPS)  # time over predicted time
        runner.drop()  # of an engine that failed
        self._tell_admission()

    # --- requests come and go -------------------------------------------------------------------------------------

    def submit(self, request: EngineRequest) -> Accepted | Failed:
        """Admission and `add` in one call, for whoever has only one thread."""
        answer = self.admission.check(request)
        if isinstance(answer, Accepted):
            self.add(request)
        return answer

    def add(self, request: EngineRequest) -> None:
        """Queues a request that `admission.check` accepted. Raises KeyError for another."""
        seed, arrival_s = self.admission.decision(request.request_id)
        capabilities = self.capabilities
        opened = OpenRequest(
            request,
            seed=seed,
            arrival_s=arrival_s,
            arrival_no=self._num_arrived,
            numerics=capabilities.numerics,
            max_context=capabilities.max_context,
            vocab_size=capabilities.vocab_size,
        )
        self._num_arrived += 1
        self._open[request.request_id] = opened
        self.scheduler.add(opened.leader)
        if request.deadline_s is not None:
            if len(self._deadlines) > 2 * len(self._open) + 64:  # those that ended do not wait for their time
                self._deadlines = [entry for entry in self._deadlines if self._is_awaited(*entry[1:])]
                heapq.heapify(self._deadlines)
            heapq.heappush(self._deadlines, (arrival_s + request.deadline_s, opened.arrival_no, request.request_id))

    def cancel(self, request_id: str, index: int | None = None) -> None:
        """Ends a request, or its sequence `index`, without an event; what is unknown or done is ignored."""
        opened = self._open.get(request_id)
        if opened is None:
            return
        if index is None:
            self._close(opened)
        elif index < len(opened.sequences) and opened.sequences[index].state is not SequenceState.DONE:
            self._cancel_sequence(opened.sequences[index])
        self._tell_admission()

    def _cancel_sequence(self, seq: Sequence) -> None:
        opened = seq.request
        if seq.index == 0 and any(other.state is SequenceState.HELD for other in opened.sequences):
            opened.is_leader_muted = True  # the others need the prompt that it computes
            return
        self._end(seq)
        if opened.is_leader_muted and opened.num_open == 1 and opened.leader.state is not SequenceState.DONE:
            self._end(opened.leader)

    @property
    def has_work(self) -> bool:
        """True while a request is open or a step under way; then `step` makes progress."""
        return bool(self._open or self._under_way)

    def _close(self, opened: OpenRequest) -> None:
        for seq in opened.sequences:
            if seq.state is not SequenceState.DONE:
                self.scheduler.remove(seq)
        opened.sequences = []  # they point to each other: without this they would wait for the garbage collector
        del self._open[opened.message.request_id]
        self.admission.forget(opened.message.request_id)

    def _fail(self, opened: OpenRequest, error: TrivetError) -> None:
        self._events.append(to_failed(opened.message.request_id, error))
        self._close(opened)

    def _tell_admission(self) -> None:
        scheduler, counters = self.scheduler, self.counters
        self.admission.report(
            num_free_slots=0 if scheduler.is_full else scheduler.slots.num_free,
            prefill_per_s=counters.prefill.per_s,
            finished_per_s=counters.finished.per_s,
        )

    # --- one step -------------------------------------------------------------------------------------------------

    def step(self, take_in: Callable[[], None] | None = None) -> list[EngineEvent]:
        """The events of one step; those of a request are in order.

        With a runner that allows it, the next step is submitted before the first is collected, so that all that the
        host does is done while a step runs. That happens as late as is safe, and right before it `take_in` is called,
        which may add and cancel requests.
        """
        if not self._under_way:
            self._advance()
        if 0 < len(self._under_way) < self.capabilities.max_under_way and not self._under_way[-1].decides:
            self._linger(self._under_way[0])
            if take_in is not None:
                take_in()
            self._advance()
        if self._under_way:
            self._collect(self._under_way.popleft())
            self._tell_admission()
        if not self._open:
            self.counters.idle()
        events, self._events = self._events, []
        return events

    def prepare(self) -> bool:
        """Gets ready for some ms for what may come; False: there was nothing to do. For when it has no work."""
        return self._runner.prepare(self.scheduler.pool.num_ever_used)

    def _advance(self) -> None:
        """Plans and submits the next step, if there is one."""
        if self._deadlines:
            self._expire()
        if not self._open:
            return
        plan = self.scheduler.schedule()
        assert plan.seqs or self._under_way, "requests are open, but none can run"
        if plan.seqs:
            self._submit(plan)

    def _submit(self, plan: Plan) -> None:
        prepared = self._builder.build(plan.seqs, plan.chunks)
        now = self._clock()
        try:
            handle = self._runner.submit(prepared.batch)
        except Exception as error:
            self._fail_step(plan, error)
            return
        for seq, chunk in zip(plan.seqs, plan.chunks, strict=True):
            seq.num_computed += chunk
        for seq in plan.seqs[plan.num_decodes :]:
            self._take_progress(seq, now)
        for row, seq in enumerate(prepared.sampled):
            seq.expect(row)
        decides = any(seq.needs_tokens for seq in prepared.sampled)
        self._under_way.append(_UnderWay(handle, plan, prepared, decides, now))

    def _linger(self, step: _UnderWay) -> None:
        """Waits while the step under way has long to go: what comes in meanwhile can be part of the next one."""
        least_s = step.plan.predicted_s * min(self._paces, default=0.0)
        end_s = step.start_s + _LINGER * least_s - _HOST_S
        self._prepare_meanwhile(end_s - self._clock())
        left_s = end_s - self._clock()
        if left_s > 0:
            self._runner.wait(step.handle, left_s)

    def _prepare_meanwhile(self, seconds: float) -> None:
        num_used, num_ahead = self.scheduler.pool.num_ever_used, _BLOCKS_AHEAD * len(self.scheduler.running)
        try:
            for _ in range(max(int(seconds / _PREPARE_EVERY_S), int(seconds >= _PREPARE_S))):
                if not (self._may_prepare and self._runner.prepare(num_used, num_ahead)):
                    break
        except Exception:  # nobody waits for it
            log.exception("memory could not be got ready ahead; it is not tried again while steps run")
            self._may_prepare = False

    def _collect(self, step: _UnderWay) -> None:
        plan, prepared = step.plan, step.prepared
        try:
            result = self._runner.collect(step.handle)
        except Exception as error:
            self._fail_step(plan, error)
            for later in self._under_way:  # it built on what is not there
                self._fail_step(later.plan, error)
            self._under_way.clear()
            self._runner.drop()
            self.scheduler.start_over()  # others may hold blocks that the failed step should have filled
            return
        if self._under_way:
            self._under_way[0].start_s = result.end_s
        if plan.predicted_s > 0:
            self._paces.append(result.native_s / plan.predicted_s)
        self.scheduler.took(plan, result.native_s)
        num_prefill = plan.num_tokens - plan.num_decodes
        self.counters.step(result.start_s, result.end_s, num_prefill, len(prepared.sampled))
        take_scores(result, prepared.scored)
        take_logits(result, prepared.logits)
        self._take_samples(prepared, result)

    def _fail_step(self, plan: Plan, error: Exception) -> None:
        """A failed step fails its requests and names them; the engine lives on."""
        requests = [r for r in dict.fromkeys(seq.request for seq in plan.seqs) if r.num_open and r.sequences]
        names = ", ".join(request.message.request_id for request in requests)
        for request in requests:
            self._fail(request, TrivetError(f"the step failed: {error!r}; it ran the requests {names}"))
        self.counters.idle()

    def _take_progress(self, seq: Sequence, now: float) -> None:
        """A chunk of a sequence that was behind is being computed."""
        opened = seq.request
        if seq.scheduled_s is None:
            seq.scheduled_s = now
            self.admission.started(opened.message.request_id)
        if seq.index == 0 and seq.first_token_s is None:
            num_uncomputed = max(0, seq.num_prompt - seq.num_computed)
            opened.num_scored = max(opened.num_scored, seq.num_prompt - num_uncomputed)
            self.admission.progress(opened.message.request_id, num_uncomputed)
        self.scheduler.commit(seq)

    def _take_samples(self, prepared: Prepared, result: StepResult) -> None:
        """Gives each sampled token to its sequence and tells the client."""
        running, scheduler, events, end_s = SequenceState.RUNNING, self.scheduler, self._events, result.end_s
        sampled_ids = result.sampled_ids.tolist()
        for row, seq in enumerate(prepared.sampled):
            token_id: int = sampled_ids[row]
            if seq.state is not running or not seq.num_pending:
                continue  # it ended or was preempted since
            if token_id < 0:
                self._fail_damaged(seq)
                continue
            scheduler.commit(seq)
            opened = seq.request
            if seq.first_token_s is None:
                self._take_first(seq, result)
                if opened.is_leader_muted and seq.index == 0:
                    self._end(seq)
                    continue
            reason = seq.finish_reason(token_id)
            is_text = reason is not FinishReason.STOP
            num_top = opened.message.sampling.logprobs
            logprobs = None
            if num_top is not None:
                logprobs = [sampled_logprob(result, row, token_id, num_top)] if is_text else []
            events.append(
                Tokens(
                    request_id=opened.message.request_id,
                    index=seq.index,
                    token_ids=[token_id] if is_text else [],
                    logprobs=logprobs,
                    finish_reason=reason,
                    stop_id=None if is_text else token_id,
                    # with the first token too, since a stop string may end the sequence where the engine cannot see
                    timings=seq.timings(end_s) if reason is not None or seq.num_outputs == 0 else None,
                )
            )
            self.counters.generation_tokens += is_text
            if reason is None:
                seq.settle(token_id)
            else:
                self._end(seq)

    def _take_first(self, seq: Sequence, result: StepResult) -> None:
        """The first token of a sequence: its prompt is computed."""
        seq.first_token_s = result.end_s
        if seq.scheduled_s is None:
            seq.scheduled_s = result.start_s
        if seq.index == 0:
            opened = seq.request
            opened.num_scored = seq.num_prompt
            self.counters.prompt_tokens += seq.num_prompt
            self.admission.progress(opened.message.request_id, 0)
            self.scheduler.release_held(opened)
            if opened.wants_prompt:
                self._events.append(prompt_info(opened))

    def _end(self, seq: Sequence) -> None:
        """One sequence is over, and with the last one its request."""
        opened = seq.request
        self.scheduler.remove(seq)
        self.counters.sequence_finished()
        opened.num_open -= 1
        if opened.num_open == 0:
            self._close(opened)

    def _fail_damaged(self, seq: Sequence) -> None:
        """No token could be drawn: fails the request, and shares nothing that is in the cache any longer."""
        message = (
            f"no token could be drawn at position {seq.num_known} of sequence {seq.index}: "
            "the logits are not finite, or the request allows no token"
        )
        self._fail(seq.request, TrivetError(message, hint="if other requests fail too, check the model's weights"))
        if self.scheduler.tree is not None:
            self.scheduler.tree.clear()

    def _is_awaited(self, arrival_no: int, request_id: str) -> bool:
        """Whether the request is open and its first token has not come."""
        opened = self._open.get(request_id)
        return opened is not None and opened.arrival_no == arrival_no and opened.leader.first_token_s is None

    def _expire(self) -> None:
        """Fails requests whose first token did not come in time."""
        now = self._clock()
        while self._deadlines and self._deadlines[0][0] <= now:
            _, arrival_no, request_id = heapq.heappop(self._deadlines)
            if not self._is_awaited(arrival_no, request_id):
                continue
            opened = self._open[request_id]
            message = f"the first token did not come within the {opened.message.deadline_s:g} s that were allowed"
            self._fail(opened, Overloaded(message))

    # --- what can be seen -----------------------------------------------------------------------------------------

    def stats(self) -> EngineStats:
        """A snapshot. Requests, not sequences, are counted: one runs if any of its sequences does."""
        scheduler, counters = self.scheduler, self.counters
        num_running = len({seq.request.arrival_no for seq in scheduler.running})
        return EngineStats(
            time_s=self._clock(),
            num_running=num_running,
            num_waiting=len(self._open) - num_running,
            kv_blocks_total=scheduler.pool.num_blocks,
            kv_blocks_used=scheduler.pool.num_used,
            kv_blocks_cached=scheduler.pool.num_parked,
            prefix_queries_tokens=scheduler.prefix_queries_tokens,
            prefix_hits_tokens=scheduler.prefix_hits_tokens,
            prompt_tokens=counters.prompt_tokens,
            generation_tokens=counters.generation_tokens,
            num_preemptions=scheduler.num_preemptions,
            num_pauses=scheduler.num_pauses,
            num_steps=counters.num_steps,
            requests_rejected=self.admission.num_rejected,
            step_native_s=counters.native_s,
            step_host_s=counters.host_s,
            host_s_p99=counters.host_s_p99,
            prefill_tokens_per_s=counters.prefill.per_s,
            decode_tokens_per_s=counters.decode.per_s,
        )

    def check_invariants(self) -> None:
        """Raises AssertionError unless nothing is leaked and everything is where it should be; for tests."""
        scheduler = self.scheduler
        scheduler.check()
        by_state = {SequenceState.RUNNING: scheduler.running, SequenceState.WAITING: scheduler.waiting}
        for opened in self._open.values():
            live = [seq for seq in opened.sequences if seq.state is not SequenceState.DONE]
            assert len(live) == opened.num_open > 0
            for seq in live:
                assert seq.state is SequenceState.HELD or seq in by_state[seq.state], f"{seq.rank} is lost"
        num_live = len(scheduler.running) + len(scheduler.waiting)
        num_held = sum(seq.state is SequenceState.HELD for o in self._open.values() for seq in o.sequences)
        assert num_live + num_held == sum(opened.num_open for opened in self._open.values())
        if not self._open:
            assert scheduler.pool.num_used == 0, "blocks are leaked"
            assert scheduler.slots.num_free == scheduler.max_running, "slots are leaked"
