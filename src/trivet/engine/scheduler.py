"""`Scheduler`: which sequences run in the next step, how many tokens each, and in which blocks.

Order: (priority, arrival, index). Running sequences that have caught up get their one token first; then prompts under
way, then waiting ones, until the token budget is spent. While streams run, prompts get only so many tokens that the
step, by the step model, stays within the inter-token target: all that it leaves if that brings the prompt to its end,
a quarter if it does not, since a long prompt makes many gaps long and one that ends makes one. Of prompts that do not
end, the first in order alone gets tokens; the others are put off, and shorter ones may pass them until it has ended. A
stream that was preempted has begun to talk: it counts as one that ends.

Pauses: the target is one for 99 gaps of 100. Once in 128 steps the streams pause for as many steps as bring a prompt to
its end, if by the step model that makes a gap of at most ten targets, or `max_pause_s`. They go on before if it turns
out to take a fifth more, by what its steps took and the rest is predicted to, or somebody of a lower priority number
comes.

Memory: a sequence starts when this step is not to put it off and all its blocks fit, with a spare one for each that
runs. A running sequence that finds no block takes them from the last in order, which waits again, keeps its output, and
is recomputed. So the first in order always comes to its end, and by induction everybody does. Blocks change hands while
the step that uses them still runs: steps run in order, so what it writes is overwritten before the next owner reads it.
"""

from __future__ import annotations

from bisect import bisect, insort
from dataclasses import dataclass, field
from operator import attrgetter

from trivet.config import SchedulerConfig
from trivet.engine.batch import Slots
from trivet.engine.block_pool import BlockPool
from trivet.engine.prefix_tree import Key, PrefixTree
from trivet.engine.sequence import OpenRequest, Sequence, SequenceState
from trivet.engine.step import Capabilities
from trivet.engine.step_model import StepModel

_by_rank = attrgetter("rank")
_UNENDED_SHARE = 1 / 4  # of what the inter-token target leaves, for a prompt that this step cannot end
_PAUSE_EVERY = 128  # steps of running streams
_PAUSE_TARGETS = 10  # inter-token targets that the gap of a pause may last, unless `max_pause_s` says otherwise
_PAUSE_ENDS = 1.2  # times what that leaves for the prompt: if it turns out to take more, the pause ends
_UNKNOWN_COST_TOKENS = 128  # prompt tokens beside running streams before any prompt has been timed
_TILE_ROWS = 16  # of the matrix unit: what the target leaves for a prompt that does not end is cut to a multiple
_LOOK_PAST = 8  # waiting prompts that one step may put off; those behind wait with them
_LOGITS_BYTES = 64 * 2**20  # full logits that one step may give back


@dataclass(slots=True)
class Plan:
    """What the next step runs: sequence i its next chunks[i] tokens; the first `num_decodes` have one token left."""

    seqs: list[Sequence] = field(default_factory=list)
    chunks: list[int] = field(default_factory=list)
    num_decodes: int = 0
    num_tokens: int = 0
    num_pairs: int = 0  # of prompts' attention: sum over their new tokens of the context each attends to
    num_context: int = 0  # that decodes attend to
    predicted_s: float = 0.0
    unended: tuple[int, int, int] | None = None  # rank of the first prompt that gets tokens, but not all
    preempted: list[Sequence] = field(default_factory=list)
    pause: _Pause | None = None  # that it is part of, unless it is the last one

    def leave_out_decodes(self) -> None:
        """Of a plan that has nothing else yet."""
        assert self.num_tokens == self.num_decodes
        self.seqs.clear()
        self.chunks.clear()
        self.num_decodes = self.num_tokens = self.num_context = 0


@dataclass(slots=True)
class _Pause:
    """Streams wait until `seq` has computed its first `end` tokens."""

    seq: Sequence
    end: int
    num_streams: int  # when it began
    left_s: float  # for the rest of the prompt: less what steps are predicted to take, and what they took beyond it
    predicted_s: float = 0.0  # of its steps that have ended
    took_s: float = 0.0
    has_left: bool = False  # `seq` ended, was cancelled or gave its blocks up


class Scheduler:
    """Owns the running and waiting sequences and their blocks."""

    def __init__(self, config: SchedulerConfig, capabilities: Capabilities, *, prefix_caching: bool) -> None:
        block_size = capabilities.block_size
        self.block_size = block_size
        self.max_tokens = min(config.max_tokens_per_step, capabilities.max_tokens_per_step)
        self.max_running = min(config.max_num_seqs, capabilities.max_seqs_per_step, self.max_tokens)
        self.pool = BlockPool(capabilities.num_blocks)
        self.tree = PrefixTree(self.pool, block_size) if prefix_caching else None
        self.slots = Slots(self.max_running, -(-capabilities.max_context // block_size))
        self.model = StepModel()
        self.running: list[Sequence] = []  # in order
        self.waiting: list[Sequence] = []  # in order
        self.num_preemptions = 0
        self.num_pauses = 0
        self.prefix_queries_tokens = 0
        self.prefix_hits_tokens = 0
        self.is_full = False  # the last step could not start a waiting sequence for lack of blocks
        self._target_s = config.itl_target_s or None
        self._max_pause_s = config.max_pause_s
        self._since_pause = _PAUSE_EVERY  # steps of running streams
        self._pause: _Pause | None = None
        self._floor = min(block_size, self.max_tokens)
        self._logits_tokens = max(1, _LOGITS_BYTES // (4 * capabilities.vocab_size))
        self._being_computed: set[Key] = set()

    # --- sequences come and go ------------------------------------------------------------------------------------

    def add(self, seq: Sequence) -> None:
        """Lets a sequence wait for its turn."""
        seq.state = SequenceState.WAITING
        insort(self.waiting, seq, key=_by_rank)
        if self._pause is not None and seq.rank[0] < self._pause.seq.rank[0]:
            self._pause = None  # and what the target leaves is this one's

    def release_held(self, request: OpenRequest) -> None:
        """The prompt of a request with n > 1 is computed: its other sequences may start, with its blocks."""
        for seq in request.sequences:
            if seq.state is SequenceState.HELD:
                self.add(seq)

    def remove(self, seq: Sequence) -> None:
        """Ends a sequence, whatever it was doing; what it held is free again or stays in the prefix tree."""
        if seq.state is SequenceState.RUNNING:
            self._vacate(seq)
            del self.running[self._position(self.running, seq)]
        elif seq.state is SequenceState.WAITING:
            del self.waiting[self._position(self.waiting, seq)]
            self.is_full = False  # unless the next step finds that it is
        seq.state = SequenceState.DONE

    @staticmethod
    def _position(ordered: list[Sequence], seq: Sequence) -> int:
        return bisect(ordered, seq.rank, key=_by_rank) - 1

    def _vacate(self, seq: Sequence) -> None:
        if self._pause is not None and self._pause.seq is seq:
            self._pause.has_left = True
        self.slots.unseat(seq)
        self.pool.release(seq.blocks)
        seq.blocks = []

    def _preempt_last(self, plan: Plan) -> Sequence:
        seq = self.running.pop()
        self._make_wait(seq)
        plan.preempted.append(seq)
        return seq

    def _make_wait(self, seq: Sequence) -> None:
        """A sequence that ran gives up its blocks; what is being sampled for it is not taken."""
        self._vacate(seq)
        seq.forget_pending()
        seq.num_computed = 0
        seq.num_preemptions += 1
        self.num_preemptions += 1
        self.add(seq)

    def start_over(self) -> None:
        """No block can be trusted: the prefix tree is emptied, and what runs is computed again."""
        if self.tree is not None:
            self.tree.clear()
        running, self.running = self.running, []
        for seq in running:
            if seq.first_token_s is None:
                seq.num_cached = 0
            self._make_wait(seq)

    # --- the next step --------------------------------------------------------------------------------------------

    def schedule(self) -> Plan:
        """The next step; empty only if nothing is waiting, and what is running waits for the step under way."""
        plan = Plan()
        pause = self._pause
        is_paused = self._continue_pause()
        behind = self._plan_decodes(plan, is_paused=is_paused)
        room_s = None
        if is_paused or (pause is not None and plan.num_decodes):
            room_s = 0.0  # the gap is long enough
        elif self._target_s is not None and plan.num_decodes and (behind or self.waiting):
            room_s = self._target_s - self.model.predict(plan.num_tokens, 0, plan.num_context)
        self._being_computed.clear()
        for seq in behind:
            if plan.num_tokens >= self.max_tokens:
                break
            room_s = self._plan_chunk(plan, seq, room_s)
        if plan.preempted:
            self.is_full = True
        else:
            self._start_waiting(plan, room_s)
        plan.predicted_s = self.model.predict(plan.num_tokens, plan.num_pairs, plan.num_context)
        if plan.num_decodes:
            self._since_pause += 1
            self._pause = None  # if this was the last step of one
        elif self._pause is not None:
            plan.pause = self._pause
            plan.pause.left_s -= plan.predicted_s
        return plan

    def took(self, plan: Plan, seconds: float) -> None:
        """What a planned step took."""
        num_prefill = plan.num_tokens - plan.num_decodes
        self.model.observe(plan.num_tokens, plan.num_pairs, plan.num_context, seconds, num_prefill=num_prefill)
        if plan.pause is not None:
            plan.pause.left_s += plan.predicted_s - seconds
            plan.pause.predicted_s += plan.predicted_s
            plan.pause.took_s += seconds

    def _plan_decodes(self, plan: Plan, *, is_paused: bool) -> list[Sequence]:
        """Plans one token for each sequence that has one left, preempting for blocks; returns the other sequences.

        In a pause they get none.
        """
        running, seqs, size = self.running, plan.seqs, self.block_size
        behind: list[Sequence] = []
        num_context = i = 0
        while i < len(running):
            seq = running[i]
            i += 1
            if seq.is_spent:
                continue
            if seq.num_tokens - seq.num_computed != 1:
                behind.append(seq)
                continue
            if is_paused:
                continue
            if len(seq.blocks) * size < seq.num_tokens and not self._grow(plan, seq):
                break  # it was the last in order itself
            seqs.append(seq)
            num_context += seq.num_tokens
        plan.num_decodes = plan.num_tokens = len(seqs)
        plan.chunks = [1] * len(seqs)
        plan.num_context = num_context
        return behind

    def _grow(self, plan: Plan, seq: Sequence) -> bool:
        """One more block for a running sequence; False if that preempted the sequence itself."""
        while self.pool.num_available == 0:
            if self._preempt_last(plan) is seq:
                return False
        block = self.pool.allocate()
        self.slots.tables[seq.slot, len(seq.blocks)] = block
        seq.blocks.append(block)
        return True

    def _start_waiting(self, plan: Plan, room_s: float | None) -> None:
        """Starts waiting sequences in order while there are slots, tokens, time and blocks."""
        if not self.waiting:
            self.is_full = False
        i = 0
        while i < min(len(self.waiting), _LOOK_PAST) and len(self.running) < self.max_running:
            if plan.num_tokens >= self.max_tokens:
                return
            if room_s is not None and room_s <= 0 and plan.num_tokens > plan.num_decodes:
                return  # the inter-token target leaves no time for another prompt
            seq = self.waiting[i]
            now = (self.pool.num_available, len(self.running), 0 if self.tree is None else self.tree.num_inserted)
            self.is_full = seq.refused_at == now
            if self.is_full:
                return
            found = [] if self.tree is None else self.tree.match(seq.request.root, seq.tokens, self._reusable(seq))
            if self._chunk(plan, seq, len(found) * self.block_size, room_s) == 0:
                i += 1  # it would hold blocks and compute nothing
                continue
            if not self._start(seq, found):
                seq.refused_at = now
                self.is_full = True
                return
            del self.waiting[i]
            insort(self.running, seq, key=_by_rank)
            room_s = self._plan_chunk(plan, seq, room_s)

    def _start(self, seq: Sequence, found: list[int]) -> bool:
        """Gives a waiting sequence a slot and blocks, of which the tree has `found`; False if they do not fit now."""
        pool, tree = self.pool, self.tree
        num_new = -(-seq.num_tokens // self.block_size) - len(found)
        num_revived = sum(map(pool.is_parked, found))
        spare = len(self.running)
        if num_new + num_revived + spare > pool.num_available:
            return False
        for block in found:
            pool.share(block)
        seq.blocks = found + [pool.allocate() for _ in range(num_new)]
        seq.num_in_tree = len(found)
        seq.parent = found[-1] if found else seq.request.root
        seq.epoch = 0 if tree is None else tree.epoch
        seq.num_computed = len(found) * self.block_size
        seq.refused_at = None
        seq.state = SequenceState.RUNNING
        if seq.scheduled_s is None and seq.num_preemptions == 0:
            if tree is not None:
                self.prefix_queries_tokens += seq.num_prompt
            self._count_cached(seq, seq.num_computed)
        self.slots.seat(seq)
        return True

    def _count_cached(self, seq: Sequence, tokens: int) -> None:
        seq.num_cached += tokens
        self.prefix_hits_tokens += tokens

    def _reusable(self, seq: Sequence) -> int:
        """How many tokens need not be computed if they are cached: the last one must, and rows that are asked for."""
        if seq.index == 0 and seq.request.wants_prompt and seq.request.num_scored < seq.num_prompt:
            return seq.request.num_scored
        return seq.num_tokens - 1

    def _plan_chunk(self, plan: Plan, seq: Sequence, room_s: float | None) -> float | None:
        """Plans the next tokens of a sequence that is behind; returns what is left of `room_s`."""
        if not self._catch_up(seq):
            return room_s  # somebody computes its next block in this very step
        if room_s is not None and self._begin_pause(plan, seq, room_s):
            room_s = 0.0
        chunk = self._chunk(plan, seq, seq.num_computed, room_s)
        if chunk == 0:
            return room_s  # put off: others may end in what is left
        if chunk < seq.num_tokens - seq.num_computed:
            plan.unended = min(seq.rank, plan.unended or seq.rank)
        pairs = chunk * seq.num_computed + chunk * (chunk + 1) // 2
        if room_s is not None:
            room_s -= self.model.cost(chunk, pairs)
        tree, block_end = self.tree, (seq.num_in_tree + 1) * self.block_size
        if tree is not None and seq.epoch == tree.epoch and seq.num_computed + chunk >= block_end:
            self._being_computed.add(tree.key(seq.parent, seq.tokens, seq.num_in_tree))
        plan.seqs.append(seq)
        plan.chunks.append(chunk)
        plan.num_tokens += chunk
        plan.num_pairs += pairs
        return room_s

    def _chunk(self, plan: Plan, seq: Sequence, num_computed: int, room_s: float | None) -> int:
        """How many tokens of a prompt, of which `num_computed` are, this step may take; 0 if it is put off."""
        left = seq.num_tokens - num_computed
        most = min(left, self.max_tokens - plan.num_tokens)
        if seq.request.message.return_logits:
            most = min(most, self._logits_tokens)
        if room_s is None or self._is_paused_for(seq):
            return most
        is_known = self.model.is_known
        num_prefill = plan.num_tokens - plan.num_decodes
        fits = self.model.tokens_within(room_s, num_computed) if is_known else _UNKNOWN_COST_TOKENS - num_prefill
        if min(fits, most) < left and seq.first_token_s is None:  # a prompt that this step cannot end
            if plan.unended is not None and plan.unended < seq.rank:
                fits = 0
            elif is_known:
                fits = self.model.tokens_within(room_s * _UNENDED_SHARE, num_computed)
            fits -= fits % _TILE_ROWS
        if num_prefill == 0:
            fits = max(fits, self._floor)  # the first prompt always moves
        return max(0, min(fits, most))

    def _catch_up(self, seq: Sequence) -> bool:
        """Takes over blocks that others have computed since; False if the next one is being computed in this step."""
        tree, size = self.tree, self.block_size
        if tree is None or seq.epoch != tree.epoch:
            return True
        reusable = self._reusable(seq)
        while (seq.num_in_tree + 1) * size <= reusable:
            key = tree.key(seq.parent, seq.tokens, seq.num_in_tree)
            block = tree.find(key)
            if block is None:
                return key not in self._being_computed
            self.pool.share(block)
            self.pool.release((seq.blocks[seq.num_in_tree],))
            self._adopt(seq, block)
            if seq.first_token_s is None and seq.num_preemptions == 0:
                self._count_cached(seq, seq.num_in_tree * size - seq.num_computed)
            seq.num_computed = seq.num_in_tree * size
        return True

    def _adopt(self, seq: Sequence, block: int) -> None:
        """Makes a node of the tree the sequence's next one, in its block table too."""
        seq.blocks[seq.num_in_tree] = block
        self.slots.tables[seq.slot, seq.num_in_tree] = block
        seq.num_in_tree += 1
        seq.parent = block

    # --- pauses ---------------------------------------------------------------------------------------------------

    def _begin_pause(self, plan: Plan, seq: Sequence, room_s: float) -> bool:
        """Lets a pause begin if the first prompt of the step is worth it; True: this step is without the streams."""
        is_first = plan.num_tokens == plan.num_decodes > 0 and not plan.preempted
        if self._target_s is None or self._since_pause < _PAUSE_EVERY or not is_first or not self.model.is_known:
            return False
        first = min(seqs[0].rank[0] for seqs in (plan.seqs, self.waiting) if seqs)
        if first < seq.rank[0] or seq.request.wants_prompt:  # a head for each row is not in the step model
            return False
        if self._chunk(plan, seq, seq.num_computed, room_s) == seq.num_tokens - seq.num_computed:
            return False
        longest_s = _PAUSE_TARGETS * self._target_s if self._max_pause_s is None else self._max_pause_s
        pause = _Pause(seq, seq.num_tokens, plan.num_decodes, longest_s - (self._target_s - room_s))
        if self._rest_s(pause) > pause.left_s:
            return False
        pause.left_s *= _PAUSE_ENDS
        self._pause, self._since_pause = pause, 0
        self.num_pauses += 1
        if self._is_last_step(pause):
            return False
        plan.leave_out_decodes()
        return True

    def _continue_pause(self) -> bool:
        """Ends a pause that is over, or must be; True: the next step is without the streams, too."""
        pause = self._pause
        if pause is None:
            return False
        if pause.has_left or pause.seq.num_computed >= pause.end or self._rest_s(pause) > pause.left_s:
            self._pause = None
            return False
        return not self._is_last_step(pause)

    def _is_paused_for(self, seq: Sequence) -> bool:
        return self._pause is not None and self._pause.seq is seq

    def _is_last_step(self, pause: _Pause) -> bool:
        """Whether what is left of the prompt and the streams fit into one step."""
        return pause.end - pause.seq.num_computed + pause.num_streams <= self.max_tokens

    def _rest_s(self, pause: _Pause) -> float:
        """Seconds by which the rest of the prompt puts the streams' next token off, at the pace of its last steps."""
        done = pause.seq.num_computed
        left = pause.end - done
        steps = max(0, -(-(left + pause.num_streams) // self.max_tokens) - 1)  # without the streams
        pairs = left * done + left * (left + 1) // 2
        pace = max(1.0, pause.took_s / pause.predicted_s) if pause.predicted_s > 0 else 1.0
        return pace * (steps * self.model.predict(0, 0, 0) + self.model.cautious_cost(left, pairs))

    # --- after the step -------------------------------------------------------------------------------------------

    def commit(self, seq: Sequence) -> None:
        """Puts the blocks of a running sequence that are full, known and computed into the prefix tree.

        The step that computes them may still run: those that read them come after it.
        """
        tree = self.tree
        if tree is None or seq.epoch != tree.epoch:
            return
        end = min(seq.num_computed, seq.num_known)
        while (seq.num_in_tree + 1) * self.block_size <= end:
            key = tree.key(seq.parent, seq.tokens, seq.num_in_tree)
            self._adopt(seq, tree.insert(key, seq.blocks[seq.num_in_tree]))

    def check(self) -> None:
        """Raises AssertionError unless blocks, slots and order are consistent."""
        self.pool.check(seq.blocks for seq in self.running)
        if self.tree is not None:
            self.tree.check()
        assert self.running == sorted(self.running, key=_by_rank)
        assert self.waiting == sorted(self.waiting, key=_by_rank)
        assert self.slots.num_free + len(self.running) == self.max_running
        assert len({seq.slot for seq in self.running}) == len(self.running)
        for seq in self.running:
            row = self.slots.tables[seq.slot].tolist()
            assert row == seq.blocks + [-1] * (len(row) - len(seq.blocks)), f"the table of {seq.rank} is stale"
            assert len(seq.blocks) * self.block_size >= seq.num_computed
            assert seq.num_computed < seq.num_tokens
        for seq in self.waiting:
            assert not seq.blocks and seq.num_computed == 0
