"""The scheduler: which sequences compute how many tokens in the next pass.

One loop without phases: each sequence has ``num_computed_tokens`` that chases its tokens; a prompt, a chunk of a
prompt, a decode and a resumed sequence differ only in how far they are behind. Per step:

  1. the budget (``budget``: tokens, and beside decodes a time) goes to running sequences, those one token behind
     (decodes) first, then prompts in order; decodes are kept as arrays (``decodes``), and only those to which something
     happens are looked at one by one;
  2. blocks are granted in order of service; when they run out, the last sequence in that order is preempted (its blocks
     go, its tokens stay; its full blocks may be found again in the prefix cache when it resumes);
  3. waiting sequences are admitted in order while budget, rows and blocks last.

It never deadlocks: a request is accepted only if it fits the cache alone, and the first sequence in order can preempt
all others. It never starves: nobody overtakes within a priority, except siblings that wait for their parent's prompt.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pyengine.admission import QueueLoad
from pyengine.errors import RequestError
from pyengine.kv.block_manager import BlockManager, Growth
from pyengine.protocol import NO_TOKEN_LEFT, FinishReason, Request, Stats, TokenDelta, TokenLogprob
from pyengine.sampling_params import Thinking
from pyengine.sched.budget import Budget, FixedBudget, StepPolicy
from pyengine.sched.dead_end import is_dead_end
from pyengine.sched.decodes import Decodes, Members
from pyengine.sched.plan import StepPlan
from pyengine.sched.prompt_reads import PromptReading
from pyengine.sched.sequence import Grammar, Sequence, Status
from pyengine.sched.step import StepInput, StepOutput


@dataclass(frozen=True, kw_only=True)
class SchedulerLimits:
    """Bounds of one step and of one sequence, in sequences and tokens."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int


@dataclass(frozen=True, slots=True)
class _Flight:
    """Who samples in a step that is not updated yet, in batch order: the decodes, then others by batch row; and whose
    prompts it reads.
    """

    step_id: int
    decodes: Members
    num_left: int  # Decodes.num_left when it was scheduled
    others: list[tuple[int, Sequence]]
    reading: PromptReading


def _service_order(seq: Sequence) -> tuple[int, int]:
    return seq.sort_key


class Scheduler:
    """Owns all live sequences. ``schedule`` decides a step, ``update`` is the only place where tokens are appended."""

    def __init__(
        self,
        limits: SchedulerLimits,
        blocks: BlockManager,
        make_grammar: Callable[[str | None, Thinking | None], Grammar] | None = None,
        policy: StepPolicy | None = None,
    ):
        self.limits = limits
        self.blocks = blocks
        self._make_grammar = make_grammar
        self._policy = policy or FixedBudget(limits.max_num_batched_tokens)
        self._failures: list[TokenDelta] = []
        self._waiting: list[tuple[tuple[int, int], Sequence]] = []  # heap in order of service
        self._running: list[Sequence] = []  # sorted in order of service: all who hold a device row
        self._decodes = Decodes(blocks.block_size)  # those of them that are one token behind
        self._behind: list[Sequence] = []  # the others, sorted: their prompts are computed in chunks
        self._groups: dict[str, list[Sequence]] = {}  # live sequences by request id
        self._free_rows = list(range(limits.max_num_seqs))  # heap: low rows first, so that device arrays stay dense
        self._inflight: deque[_Flight] = deque()
        self.queued = QueueLoad()  # sequences that have never run
        self.dequeued = QueueLoad()  # all that ever left the queue
        self._num_stale = 0  # entries of the queue whose sequence has ended
        self._num_arrived = 0
        self._step_id = 0
        self._num_preemptions = self._num_prompt_tokens = self._num_cached_tokens = self._num_generated_tokens = 0
        self._step_tokens: list[int] = []

    # ------------------------------------------------------------------ requests in and out

    def add(self, request: Request) -> None:
        """Queue a request's n sequences. Raises RequestError when it can never be served, naming the limit."""
        if request.request_id in self._groups:
            raise RequestError(f"request id {request.request_id!r} is in use", param="request_id")
        num_prompt = len(request.prompt_token_ids)
        max_tokens = self._output_budget(num_prompt, 0 if request.pooling else request.params.max_tokens)
        group = []
        for index in range(request.params.n):
            seq = Sequence(request, index, self._num_arrived, max_tokens)
            seq.parent = group[0] if group else None
            if request.params.needs_matcher:
                seq.grammar = self._make_grammar(request.params.grammar, request.params.thinking)
            self._num_arrived += 1
            group.append(seq)
            heapq.heappush(self._waiting, (seq.sort_key, seq))
        self.queued += QueueLoad(len(group), len(group) * num_prompt)
        self._groups[request.request_id] = group

    def abort(self, request_ids: list[str]) -> None:
        """Forget requests at once; ids that are not live are ignored."""
        for request_id in request_ids:
            for seq in self._groups.pop(request_id, ()):
                self._release(seq)
        self._drop_stale()

    def abort_sequence(self, request_id: str, index: int) -> None:
        """Forget one sequence of a request; ignored when it is not live."""
        for seq in self._groups.get(request_id, ()):
            if seq.index == index:
                self._finish(seq)
                break
        self._drop_stale()

    def is_live(self, request_id: str) -> bool:
        return request_id in self._groups

    @property
    def has_work(self) -> bool:
        return bool(self._groups)

    def constrained_sequences(self) -> list[tuple[int, Grammar]]:
        """(batch row, grammar) of the newest step's sampling sequences that still run and have one with a say now."""
        if not self._inflight:
            return []
        flight = self._inflight[-1]
        sampling = [(row, flight.decodes.sequences[row]) for row in np.flatnonzero(flight.decodes.watched).tolist()]
        sampling += flight.others
        bound = [(row, seq) for row, seq in sampling if seq.grammar is not None and seq.status is Status.RUNNING]
        return [(row, seq.grammar) for row, seq in bound if seq.grammar.constrains]

    def _drop_stale(self) -> None:
        """Rebuild the queue once most of it is entries of sequences that ended while they waited."""
        if self._num_stale > 32 and 2 * self._num_stale > len(self._waiting):
            self._waiting = [entry for entry in self._waiting if entry[1].status is Status.WAITING]
            heapq.heapify(self._waiting)
            self._num_stale = 0

    # ------------------------------------------------------------------ one step

    def schedule(self) -> StepInput | None:
        """Decide the next pass and reserve what it needs; None when nothing can run."""
        plan = StepPlan()
        num_preempted = self._num_preemptions
        budget = self._schedule_running(plan)
        if self._num_preemptions == num_preempted:
            self._admit_waiting(plan, budget)
        if not plan.num_seqs:
            return None
        step = plan.finish(self._step_id, self.blocks.tier.take_swaps())
        self._step_id += 1
        num_left = self._decodes.num_left
        self._inflight.append(_Flight(step.step_id, plan.decodes, num_left, plan.sampling, plan.reading))
        self._step_tokens.append(step.num_tokens)
        return step

    def update(self, step: StepInput, output: StepOutput) -> list[TokenDelta]:
        """Take in the sampled tokens of the oldest step in flight: append, finish, report."""
        flight = self._inflight.popleft()
        assert flight.step_id == step.step_id == output.step_id, "steps are updated in the order they were scheduled"
        num_decodes = len(flight.decodes)
        deltas = self._take_reads(flight.reading, output)  # before the decodes': those learn here who is gone
        deltas += self._update_decodes(flight, step, output)
        for i, (_, seq) in enumerate(flight.others, num_decodes):
            deltas += self._take_token(seq, int(output.token_ids[i]), output.logprobs.get(i))
        return deltas

    def _update_decodes(self, flight: _Flight, step: StepInput, output: StepOutput) -> list[TokenDelta]:
        """The decodes' tokens: those without an event all at once, the others one by one."""
        members = flight.decodes
        token_ids, num_computed = output.token_ids[: len(members)], step.num_computed_tokens[: len(members)]
        events = members.find_events(token_ids, num_computed)
        if events is None and not output.logprobs and flight.num_left == self._decodes.num_left:
            self._num_generated_tokens += len(members)
            return members.append(token_ids.tolist())
        if events is None:
            events = np.zeros(len(members), bool)
        events[[i for i in output.logprobs if i < len(members)]] = True
        events |= ~np.fromiter((seq.decoding for seq in members.sequences), bool, len(members))
        plain = np.flatnonzero(~events)
        self._num_generated_tokens += len(plain)
        deltas = members.take(plain).append(token_ids[plain].tolist())
        for i in np.flatnonzero(events).tolist():
            deltas += self._take_token(members.sequences[i], int(token_ids[i]), output.logprobs.get(i))
        return deltas

    def _take_token(self, seq: Sequence, token_id: int, logprob: TokenLogprob | None) -> list[TokenDelta]:
        """One sequence's sampled token: nothing when it ended (or was aborted) while the step was in flight."""
        if not seq.decoding:
            seq.num_inflight -= 1
        return [] if seq.status is Status.FINISHED else [self._append_token(seq, token_id, logprob)]

    def _take_reads(self, reading: PromptReading, output: StepOutput) -> list[TokenDelta]:
        deltas = []
        for seq, delta in reading.deltas(output):
            if delta.finish_reason is not None:
                self._finish(seq, forget=delta.finish_reason is FinishReason.ERROR)
            deltas.append(delta)
        return deltas

    def observe(self, step: StepInput, seconds: float) -> None:
        """``step`` kept the device busy so long."""
        self._policy.observe(step, seconds)

    def _schedule_running(self, plan: StepPlan) -> Budget:
        """Tokens for running sequences; returns the budget that is left.

        Blocks are granted in order of service before anything is planned, so that whoever is preempted for them has
        no part in the step.
        """
        self._decodes.settle()
        num_waiting = self.queued.num_tokens + sum(seq.num_remaining_tokens for seq in self._behind)
        budget = self._policy.budget(self._decodes.num_wanting(), self._decodes.num_context, num_waiting)
        shares = self._split_budget(budget)
        full = self._decodes.take_full()
        for seq in full:
            self.blocks.commit(seq)
        for seq in sorted([*full, *shares], key=_service_order):
            if seq.status is Status.RUNNING:
                self._grow(seq, shares.get(seq, 1), plan)
        plan.add_decodes(*self._decodes.advance())
        for seq, num_new in shares.items():
            if seq.status is Status.RUNNING:
                self._plan(seq, num_new, plan)
        return budget

    def _split_budget(self, budget: Budget) -> dict[Sequence, int]:
        """How many tokens each sequence with a prompt to compute gets, in order of service, after the decodes."""
        shares: dict[Sequence, int] = {}
        for seq in self._behind:
            if not budget.is_open:
                break
            if not seq.num_remaining_tokens:  # it wants its prompt alone, and that is in flight
                continue
            num_new = budget.grant(seq.num_remaining_tokens, seq.num_computed_tokens)
            if num_new:
                shares[seq] = num_new
        return shares

    def _grow(self, seq: Sequence, num_new: int, plan: StepPlan) -> None:
        """Blocks for ``num_new`` more tokens, preempting from the end of the order, ``seq`` itself if need be."""
        while not self.blocks.extend(seq, seq.num_computed_tokens + num_new, plan.growth):
            victim = self._running[-1]
            self._preempt(victim)
            if victim is seq:
                return

    def _admit_waiting(self, plan: StepPlan, budget: Budget) -> None:
        set_aside = []
        while self._waiting and budget.is_open and self._free_rows:
            _, seq = self._waiting[0]
            if seq.status is Status.FINISHED:  # aborted or failed while it waited
                heapq.heappop(self._waiting)
                self._num_stale -= 1
            elif seq.grammar is not None and seq.grammar.ready and seq.grammar.error:
                self._fail(seq, f"the grammar cannot be used: {seq.grammar.error}")
            elif seq.num_inflight or self._waits_for_parent(seq, plan) or not seq.grammar_ready:
                set_aside.append(heapq.heappop(self._waiting))
            else:
                if not self._admit(seq, budget, plan):
                    break
                heapq.heappop(self._waiting)
        for entry in set_aside:
            heapq.heappush(self._waiting, entry)

    def _admit(self, seq: Sequence, budget: Budget, plan: StepPlan) -> bool:
        """Give ``seq`` a row, its first blocks and tokens of the budget; False when it does not fit yet."""
        if not self._take_first_blocks(seq):
            return False
        num_new = budget.grant(seq.num_remaining_tokens, seq.num_computed_tokens)
        growth = Growth()  # only its copies matter: the new row's table is sent whole
        granted = self.blocks.extend(seq, seq.num_computed_tokens + num_new, growth)
        assert granted, "an admitted sequence has been promised its blocks"
        seq.row = heapq.heappop(self._free_rows)
        seq.status = Status.RUNNING
        insort(self._running, seq, key=_service_order)
        insort(self._behind, seq, key=_service_order)
        plan.take_row(seq, growth.copies)
        self._plan(seq, num_new, plan)
        return True

    def _take_first_blocks(self, seq: Sequence) -> bool:
        """Share the parent's prompt or what the prefix cache has; False when the rest would not fit."""
        if self._can_fork(seq):
            if not self.blocks.pool.num_free:
                return False
            self.blocks.fork(seq.parent, seq, seq.num_prompt_tokens - 1)
        else:
            cached = self.blocks.match(seq)[: seq.num_cacheable_tokens // self.blocks.block_size]
            # A block in reach for every running sequence, so that an admission is not undone by the next decodes.
            if not self.blocks.can_admit(seq, cached, reserve=len(self._running)):
                return False
            self.blocks.adopt(seq, cached)
        self._note_admission(seq)
        return True

    def _plan(self, seq: Sequence, num_new: int, plan: StepPlan) -> None:
        if plan.add(seq, num_new):
            self._behind.remove(seq)
            self._decodes.join(seq)
        # What this step computes may be shared from now on, even within the step: each layer writes all of its KV
        # before it reads.
        self.blocks.commit(seq)

    def _note_admission(self, seq: Sequence) -> None:
        if seq.num_preemptions == 0:
            self._leave_queue(seq)
            seq.num_cached_tokens = seq.num_computed_tokens
            self._num_prompt_tokens += seq.num_prompt_tokens
            self._num_cached_tokens += seq.num_computed_tokens

    def _waits_for_parent(self, seq: Sequence, plan: StepPlan) -> bool:
        """A sibling waits until an earlier step has computed its parent's prompt, then shares its blocks.

        Not within the step: a block is copied before the pass that would fill it.
        """
        parent = seq.parent
        if parent is None or parent.status is Status.FINISHED or seq.num_preemptions:
            return False
        return parent.num_computed_tokens < parent.num_prompt_tokens or parent in plan.filling

    def _can_fork(self, seq: Sequence) -> bool:
        """Each sibling computes the last prompt token again, for logits of its own; a prompt of one token leaves
        nothing to share.
        """
        parent = seq.parent
        return (
            parent is not None
            and parent.status is Status.RUNNING
            and not seq.num_preemptions
            and seq.num_prompt_tokens > 1
        )

    # ------------------------------------------------------------------ ends and setbacks

    def _fail(self, seq: Sequence, text: str) -> None:
        """End a sequence that never got to run (or cannot go on) with an error of its own."""
        self._finish(seq, forget=seq.status is Status.RUNNING)
        self._failures.append(self._delta(seq, [], FinishReason.ERROR, error=text))

    def take_failures(self) -> list[TokenDelta]:
        """Last deltas of sequences that failed outside of ``update``."""
        failures, self._failures = self._failures, []
        return failures

    def _append_token(self, seq: Sequence, token_id: int, logprob: TokenLogprob | None) -> TokenDelta:
        if token_id < 0:
            text = NO_TOKEN_LEFT if is_dead_end(seq) else "the model produced logits that are not finite"
            self._finish(seq, forget=True)
            return self._delta(seq, [], FinishReason.ERROR, error=text)
        seq.token_ids.append(token_id)
        self._num_generated_tokens += 1
        if seq.grammar is not None and not seq.grammar.accept(token_id):
            self._finish(seq)
            return self._delta(seq, [], FinishReason.ERROR, error=f"the grammar failed: {seq.grammar.error}")
        reason = self._finish_reason(seq, token_id)
        if reason is not None:
            self._finish(seq)
        return self._delta(seq, [token_id], reason, logprobs=None if logprob is None else [logprob])

    def _finish_reason(self, seq: Sequence, token_id: int) -> FinishReason | None:
        if token_id in seq.stop_token_ids or (seq.grammar is not None and seq.grammar.complete):
            return FinishReason.STOP
        return FinishReason.LENGTH if seq.num_output_tokens >= seq.max_tokens else None

    def _delta(
        self,
        seq: Sequence,
        token_ids: list[int],
        reason: FinishReason | None,
        error: str | None = None,
        logprobs: list[TokenLogprob] | None = None,
    ) -> TokenDelta:
        stopped = reason is FinishReason.STOP and token_ids[-1] in seq.stop_token_ids
        stop_token_id = token_ids[-1] if stopped else None
        request_id, num_cached = seq.request.request_id, seq.num_cached_tokens
        return TokenDelta(request_id, seq.index, token_ids, reason, stop_token_id, num_cached, error, logprobs)

    def _finish(self, seq: Sequence, forget: bool = False) -> None:
        group = self._groups[seq.request.request_id]
        group.remove(seq)
        if not group:
            del self._groups[seq.request.request_id]
        self._release(seq, forget)

    def _release(self, seq: Sequence, forget: bool = False) -> None:
        """Rows and blocks go back at once: a step in flight still touches them, but every later step runs after it."""
        if seq.status is Status.RUNNING:
            self._stop_running(seq)
            if not forget:
                self.blocks.commit(seq)  # the next turn of a conversation begins with this one's tokens
            self._give_up_device(seq, forget)
        else:
            self._num_stale += 1
            if seq.num_preemptions == 0:
                self._leave_queue(seq)
        seq.status = Status.FINISHED

    def _leave_queue(self, seq: Sequence) -> None:
        self.queued -= QueueLoad(1, seq.num_prompt_tokens)
        self.dequeued += QueueLoad(1, seq.num_prompt_tokens)

    def _preempt(self, seq: Sequence) -> None:
        self._stop_running(seq)
        self.blocks.commit(seq)  # what it has computed is likely to be found again when it resumes
        self._give_up_device(seq)
        seq.status = Status.WAITING
        seq.num_preemptions += 1
        self._num_preemptions += 1
        heapq.heappush(self._waiting, (seq.sort_key, seq))

    def _stop_running(self, seq: Sequence) -> None:
        self._running.remove(seq)
        if seq.decoding:
            self._decodes.leave(seq)
        else:
            self._behind.remove(seq)

    def _give_up_device(self, seq: Sequence, forget: bool = False) -> None:
        self.blocks.free(seq, forget)
        heapq.heappush(self._free_rows, seq.row)
        seq.row = -1

    def _output_budget(self, num_prompt: int, max_tokens: int | None) -> int:
        limit = self.limits.max_model_len
        if num_prompt == 0:
            raise RequestError("the prompt is empty; at least one token is needed", param="prompt")
        if num_prompt + (max_tokens != 0) > limit:
            raise RequestError(
                f"the prompt has {num_prompt} tokens, which leaves no room for output in the context of {limit} tokens "
                "(--max-model-len)",
                param="prompt",
                code="context_length_exceeded",
            )
        return limit - num_prompt if max_tokens is None else min(max_tokens, limit - num_prompt)

    # ------------------------------------------------------------------ observation

    def stats(self) -> Stats:
        """Totals since the start and the present state; clears the list of step sizes."""
        step_tokens, self._step_tokens = self._step_tokens, []
        return Stats(
            num_running=len(self._running),
            num_waiting=sum(len(group) for group in self._groups.values()) - len(self._running),
            num_blocks=self.blocks.pool.num_blocks,
            num_free_blocks=self.blocks.pool.num_free,
            num_steps=self._step_id,
            num_preemptions=self._num_preemptions,
            num_prompt_tokens=self._num_prompt_tokens,
            num_cached_tokens=self._num_cached_tokens,
            num_generated_tokens=self._num_generated_tokens,
            prefix_cache_queries=self.blocks.num_query_tokens,
            prefix_cache_hits=self.blocks.num_hit_tokens,
            step_tokens=step_tokens,
            num_queued=self.queued.num_seqs,
            num_queued_tokens=self.queued.num_tokens,
            num_swapped_out=self.blocks.tier.num_swapped_out,
            num_swapped_in=self.blocks.tier.num_swapped_in,
        )

    def check_integrity(self) -> None:
        """Every row and block is accounted for exactly once; for tests and idle moments."""
        self.blocks.check_integrity(self._running)
        rows = sorted([*self._free_rows, *(seq.row for seq in self._running)])
        assert rows == list(range(self.limits.max_num_seqs)), "a device row is lost or held twice"
        assert self._running == sorted([*self._decodes, *self._behind], key=_service_order)
        self._decodes.check_integrity()
        live = {id(seq) for group in self._groups.values() for seq in group}
        waiting = {id(seq) for _, seq in self._waiting if seq.status is Status.WAITING}
        fresh = [seq for _, seq in self._waiting if seq.status is Status.WAITING and not seq.num_preemptions]
        assert self.queued == QueueLoad(len(fresh), sum(seq.num_prompt_tokens for seq in fresh)), (
            "the queue is miscounted"
        )
        assert live == waiting | {id(seq) for seq in self._running}, "a sequence is neither waiting nor running"
