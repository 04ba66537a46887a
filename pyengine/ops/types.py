"""The dataclasses that group the ops' tensors; they hold data and do nothing.

Shapes, dtypes and meaning follow the params structs in csrc/include/pe. All index tensors are int32 unless said
otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedWeight:
    """A dense layer's weight [n, k] in the layout that its backend streams best (see csrc/include/pe/linear.h)."""

    data: Tensor  # CUDA: [n, k] row-major; CPU: panels of 16 rows, flat, zero-padded to whole panels
    n: int
    k: int

    @property
    def dtype(self) -> torch.dtype:
        return self.data.dtype

    @property
    def device(self) -> torch.device:
        return self.data.device


@dataclass(frozen=True)
class AttentionMetadata:
    """What paged attention needs to know about a step, for all layers alike.

    Sequence ``s`` owns the query rows [query_start[s], query_start[s + 1]) and the block table
    ``block_tables[table_rows[s]]``.
    """

    block_tables: Tensor  # [num_rows, max_blocks]
    table_rows: Tensor | None  # [num_seqs]; None: sequence s reads row s
    query_start: Tensor  # [num_seqs + 1], ascending from 0
    seq_lens: Tensor  # [num_seqs] tokens in the cache, those of this step included
    num_tokens: int  # rows of q, padding included
    max_seq_len: int  # upper bound of seq_lens
    plan: Tensor | None = None  # uint8; written by attention_plan (CUDA)
    workspace: Tensor | None = None  # uint8; scratch of paged_attention (CUDA)


@dataclass(frozen=True)
class StepTensors:
    """The tensors of ``step_inputs``, grouped by who writes them."""

    # device rows, written by store_tokens and update_block_tables
    last_tokens: Tensor  # [num_rows]
    block_tables: Tensor  # [num_rows, max_blocks]
    block_size: int
    # the step, copied from the host, [num_seqs] each
    rows: Tensor  # -1: padding
    num_new_tokens: Tensor
    num_computed: Tensor
    prompt_offsets: Tensor  # into prompt_ids; -1: the row's last token
    prompt_ids: Tensor  # [any]
    # written by step_inputs
    query_start: Tensor  # [num_seqs + 1]
    seq_lens: Tensor  # [num_seqs]; 0: padding
    input_ids: Tensor  # [num_tokens]; 0: padding
    positions: Tensor  # [num_tokens]; 0: padding
    slot_mapping: Tensor  # [num_tokens] int64; -1: padding
    last_indices: Tensor  # [num_seqs] index of the sequence's last token in the step
