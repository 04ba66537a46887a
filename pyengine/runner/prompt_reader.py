"""Reads prompts on the device, from the hidden states of a chunk: log-probabilities of their tokens, pooled vectors.

The logits of a long prompt are never all there: they are made and used up in slices of a few rows, which fit into what
the memory plan has for the sampler. A row's logits do not depend on its slice, so the results do not depend on how the
prompt was cut into chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyengine import ops
from pyengine.protocol import TokenLogprob
from pyengine.runner.pooler import Pooler
from pyengine.sampling.stage import Upload
from pyengine.sched.step import PromptReads, StepInput

MAX_SLICE_ROWS = 256


@dataclass(frozen=True)
class PromptTensors:
    """What a step's ``reads`` found, in their order: see ops.logprobs for the scores, Pooler for ``pooled``."""

    reads: PromptReads
    scores: tuple[Tensor, ...] = ()
    pooled: Tensor | None = None

    def map(self, move: Callable[[Tensor], Tensor]) -> PromptTensors:
        pooled = None if self.pooled is None else move(self.pooled)
        return PromptTensors(self.reads, tuple(map(move, self.scores)), pooled)

    def prompt_scores(self) -> tuple[list[TokenLogprob], ...]:
        """One list for each of ``reads.scores``. The tensors must be on the host."""
        if not self.scores:
            return ()
        logprobs, ranks, ids, tops = (tensor.tolist() for tensor in self.scores)
        out, begin = [], 0
        for read in self.reads.scores:
            count, rows = read.num_logprobs, range(begin, begin + len(read.target_ids))
            out.append([TokenLogprob(logprobs[i], ranks[i], ids[i][:count], tops[i][:count]) for i in rows])
            begin = rows.stop
        return tuple(out)


class PromptReader:
    """``rows`` before the pass, ``read`` after it.

    Args:
        logits: float32 [N, vocab_size] of hidden states [N, hidden_size].
        max_num_seqs: rows of logits that a step has in any case.
    """

    def __init__(self, logits: Callable[[Tensor], Tensor], max_num_seqs: int, upload: Upload):
        self._logits = logits
        self._slice_rows = min(MAX_SLICE_ROWS, max_num_seqs)
        self._pooler = Pooler(max_num_seqs, upload)
        self._upload = upload

    def rows(self, last_indices: Tensor, step: StepInput) -> Tensor:
        """int32 [num_seqs + N]: the rows of the pass whose hidden states are wanted: the last ones, then those read."""
        starts = np.cumsum(step.num_new_tokens) - step.num_new_tokens
        reads = step.reads
        counts = [len(read.target_ids) for read in reads.scores] + [read.num_tokens for read in reads.pools]
        wanted = [
            np.arange(count, dtype=np.int32) + (starts[read.batch_row] + read.first)
            for read, count in zip((*reads.scores, *reads.pools), counts, strict=True)
        ]
        return torch.cat((last_indices, self._upload(np.concatenate(wanted).astype(np.int32))))

    def read(self, hidden: Tensor, reads: PromptReads) -> PromptTensors:
        """``hidden`` [N, hidden_size]: what ``rows`` asked for behind the last ones."""
        num_scored = sum(len(read.target_ids) for read in reads.scores)
        scores = self._score(hidden[:num_scored], reads) if reads.scores else ()
        pooled = self._pooler.pool(hidden[num_scored:], reads.pools) if reads.pools else None
        return PromptTensors(reads, scores, pooled)

    def _score(self, hidden: Tensor, reads: PromptReads) -> tuple[Tensor, ...]:
        targets = self._upload(np.concatenate([np.asarray(read.target_ids, np.int32) for read in reads.scores]))
        k = max(read.num_logprobs for read in reads.scores)
        slices = []
        for begin in range(0, len(targets), self._slice_rows):
            end = min(begin + self._slice_rows, len(targets))
            slices.append(ops.logprobs(self._logits(hidden[begin:end]), targets[begin:end], k))
        return tuple(torch.cat(parts) for parts in zip(*slices, strict=True))
