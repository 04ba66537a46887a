"""The device's side of live sequences: one row each, persistent from admission to the end.

A row holds the last sampled token and the block table. A step arrives as small deltas; input
ids, positions and slots are then built on the device, so that a decoded token never visits the host before it is
computed on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyengine import ops
from pyengine.ops import StepTensors
from pyengine.runner.kv_memory import MemoryPlan
from pyengine.runner.staging import Staging
from pyengine.sched.step import StepInput


@dataclass(frozen=True, slots=True)
class PassSize:
    """What a pass is captured for.

    Attributes:
        decodes: one token of each sequence, in their order: the pass's rows are its tokens.
    """

    num_seqs: int
    num_tokens: int
    decodes: bool


@dataclass(frozen=True)
class InputBatch:
    """The tensors of one pass, views of persistent buffers. The size includes padding.

    Attributes:
        input_ids: int32 [num_tokens]; positions: int32 [num_tokens]; slot_mapping: int64 [num_tokens], -1 for padding.
        query_start: int32 [num_seqs + 1]; seq_lens: int32 [num_seqs].
        rows: int32 [num_seqs] device rows, -1 for padding; sample_rows: the same with -1 where nothing is sampled.
        last_indices: int32 [num_seqs] index of each sequence's last token.
    """

    size: PassSize
    input_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    query_start: Tensor
    seq_lens: Tensor
    rows: Tensor
    sample_rows: Tensor
    last_indices: Tensor

    @property
    def num_seqs(self) -> int:
        return self.size.num_seqs

    @property
    def num_tokens(self) -> int:
        return self.size.num_tokens


class DeviceState:
    """Rows and input buffers for as many sequences and tokens as ``plan`` lets a step have.

    What a step sends goes through ``staging`` in one copy. Every buffer has a fixed address, as a captured pass needs.
    """

    def __init__(self, plan: MemoryPlan, device: torch.device, staging: Staging):
        max_num_seqs, max_num_tokens = plan.max_num_seqs, plan.max_num_batched_tokens

        def int32(*shape: int, fill: int = 0) -> Tensor:
            return torch.full(shape, fill, dtype=torch.int32, device=device)

        self._block_size = plan.block_size
        self._staging = staging
        # rows
        self.last_tokens = int32(max_num_seqs)
        self.block_tables = int32(max_num_seqs, plan.max_blocks_per_seq)
        # step, sent by the host; sequences past the live ones are padding
        self._rows, self._sample_rows = staging.slot(max_num_seqs), staging.slot(max_num_seqs)
        self._num_new, self._num_computed = staging.slot(max_num_seqs), staging.slot(max_num_seqs)
        self._prompt_offsets = staging.slot(max_num_seqs)
        # step, worked out by ``apply``
        self._seq_lens, self._last_indices = int32(max_num_seqs), int32(max_num_seqs)
        self._query_start = int32(max_num_seqs + 1)
        self._input_ids, self._positions = int32(max_num_tokens), int32(max_num_tokens)
        self._slot_mapping = torch.full((max_num_tokens,), -1, dtype=torch.int64, device=device)
        self._decode_batches: dict[PassSize, InputBatch] = {}  # views are dear: some microseconds each

    def batch(self, size: PassSize) -> InputBatch:
        """The views of a pass of this padded size; the same memory every time."""
        if not size.decodes:
            return self._make_batch(size)
        if size not in self._decode_batches:
            self._decode_batches[size] = self._make_batch(size)
        return self._decode_batches[size]

    def _make_batch(self, size: PassSize) -> InputBatch:
        num_seqs, num_tokens = size.num_seqs, size.num_tokens
        return InputBatch(
            size,
            self._input_ids[:num_tokens],
            self._positions[:num_tokens],
            self._slot_mapping[:num_tokens],
            self._query_start[: num_seqs + 1],
            self._seq_lens[:num_seqs],
            self._rows.device[:num_seqs],
            self._sample_rows.device[:num_seqs],
            self._last_indices[:num_seqs],
        )

    def apply(self, step: StepInput, size: PassSize) -> InputBatch:
        """Update the rows and build the inputs of ``step``, padded to ``size``."""
        batch, num_seqs = self.batch(size), size.num_seqs
        self._rows.write(step.rows, num_seqs, -1)
        self._sample_rows.write(sampling_rows(step), num_seqs, -1)
        num_new = self._num_new.write(step.num_new_tokens, num_seqs)
        num_computed = self._num_computed.write(step.num_computed_tokens, num_seqs)
        prompt_offsets = self._prompt_offsets.write(step.prompt_offsets, num_seqs)
        block_entries, prompt_ids = self._staging.put(step.block_entries), self._staging.put(step.prompt_ids)
        self._staging.flush()
        if len(step.block_entries):
            ops.update_block_tables(self.block_tables, block_entries)
        ops.step_inputs(
            StepTensors(
                last_tokens=self.last_tokens,
                block_tables=self.block_tables,
                block_size=self._block_size,
                rows=batch.rows,
                num_new_tokens=num_new,
                num_computed=num_computed,
                prompt_offsets=prompt_offsets,
                prompt_ids=prompt_ids,
                query_start=batch.query_start,
                seq_lens=batch.seq_lens,
                input_ids=batch.input_ids,
                positions=batch.positions,
                slot_mapping=batch.slot_mapping,
                last_indices=batch.last_indices,
            )
        )
        return batch

    def store_tokens(self, batch: InputBatch, token_ids: Tensor) -> None:
        """Make ``token_ids`` int32 [num_seqs] the last tokens of the rows that sampled."""
        ops.store_tokens(self.last_tokens, batch.sample_rows, token_ids)


def sampling_rows(step: StepInput) -> np.ndarray:
    """int32 [num_seqs]: the device row of each sequence that samples, else -1."""
    return np.where(step.samples, step.rows, np.int32(-1))
