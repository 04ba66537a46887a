"""Pooling of hidden states over a prompt, chunk by chunk, in state per device row.

Sums are kept in fixed point, where addition has no order: the result does not depend on how the prompt was cut into
chunks, nor on which thread added what first. 26 bits behind the point are as fine as float32 near 1/4, and a million
tokens of the largest value that is kept apart (2 ** 16) still fit into 63 bits.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pyengine.sampling.stage import Upload
from pyengine.sched.step import PoolRead

SCALE = float(1 << 26)
LARGEST = float(1 << 16)
SLICE_TOKENS = 256  # converted at a time, so that a step's hidden states are never all there in 64 bits


class Pooler:
    """State int64 [max_num_seqs, hidden_size] and a count of values that were not finite; made when first needed."""

    def __init__(self, max_num_seqs: int, upload: Upload):
        self._max_num_seqs = max_num_seqs
        self._upload = upload
        self._sums: Tensor | None = None
        self._num_broken: Tensor | None = None

    def pool(self, hidden: Tensor, reads: tuple[PoolRead, ...]) -> Tensor:
        """Add ``hidden`` [N, hidden_size], the tokens of ``reads`` one after another.

        Returns:
            float32 [num_ended, hidden_size]: the means of those that end here; NaN where a value was not finite.
        """
        if self._sums is None:
            device = hidden.device
            self._sums = torch.zeros((self._max_num_seqs, hidden.shape[1]), dtype=torch.int64, device=device)
            self._num_broken = torch.zeros(self._max_num_seqs, dtype=torch.int64, device=device)
        begun = self._indices([read.row for read in reads if read.begins])
        self._sums.index_fill_(0, begun, 0)
        self._num_broken.index_fill_(0, begun, 0)
        owners = self._indices(np.repeat([read.row for read in reads], [read.num_tokens for read in reads]))
        for begin in range(0, len(owners), SLICE_TOKENS):
            self._add(hidden[begin : begin + SLICE_TOKENS].float(), owners[begin : begin + SLICE_TOKENS])
        return self._means([read for read in reads if read.divisor])

    def _add(self, values: Tensor, owners: Tensor) -> None:
        self._num_broken.index_add_(0, owners, (~torch.isfinite(values)).sum(1))
        fixed = torch.nan_to_num(values, 0.0).clamp_(-LARGEST, LARGEST).mul_(SCALE).round_()
        self._sums.index_add_(0, owners, fixed.long())

    def _means(self, ended: list[PoolRead]) -> Tensor:
        rows = self._indices([read.row for read in ended])
        divisors = self._upload(np.asarray([read.divisor for read in ended], np.int32))
        means = self._sums[rows].double() / (divisors[:, None] * SCALE)
        return means.masked_fill(self._num_broken[rows][:, None] > 0, float("nan")).float()

    def _indices(self, rows: object) -> Tensor:
        return self._upload(np.asarray(rows, np.int32)).long()
