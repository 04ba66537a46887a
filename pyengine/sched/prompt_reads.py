"""What requests want of their prompts besides KV: log-probabilities of its tokens, a pooled vector, or just its end.

A chunk of such a prompt is *read*: the scheduler says which tokens, the runner answers with the step. A part that was
read once is not asked for again, so a preempted sequence goes on where it was, and only parts already read may come
from the prefix cache.

    prompt   [read before ......)[this chunk: t ... )         the hidden state of token t scores token t + 1

Sums for pooling are in the device row, which a preemption takes away: they begin again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from pyengine.protocol import FinishReason, Pooling, TokenDelta, TokenLogprob
from pyengine.sched.sequence import Sequence, Status
from pyengine.sched.step import PoolRead, PromptReads, ScoreRead, StepOutput

NOT_FINITE = "the model produced logits that are not finite"


class PromptReading:
    """The reads of one step, and whose they are until the step is updated."""

    def __init__(self) -> None:
        self._scores: list[tuple[Sequence, int, ScoreRead]] = []  # with the position of the first token read
        self._pools: list[PoolRead] = []
        self._pooled: list[Sequence] = []  # whose vectors this step completes
        self._ended: list[Sequence] = []  # who wants nothing behind the prompt, and has it with this step

    def plan(self, batch_row: int, seq: Sequence, start: int, end: int) -> None:
        """``seq`` computes the tokens [start, end) in this step."""
        if seq.scores_prompt:
            first, last = max(start, seq.num_read_tokens), min(end, seq.num_prompt_tokens - 1)
            if first < last:
                targets = tuple(seq.token_ids[first + 1 : last + 1])
                read = ScoreRead(batch_row, first - start, targets, seq.request.params.prompt_logprobs)
                self._scores.append((seq, first, read))
        if seq.request.pooling is not None:
            self._plan_pool(batch_row, seq, start, end)
        elif not seq.max_tokens and end == seq.num_prompt_tokens:
            self._ended.append(seq)

    def _plan_pool(self, batch_row: int, seq: Sequence, start: int, end: int) -> None:
        """The last token alone, or all of them."""
        ends = end == seq.num_prompt_tokens
        if seq.request.pooling is Pooling.MEAN:
            divisor = seq.num_prompt_tokens if ends else 0
            self._pools.append(PoolRead(batch_row, seq.row, 0, end - start, start == 0, divisor))
        elif ends:
            self._pools.append(PoolRead(batch_row, seq.row, end - start - 1, 1, True, 1))
        if ends:
            self._pooled.append(seq)

    def freeze(self) -> PromptReads:
        return PromptReads(tuple(read for _, _, read in self._scores), tuple(self._pools))

    def deltas(self, output: StepOutput) -> Iterator[tuple[Sequence, TokenDelta]]:
        """What the step read, for the sequences that still live; the caller finishes those whose delta says so."""
        for (seq, first, _), scores in zip(self._scores, output.prompt_scores, strict=True):
            if seq.status is not Status.FINISHED:
                yield from _score_deltas(seq, first, scores)
        for seq, vector in zip(self._pooled, () if output.pooled is None else output.pooled, strict=True):
            if seq.status is not Status.FINISHED:
                yield seq, _vector_delta(seq, vector)
        for seq in self._ended:
            if seq.status is not Status.FINISHED:
                yield seq, _delta(seq, FinishReason.LENGTH)


def _score_deltas(seq: Sequence, first: int, scores: list[TokenLogprob]) -> Iterator[tuple[Sequence, TokenDelta]]:
    """The scores that are new: after a preemption two steps in flight may read the same tokens."""
    new = scores[seq.num_read_tokens - first :]
    if any(math.isnan(score.logprob) for score in new):
        yield seq, _delta(seq, FinishReason.ERROR, error=NOT_FINITE)
    elif new:
        seq.num_read_tokens += len(new)
        yield seq, _delta(seq, prompt_logprobs=new)


def _vector_delta(seq: Sequence, vector: np.ndarray) -> TokenDelta:
    if not np.isfinite(vector).all():
        return _delta(seq, FinishReason.ERROR, error="the model produced hidden states that are not finite")
    return _delta(seq, FinishReason.STOP, embedding=vector.astype("<f4").tobytes())


def _delta(seq: Sequence, reason: FinishReason | None = None, **more: object) -> TokenDelta:
    return TokenDelta(seq.request.request_id, seq.index, [], reason, num_cached_tokens=seq.num_cached_tokens, **more)
