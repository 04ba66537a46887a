"""The scheduler: which sequences compute how many tokens in the next pass.

One loop without phases: each sequence has ``num_computed_tokens`` that chases its tokens; a prompt, a chunk of a
prompt, a decode and a resumed sequence differ only in how far they are behind. Per step:

  1. the token budget goes to running sequences, those one token behind (decodes) first, then prompts in order;
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

from pyengine.admission import QueueLoad
from pyengine.errors import RequestError
from pyengine.kv.block_manager import BlockManager, Growth
from pyengine.protocol import FinishReason, Request, Stats, TokenDelta, TokenLogprob
from pyengine.sampling_params import Thinking
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


def _service_order(seq: Sequence) -> tuple[int, int]:
    return seq.sort_key


class Scheduler:
    """Owns all live sequences. ``schedule`` decides a step, ``update`` is the only place where tokens are appended."""

    def __init__(
        self,
        limits: SchedulerLimits,
        blocks: BlockManager,
        make_grammar: Callable[[str, Thinking | None], Grammar] | None = None,
    ):
        self.limits = limits
        self.blocks = blocks
        self._make_grammar = make_grammar
        self._failures: list[TokenDelta] = []
        self._waiting: list[tuple[tuple[int, int], Sequence]] = []  # heap in order of service
        self._running: list[Sequence] = []  # sorted in order of service
        self._groups: dict[str, list[Sequence]] = {}  # live sequences by request id
        self._free_rows = list(range(limits.max_num_seqs))  # heap: low rows first, so that device arrays stay dense
        # who samples and whose prompts are read in steps not yet updated
        self._inflight: deque[tuple[int, list[tuple[int, Sequence]], PromptReading]] = deque()
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
            if request.params.grammar is not None:
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
        _, sampling, _ = self._inflight[-1]
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
        if not plan.sequences:
            return None
        step = plan.finish(self._step_id)
        self._step_id += 1
        self._inflight.append((step.step_id, plan.sampling, plan.reading))
        self._step_tokens.append(step.num_tokens)
        return step

    def update(self, step: StepInput, output: StepOutput) -> list[TokenDelta]:
        """Take in the sampled tokens of the oldest step in flight: append, finish, report."""
        step_id, sampling, reading = self._inflight.popleft()
        assert step_id == step.step_id == output.step_id, "steps are updated in the order they were scheduled"
        deltas = self._take_reads(reading, output)
        for i, ((_, seq), token_id) in enumerate(zip(sampling, output.token_ids.tolist(), strict=True)):
            seq.num_inflight -= 1
            if seq.status is not Status.FINISHED:  # else it ended (or was aborted) while this step was in flight
                deltas.append(self._append_token(seq, token_id, output.logprobs.get(i)))
        return deltas

    def _take_reads(self, reading: PromptReading, output: StepOutput) -> list[TokenDelta]:
        deltas = []
        for seq, delta in reading.deltas(output):
            if delta.finish_reason is not None:
                self._finish(seq, forget=delta.finish_reason is FinishReason.ERROR)
            deltas.append(delta)
        return deltas

    def _schedule_running(self, plan: StepPlan) -> int:
        """Tokens for running sequences; returns the budget that is left."""
        budget = self.limits.max_num_batched_tokens
        shares, budget = self._split_budget(budget)
        for seq in list(self._running):
            num_new = shares.get(seq, 0)
            if num_new and seq.status is Status.RUNNING and self._grow(seq, num_new, plan):
                self._plan(seq, num_new, plan)
        return budget

    def _split_budget(self, budget: int) -> tuple[dict[Sequence, int], int]:
        """How many tokens each running sequence computes: decodes first, then prompts in order of service."""
        shares: dict[Sequence, int] = {}
        behind = []
        for seq in self._running:
            remaining = seq.num_remaining_tokens
            if remaining > 1 or not seq.max_tokens:
                behind.append(seq)
            elif budget and seq.num_output_tokens + seq.num_inflight < seq.max_tokens:
                shares[seq] = 1
                budget -= 1
        for seq in behind:
            num_new = min(budget, seq.num_remaining_tokens)
            if num_new:
                shares[seq] = num_new
                budget -= num_new
        return shares, budget

    def _grow(self, seq: Sequence, num_new: int, plan: StepPlan) -> bool:
        """Blocks for ``num_new`` more tokens, preempting from the end of the order; False when ``seq`` itself had to
        go.
        """
        while not self.blocks.extend(seq, seq.num_computed_tokens + num_new, plan.growth):
            victim = self._running[-1]
            self._preempt(victim)
            if victim is seq:
                return False
        return True

    def _admit_waiting(self, plan: StepPlan, budget: int) -> None:
        set_aside = []
        while self._waiting and budget and self._free_rows:
            _, seq = self._waiting[0]
            if seq.status is Status.FINISHED:  # aborted or failed while it waited
                heapq.heappop(self._waiting)
                self._num_stale -= 1
            elif seq.grammar is not None and seq.grammar.ready and seq.grammar.error:
                self._fail(seq, f"the grammar cannot be used: {seq.grammar.error}")
            elif seq.num_inflight or self._waits_for_parent(seq, plan) or not seq.grammar_ready:
                set_aside.append(heapq.heappop(self._waiting))
            else:
                num_new = self._admit(seq, budget, plan)
                if not num_new:
                    break
                heapq.heappop(self._waiting)
                budget -= num_new
        for entry in set_aside:
            heapq.heappush(self._waiting, entry)

    def _admit(self, seq: Sequence, budget: int, plan: StepPlan) -> int:
        """Give ``seq`` a row and its first blocks; returns the tokens it computes this step, 0 when it does not fit
        yet.
        """
        if not self._take_first_blocks(seq):
            return 0
        num_new = min(budget, seq.num_remaining_tokens)
        growth = Growth()  # only its copies matter: the new row's table is sent whole
        granted = self.blocks.extend(seq, seq.num_computed_tokens + num_new, growth)
        assert granted, "an admitted sequence has been promised its blocks"
        seq.row = heapq.heappop(self._free_rows)
        seq.status = Status.RUNNING
        insort(self._running, seq, key=_service_order)
        plan.take_row(seq, growth.copies)
        self._plan(seq, num_new, plan)
        return num_new

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
        plan.add(seq, num_new)
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
            self._finish(seq, forget=True)
            return self._delta(seq, [], FinishReason.ERROR, error="the model produced logits that are not finite")
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
            if not forget:
                self.blocks.commit(seq)  # the next turn of a conversation begins with this one's tokens
            self._running.remove(seq)
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
        self._running.remove(seq)
        self._give_up_device(seq)
        seq.status = Status.WAITING
        seq.num_preemptions += 1
        self._num_preemptions += 1
        heapq.heappush(self._waiting, (seq.sort_key, seq))

    def _give_up_device(self, seq: Sequence, forget: bool = False) -> None:
        self.blocks.free(seq, forget)
        heapq.heappush(self._free_rows, seq.row)
        seq.row = -1
        seq.row_has_last_token = False

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
        )

    def check_integrity(self) -> None:
        """Every row and block is accounted for exactly once; for tests and idle moments."""
        self.blocks.check_integrity(self._running)
        rows = sorted([*self._free_rows, *(seq.row for seq in self._running)])
        assert rows == list(range(self.limits.max_num_seqs)), "a device row is lost or held twice"
        assert self._running == sorted(self._running, key=_service_order)
        live = {id(seq) for group in self._groups.values() for seq in group}
        waiting = {id(seq) for _, seq in self._waiting if seq.status is Status.WAITING}
        fresh = [seq for _, seq in self._waiting if seq.status is Status.WAITING and not seq.num_preemptions]
        assert self.queued == QueueLoad(len(fresh), sum(seq.num_prompt_tokens for seq in fresh)), (
            "the queue is miscounted"
        )
        assert live == waiting | {id(seq) for seq in self._running}, "a sequence is neither waiting nor running"
