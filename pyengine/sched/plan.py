"""A step in the making: what the scheduler collects before it becomes a frozen ``StepInput``."""

from __future__ import annotations

import numpy as np

from pyengine.kv.block_manager import Growth
from pyengine.kv.host_tier import Swaps
from pyengine.sched.decodes import Members
from pyengine.sched.prompt_reads import PromptReading
from pyengine.sched.sequence import Sequence
from pyengine.sched.step import NewRow, StepInput, int32, pairs

NOBODY = Members.of([])
NO_ENTRIES = int32().reshape(0, 3)


class StepPlan:
    """Collects sequences in batch order; ``finish`` turns it into arrays. Adding a sequence advances its computed
    tokens.
    """

    def __init__(self) -> None:
        self.growth = Growth()
        self.decodes = NOBODY
        self.sampling: list[tuple[int, Sequence]] = []  # (batch row, sequence) of the others that sample
        self.filling: set[Sequence] = set()  # sequences some of whose prompt's blocks this very step may fill
        self.reading = PromptReading()
        self._decodes_computed = int32()
        self._sequences: list[Sequence] = []  # batch order, after the decodes
        self._num_new: list[int] = []
        self._num_computed: list[int] = []
        self._offsets: list[int] = []
        self._prompt_ids: list[int] = []
        self._samples: list[bool] = []
        self._new_rows: list[NewRow] = []

    @property
    def num_seqs(self) -> int:
        return len(self.decodes) + len(self._sequences)

    def add_decodes(self, members: Members, num_computed: np.ndarray) -> None:
        """These come first in the batch; each computes the token that its row holds, and samples."""
        assert not self._sequences
        self.decodes, self._decodes_computed = members, num_computed

    def take_row(self, seq: Sequence, copies: list[tuple[int, int]]) -> None:
        """``seq`` has just got its device row: send its block table whole, after these block copies."""
        self.filling.add(seq)  # even what it found in the cache may be computed by a neighbour in this step
        params = seq.request.params
        tokens = tuple(seq.token_ids) if params.needs_history else ()
        stops = tuple(seq.stop_token_ids) if params.min_tokens else ()
        self._new_rows.append(NewRow(seq.row, params, seq.seed, seq.num_prompt_tokens, stops, tokens))
        self.growth.copies.extend(copies)
        self.growth.entries.extend((seq.row, i, block) for i, block in enumerate(seq.block_table))

    def add(self, seq: Sequence, num_new: int) -> bool:
        """``seq`` computes its next ``num_new`` tokens; returns whether it samples: nothing is left after them, and
        there is anything to generate.
        """
        start, end = seq.num_computed_tokens, seq.num_computed_tokens + num_new
        samples = end == seq.num_tokens and seq.max_tokens > 0
        if start < seq.num_prompt_tokens:
            self.filling.add(seq)
            self.reading.plan(self.num_seqs, seq, start, end)
        self._sequences.append(seq)
        self._num_new.append(num_new)
        self._num_computed.append(start)
        self._offsets.append(len(self._prompt_ids))
        self._prompt_ids.extend(seq.token_ids[start:end])
        self._samples.append(samples)
        seq.num_computed_tokens = end
        if samples:
            self.sampling.append((self.num_seqs - 1, seq))
            seq.num_inflight += 1
        return samples

    def finish(self, step_id: int, swaps: Swaps) -> StepInput:
        num_decodes = len(self.decodes)

        def after_decodes(decodes: np.ndarray, others: list) -> np.ndarray:
            return np.concatenate((decodes, np.asarray(others, decodes.dtype))) if others else decodes

        growth = self.growth

        return StepInput(
            step_id=step_id,
            rows=after_decodes(self.decodes.rows, [seq.row for seq in self._sequences]),
            num_new_tokens=after_decodes(np.ones(num_decodes, np.int32), self._num_new),
            num_computed_tokens=after_decodes(self._decodes_computed, self._num_computed),
            prompt_offsets=after_decodes(np.full(num_decodes, -1, np.int32), self._offsets),
            prompt_ids=int32(self._prompt_ids),
            samples=after_decodes(np.ones(num_decodes, bool), self._samples),
            block_entries=int32(growth.entries).reshape(-1, 3) if growth.entries else NO_ENTRIES,
            copies=pairs(growth.copies),
            new_rows=tuple(self._new_rows),
            swaps_out=pairs(swaps.outs),
            swaps_in=pairs(swaps.ins),
            reads=self.reading.freeze(),
        )
