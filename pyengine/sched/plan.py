"""A step in the making: what the scheduler collects before it becomes a frozen ``StepInput``."""

from __future__ import annotations

import numpy as np

from pyengine.kv.block_manager import Growth
from pyengine.sched.prompt_reads import PromptReading
from pyengine.sched.sequence import Sequence
from pyengine.sched.step import NewRow, StepInput, int32


class StepPlan:
    """Collects sequences in batch order; ``finish`` turns it into arrays. Adding a sequence advances its computed
    tokens.
    """

    def __init__(self) -> None:
        self.growth = Growth()
        self.sequences: list[Sequence] = []
        self.sampling: list[tuple[int, Sequence]] = []  # (batch row, sequence) of those that sample
        self.filling: set[Sequence] = set()  # sequences some of whose prompt's blocks this very step may fill
        self.reading = PromptReading()
        self._num_new: list[int] = []
        self._num_computed: list[int] = []
        self._offsets: list[int] = []
        self._prompt_ids: list[int] = []
        self._samples: list[bool] = []
        self._new_rows: list[NewRow] = []

    def take_row(self, seq: Sequence, copies: list[tuple[int, int]]) -> None:
        """``seq`` has just got its device row: send its block table whole, after these block copies."""
        self.filling.add(seq)  # even what it found in the cache may be computed by a neighbour in this step
        params = seq.request.params
        tokens = tuple(seq.token_ids) if params.needs_history else ()
        stops = tuple(seq.stop_token_ids) if params.min_tokens else ()
        self._new_rows.append(NewRow(seq.row, params, seq.seed, seq.num_prompt_tokens, stops, tokens))
        self.growth.copies.extend(copies)
        self.growth.entries.extend((seq.row, i, block) for i, block in enumerate(seq.block_table))

    def add(self, seq: Sequence, num_new: int) -> None:
        """``seq`` computes its next ``num_new`` tokens; it samples when nothing is left to compute after them
        and there is anything to generate."""
        start, end = seq.num_computed_tokens, seq.num_computed_tokens + num_new
        if seq.row_has_last_token:
            assert num_new == 1
            self._offsets.append(-1)
        else:
            self._offsets.append(len(self._prompt_ids))
            self._prompt_ids.extend(seq.token_ids[start:end])
        if start < seq.num_prompt_tokens:
            self.filling.add(seq)
            self.reading.plan(len(self.sequences), seq, start, end)
        samples = end == seq.num_tokens + seq.num_inflight and seq.max_tokens > 0
        self.sequences.append(seq)
        self._num_new.append(num_new)
        self._num_computed.append(start)
        self._samples.append(samples)
        seq.num_computed_tokens = end
        if samples:
            self.sampling.append((len(self.sequences) - 1, seq))
            seq.num_inflight += 1
            seq.row_has_last_token = True

    def finish(self, step_id: int) -> StepInput:
        return StepInput(
            step_id=step_id,
            rows=int32([seq.row for seq in self.sequences]),
            num_new_tokens=int32(self._num_new),
            num_computed_tokens=int32(self._num_computed),
            prompt_offsets=int32(self._offsets),
            prompt_ids=int32(self._prompt_ids),
            samples=np.asarray(self._samples, dtype=bool),
            block_entries=int32(self.growth.entries).reshape(-1, 3),
            copies=int32(self.growth.copies).reshape(-1, 2),
            new_rows=tuple(self._new_rows),
            reads=self.reading.freeze(),
        )
